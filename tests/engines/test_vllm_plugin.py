"""vLLM with the plugin gives what it gives for the converted folder, log-probability by log-probability."""

from __future__ import annotations

import json
import shutil
import subprocess

import environments
import pytest
import wide_gptq
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


def test_a_rank_reads_its_share_and_holds_it(installed, tmp_path):
    memory, source = 128_000_000, tmp_path / "src"
    size = wide_gptq.make(source, hidden=2048, intermediate=5632, layers=6, vocabulary=8192)
    qbridge.convert(source, tmp_path / "out", "vllm", tp=2)
    streamed, written = f"{STREAMED}{source}", str(tmp_path / "out")
    answers = serve([streamed, written], tmp_path, "--tp", 2, "--memory", memory)
    assert answers[streamed]["logprobs"] == answers[written]["logprobs"]
    ours, theirs = (
        [each for each in answers[name]["processes"] if "Worker" in each["name"]] for name in (streamed, written)
    )
    assert len(ours) == len(theirs) == 2
    besides = min(each["read"] for each in theirs)  # modules of Python: vLLM maps the tensors of a folder
    assert max(each["read"] for each in ours) - besides <= 0.6 * size
    # of a folder the pages that are mapped count as well, so that its peak is no bound for ours
    assert max(each["peak"] for each in ours) <= max(each["peak"] for each in theirs) + memory


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_nothing_is_written(installed, tmp_path):
    opened = tmp_path / "opened.txt"
    source = ROOT / "fixtures/gptq/llama_v1_asym/model"
    calls = "open,openat,creat,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,symlink,symlinkat,truncate"
    strace = ["strace", "-f", "--seccomp-bpf", "-qq", "-e", f"trace={calls}", "-o", opened]
    answers = serve([f"{STREAMED}{source}"], tmp_path, before=strace)
    assert "error" not in answers[f"{STREAMED}{source}"]
    lines = opened.read_text().splitlines()
    written = [line for line in lines if "open" not in line.split()[1] or any(flag in line for flag in WRITES)]
    assert not [line for line in written if str(ROOT) in line or f'"{source}' in line]
