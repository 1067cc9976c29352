"""Zero-points stored as floats, as HQQ and TinyGEMM have them, under the names of formats with integer ones."""

from __future__ import annotations

import numpy as np
import pytest

import qbridge
from support import copy_fixture, facts, refusal, rewrite_tensors

CASES = (
    "awq/llama_gemm",
    "awq/llama_gemv",
    "awq/llama_gptqmodel_3bit",
    "gptq/llama_v1_asym",
    "gptq/llama_8bit",
)


@pytest.mark.parametrize("case", CASES)
def test_they_are_named_and_not_read(case, tmp_path):
    src = copy_fixture(tmp_path, case)

    def as_floats(tensors):
        for name in [name for name in tensors if name.endswith(("qzeros", "zero_point"))]:
            tensors[name] = np.zeros(tensors[name].shape, np.float16)

    rewrite_tensors(src, as_floats)
    (found,) = refusal(src, 3, "QB016", "vllm").values()
    assert "zero-points in floats" in facts(found) and "integer ones" in facts(found)
    answer = qbridge.check(src, "vllm")
    assert not answer.ok and "zero-points in floats" in facts(answer.findings)
