"""What LMDeploy's PyTorch engine takes of float8 weights."""

from __future__ import annotations

from collections.abc import Iterator

from qbridge.architecture.names import is_routed
from qbridge.formats.rules import LayerRule, ModelRule, Problem, Rule, ValueRule
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.targets.blocks import is_static
from qbridge.targets.common import START, unlike_parts
from qbridge.targets.lmdeploy.fusion import LMDEPLOY as LMDEPLOY_FUSION

_LMDEPLOY_STATIC = "lmdeploy 0.18.0, pytorch/nn/linear/static_fp8.py"
_LMDEPLOY_BUILD = "lmdeploy 0.18.0, pytorch/nn/linear/__init__.py (build_linear)"
_SPLIT = frozenset({"dense_h_to_4h", "gate_up_proj", "qkv_proj", "query_key_value", "wqkv"})
_LMDEPLOY_BLOCK = (128, 128)  # blocked_fp8.py: the size is not read from config.json


def _lmdeploy_scheme(spec: Spec, model: Model) -> Problem | None:
    """Blocks of 128 x 128, or scales per tensor or channel with static activations."""
    if spec.weight.block == _LMDEPLOY_BLOCK or (spec.weight.block is None and is_static(spec)):
        return None
    return Problem((f"{spec.scheme}: as fp8 it has blocks of 128 x 128, or static scales of inputs",))


def _static_experts(model: Model) -> Iterator[Problem]:
    found = tuple(name for name, spec in model.specs.items() if is_routed(name) and is_static(spec))
    if found:
        yield Problem((f"{len(found)} linears of experts with static scales of inputs were not tried",), where=found)


def _stored_as_one(model: Model) -> Iterator[Problem]:
    """Loaders split what is stored as one for q, k, v or gate, up, and a scale of inputs has no such function."""
    found = tuple(n for n, spec in model.specs.items() if n.rpartition(".")[2] in _SPLIT and is_static(spec))
    if found:
        fact = f"{len(found)} linears that are stored as one: it stops at input_scale (weight_spliter)"
        yield Problem((fact,), where=found)


def _pytorch_engine(model: Model) -> Iterator[Problem]:
    """TurboMind takes the codes of static float8 for weights, without their scales."""
    if any(is_static(spec) for spec in model.specs.values()):
        fact = "static float8: the PyTorch engine loads it, TurboMind would take the codes for weights"
        yield Problem((fact,), (START.format("pytorch"),), ("config.json",))


LMDEPLOY: tuple[Rule, ...] = (
    LayerRule("QB270", _lmdeploy_scheme, _LMDEPLOY_BUILD),
    ModelRule("QB270", _static_experts, "lmdeploy 0.18.0, pytorch/nn/moe/__init__.py"),
    ModelRule("QB270", _stored_as_one, f"{_LMDEPLOY_STATIC}; pytorch/models/{{chatglm2,glm4,internlm2,phi3}}.py"),
    ModelRule("QB216", _pytorch_engine, "lmdeploy 0.18.0, turbomind/weight_format.py (TrivialFormat)"),
    ValueRule("QB271", unlike_parts(LMDEPLOY_FUSION, "input_scale"), _LMDEPLOY_STATIC),
)
