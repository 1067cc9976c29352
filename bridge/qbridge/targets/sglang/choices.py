"""What SGLang takes: compressed-tensors, GPTQ, AWQ, fp8, ModelOpt, MXFP4 of gpt-oss, and its own w8a8.

Source: sglang 0.5.23, srt/layers/quantization. What is said here was tried with its own classes and loaders.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import gcd

from qbridge.architecture.architecture import Architecture
from qbridge.architecture.names import is_routed
from qbridge.formats.registry import named
from qbridge.formats.rules import LayerRule, ModelRule, Problem, Rule, ValueRule
from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.ir.scheme import Granularity
from qbridge.passes import Pass
from qbridge.passes.broadcast import Broadcast
from qbridge.passes.dynamic_inputs import DynamicInputs
from qbridge.passes.regroup import Regroup
from qbridge.passes.symmetrize import Symmetrize
from qbridge.passes.widen import Widen
from qbridge.targets import float32
from qbridge.targets.blocks import is_static, per_tensor
from qbridge.targets.choice import Choice
from qbridge.targets.common import misnamed, stacked, unlike_parts, unquantized_tensors, weight_scales
from qbridge.targets.fusion import unlike_siblings
from qbridge.targets.sglang import classes, floats, loaders, loading, parallel
from qbridge.targets.sglang.fusion import SGLANG

_QUANT = "sglang 0.5.23, srt/layers/quantization"
_CT = f"{_QUANT}/compressed_tensors/compressed_tensors.py"
_INT8 = f"{_QUANT}/compressed_tensors/schemes/compressed_tensors_w8a8_int8.py"
_MARLIN = f"{_QUANT}/marlin_utils.py"
_ONE = (Granularity.TENSOR, Granularity.CHANNEL)
_GROUPS = (128, 64, 32)


def _alone(spec: Spec) -> bool:
    """Integer weights whose activations are not quantized."""
    return spec.activation is None and spec.weight.type == "int"


def _is_w8a8(spec: Spec) -> bool:
    """int8 weights and activations, whatever their scales."""
    acts = spec.activation
    return acts is not None and (spec.weight.type, spec.weight.bits, acts.type, acts.bits) == ("int", 8, "int", 8)


def _laid_out(spec: Spec, model: Model) -> Problem | None:
    """Experts that share tensors: its loaders of quantized ones were tried with those that lie one by one."""
    lies = stacked(spec)
    return Problem((f"experts share a tensor by {lies}, which was not tried",)) if lies else misnamed(spec)


def _asymmetric_experts(spec: Spec, model: Model) -> Problem | None:
    """Its loader of experts turns codes and scales around, and not their zero-points."""
    if not is_routed(spec.name) or not _alone(spec) or spec.weight.symmetric:
        return None
    return Problem((f"experts of weights {spec.weight}: their zero-points do not lie as its loader takes them",))


def _ungated_experts(spec: Spec, model: Model) -> Problem | None:
    """Its schemes make room for a gate beside up_proj, half of which stays empty where experts have none."""
    if not is_routed(spec.name) or not spec.name.endswith(".up_proj"):
        return None
    if spec.name.replace(".up_proj", ".gate_proj") in model.specs:
        return None
    return Problem(("experts without a gate: half of w13 stays as the memory was",))


def _through(model: Model) -> Iterator[Problem]:
    """Its way through transformers puts `model.` before every target, `Linear` too, so that it finds none."""
    if model.architecture in classes.THROUGH | classes.THROUGH_TOWERS and model.specs:
        fact = f"{model.architecture} runs through transformers, which finds no target of compressed-tensors"
        yield Problem((fact,), where=("quantization_config.config_groups",))


def _gpt_oss(spec: Spec, model: Model) -> Problem | None:
    if model.architecture != "GptOssForCausalLM" or not is_routed(spec.name):
        return None
    return Problem(("experts of gpt-oss: its loader takes them fused as MXFP4, and was not tried with others",))


def _has_scheme(spec: Spec, model: Model) -> Problem | None:
    """Weights alone of integers, W8A8 with a scale per tensor or channel, and floats of `floats`."""
    weight = spec.weight
    if weight.type != "int":
        return None if floats.has_scheme(spec) else Problem((spec.scheme,))
    if spec.activation is None and weight.granularity in (*_ONE, Granularity.GROUP):
        return None
    if _is_w8a8(spec) and weight.symmetric and weight.granularity in _ONE and not spec.g_idx:
        return None
    return Problem((spec.scheme,))


def _int8_per_tensor(spec: Spec, model: Model) -> Problem | None:
    """Weights alone have no scale per tensor, and those of W8A8 are requantized where linears become one."""
    if spec.weight.type != "int" or spec.weight.granularity is not Granularity.TENSOR:
        return None
    return Problem((f"weights {spec.weight}: it has scales per channel or group",))


def _width(spec: Spec, model: Model) -> Problem | None:
    if not _alone(spec) or spec.weight.bits in (4, 8):
        return None
    return Problem((f"weights {spec.weight}: it has 4 and 8 bits",))


def _wider(spec: Spec, model: Model) -> Pass:
    return Widen(4 if spec.weight.bits < 4 else 8)


def _wide_zeros(spec: Spec, model: Model) -> Problem | None:
    """Marlin has zero-points for 4 bits alone; compressed-tensors builds others, and the kernel stops."""
    if not _alone(spec) or spec.weight.symmetric or spec.weight.bits == 4:
        return None
    return Problem((f"weights {spec.weight}: its Marlin kernel has asymmetric weights of 4 bits alone",))


def _symmetric(spec: Spec, model: Model) -> Pass:
    return Symmetrize()


def _group(spec: Spec, model: Model) -> Problem | None:
    size = spec.weight.group_size
    if not _alone(spec) or size is None:
        return None
    if spec.in_features % size:
        return Problem((f"weights {spec.weight}: {spec.in_features} inputs are not whole groups",))
    if size in _GROUPS:
        return None
    return Problem((f"weights {spec.weight}: its kernels have groups of {', '.join(map(str, _GROUPS))}",))


def _common_group(spec: Spec, model: Model) -> Pass | None:
    size = gcd(spec.weight.group_size or 0, spec.in_features)
    return next((Regroup(group) for group in _GROUPS if size % group == 0), None)


def _other_inputs(spec: Spec, model: Model) -> Problem | None:
    """int8 activations with stored scales or zero-points."""
    acts = spec.activation
    if not _is_w8a8(spec) or acts is None or (acts.dynamic and acts.symmetric):
        return None
    return Problem((f"activations {acts}", "weights are unchanged without the scales, activations are changed"))


def _dynamic(spec: Spec, model: Model) -> Pass:
    return DynamicInputs()


def _int8_experts(spec: Spec, model: Model) -> Problem | None:
    if not _is_w8a8(spec) or not is_routed(spec.name):
        return None
    return Problem((f"{spec.scheme}: as compressed-tensors it has such experts on Ascend NPUs alone",))


def _act_order(model: Model) -> Iterator[Problem]:
    where = tuple(name for name, spec in model.specs.items() if spec.g_idx)
    if where:
        yield Problem((model.specs[where[0]].scheme,), where=where)


def _expert_tiles(model: Model) -> Iterator[Problem]:
    """Experts in Marlin: hidden sizes of whole 128, intermediate sizes of whole 64."""
    architecture = Architecture.of_model(model)
    found: dict[str, list[str]] = {}
    for name, spec in model.specs.items():
        held = architecture.rank(name, spec.dims, 1) if is_routed(name) and _alone(spec) else None
        if held is None or held.fault or held.axis not in ("column", "row"):
            continue
        hidden = spec.in_features if held.axis == "column" else spec.out_features
        share = spec.out_features if held.axis == "column" else spec.in_features
        if hidden % 128:
            found.setdefault(f"hidden_size = {hidden} is not divisible by 128", []).append(name)
        if share % 64:
            found.setdefault(f"intermediate_size = {share} is not divisible by 64", []).append(name)
    for fact, names in found.items():
        yield Problem((fact,), where=tuple(names))


_UNREAD_DIALECTS = {
    "zero_point": {"unpacked": "zero-points that are not packed"},
    "version": {
        "gemv": "version gemv",
        "gemv_fast": "version gemv_fast",
        "llm-awq": "the layout of llm-awq",
        "stream": "another width than 4 bits",
    },
}


def _other_dialect(spec: Spec, model: Model) -> Problem | None:
    """Layouts that its loaders stop at, or take for others."""
    for key, value in spec.dialect:
        if words := _UNREAD_DIALECTS.get(key, {}).get(value):
            return Problem((f"{words}: its loader of {model.format} stops at the shape of a tensor",))
    return None


def _awq_width(spec: Spec, model: Model) -> Problem | None:
    return None if spec.weight.bits == 4 else Problem((f"weights {spec.weight}: as AWQ it has 4 bits",))


def _awq_channels(spec: Spec, model: Model) -> Problem | None:
    """The kernel that takes what Marlin does not divides by the size of a group, which is -1 there."""
    if spec.weight.granularity is not Granularity.CHANNEL or not (spec.in_features % 128 or spec.out_features % 64):
        return None
    return Problem((f"weights {spec.weight}, {spec.out_features} x {spec.in_features}: no kernel has that as AWQ",))


def _four_bits(spec: Spec, model: Model) -> Pass | None:
    return Widen(4) if spec.weight.bits < 4 else None


def _gptq_scheme(spec: Spec, model: Model) -> Problem | None:
    if spec.weight.symmetric:
        return None
    return Problem((f"weights {spec.weight}: the kernel for asymmetric GPTQ has been removed",))


def _modelopt_scheme(spec: Spec, model: Model) -> Problem | None:
    """FP8 per tensor with static inputs, and NVFP4 with inputs quantized too."""
    weight, acts = spec.weight, spec.activation
    if weight.type == "e2m1" and weight.global_scale and acts is not None:
        return None
    if weight.type == "e4m3fn" and weight.granularity is Granularity.TENSOR and is_static(spec):
        return None
    return Problem((f"{spec.scheme}: of ModelOpt it has FP8 per tensor and NVFP4, with their inputs",))


def _one_modelopt_scheme(model: Model) -> Iterator[Problem]:
    kinds = sorted({spec.scheme for spec in model.specs.values()})
    if len(kinds) > 1:
        yield Problem(
            (f"a mixture of {len(kinds)} schemes: it stops while it loads one", *kinds), where=("config.json",)
        )


def _auto_round_scheme(spec: Spec, model: Model) -> Problem | None:
    """Packed as GPTQ: symmetric 4 and 8 bits; as AWQ: 4 bits."""
    packing = dict(spec.dialect).get("packing_format", "")
    if packing not in ("auto_round:auto_gptq", "auto_round:auto_awq"):
        return Problem(
            (f"packing_format {packing or 'auto_round'}: it has auto_round:auto_gptq and auto_round:auto_awq",)
        )
    served = ((4, True), (4, False)) if "awq" in packing else ((4, True), (8, True))
    if (spec.weight.bits, spec.weight.symmetric) in served:
        return None
    return Problem((f"weights {spec.weight}: as AutoRound it has symmetric 4 and 8 bits, or 4 bits packed as AWQ",))


def _serve(model: Model, path: str, tp: int) -> str:
    ranks = f" --tp-size {tp}" if tp > 1 else ""
    images = " --enable-multimodal" if model.architecture in classes.TEXT_UNLESS_ASKED else ""
    return f"python -m sglang.launch_server --model-path {path}{ranks}{images}"


_CAST = "sglang 0.5.23, srt/configs/model_config.py (_get_and_verify_dtype)"
_UNQUANTIZED = unquantized_tensors(DType.F16, _CAST, float32=float32.SGLANG)
_COMMON: tuple[Rule, ...] = (
    *loading.RULES,
    ModelRule("QB221", unlike_siblings(SGLANG), f"{_QUANT}/compressed_tensors/utils.py (should_ignore_layer)"),
    weight_scales(DType.F16, f"{_QUANT}/compressed_tensors/schemes (params_dtype)", _alone),
    _UNQUANTIZED,
)
_INPUT_SCALES = ValueRule(
    "QB222",
    unlike_parts(SGLANG, "input_scale", "input_zero", "global_scale", "input_global_scale"),
    f"{_QUANT}/compressed_tensors/schemes (process_weights_after_loading)",
)
_LAYOUT = (LayerRule("QB293", _laid_out, "sglang 0.5.23, srt/layers/moe/fused_moe_triton/layer.py (weight_loader)"),)
_DIALECT = LayerRule("QB298", _other_dialect, "sglang 0.5.23, srt/layers/parameter.py")
_TILES = ModelRule("QB253", _expert_tiles, f"{_MARLIN} (check_moe_marlin_supports_layer)")
_ORDER = ModelRule("QB297", _act_order, f"{_MARLIN} (marlin_sort_g_idx)")
_NVFP4 = ModelRule("QB292", floats.weights_alone, f"{_CT} (_get_scheme_from_parts)")

COMPRESSED_TENSORS = Choice(
    named("compressed-tensors"),
    (
        *loaders.rules("compressed-tensors"),
        *_LAYOUT,
        _DIALECT,
        LayerRule("QB293", _gpt_oss, "sglang 0.5.23, srt/models/gpt_oss.py (load_weights)"),
        LayerRule("QB293", _has_scheme, f"{_CT} (_get_scheme_from_parts, get_moe_scheme)"),
        LayerRule("QB293", _int8_per_tensor, f"{_CT} (_is_wNa16_group_channel)", lambda spec, model: Broadcast()),
        LayerRule("QB293", _asymmetric_experts, "sglang 0.5.23, srt/layers/moe/fused_moe_triton/layer.py"),
        LayerRule("QB293", _ungated_experts, f"{_QUANT}/compressed_tensors/schemes (create_weights of experts)"),
        ModelRule("QB293", _through, "sglang 0.5.23, srt/models/transformers.py (hf_to_sglang_mapper)"),
        LayerRule("QB293", _width, f"{_CT} (WNA16_SUPPORTED_BITS)", _wider),
        LayerRule("QB293", _wide_zeros, f"{_MARLIN} (query_marlin_supported_quant_types)", _symmetric),
        LayerRule("QB293", _group, f"{_MARLIN} (MARLIN_SUPPORTED_GROUP_SIZES)", _common_group),
        LayerRule("QB295", _other_inputs, f"{_INT8} (create_weights, apply_weights)", _dynamic),
        LayerRule("QB296", _int8_experts, f"{_CT} (get_moe_scheme)"),
        floats.CHANNELS,
        _TILES,
        _ORDER,
        _NVFP4,
        _INPUT_SCALES,
        *_COMMON,
    ),
    serve=_serve,
)
GPTQ = Choice(
    named("gptq"),
    (
        *loaders.rules("gptq"),
        LayerRule("QB298", _gptq_scheme, f"{_QUANT}/gptq/schemes/gptq_linear.py", _symmetric),
        LayerRule("QB298", _width, f"{_QUANT}/gptq/gptq.py (TYPE_MAP)", _wider),
        LayerRule("QB298", _group, f"{_MARLIN} (MARLIN_SUPPORTED_GROUP_SIZES)", _common_group),
        _TILES,
        _ORDER,
        *_COMMON,
    ),
    serve=_serve,
)
AWQ = Choice(
    named("awq"),
    (
        *loaders.rules("awq"),
        _DIALECT,
        LayerRule("QB298", _awq_width, f"{_QUANT}/awq/awq.py (AWQConfig)", _four_bits),
        LayerRule("QB298", _awq_channels, f"{_QUANT}/awq/schemes/awq_linear.py (create_weights)"),
        LayerRule("QB298", _group, f"{_QUANT}/awq/awq.py (verify_marlin_supported)", _common_group),
        *_COMMON,
    ),
    parallel=parallel.AWQ,
    serve=_serve,
)
FP8 = Choice(
    named("fp8"),
    (*loaders.rules("fp8"), *_LAYOUT, *floats.RULES, _INPUT_SCALES, *_COMMON),
    avoided=floats.AVOIDED,
    parallel=parallel.OWN_BLOCKS,
    serve=_serve,
)
MODELOPT = Choice(
    named("modelopt"),
    (
        *loaders.rules("modelopt"),
        *_LAYOUT,
        LayerRule("QB298", _modelopt_scheme, f"{_QUANT}/modelopt_quant.py (from_config, create_weights)"),
        _NVFP4,
        ModelRule("QB298", _one_modelopt_scheme, f"{_QUANT}/modelopt_quant.py (ModelOptMixedPrecisionConfig)"),
        ValueRule("QB272", unlike_parts(SGLANG, "scale", of=per_tensor), f"{_QUANT}/modelopt_quant.py"),
        _INPUT_SCALES,
        *_COMMON,
    ),
    avoided=floats.AVOIDED,
    serve=_serve,
)
MXFP4 = Choice(named("mxfp4"), _COMMON, dtype="bfloat16", serve=_serve)
W8A8 = Choice(
    named("w8a8"),
    (*loaders.rules("w8a8"), *_LAYOUT, floats.DROPPED, *_COMMON),
    parallel=parallel.OWN_BLOCKS,
    serve=_serve,
)
AUTO_ROUND = Choice(
    named("auto-round"),
    (
        *loaders.rules("auto-round"),
        LayerRule("QB298", _auto_round_scheme, f"{_QUANT}/auto_round.py (SUPPORTED_FORMATS)"),
        LayerRule("QB298", _group, f"{_MARLIN} (MARLIN_SUPPORTED_GROUP_SIZES)"),
        *_COMMON,
    ),
    serve=_serve,
)
CHOICES = (COMPRESSED_TENSORS, W8A8, GPTQ, AWQ, FP8, MODELOPT, MXFP4)
