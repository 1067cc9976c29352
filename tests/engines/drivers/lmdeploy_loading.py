"""What the drivers of both LMDeploy generations share."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch


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
