"""What ModelOpt exports, as it is and as qbridge writes it again, served by vLLM on the CPU.

FP8 per channel with inputs per token is the one of its algorithms that vLLM's CPU build can run; others of float8 are
run with a reference kernel, which quantizes no inputs.
"""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from engine import ROOT, ask
from safetensors.torch import load_file, save_file

import qbridge

pytestmark = pytest.mark.engine

SOURCE = ROOT / "fixtures/modelopt/llama_fp8_channel/model"
TENSORS = "model.safetensors"
NOISE = 0.05  # bfloat16 activations against float32


def edited(case, folder, fn, **keys):
    """A copy of a fixture with other tensors, and keys of config.json."""
    shutil.copytree(ROOT / "fixtures/modelopt" / case / "model", folder)
    stored = load_file(folder / TENSORS)
    fn(stored)
    save_file(stored, folder / TENSORS, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **keys}))
    return folder


def one_scale(tensors):
    """Every weight with the largest of the scales there are, so that fused linears have one."""
    names = [name for name in tensors if name.endswith(".weight_scale")]
    largest = torch.stack([tensors[name] for name in names]).max()
    tensors.update((name, largest.clone()) for name in names)


def whole_blocks(tensors):
    """An MLP of three blocks of 128, for vLLM has no kernels for parts of one."""
    torch.manual_seed(0)
    for leaf, rows, columns in (("gate_proj", 384, 128), ("up_proj", 384, 128), ("down_proj", 128, 384)):
        name = f"model.layers.0.mlp.{leaf}"
        tensors[f"{name}.weight"] = torch.randn(rows, columns).to(torch.float8_e4m3fn)
        tensors[f"{name}.weight_scale"] = 0.01 + 0.05 * torch.rand(rows // 128, 1, columns // 128, 1)


def logprobs(checkpoint, driver="vllm_cpu.py"):
    report = ask("vllm", driver, checkpoint)
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


def test_vllm_loads_the_shapes_of_block_scales_that_are_written_and_no_others(tmp_path):
    source = edited("llama_fp8_block", tmp_path / "source", whole_blocks, intermediate_size=384)
    qbridge.convert(source, tmp_path / "own", "modelopt")
    qbridge.convert(source, tmp_path / "dense", "dense")
    found, wanted = logprobs(tmp_path / "own", "vllm_fp8.py"), logprobs(tmp_path / "dense")
    assert all(abs(a - b) < NOISE for a, b in zip(found[0][1:], wanted[0][1:], strict=True))
    # ModelOpt squeezes the scale of a single block
    assert "0-dim" in ask("vllm", "vllm_fp8.py", source)["error"]["message"]

    def squeeze(tensors):
        for name in [name for name in tensors if name.endswith(".weight_scale")]:
            tensors[name] = tensors[name].squeeze(-1).squeeze(1)

    stored = load_file(tmp_path / "own" / TENSORS)
    squeeze(stored)
    save_file(stored, tmp_path / "own" / TENSORS, metadata={"format": "pt"})
    assert ask("vllm", "vllm_fp8.py", tmp_path / "own")["error"]["type"] == "IndexError"


def bfloat16_cache(tensors):
    """Scales as before, those of the kv cache numbers that bfloat16 has: vLLM rounds others of ModelOpt to it."""
    one_scale(tensors)
    names = [name for name in tensors if name.endswith((".k_scale", ".v_scale"))]
    tensors.update((name, tensors[name].bfloat16().float()) for name in names)


@pytest.mark.parametrize("case", ["llama_fp8", "llama_fp8_kv"])
def test_vllm_keeps_scales_of_fused_linears_that_are_one(case, tmp_path):
    source = edited(case, tmp_path / "source", bfloat16_cache)
    original = logprobs(source, "vllm_fp8.py")
    for target in ("vllm", "compressed-tensors"):  # and those of the kv cache, under either name
        qbridge.convert(source, tmp_path / target, target)
    assert qbridge.inspect(tmp_path / "vllm").format == "modelopt"
    assert logprobs(tmp_path / "vllm", "vllm_fp8.py") == original
    assert logprobs(tmp_path / "compressed-tensors", "vllm_fp8.py") == original


def test_vllm_requantizes_others_so_they_go_to_compressed_tensors(tmp_path):
    source = ROOT / "fixtures/modelopt/llama_fp8/model"
    report = qbridge.convert(source, tmp_path / "out", "vllm")
    qbridge.convert(source, tmp_path / "dense", "dense")
    exact, rounded = logprobs(tmp_path / "out", "vllm_fp8.py"), logprobs(source, "vllm_fp8.py")
    wanted = logprobs(tmp_path / "dense")
    off = [max(abs(a - b) for a, b in zip(x[0][1:], wanted[0][1:], strict=True)) for x in (exact, rounded)]
    assert report.format == "compressed-tensors" and off[0] < NOISE < off[1]
