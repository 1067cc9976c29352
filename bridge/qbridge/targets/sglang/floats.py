"""What SGLang takes of float8 and float4 weights."""

from __future__ import annotations

from collections.abc import Iterator

from qbridge.architecture.names import is_routed
from qbridge.findings.way import Way
from qbridge.formats.rules import LayerRule, ModelRule, Problem, Rule
from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.ir.scheme import ActivationScheme, Granularity
from qbridge.passes import Pass
from qbridge.passes.broadcast import Broadcast
from qbridge.targets.blocks import fused_per_tensor, is_static
from qbridge.targets.sglang.fusion import SGLANG

_FP8 = "sglang 0.5.23, srt/layers/quantization/fp8.py"
_REQUANTIZED = "sglang 0.5.23, srt/layers/quantization/utils.py (requantize_with_max_scale)"
_LLAMA = "sglang 0.5.23, srt/models/llama.py (_legacy_load_weights), mistral.py, ministral3.py, teleflm.py"
# Classes whose loader is Llama's: they rename the scales of blocks to a parameter that there is not.
RENAMES_SCALES = frozenset(
    {
        *("IQuestCoderForCausalLM", "InternLM3ForCausalLM", "Llama4ForCausalLM", "LlamaForCausalLM"),
        "Ministral3ForCausalLM",
        *("Mistral3ForConditionalGeneration", "MistralForCausalLM", "Phi3ForCausalLM", "TeleFLMForCausalLM"),
    }
)


def has_scheme(spec: Spec) -> bool:
    """Whether compressed-tensors has a scheme for float codes, with activations that are quantized as it says."""
    weight, acts = spec.weight, spec.activation
    if weight.type == "e2m1":
        nvfp4 = weight.global_scale is not None and weight.group_size == 16
        return nvfp4 and (acts is None or (acts.type == "e2m1" and acts.group_size == 16))
    if weight.type != "e4m3fn" or spec.scale_dtype is DType.F8_E8M0:
        return False
    if weight.block:
        return acts is not None and _groups(acts, weight.block[1])
    if weight.granularity not in (Granularity.TENSOR, Granularity.CHANNEL):
        return False
    if acts is None:
        return not is_routed(spec.name)
    token = acts.dynamic and acts.granularity is Granularity.TOKEN
    if acts.type != "e4m3fn" or not acts.symmetric or not (token or is_static(spec)):
        return False
    return not is_routed(spec.name) or token is (weight.granularity is Granularity.CHANNEL)


def _groups(acts: ActivationScheme, size: int) -> bool:
    return (acts.type, acts.dynamic, acts.group_size) == ("e4m3fn", True, size)


def weights_alone(model: Model) -> Iterator[Problem]:
    """NVFP4 whose activations an older GPU does not quantize."""
    where = tuple(name for name, spec in model.specs.items() if spec.weight.type == "e2m1" and spec.activation)
    if where and model.specs[where[0]].weight.global_scale:
        yield Problem(("before compute capability 10.0 activations are not quantized",), where=where)


def dropped_scales(model: Model) -> Iterator[Problem]:
    """Scales of blocks under a name that the class's loader changes to one that there is not."""
    where = tuple(name for name, spec in model.specs.items() if spec.weight.block)
    if where and model.architecture in RENAMES_SCALES:
        fact = f"{model.architecture} renames weight_scale_inv to weight_scale, which no layer of blocks has"
        yield Problem((fact,), _plainly(model.specs[where[0]]), where)


def _plainly(spec: Spec) -> tuple[Way, ...]:
    """The way to compressed-tensors, which has no word for how scales of inputs are rounded or limited."""
    acts = spec.activation
    detailed = acts is not None and (acts.power_of_two or acts.limit is not None)
    return (Way("--allow", "drop-activation-details"),) if detailed else ()


def _fp8_scheme(spec: Spec, model: Model) -> Problem | None:
    """As quant_method fp8: e4m3fn in blocks or per tensor, under the usual names."""
    weight, acts = spec.weight, spec.activation
    stored = dict(spec.dialect)
    if acts is not None and acts.limit is not None:
        return Problem((f"{spec.scheme}: it has no fbgemm_fp8",), _plainly(spec))
    if weight.type != "e4m3fn" or weight.granularity not in (Granularity.TENSOR, Granularity.BLOCK):
        return Problem((f"{spec.scheme}: as fp8 it has e4m3fn in blocks or per tensor",))
    renamed = model.architecture in RENAMES_SCALES and not weight.block  # which is what Llama's loader renames for
    if not renamed and ("scale" in stored or stored.get("input_scale", "input_scale") != "input_scale"):
        return Problem((f"scales are called {stored.get('scale', stored.get('input_scale'))}: it was not tried",))
    return None


def _to_channels(spec: Spec, model: Model) -> Pass | None:
    """Every scale is kept as one per channel; experts with static inputs have one per tensor alone."""
    return None if is_routed(spec.name) and is_static(spec) else Broadcast()


CHANNELS = LayerRule("QB272", fused_per_tensor(SGLANG, "SGLang"), _REQUANTIZED, _to_channels)
DROPPED = ModelRule("QB294", dropped_scales, _LLAMA)
RULES: tuple[Rule, ...] = (
    LayerRule("QB298", _fp8_scheme, _FP8),
    DROPPED,
    LayerRule("QB272", fused_per_tensor(SGLANG, "SGLang"), _REQUANTIZED),
)
AVOIDED = frozenset({"QB272"})
