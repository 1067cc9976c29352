"""vLLM with the plugin gives what it gives for the converted folder, log-probability by log-probability."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine import ROOT, ask

import qbridge

pytestmark = pytest.mark.engine

CASES = ["gptq/llama_v1_asym", "awq/llama_gemv", "smooth_quant/llama_lite"]


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The environment of vLLM with this checkout and its entry point."""
    metadata = tmp_path / "installed/qbridge_llm-0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: qbridge-llm\nVersion: 0\n")
    (metadata / "entry_points.txt").write_text("[vllm.general_plugins]\nqbridge = qbridge.loaders.vllm:register\n")
    folders = (ROOT / "bridge", ROOT / "formats", metadata.parent)
    monkeypatch.setenv("PYTHONPATH", ":".join(map(str, folders)))
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_log_probabilities_are_those_of_the_converted_folder(case, tp, installed, tmp_path):
    source: Path = ROOT / "fixtures" / case / "model"
    qbridge.convert(source, tmp_path / "out", "vllm", tp=tp)
    streamed = ask("vllm", "vllm_streamed.py", source, "--tp", tp, "--streamed")
    written = ask("vllm", "vllm_streamed.py", tmp_path / "out", "--tp", tp)
    assert streamed["logprobs"] == written["logprobs"] and len(streamed["logprobs"]) == 23
