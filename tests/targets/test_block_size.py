"""Float8 in blocks whose quantization block gives no size: engines take the scales for those of whole tensors."""

from __future__ import annotations

import pytest

import qbridge
from support import copy_fixture, edit_quantization


@pytest.mark.parametrize("change", [{"weight_block_size": None}, {}], ids=["null", "absent"])
@pytest.mark.parametrize("target", ["vllm", "sglang", "lmdeploy"])
def test_blocks_without_a_size_are_no_yes(target, change, tmp_path):
    src = copy_fixture(tmp_path, "fp8/llama_blocks")
    edit_quantization(src, lambda block: block.pop("weight_block_size") and block.update(change))
    assert "QB284" in {finding.code for finding in qbridge.check(src, target).findings if finding.severity == "error"}


def test_transformers_has_a_size_of_its_own_where_there_is_none_and_none_where_it_is_null(tmp_path):
    src = copy_fixture(tmp_path, "fp8/llama_blocks")
    edit_quantization(src, lambda block: block.pop("weight_block_size") and None)
    assert qbridge.check(src, "transformers").ok
    edit_quantization(src, lambda block: block.update(weight_block_size=None))
    assert not qbridge.check(src, "transformers").ok


def test_what_is_converted_names_its_size(tmp_path):
    src = copy_fixture(tmp_path, "fp8/llama_blocks")
    edit_quantization(src, lambda block: block.update(weight_block_size=None))
    qbridge.convert(src, tmp_path / "dst", "vllm")
    assert qbridge.check(tmp_path / "dst", "vllm").ok
