"""A region of an output tensor is what lies there in the tensor as a whole, and little else is read for it."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

import qbridge
from support import ROOT

TARGETS = ("vllm", "lmdeploy", "dense")
FIXTURES = [
    "auto_round/llama_2bit_asym/model",
    "awq/llama_gemv/model",
    "compressed_tensors/llama_fp8_block/model",
    "compressed_tensors/llama_mxfp4a16/model",
    "compressed_tensors/llama_nvfp4/model",
    "compressed_tensors/llama_w4a16_asym/model",
    "compressed_tensors/qwen3_moe_fp8_dynamic/model",
    "gguf/qwen3_moe_q4_0/model.gguf",
    "gptq/llama_640/model",
    "gptq/llama_v1_asym/model",
    "gptq/qwen3_moe_v1_sym/model",
    "mlx/llama_affine/model",
    "smooth_quant/llama_lite/model",
]


def regions(shape, seed):
    """A half and a quarter of each dim alone, and a rectangle anywhere."""
    every = tuple((0, size) for size in shape)
    for dim, size in enumerate(shape):
        yield (*every[:dim], (size // 2, size), *every[dim + 1 :])
        yield (*every[:dim], (size // 4, size // 2), *every[dim + 1 :])
    chosen = random.Random(seed)
    yield tuple(tuple(sorted((chosen.randint(0, size), chosen.randint(0, size)))) for size in shape)


def raw(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("fixture", FIXTURES)
def test_a_region_is_a_part_of_the_whole(fixture, target, monkeypatch):
    monkeypatch.setattr("qbridge.write.regions.CODES", 1 << 12)  # several windows in small tensors
    try:
        tensors = qbridge.stream(ROOT / "fixtures" / fixture, target)
    except qbridge.QBridgeError as refused:
        pytest.skip(f"refused: {refused.findings[0].code}")
    with tensors:
        for name, (_, shape) in tensors.shapes.items():
            whole = tensors.tensor(name)
            for region in regions(shape, name):
                part = tensors.region(name, region)
                wanted = whole[tuple(slice(*bounds) for bounds in region)]
                assert part.shape == wanted.shape and np.array_equal(raw(part), raw(wanted)), (name, region)
