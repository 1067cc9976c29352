"""The unquantized linears of the MLPs in layers for multi-token prediction, which share the decoder's sizes.

Tools leave these layers unquantized as a rule, and engines build them of the decoder's config: vllm 0.33.0,
model_executor/models/deepseek_mtp.py, glm4_moe_mtp.py, qwen3_next_mtp.py, mimo_mtp.py.
"""

from __future__ import annotations

from dataclasses import replace

from qbridge.architecture.architecture import Architecture
from qbridge.architecture.experts import SINGLE, unquantized_experts
from qbridge.architecture.mlps import mlp_blocks
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.ir.plain import plain_spec
from qbridge.ir.scheme import DENSE


def draft_linears(model: Model) -> dict[str, Spec]:
    """The specs of unquantized linears in gated MLPs of draft layers, by name; of single experts, as they are called.

    Linears with a bias are left out.
    """
    return model.once(draft_linears, lambda: _find(model))


def with_draft_linears(model: Model) -> Model:
    """The model in which these linears are specs, too."""
    found = draft_linears(model)
    return replace(model, specs={**model.specs, **found}) if found else model


def _find(model: Model) -> dict[str, Spec]:
    architecture, found = Architecture.of_model(model), dict[str, Spec]()
    if not any(architecture.is_draft(name) for name in model.tensors):
        return {}
    for block, experts in unquantized_experts(model).items():
        if architecture.is_draft(block) and experts.lies != SINGLE:
            found |= {name: plain_spec(name, dims, experts.dtype) for name, dims, _ in experts.linears()}
    for name, info in model.tensors.items():
        module, _, leaf = name.rpartition(".")
        matrix = leaf == "weight" and len(info.shape) == 2 and info.dtype in DENSE.values()
        if matrix and architecture.is_draft(module) and f"{module}.bias" not in model.tensors:
            rows, columns = info.shape
            found[module] = plain_spec(module, (rows, columns), info.dtype)
    blocks = mlp_blocks([*model.specs, *found])
    inside = {name for block in blocks for name in (block.gate, block.up, block.down)}
    return {name: spec for name, spec in found.items() if name in inside}
