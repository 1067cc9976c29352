"""What vLLM takes of float8 weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from qbridge.architecture.names import is_routed
from qbridge.formats.rules import LayerRule, ModelRule, Problem, Rule
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.ir.scheme import Granularity
from qbridge.passes.broadcast import Broadcast
from qbridge.targets.blocks import fused_per_tensor, is_static, per_tensor
from qbridge.targets.fusion import Fusion
from qbridge.targets.vllm.fusion import VLLM

_VLLM = "vllm 0.33.0, model_executor/layers/quantization/fp8.py"
_VLLM_FUSED = "vllm 0.33.0, model_executor/layers/quantization/utils/w8a8_utils.py (requantize_with_max_scale)"


def _vllm_scheme(spec: Spec, model: Model) -> Problem | None:
    """As quant_method fp8: e4m3fn in blocks, or per tensor; FBGEMM's own method is deprecated."""
    weight, acts = spec.weight, spec.activation
    if weight.type == "e4m3fn" and weight.granularity is not Granularity.CHANNEL:
        return None
    if weight.type == "e2m1" and is_routed(spec.name):  # models/deepseek_v4/quant_config.py
        return None
    if acts is not None and acts.limit is not None:
        return Problem((f"{spec.scheme}: fbgemm_fp8 needs --allow-deprecated-quantization",))
    return Problem((f"{spec.scheme}: as fp8 it has e4m3fn in blocks or per tensor",))


def fused_tensors(fusion: Fusion) -> Callable[[Model], Iterator[Problem]]:
    """One scale per tensor, of which vLLM keeps the largest for linears that it builds as one."""

    def check(model: Model) -> Iterator[Problem]:
        for names in fusion.siblings(model, model.specs):
            where = tuple(name for name in names if per_tensor(model.specs[name]))
            if len(where) > 1:
                yield Problem(("one scale per tensor in linears that vLLM builds as one",), where=where)

    return check


def _static_expert(spec: Spec) -> bool:
    """vLLM has experts with one scale for both weights and inputs, or per channel and token."""
    return is_routed(spec.name) and is_static(spec)


RULES: tuple[Rule, ...] = (
    LayerRule("QB274", _vllm_scheme, _VLLM),
    ModelRule("QB272", fused_tensors(VLLM), _VLLM_FUSED),
)


def channels(fusion: Fusion) -> LayerRule:
    """compressed-tensors can say a scale per channel, each of which is kept."""
    check = fused_per_tensor(fusion, "vLLM")
    return LayerRule("QB272", check, _VLLM_FUSED, lambda spec, model: None if _static_expert(spec) else Broadcast())


AVOIDED = frozenset({"QB272"})
