"""A tensor that is not made yet is, in every operation, what it will be; slices of it are made alone."""

from __future__ import annotations

import itertools

import pytest
import torch

import qbridge
from qbridge.loaders.unmade import UnmadeTensor
from support import ROOT

CASES = [
    "gptq/llama_v1_asym/model",
    "compressed_tensors/qwen3_moe_fp8_dynamic/model",
    "gguf/qwen3_moe_q4_0/model.gguf",
]


@pytest.fixture(params=CASES)
def tensors(request):
    with qbridge.stream(ROOT / "fixtures" / request.param, "vllm") as opened:
        yield opened


TAKEN = {
    "all": lambda tensor: tensor,
    "narrow": lambda tensor: tensor.narrow(0, 2, tensor.shape[0] // 2),
    "narrow the last": lambda tensor: tensor.narrow(-1, 0, tensor.shape[-1] // 2),
    "narrow twice": lambda tensor: tensor.narrow(0, 8, 16).narrow(0, 4, 8),
    "an index": lambda tensor: tensor[1],
    "a range": lambda tensor: tensor[2:6],
    "steps": lambda tensor: tensor[::2],
    "chunk": lambda tensor: tensor.chunk(2, dim=0)[1],
    "chunk the last": lambda tensor: tensor.chunk(2, dim=-1)[0],
    "split by sizes": lambda tensor: tensor.split([4, tensor.shape[0] - 4])[1],
    "transposed": lambda tensor: tensor.transpose(0, -1).contiguous(),
    "viewed": lambda tensor: tensor.view(-1)[3:],
    "one more dim": lambda tensor: tensor.unsqueeze(0),
    "data": lambda tensor: tensor.data[:3],
    "a list": lambda tensor: torch.tensor(tensor[:2].to(torch.float32).tolist()),
    "detached": lambda tensor: tensor.detach().to("cpu"),
}


def test_what_is_taken_is_that_of_the_whole(tensors):
    large = [name for name, (_, shape) in tensors.shapes.items() if shape and shape[0] >= 32]
    for name, how in itertools.product(large, TAKEN):
        unmade, whole = UnmadeTensor.whole(tensors, name), tensors.tensor(name)
        taken, wanted = TAKEN[how](unmade), TAKEN[how](whole)
        assert (taken.shape, taken.dtype) == (wanted.shape, wanted.dtype), (name, how)
        filled = torch.empty(wanted.shape, dtype=wanted.dtype)
        filled.copy_(taken)
        assert torch.equal(filled.reshape(-1).view(torch.uint8), wanted.contiguous().reshape(-1).view(torch.uint8)), (
            name
        )


def test_a_slice_stays_unmade_until_it_is_copied(tensors):
    name = next(name for name, (_, shape) in tensors.shapes.items() if len(shape) == 2 and shape[0] >= 32)
    unmade = UnmadeTensor.whole(tensors, name)
    for take in (
        "all",
        "narrow",
        "narrow the last",
        "narrow twice",
        "an index",
        "a range",
        "chunk",
        "data",
        "split by sizes",
    ):
        assert isinstance(TAKEN[take](unmade), UnmadeTensor), take
    assert type(unmade + 0 if unmade.dtype == torch.int32 else unmade.clone()) is torch.Tensor
    assert unmade.numel() == tensors.tensor(name).numel() and "UnmadeTensor" in repr(unmade)


def test_a_cast_into_another_dtype_and_a_number(tensors):
    for name, (dtype, shape) in tensors.shapes.items():
        if dtype in ("F16", "BF16") and shape:
            filled = torch.empty(shape, dtype=torch.float32)
            filled.copy_(UnmadeTensor.whole(tensors, name))
            assert torch.equal(filled, tensors.tensor(name).float())
            one = UnmadeTensor.whole(tensors, name).narrow(0, 0, 1)
            if one.numel() == 1:
                assert one.item() == tensors.tensor(name)[0].item()
