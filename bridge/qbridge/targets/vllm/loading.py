"""What the loaders of vLLM's classes stop at: names that they rename twice, tensors that they reshape, other layers.

Source: vllm 0.33.0, model_executor/models/qwen3_5.py, bloom.py, utils.py (WeightsMapper).
"""

from __future__ import annotations

from collections.abc import Iterator

from qbridge.architecture.architecture import Architecture
from qbridge.architecture.mixers import stored_modules, unnamed_layers
from qbridge.formats.rules import LayerRule, ModelRule, Problem, Rule
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.ir.scheme import Granularity
from qbridge.passes import Pass
from qbridge.passes.broadcast import Broadcast
from qbridge.targets.vllm.fusion import VLLM

_QWEN = "vllm 0.33.0, model_executor/models/qwen3_5.py (hf_to_vllm_mapper)"
_BLOOM = "vllm 0.33.0, model_executor/models/bloom.py (_repack_qkv)"
_LAYERS = "transformers 5.17.0, models/qwen3_5/configuration_qwen3_5.py (full_attention_interval)"
# Linears whose name begins with that of a part, which the loader replaces by the whole name once more.
_RENAMED_TWICE = {"in_proj_ba": "in_proj_baa", "in_proj_qkvz": "in_proj_qkvzz"}


def _renamed_twice(model: Model) -> Iterator[Problem]:
    fused = VLLM.of(model.architecture or "")
    for leaf, name in _RENAMED_TWICE.items():
        where = tuple(module for module in stored_modules(model) if module.rpartition(".")[2] == leaf)
        if leaf in fused and where:
            parts = " and ".join(fused[leaf])
            fact = f"vLLM 0.33.0 stops: There is no module or parameter named {name}"
            help_ = f"store {parts} one by one: their rows are those of {leaf}, in this order"
            yield Problem((f"{leaf} is stored as one, and the loader wants {parts}", fact), (help_,), where)


def _other_layers(model: Model) -> Iterator[Problem]:
    kinds = unnamed_layers(model)
    if kinds is None:
        return
    first, built, stored = next(
        (layer, *pair) for layer, pair in enumerate(zip(kinds.built, kinds.stored, strict=True)) if pair[0] != pair[1]
    )
    fact = f"without layer_types the class builds {built} in layer {first}, and {stored} is stored"
    words = ", ".join(f'"{kind}"' for kind in kinds.stored)
    help_ = f'write "layer_types": [{words}] into config.json, beside num_hidden_layers'
    yield Problem((fact,), (help_, *(("qbridge convert writes it",) if kinds.clear else ())), kinds.where)


_FROM_INPUTS = frozenset({"gptq", "awq", "auto-round"})  # their first axis is that of the inputs


def _reshaped(format_name: str) -> LayerRule:
    """What Bloom's loader, which takes the first axis of every tensor of a fused linear for heads, cannot take."""

    def rows(model: Model) -> int:
        return 3 * Architecture.of_model(model).heads[0] if model.architecture == "BloomForCausalLM" else 0

    def check(spec: Spec, model: Model) -> Problem | None:
        wanted = rows(model) if spec.name.rpartition(".")[2] == "query_key_value" else 0
        if not wanted or _is_reshaped(spec, format_name, wanted):
            return None
        fact = f"vLLM 0.33.0 reshapes every tensor of it to [{wanted // 3} heads, 3, ...], which fails on some"
        return Problem((fact,), ("scales per channel, with dynamic activations, are loaded",))

    def repeated(spec: Spec, model: Model) -> Pass | None:
        if spec.weight.granularity is not Granularity.TENSOR or format_name != "compressed-tensors":
            return None
        return Broadcast() if _is_reshaped(Broadcast().plan(spec), format_name, rows(model)) else None

    return LayerRule("QB291", check, _BLOOM, repeated, elsewhere=True)


def _is_reshaped(spec: Spec, format_name: str, rows: int) -> bool:
    """Whether the first axis of each tensor of a linear holds outputs, in shares for q, k and v of every head."""
    weight, acts = spec.weight, spec.activation
    packed = format_name == "compressed-tensors" and weight.type == "int" and acts is None  # weight_shape [2]
    scalar = (
        weight.granularity is Granularity.TENSOR or weight.global_scale or (acts is not None and not acts.dynamic)
    )
    if format_name in _FROM_INPUTS or packed or scalar:
        return False
    return weight.block is None or -(-spec.out_features // weight.block[0]) % rows == 0


def rules(format_name: str) -> tuple[Rule, ...]:
    """What no loader of the newest release takes, in one of its formats."""
    return (
        ModelRule("QB291", _renamed_twice, _QWEN),
        ModelRule("QB291", _other_layers, _LAYERS),
        _reshaped(format_name),
    )
