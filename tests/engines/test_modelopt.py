"""What ModelOpt exports, as it is and as qbridge writes it again, served by vLLM on the CPU.

FP8 per channel with inputs per token is the one of its algorithms that vLLM's CPU build can run.
"""

from __future__ import annotations

import pytest
from engine import ROOT, ask

import qbridge

pytestmark = pytest.mark.engine

SOURCE = ROOT / "fixtures/modelopt/llama_fp8_channel/model"


def logprobs(checkpoint):
    report = ask("vllm", "vllm_cpu.py", checkpoint)
    assert report["error"] is None, report["error"]
    return report["prompt_logprobs"], report["tokens"]


@pytest.fixture(scope="module")
def original():
    return logprobs(SOURCE)


@pytest.mark.parametrize(
    "targets", [["modelopt"], ["compressed-tensors"], ["compressed-tensors", "modelopt"], ["vllm"]]
)
def test_vllm_computes_the_same_from_every_format(targets, original, tmp_path):
    source = SOURCE
    for number, target in enumerate(targets):
        qbridge.convert(source, tmp_path / f"{number}", target)
        source = tmp_path / f"{number}"
        (source / "qbridge.json").unlink()
    assert logprobs(source) == original
