"""The quantization block is read wherever it lies in config.json, by every format, and written at the top."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import qbridge
from qbridge.architecture.config import compute_dtype
from qbridge.architecture.quantization_block import NESTED, QUANTIZATION_KEYS, find_block, without_quantization
from qbridge.formats.detection import quant_method
from qbridge.ir.dtypes import DType
from support import copy_fixture, edit_json

ROOT = Path(__file__).resolve().parent.parent.parent
CASES = sorted(str(model.parent.relative_to(ROOT / "fixtures")) for model in ROOT.glob("fixtures/*/*/model"))
CONFIGS = {case: json.loads((ROOT / "fixtures" / case / "model/config.json").read_text()) for case in CASES}
BLOCKS = [case for case, config in CONFIGS.items() if find_block(config)]
FIRST = sorted({case.partition("/")[0]: case for case in reversed(BLOCKS)}.values())


def nest(src, holder, key="quantization_config", architecture=None):
    """Move all that config.json says into the text model's own config, its quantization block under `key`."""

    def nested(config):
        block = config.pop("quantization_config", None) or config.pop("compression_config")
        outer = {key: config.pop(key) for key in ("architectures", "auto_map") if key in config}
        outer |= {"architectures": [architecture]} if architecture else {}
        return {**outer, holder: {**config, key: block}}

    edit_json(src / "config.json", nested)


def opened(folder):
    return qbridge.open(folder, allow=["assumed-activations", "pickle", "v1-zeros-wrap"])


def read(folder):
    """All that a reader takes from a checkpoint, places of findings aside; the codes of a refusal."""
    try:
        checkpoint = opened(folder)
    except qbridge.QBridgeError as fault:
        return [(finding.code, finding.severity) for finding in fault.findings]
    with checkpoint:
        model, found = checkpoint.model, [(finding.code, finding.severity) for finding in checkpoint.findings]
        return model.format, model.specs, model.slots, model.tensors, model.kv_cache, found


@pytest.mark.parametrize("case", BLOCKS)
def test_a_block_in_the_text_config_is_read_as_at_the_top(case, tmp_path):
    src = copy_fixture(tmp_path, case)
    before = read(src)
    nest(src, "text_config")
    assert read(src) == before


@pytest.mark.parametrize("architecture", [None, "NobodysForConditionalGeneration"])
@pytest.mark.parametrize("key", QUANTIZATION_KEYS)
@pytest.mark.parametrize("holder", NESTED)
@pytest.mark.parametrize("case", FIRST)
def test_every_format_reads_a_block_wherever_it_lies(case, holder, key, architecture, tmp_path):
    src = copy_fixture(tmp_path, case)
    before = read(src)
    nest(src, holder, key, architecture)
    assert read(src) == before
    with qbridge.open(src) as checkpoint:
        assert find_block(checkpoint.model.config) is None
        assert quant_method(checkpoint.source.config) == quant_method(CONFIGS[case])
        assert quant_method(CONFIGS[case]) is not None or case.startswith("mlx/")  # whose block names no method


@pytest.mark.parametrize("holder", NESTED)
def test_a_nested_block_is_written_at_the_top(holder, tmp_path, dst):
    src = copy_fixture(tmp_path, "gptq/llama_v1_sym")
    nest(src, holder)
    qbridge.convert(src, dst, "compressed-tensors")
    config = json.loads((dst / "config.json").read_text())
    assert find_block(config).key == "quantization_config"
    assert not set(QUANTIZATION_KEYS) & config[holder].keys()


@pytest.mark.parametrize("method", [False, True])
@pytest.mark.parametrize("case", FIRST)
def test_findings_name_the_place_of_a_nested_block(case, method, tmp_path):
    src = copy_fixture(tmp_path, case)
    nest(src, "text_config")

    def emptied(config):
        block = config["text_config"]["quantization_config"]
        block |= {key: "nonsense" for key in block if key != "quant_method"} | {"unheard_of": 1}
        if not method:
            block.clear()

    edit_json(src / "config.json", emptied)
    try:
        with qbridge.open(src, format=case.partition("/")[0].replace("_", "-"), strict=False) as checkpoint:
            told = checkpoint.findings
    except qbridge.QBridgeError as fault:
        told = fault.findings
    places = " ".join(place for finding in told for place in finding.where)
    others = places.replace("text_config.quantization_config", "").replace("quantization_config.json", "")
    assert "quantization_config" not in others
    assert not method or "text_config.quantization_config" in places or case.startswith("marlin/")


def test_the_top_comes_first():
    top, nested = {"quant_method": "gptq"}, {"quant_method": "awq"}
    block = find_block({"text_config": {"quantization_config": nested}, "compression_config": top})
    assert (block.key, block.raw) == ("compression_config", top)


@pytest.mark.parametrize("nothing", [{}, {"quantization_config": None}, {"text_config": None}, {"text_config": {}}])
def test_no_block(nothing):
    assert find_block(nothing) is None
    assert quant_method(nothing) is None


@pytest.mark.parametrize("value", ["gptq", 3, [], {}])
def test_a_block_that_is_no_object_hides_no_other_and_has_no_keys(value):
    block = find_block({"quantization_config": value, "text_config": {"quantization_config": {"bits": 4}}})
    assert (block.key, block.raw) == ("quantization_config", {})


@pytest.mark.parametrize("holder", NESTED)
def test_the_dtype_to_compute_in_may_be_nested(holder):
    assert compute_dtype({holder: {"torch_dtype": "float16"}}, DType.BF16) is DType.F16


@pytest.mark.parametrize("holder", NESTED)
@pytest.mark.parametrize("key", QUANTIZATION_KEYS)
def test_no_block_is_left(holder, key):
    assert without_quantization({holder: {key: {}, "a": 1}, key: {}, "b": 2}) == {holder: {"a": 1}, "b": 2}


@pytest.mark.parametrize("holder", NESTED)
def test_config_json_alone_is_read_with_a_nested_block(holder, tmp_path):
    src = tmp_path / "src"
    src.mkdir()
    shutil.copy(ROOT / "fixtures/gptq/llama_v1_sym/model/config.json", src)
    before = qbridge.check(src, "vllm")
    nest(src, holder)
    after = qbridge.check(src, "vllm")
    seen = holder == "text_config"  # vLLM looks for a block in no other config within a config
    assert after.ok == (before.ok and seen)
    assert [f.code for f in after.findings if f.code != "QB283"] == [f.code for f in before.findings]
    assert ("QB283" in {f.code for f in after.findings}) != seen


@pytest.mark.parametrize("case", CASES)
def test_every_listed_tensor_is_read_by_its_name(case):
    try:
        checkpoint = opened(ROOT / "fixtures" / case / "model")
    except qbridge.QBridgeError as fault:
        assert {finding.code for finding in fault.findings} == {"QB101"}  # a scheme that has no place in the IR
        return
    with checkpoint:
        for name, info in checkpoint.model.tensors.items():
            listed, stored = checkpoint.tensor(name), checkpoint.tensor(info.stored)
            assert listed.shape == info.shape
            assert listed.tobytes() == stored.tobytes()
        with pytest.raises(KeyError):
            checkpoint.tensor("no.such.tensor")
