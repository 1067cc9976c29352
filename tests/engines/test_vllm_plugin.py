"""vLLM with the plugin gives what it gives for the converted folder, log-probability by log-probability."""

from __future__ import annotations

import json
import subprocess

import environments
import pytest
from engine import HERE, ROOT

import qbridge

pytestmark = pytest.mark.engine

FIXTURES = [
    "gptq/llama_v1_asym",
    "awq/llama_gemv",
    "smooth_quant/llama_lite",
]
STREAMED = "qbridge:"
WRITES = ("O_WRONLY", "O_RDWR", "O_CREAT")


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


def serve(checkpoints, tmp_path, *options, before=()):
    """{checkpoint: answer} of one process of the driver, which serves them one after another."""
    report = tmp_path / "report.json"
    driver = HERE / "drivers/vllm_streamed.py"
    words = [*before, environments.chosen("vllm"), driver, *checkpoints, *options, "--json", report]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(report.read_text())


def gguf(folder):
    """A GGUF file of Q4_0."""
    source = ROOT / "fixtures/compressed_tensors/llama_w4a16/model"
    qbridge.convert(source, folder / "model.gguf", "gguf", allow=["no-tokenizer"])
    return folder / "model.gguf"


@pytest.mark.parametrize("tp", [1, 2])
def test_log_probabilities_are_those_of_the_converted_folder(tp, installed, tmp_path):
    sources = {name: ROOT / "fixtures" / name / "model" for name in FIXTURES} | {"gguf": gguf(tmp_path)}
    pairs = {}
    for name, source in sources.items():
        qbridge.convert(source, tmp_path / "out" / name, "vllm", tp=tp)
        pairs[f"{STREAMED}{source}"] = str(tmp_path / "out" / name)
    answers = serve([each for pair in pairs.items() for each in pair], tmp_path, "--tp", tp)
    for streamed, written in pairs.items():
        assert "error" not in answers[streamed], (streamed, answers[streamed])
        assert answers[streamed]["logprobs"] == answers[written]["logprobs"], streamed
        assert len(answers[streamed]["logprobs"]) == 23
