"""Files of llama.cpp's own quantizer, converted and served by vLLM; and back, with identical tensors.

vLLM on a CPU has a kernel for int4 weights, none for int8 weights in groups of 32 and for MXFP4 experts.
"""

from __future__ import annotations

import shutil

import environments
import numpy as np
import pytest
from engine import ask
from test_gguf_converter import OTHERWISE, by_converter

import make
import qbridge
import small
from qbridge.source.folder import Folder
from qbridge.source.gguf import read_gguf
from qbridge.source.storage import File

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not shutil.which("npm"), reason="npm, which brings llama.cpp, is not here"),
    pytest.mark.filterwarnings("ignore"),
]
NOISE = 0.02  # float16 against float32
# Type: its number in llama.h, the model class, whether vLLM's CPU has a kernel for it.
TYPES = {
    "Q4_0": (2, "LlamaForCausalLM", True),
    "Q8_0": (7, "LlamaForCausalLM", False),
    "MXFP4": (38, "Qwen3MoeForCausalLM", False),
}


def quantized(kind, folder, monkeypatch):
    """(file of the type, folder with the config of its model)."""
    number, architecture, _ = TYPES[kind]
    monkeypatch.setattr(small, "OTHER", {**small.OTHER, architecture: OTHERWISE.get(architecture, {})})
    make.build(architecture, "w4a16", folder)
    qbridge.convert(folder / "model", folder / "dense", "dense", dtype="float32")
    by_converter(folder / "dense", folder / "f32.gguf")
    library = next(environments.ggml().parent.glob("libllama.*"))
    options = ["--out", folder / "a.gguf", "--type", number, "--library", library]
    assert ask("gguf", "llama_quantize.py", folder / "f32.gguf", *options)["status"] == 0
    return folder / "a.gguf", folder / "dense"


def blocks(file):
    """Bytes of every tensor of a file, by name."""
    header, data = read_gguf(File(Folder(file.parent), file.name)), file.read_bytes()
    return {name: (info.kind, data[info.begin : info.end]) for name, info in header.tensors.items()}


def served(folder, dtype):
    run = ask("vllm", "vllm_cpu.py", folder, "--dtype", dtype)
    return run["error"], run.get("prompt_logprobs")


@pytest.mark.parametrize("kind", TYPES)
def test_a_file_there_and_back_has_the_same_blocks(kind, tmp_path, monkeypatch):
    file, config = quantized(kind, tmp_path, monkeypatch)
    was = blocks(file)
    assert kind in {stored for stored, _ in was.values()}
    qbridge.convert(file, tmp_path / "there", "compressed-tensors", config=config)
    qbridge.convert(tmp_path / "there", tmp_path / "back.gguf", "llama.cpp", allow=["no-tokenizer"])
    assert blocks(tmp_path / "back.gguf") == was


@pytest.mark.parametrize("kind", TYPES)
def test_vllm_serves_what_a_file_becomes(kind, tmp_path, monkeypatch):
    file, config = quantized(kind, tmp_path, monkeypatch)
    qbridge.convert(file, tmp_path / "out", "vllm", config=config)
    qbridge.convert(file, tmp_path / "twin", "dense", config=config, dtype="float32")
    error, found = served(tmp_path / "out", "float16")
    print(kind, error)
    if not TYPES[kind][2]:
        assert error is not None  # no kernel on a CPU
        return
    assert error is None
    _, wanted = served(tmp_path / "twin", "float32")
    apart = float(np.abs(np.array(found[1:]) - np.array(wanted[1:])).max())
    print(kind, "differs by", apart)
    assert apart < NOISE
