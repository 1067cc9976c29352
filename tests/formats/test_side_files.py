"""Files beside config.json that say how a model is quantized: made anew with each format, never left lying about."""

from __future__ import annotations

import json

import pytest

import qbridge
from qbridge.formats import registry as formats
from support import ROOT, contents, copy_fixture

FP8 = "compressed_tensors/llama_fp8_dynamic"
STALE = json.dumps({"quantization": {"quant_algo": "NVFP4"}, "bits": 3, "quant_method": "nothing"}).encode()


def quantization_files(folder):
    return {name: data for name, data in contents(folder).items() if name in formats.config_files()}


@pytest.fixture
def src(tmp_path):
    """FP8 with every file in it that any tool would read before, or beside, its config.json."""
    folder = copy_fixture(tmp_path, FP8)
    for name in formats.config_files():
        (folder / name).write_bytes(STALE)
    return folder


def test_every_format_names_its_files():
    assert formats.config_files() == {
        "hf_quant_config.json",
        "quant_config.json",
        "quantization_config.json",
        "quantize_config.json",
    }


@pytest.mark.parametrize("target", ["compressed-tensors", "smooth-quant", "modelopt", "vllm", "dense"])
def test_none_of_the_source_is_left_in_an_output_and_restore_brings_them_back(target, src, tmp_path):
    report = qbridge.convert(src, tmp_path / "there", target)
    ours = formats.load(report.format)
    block = json.loads((tmp_path / "there/config.json").read_text()).get("quantization_config", {})
    written = quantization_files(tmp_path / "there")
    assert {name: json.loads(data) for name, data in written.items()} == formats.side_files(ours, block)
    assert STALE not in written.values()
    if target != "dense":
        qbridge.restore(tmp_path / "there", tmp_path / "back")
        assert quantization_files(tmp_path / "back") == dict.fromkeys(formats.config_files(), STALE)


def test_what_a_format_wrote_is_gone_once_it_is_undone(tmp_path):
    source = ROOT / "fixtures" / FP8 / "model"
    qbridge.convert(source, tmp_path / "there", "modelopt")
    assert quantization_files(tmp_path / "there").keys() == {"hf_quant_config.json"}
    qbridge.restore(tmp_path / "there", tmp_path / "back")
    assert not quantization_files(tmp_path / "back")


def test_the_same_conversion_writes_the_same_bytes_and_a_dry_run_nothing(tmp_path):
    source = ROOT / "fixtures/modelopt/llama_nvfp4/model"
    qbridge.convert(source, tmp_path / "dry", "modelopt", dry_run=True)
    assert not list(tmp_path.iterdir())
    for name in ("one", "two"):
        qbridge.convert(source, tmp_path / name, "modelopt")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert "hf_quant_config.json" in contents(tmp_path / "one")


def test_a_side_file_that_contradicts_what_is_written_is_found(tmp_path):
    source = ROOT / "fixtures/modelopt/llama_nvfp4/model"
    qbridge.convert(source, tmp_path / "there", "modelopt")
    side = tmp_path / "there/hf_quant_config.json"
    side.write_text(side.read_text().replace('"NVFP4"', '"W4A16_NVFP4"'))
    (warning,) = qbridge.verify(source, tmp_path / "there").findings
    assert warning.code == "QB043" and "W4A16_NVFP4" in " ".join(warning.facts)
