"""AMD Quark's exports, under the names of either exporter, and what is refused of them."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file, save_file

import goldens
import qbridge
from qbridge.testing.laws import check_format
from support import SINGLE, codes, copy_fixture, edit_quantization, header_of

OLD = ["llama_old_fp8", "llama_old_uint4"]


@pytest.mark.parametrize("case", goldens.cases("quark"))
def test_values_are_codes_times_scales(case):
    goldens.check("quark", case)


def test_laws():
    check_format("quark")


@pytest.mark.parametrize("case", OLD)
@pytest.mark.parametrize("target", ["quark", "vllm"])
def test_names_of_quantizers_become_those_that_engines_load_and_come_back(case, target, tmp_path):
    source = goldens.ROOT / f"fixtures/quark/{case}/model"
    before = header_of(source / "model.safetensors")
    assert any(".weight_quantizer." in name for name in before)
    report = qbridge.convert(source, tmp_path / "out", target)
    names = header_of(tmp_path / "out/model.safetensors")
    assert not any("quantizer" in name for name in names) and qbridge.verify(source, tmp_path / "out").same
    if report.format == "quark":
        assert any(name.endswith(".weight_scale") for name in names)
    qbridge.restore(tmp_path / "out", tmp_path / "back")
    assert header_of(tmp_path / "back/model.safetensors").keys() == before.keys()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"global_quant_config": "int4"}, "QB013"),
        ({"exclude": [1]}, "QB013"),
        ({"export": {"pack_method": "other"}}, "QB013"),
        ({"kv_cache_quant_config": {"*k_proj": {}}}, "QB102"),
        ({"softmax_quant_spec": {"dtype": "fp8_e4m3"}}, "QB102"),
        ({"algo_config": [{"name": "rotation"}]}, "QB102"),
    ],
)
def test_a_block_that_asks_for_more_is_refused(change, code, tmp_path):
    source = copy_fixture(tmp_path, "quark/llama_fp8")
    edit_quantization(source, lambda block: block.update(change))
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.open(source)
    assert codes(refused) == {code}


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "int3"},
        {"qscheme": "per_block"},
        {"is_dynamic": True},
        {"symmetric": False, "dtype": "int8"},
        {"dtype": "fp4", "qscheme": "per_group", "group_size": 16},
    ],
)
def test_a_scheme_that_is_not_read_is_named(change, tmp_path):
    source = copy_fixture(tmp_path, "quark/llama_fp8")
    edit_quantization(source, lambda block: block["global_quant_config"]["weight"].update(change))
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.open(source)
    assert codes(refused) == {"QB101"}


def test_layers_of_two_schemes_are_written_and_read(tmp_path):
    source = goldens.ROOT / "fixtures/modelopt/llama_mixed/model"
    qbridge.convert(source, tmp_path / "out", "quark")
    block = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]
    assert block["layer_quant_config"] and qbridge.verify(source, tmp_path / "out").same


@pytest.mark.parametrize("case", OLD)
def test_vllm_is_told_of_names_that_it_does_not_load(case):
    found = qbridge.check(goldens.ROOT / f"fixtures/quark/{case}/model", "vllm")
    assert not found.ok and any(finding.code == "QB277" for finding in found.findings)


def test_vllm_has_no_int8_weights_alone(tmp_path):
    source = copy_fixture(tmp_path, "quark/llama_int8")
    edit_quantization(source, lambda block: block["global_quant_config"].update(input_tensors=None))
    tensors = {name: one for name, one in load_file(source / SINGLE).items() if "_proj.input_" not in name}
    save_file(tensors, source / SINGLE, {"format": "pt"})
    assert any(finding.code == "QB277" for finding in qbridge.check(source, "vllm").findings)
    assert qbridge.convert(source, tmp_path / "out", "vllm").format == "compressed-tensors"


def test_an_unknown_key_is_a_warning(tmp_path):
    source = copy_fixture(tmp_path, "quark/llama_fp8")
    edit_quantization(source, lambda block: block.update(asks_for_more=1))
    with qbridge.open(source) as opened:
        assert "QB103" in {finding.code for finding in opened.findings}


def test_vllm_is_not_promised_gpt_oss(tmp_path):
    qbridge.convert(goldens.ROOT / "fixtures/mxfp4/gpt_oss/model", tmp_path / "out", "quark")
    assert any(finding.code == "QB277" for finding in qbridge.check(tmp_path / "out", "vllm").findings)
