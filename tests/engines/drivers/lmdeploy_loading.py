"""What the drivers of both LMDeploy generations share."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import torch

Sharding = Literal["whole", "rows", "columns", "summed"]
QKV = ["q_proj", "k_proj", "v_proj"]
PACKED = {"qkv_proj": QKV, "gate_up_proj": ["gate_proj", "up_proj"]}  # in models that do not say it themselves


class Piece(NamedTuple):
    """One rank's part of a checkpoint tensor and how the parts make the whole."""

    tensor: torch.Tensor
    sharding: Sharding


def inert_operator() -> Any:
    """Stands in for a CUDA operator that holds no weights and is never run."""
    return types.SimpleNamespace()


def rotary_embedding(model: torch.nn.Module) -> dict[str, Any] | None:
    """{"inv_freq": [head_dim / 2], "scaling_factor": divisor of the positions} of a built model."""
    for module in model.modules():
        if hasattr(module, "inv_freq"):
            return {"inv_freq": module.inv_freq.tolist(), "scaling_factor": float(module.scaling_factor)}
    return None


def unfilled_parameters(model: torch.nn.Module, load: Callable[[], object]) -> list[str]:
    """Names of the parameters of which `load` leaves at least one element as it was.

    LMDeploy allocates parameters with torch.empty and does not check that the checkpoint fills them. So
    load twice, over two different fillings: an element that differs afterwards came from no tensor.
    """
    results = []
    for filling in (1, 2):
        for parameter in model.parameters():
            parameter.data.fill_(filling)
        load()
        results.append({name: parameter.data.clone() for name, parameter in model.named_parameters()})
    first, second = results
    return [name for name in first if not torch.equal(_bytes(first[name]), _bytes(second[name]))]


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8)  # NaN equals NaN


def linear_pieces(
    name: str, linear: Any, packed: dict[str, list[str]], weight: torch.Tensor
) -> Iterator[tuple[str, Piece]]:
    """(checkpoint name, piece) of a linear's `weight` [N, K] and of all else that it has; it may be several fused."""
    parent, _, leaf = name.rpartition(".")
    parts = packed.get(leaf, [leaf])
    sizes = [int(size) for size in getattr(linear, "all_out_features", [weight.shape[0]])]
    along: Sharding = "whole" if not linear.is_tp else "rows" if linear.colwise else "columns"
    of_bias: Sharding = "summed" if along == "columns" else along
    tensors = {"weight": Piece(weight, along)}
    if linear.bias is not None:
        tensors["bias"] = Piece(linear.bias.data, of_bias)
    if hasattr(linear, "input_scale"):
        for part in parts:
            yield ".".join(filter(None, (parent, part, "input_scale"))), Piece(linear.input_scale.data, "whole")
    for kind, (tensor, sharding) in tensors.items():
        for part, rows in zip(parts, tensor.split(sizes), strict=True):
            yield ".".join(filter(None, (parent, part, kind))), Piece(rows, sharding)


def join(ranks: list[dict[str, Piece]]) -> dict[str, torch.Tensor]:
    """{checkpoint name: whole tensor} from the pieces of all ranks."""
    whole = {}
    for name, (first, sharding) in ranks[0].items():
        parts = [rank[name].tensor for rank in ranks]
        if sharding == "whole":
            whole[name] = first
        elif sharding == "summed":
            whole[name] = torch.stack(parts).sum(0)  # what the all-reduce adds up
        else:
            whole[name] = torch.cat(parts, 0 if sharding == "rows" else 1)
    return whole
