"""compressed-tensors, as llm-compressor writes it: integer or float weights with their scales beside them.

tensor                 dtype         shape                   meaning (N = out_features, K = in_features, G = groups)
<L>.weight             int8          [N, K]                  codes, signed, also those of fewer than 8 bits
<L>.weight_scale       any float     [1] | [N, 1] | [N, G]   per tensor | channel | group
<L>.weight_zero_point  int8          as weight_scale         only asymmetric, in the codes' signed domain
<L>.input_scale        any float     [1]                     only static activations
<L>.input_zero_point   int8          [1]                     only static asymmetric activations
<L>.bias               model dtype   [N]                     not quantized

Format pack-quantized (weights only, 1 to 8 bits b) has instead of weight and int8 zero-points:

<L>.weight_packed      int32         [N, ceil(K b / 32)]     codes + 2^(b-1), a bit stream along K
<L>.weight_zero_point  int32         [ceil(N b / 32), G]     zero-points + 2^(b-1), a bit stream along N
<L>.weight_shape       int64         [2]                     N, K
<L>.weight_g_idx       int32         [K]                     act-order, releases 0.6 to 0.18

W = (weight - weight_zero_point) * weight_scale.  Unpacked formats are int-quantized (activations quantized) and
naive-quantized (weights only); `_ct_floats` has those of floats. Sources: compressed-tensors 0.20.0,
compressors/naive_quantized/base.py, compressors/pack_quantized/base.py and helpers.py, compressors/format.py,
quantization/lifecycle/initialize.py; dialects of older releases from the wheels 0.3.2 to 0.13.0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import gcd
from typing import Any

from qbridge.architecture.names import is_kv_scale
from qbridge.architecture.quantization_block import find_block, without_quantization
from qbridge.codecs.arrays import NARROWED, ZEROS, Constant, Filled, GroupIndex
from qbridge.codecs.bits import BitPacked
from qbridge.findings.finding import Findings
from qbridge.formats.assembly import assemble
from qbridge.formats.assumed import Assumed
from qbridge.formats.common_rules import global_scales, kv_scales_apart, kv_scales_are_stored, zeros_fit
from qbridge.formats.protocol import Match
from qbridge.formats.rules import LayerRule, Problem, Rule
from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.ir.scheme import GLOBAL_SCALE, Granularity
from qbridge.ir.slots import PLAIN, Codec, Slot, by_kind
from qbridge.passes.broadcast import Broadcast
from qbridge.passes.recast import Recast
from qbridge.passes.regroup import Regroup
from qbridge.source.reader import Source
from qbridge_formats._shared.scope import Scope
from qbridge_formats._shared.stacked_experts import as_stored
from qbridge_formats.compressed_tensors import floats as _ct_floats
from qbridge_formats.compressed_tensors.config import Group, Matcher, Parsed, args_of, is_ours, parse
from qbridge_formats.compressed_tensors.layers import Found, inferred_layers, listed_layers
from qbridge_formats.compressed_tensors.lists import ignore, source_block, targets
from qbridge_formats.compressed_tensors.reader import ACT_ORDER

NAME = "compressed-tensors"
SUMMARY = "llm-compressor's format: integers of 1 to 8 bits, FP8, NVFP4, MXFP4, MXFP8 (W8A8, W4A16 ...)"
ALIASES = ("llm-compressor",)
CONFIG_SAYS_HEAD = True  # targets and ignore match it as any linear

_SPARSE: Mapping[str, str] = {
    "marlin-24": "half of the codes stored, with an index of their places (meta), in Marlin's order",
    "sparse-24-bitmask": "the others stored, with a mask of their places",
    "sparse-bitmask": "the others stored, with a mask of their places",
}
SCHEMA_VERSION = "0.20.0"  # the newest schema that what we write was validated with


def sniff(source: Source) -> Match | str:
    """Evidence: the block in one of its places, or int8 matrices with a weight_scale where there is no block."""
    found = find_block(source.config)
    if found is not None and is_ours(found):
        return Match(2, f"config.json has a compressed-tensors block under {found.key}")
    if found is not None:
        return "the quantization block names another method"
    scaled = [n for n in source.tensors if n.endswith(".weight_scale") and n.removesuffix("_scale") in source.tensors]
    if scaled:
        return Match(1, f"there is no quantization block, but {len(scaled)} weights with a weight_scale")
    return "config.json has no quantization block, and no weight has a weight_scale"


def read(source: Source, findings: Findings) -> Model:
    """Specs from the block's groups and the tensors' headers, or from the tensors alone if there is no block."""
    found = find_block(source.config)
    config = without_quantization(source.config)
    if found is None and isinstance(sniff(source), Match):
        inferred = inferred_layers(source, findings)
        return assemble(NAME, source, config, _with_slots(inferred), findings, refused=inferred.refused)
    block = None
    if found is None or not is_ours(found):
        findings.add("QB013", "config.json", ("it has no compressed-tensors block",))
    else:
        block = parse(found, findings)
    if block is None:
        return assemble(NAME, source, config, {}, Findings())
    if sparse := [str(kind) for kind in (block.raw.get("format"), *_formats(block)) if str(kind) in _SPARSE]:
        findings.add("QB101", f"{block.key}.format", (f"{sparse[0]}: weights of 2:4 sparsity, {_SPARSE[sparse[0]]}",))
        return assemble(NAME, source, config, {}, Findings())
    _refuse_more_mathematics(block, findings)
    listed = listed_layers(source, block, findings)
    if listed is None:
        return assemble(NAME, source, config, {}, Findings())
    kv_cache = _kv_cache(source, block, findings)
    return assemble(NAME, source, config, _with_slots(listed), findings, kv_cache, listed.refused)


def assumed(config: Mapping[str, Any], names: Sequence[str]) -> dict[str, Assumed] | None:
    """From config.json alone: the groups whose targets match the names."""
    block = find_block(config)
    parsed = parse(block, Findings()) if block is not None and is_ours(block) else None
    if block is None or parsed is None:
        return None
    matcher, found = Matcher(parsed, names, Scope.of(block.key, names)), {}
    for name in names:
        group = matcher.group(name)
        if group is not None and group.weight is not None and not matcher.ignored(name):
            usual = DType.F16 if group.weight.type == "int" else DType.F32
            scale = _ct_floats.scale_dtype(group, None) or usual
            dialect = (("zero_point", "unpacked"),) if _has_unpacked_zeros(parsed, group) else ()
            found[name] = Assumed(group.weight, group.activation, scale, group.act_order, dialect)
    return found


def _has_unpacked_zeros(block: Parsed, group: Group) -> bool:
    """Whether zero-points lie beside packed codes as int8: releases up to 0.9.3 wrote them so."""
    weight, numbers = group.weight, re.match(r"(\d+)\.(\d+)\.(\d+)", str(block.raw.get("version") or ""))
    packed = group.activation is None and weight is not None and weight.type == "int" and not weight.symmetric
    return packed and numbers is not None and tuple(map(int, numbers.groups())) <= (0, 9, 3)


def _formats(block: Parsed) -> list[str | None]:
    return [group.format for group in block.groups]


def _with_slots(found: Found) -> dict[str, tuple[Spec, Mapping[str, Slot]]]:
    return {spec.name: (spec, layout(spec)) for spec in found.specs}


def _refuse_more_mathematics(block: Parsed, findings: Findings) -> None:
    """Keys that ask for work beyond weights and input activations."""
    for key in ("transform_config", "sparsity_config", "moe_sparsity_config"):
        value = block.raw.get(key)
        if value and not (isinstance(value, dict) and value.get("format") == "dense"):
            findings.add("QB102", f"{block.key}.{key}")
    for group in block.groups:
        if group.outputs:
            findings.add("QB102", f"{block.key}.config_groups.{group.name}.output_activations")


def _kv_cache(source: Source, block: Parsed, findings: Findings) -> Mapping[str, Any]:
    """The scheme of stored kv-cache scales; without one, such tensors are claimed by nobody."""
    scheme = block.raw.get("kv_cache_scheme")
    if not scheme:
        return {}
    if not isinstance(scheme, dict):
        findings.add("QB013", f"{block.key}.kv_cache_scheme", ("it is not an object",))
        return {}
    if not scheme.get("dynamic") and not any(is_kv_scale(name) for name in source.tensors):
        findings.add("QB015", "self_attn", ("kv_cache_scheme is static and no tensor is a k_scale or v_scale",))
    return scheme


def is_packed(spec: Spec) -> bool:
    """Whether the codes are packed: floats by their bits; integers as the dialect says, else as the library chooses.

    It packs integers where activations are not quantized.
    """
    if spec.weight.type != "int":
        return spec.weight.bits < 8
    kept = dict(spec.dialect).get("packed")
    return spec.activation is None if kept is None else kept == "yes"


def _slots(spec: Spec) -> dict[str, Slot]:
    """The slots of a layer without its name."""
    dialect, shape = dict(spec.dialect), spec.scale_shape

    def shape_of(leaf: str, default: tuple[int, ...]) -> tuple[int, ...]:
        kept = dialect.get(f"{leaf}.shape")
        return default if kept is None else tuple(int(dim) for dim in kept.split("x") if dim)

    def slot(leaf: str, dtype: DType | None, shape: tuple[int, ...], codec: Any = PLAIN) -> Slot:
        return Slot(f".{leaf}", dtype or DType.F32, shape_of(leaf, shape), codec)

    scale_shape = shape[:1] if spec.weight.granularity is Granularity.TENSOR else shape
    floats = _ct_floats.code_tensor(spec)
    slots = {
        "code": slot(*floats) if floats else slot("weight", DType.I8, spec.dims),
        "scale": slot("weight_scale", _ct_floats.stored_scale(spec.scale_dtype), scale_shape),
        "global_scale": slot("weight_global_scale", GLOBAL_SCALE, (1,)),
        "zero": slot("weight_zero_point", DType.I8, scale_shape, NARROWED),
        "bias": slot("bias", spec.bias, (spec.out_features,)),
        "input_scale": slot("input_scale", spec.input_scale_dtype, (1,)),
        "input_global_scale": slot("input_global_scale", spec.input_scale_dtype, (1,)),
        "input_zero": slot("input_zero_point", DType.I8, (1,), NARROWED),
    }
    if is_packed(spec) and not floats:
        slots |= _packed_slots(spec, dialect)
    parts = spec.parts()
    found = {part: slot for part, slot in slots.items() if part in parts or slot.codec.fixed}
    if dialect.get("zero_point") == "zeros" and "zero" not in found:
        found["zero"] = slot("weight_zero_point", DType.I8, scale_shape, ZEROS)
    return found


layout = as_stored(by_kind(_slots))


def _packed_slots(spec: Spec, dialect: Mapping[str, str]) -> dict[str, Slot]:
    bits = spec.weight.bits
    shape = (spec.out_features, spec.in_features)
    codes = BitPacked(bits, 1, 2 ** (bits - 1), padded=dialect.get("words") == "padded")
    zeros = BitPacked(bits, 0, 2 ** (bits - 1), padded=codes.padded)
    found = {
        "code": Slot(".weight_packed", DType.I32, codes.stored_shape(shape), codes),
        "shape": Slot(".weight_shape", DType(dialect.get("weight_shape", "I64")), (2,), Constant(shape)),
    }
    kept = dialect.get("zero_point")
    if not kept or kept == "packed zeros":
        stored = zeros.stored_shape(spec.scale_shape)
        codec: Codec = Filled(zeros, 0, spec.scale_shape) if kept else zeros
        found["zero"] = Slot(".weight_zero_point", DType.I32, stored, codec)
    kinds: dict[str | None, Codec] = {
        "trivial": GroupIndex(spec.weight.group_size or spec.in_features),
        "unset": Constant((-1,)),
    }
    if spec.g_idx or dialect.get("g_idx"):
        found["g_idx"] = Slot(".weight_g_idx", DType.I32, (spec.in_features,), kinds.get(dialect.get("g_idx"), PLAIN))
    return found


def settle(model: Model) -> Model:
    """Every layer stands for itself."""
    return model


def config(model: Model) -> dict[str, Any]:
    """A block that every release since 0.9 reads: one group per scheme; `lists` says which modules are named."""
    by_scheme: dict[tuple[Any, ...], list[Spec]] = {}
    for spec in model.specs.values():
        exponents = spec.scale_dtype is DType.F8_E8M0
        by_scheme.setdefault((spec.weight, spec.activation, is_packed(spec), exponents), []).append(spec)
    groups, formats = {}, []
    schemes = sorted(by_scheme.values(), key=len, reverse=True)  # the commonest first, which a class targets
    stored = [[dict(spec.dialect).get("stored_as", spec.name) for spec in specs] for specs in schemes]
    source = source_block(model)
    for number, (specs, names) in enumerate(zip(schemes, targets(model, source, stored), strict=True)):
        spec = specs[0]
        kind, scale_dtypes = _format_of(spec), _ct_floats.scale_dtypes(spec)
        formats.append(kind)
        groups[f"group_{number}"] = {
            "targets": names,
            "weights": args_of(spec.weight, scale_dtypes[0]),
            "input_activations": None if spec.activation is None else args_of(spec.activation, scale_dtypes[1]),
            "output_activations": None,
            "format": kind,
        }
    return {
        "quant_method": "compressed-tensors",
        "version": SCHEMA_VERSION,
        "format": formats[0] if len(set(formats)) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": ignore(model, source),
        "kv_cache_scheme": dict(model.kv_cache) or None,
        "global_compression_ratio": None,
    }


def _format_of(spec: Spec) -> str:
    """The name of the format of a layer, as the library chooses it."""
    floats = _ct_floats.format_of(spec.weight, spec.scale_dtype)
    if floats is None and spec.weight.type != "int":
        raise ValueError(f"{spec.name}: no format holds {spec.scheme}")  # the rules refuse it
    if floats not in (None, _ct_floats.FLOAT):
        return str(floats)
    if is_packed(spec):
        return "pack-quantized"
    return "naive-quantized" if spec.activation is None else floats or "int-quantized"


def _unwritable(spec: Spec, model: Model) -> Problem | None:
    if spec.g_idx and dict(spec.dialect).get("g_idx") != ACT_ORDER:
        return Problem((f"{spec.scheme}: act-order was removed in 0.18, so it is only written back to where it was",))
    if spec.weight.type == "int" and spec.weight.granularity is Granularity.BLOCK:
        return Problem((spec.scheme,))
    return _ct_floats.unwritable(spec, model)


def _packed_zeros(spec: Spec, model: Model) -> Problem | None:
    if is_packed(spec) and not spec.weight.symmetric and spec.weight.granularity is Granularity.TENSOR:
        return Problem((f"{spec.scheme}: packed zero-points are per channel or group",))
    return None


def _short_group(spec: Spec, model: Model) -> Problem | None:
    if spec.in_features % (spec.weight.group_size or 1) == 0:
        return None
    return Problem((f"weights {spec.weight}: {spec.in_features} inputs are not whole groups",))


def _whole_groups(spec: Spec, model: Model) -> Regroup | None:
    """Groups of the formats that have one size are not split."""
    if _ct_floats.format_of(spec.weight, spec.scale_dtype) not in (None, _ct_floats.FLOAT):
        return None
    return Regroup(gcd(spec.weight.group_size or 1, spec.in_features))


_SOURCE = "compressed-tensors 0.20.0, compressors/format.py"
RULES: tuple[Rule, ...] = (
    LayerRule("QB110", _ct_floats.small_scales, _SOURCE, lambda spec, model: Recast(DType.F32)),
    LayerRule("QB110", _unwritable, _SOURCE),
    global_scales("compressed-tensors", "divide", _SOURCE),
    LayerRule("QB110", _packed_zeros, _SOURCE, lambda spec, model: Broadcast()),
    LayerRule("QB110", _short_group, "compressed-tensors 0.20.0, quantization/lifecycle/forward.py", _whole_groups),
    zeros_fit(_SOURCE),
    kv_scales_apart("compressed-tensors 0.20.0, quantization/lifecycle/initialize.py"),
    kv_scales_are_stored("compressed-tensors 0.20.0, quantization/lifecycle/initialize.py"),
)
