"""What is written as GGUF, decoded by the gguf package, and by ggml's C code where npm brings it."""

from __future__ import annotations

import shutil

import environments
import numpy as np
import pytest
from engine import ask
from weight_only import fixture

import qbridge
from qbridge.architecture.gguf_names import GgufNames
from qbridge.architecture.names import module_of
from qbridge.ir.dtypes import to_float64
from qbridge.ir.values import dequantize

pytestmark = pytest.mark.engine

CASES = [
    "awq/llama_gemm",
    "compressed_tensors/llama_mxfp4a16",
    "compressed_tensors/llama_w4a16",
    "compressed_tensors/llama_w4a16_asym",
    "compressed_tensors/llama_w4a16_channel",
    "compressed_tensors/llama_w5a16",
    "compressed_tensors/llama_w8a8",
    "compressed_tensors/qwen2_w4a16_tied",
    "compressed_tensors/qwen3_moe_w4a16",
    "compressed_tensors/qwen3_w8a8",
    "gptq/llama_2bit",
]


def in_gguf(values, names, module):
    """Weights of a module as llama.cpp has them: (name, expert or -1, rows in its order)."""
    place = names.place(module)
    if place.head:
        heads = values.reshape(-1, 2, place.head // 2, *values.shape[1:])
        values = heads.swapaxes(1, 2).reshape(values.shape)
    return place.name, place.expert, values


def expected(src):
    """float32 tensors of a checkpoint by (name in GGUF, expert)."""
    found = {}
    with qbridge.open(src) as opened:
        names = GgufNames(opened.model.config)
        layers = {f"{name}.weight": dequantize(opened.layer(name)) for name in opened.specs}
        plain = {name: to_float64(opened.tensor(name), info.dtype) for name, info in opened.model.tensors.items()}
        for name, values in {**layers, **plain}.items():
            module, leaf = module_of(name)
            place, expert, moved = in_gguf(values.astype(np.float32), names, module)
            found[f"{place}.{leaf}", expert] = moved
    return found


@pytest.mark.parametrize("case", CASES)
def test_llama_cpp_decodes_the_weights_of_the_source(case, tmp_path):
    qbridge.convert(fixture(case), tmp_path / "out", "llama.cpp", allow=["no-tokenizer"])
    library = environments.ggml() if shutil.which("npm") else None
    options = ["--out", tmp_path / "weights.npz", *(["--library", library] if library else [])]
    report = ask("gguf", "gguf_decode.py", tmp_path / "out/model.gguf", *options)
    assert report["unlike"] == [] and report["in_c"] == bool(library)
    weights = np.load(tmp_path / "weights.npz")
    for (name, expert), values in expected(fixture(case)).items():
        written = weights[name] if expert < 0 else weights[name][expert]
        assert np.array_equal(written, values), name
