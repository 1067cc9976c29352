from __future__ import annotations

import pytest

import goldens
import qbridge
from qbridge.testing.laws import check_format
from support import copy_fixture, edit_json, refusal


@pytest.mark.parametrize("case", goldens.cases("w8a8"))
def test_values_are_codes_times_scales(case):
    goldens.check("w8a8", case)


def test_laws():
    check_format("w8a8")


@pytest.mark.parametrize(
    "block",
    [
        {"weight_block_size": None},
        {"weight_block_size": [128]},
        {"weight_block_size": [128, "128"]},
        {"weight_block_size": [0, 128]},
        {"activation_scheme": "static"},
    ],
)
def test_a_block_that_gives_no_size_or_another_scheme_is_refused(block, tmp_path):
    source = copy_fixture(tmp_path, "w8a8/qwen3_moe_blocks")
    edit_json(source / "config.json", lambda found: found["quantization_config"].update(block))
    refusal(source, 3, "QB013", "w8a8")


@pytest.mark.parametrize("target", ["compressed-tensors", "smooth-quant", "vllm"])
def test_int8_experts_go_to_other_formats_and_back(target, tmp_path):
    source = goldens.ROOT / "fixtures/w8a8/qwen3_moe_int8/model"
    qbridge.convert(source, tmp_path / "there", target)
    assert qbridge.convert(tmp_path / "there", tmp_path / "back", "w8a8").format == "w8a8"
    assert qbridge.verify(source, tmp_path / "back").same


def test_float8_has_no_list_of_what_is_not_quantized(tmp_path):
    source = goldens.ROOT / "fixtures/compressed_tensors/llama_fp8_dynamic/model"
    report = qbridge.convert(source, tmp_path / "whole", "w8a8")
    assert report.format == "w8a8"
    partial = goldens.ROOT / "fixtures/compressed_tensors/llama_partial/model"
    config = qbridge.convert(partial, tmp_path / "partial", "w8a8")
    assert config.format == "w8a8"
