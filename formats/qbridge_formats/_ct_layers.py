"""Which modules of a compressed-tensors checkpoint are quantized, and how: config groups against headers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from qbridge.dtypes import DType
from qbridge.findings import Findings
from qbridge.headers import StoredTensor
from qbridge.ir import ActivationScheme, Dialect, Granularity, Spec, WeightScheme
from qbridge.source import Source
from qbridge.topology import canonical_module, is_embedding, is_router
from qbridge_formats._ct_config import Block, Group, Matcher

INFERRED = "inferred"
ACT_ORDER = "act-order"
_CODES = (DType.I8, DType.U8, DType.F8_E4M3, DType.I32)
ASSUMED = ActivationScheme(8, Granularity.TOKEN, dynamic=True)


@dataclass(frozen=True, slots=True)
class Found:
    """The layers that can be read, and the modules about which there is a finding instead."""

    specs: list[Spec] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)


def listed_layers(source: Source, block: Block, findings: Findings) -> Found | None:
    """The layers that the block's groups claim; whatever config and tensors disagree on is a finding.

    None with findings (QB013) if a target or an ignore entry is no regular expression.
    """
    modules, found = list(_matrices(source)), Found()
    matcher = Matcher(block, modules)
    for pattern, fault in matcher.faults.items():
        findings.add("QB013", f"{block.key}: {pattern!r}", (f"not a regular expression: {fault}",))
    if matcher.faults:
        return None
    for module in modules:
        quantized = _is_quantized(source, module)
        group = _group_of(module, quantized, matcher, findings)
        if group is not None:
            _add(found, source, module, group, block.raw, findings)
        elif quantized:
            found.refused.add(module)
    return found


def inferred_layers(source: Source, findings: Findings) -> Found:
    """The layers that the tensors show where config.json has no block.

    Static activations show, by their scales. Their absence may mean dynamic ones or none, so that is assumed only
    with `--allow assumed-activations` (QB021).
    """
    found = Found()
    for module in _matrices(source):
        if not _is_quantized(source, module):
            continue
        group = _inferred(source, module)
        _add(found, source, module, group, {}, findings)
        if group.activation is ASSUMED:
            findings.add("QB021", module, (f"no tensor shows its activation scheme; {ASSUMED} would be assumed",))
    return found


def _matrices(source: Source) -> Iterator[str]:
    """Modules that own a weight matrix, packed or not, in the order of their tensors."""
    seen = set()
    for name, tensor in source.tensors.items():
        module, _, leaf = name.rpartition(".")
        if (leaf == "weight_packed" or (leaf == "weight" and len(tensor.shape) == 2)) and module not in seen:
            seen.add(module)
            yield module


def _is_quantized(source: Source, module: str) -> bool:
    if f"{module}.weight_packed" in source.tensors or f"{module}.weight_scale" in source.tensors:
        return True
    return source.tensors[f"{module}.weight"].dtype in _CODES


def _group_of(module: str, quantized: bool, matcher: Matcher, findings: Findings) -> Group | None:
    """The group that quantizes a module; None for one that is not quantized, or with a finding."""
    group = matcher.group(module)
    if group is None or group.weight is None:
        if quantized:
            findings.add("QB013", module, ("its weight is quantized and no config group targets it",))
        return None
    if matcher.ignored(module):
        if quantized:
            findings.add("QB019", module)
        return None
    rivals = sorted({rival.name for rival in matcher.rivals(module)})
    if len(rivals) > 1:
        findings.add("QB014", module, (f"targets of groups {' and '.join(rivals)} match it alike",))
        return None
    # transformers 5 has routers and embeddings as classes of their own, which the target Linear does not mean
    if not quantized and (is_router(module) or is_embedding(module)) and matcher.named(module) is None:
        return None
    return group


def _inferred(source: Source, module: str) -> Group:
    """The scheme that a module's own tensors show."""
    weight, scale = source.tensors.get(f"{module}.weight"), source.tensors.get(f"{module}.weight_scale")
    granularity, size = Granularity.CHANNEL, None
    if scale is not None and weight is not None:
        columns = scale.shape[1] if len(scale.shape) == 2 else 1
        if _elements(scale) == 1 < weight.shape[0]:
            granularity = Granularity.TENSOR
        elif columns > 1:
            granularity, size = Granularity.GROUP, -(-weight.shape[1] // columns)
    scheme = WeightScheme(8, granularity, f"{module}.weight_zero_point" not in source.tensors, group_size=size)
    static = f"{module}.input_scale" in source.tensors
    symmetric = f"{module}.input_zero_point" not in source.tensors
    activation = ActivationScheme(8, Granularity.TENSOR, False, symmetric) if static else ASSUMED
    return Group(INFERRED, (), scheme, activation, None, False)


def _elements(tensor: StoredTensor) -> int:
    return (tensor.end - tensor.begin) // tensor.dtype.itemsize


def _add(
    found: Found, source: Source, module: str, group: Group, block: Mapping[str, Any], findings: Findings
) -> None:
    """The module's spec to the found ones, or a finding and the module to the refused ones."""
    not_read = _not_read(source, module, group)
    if not_read:
        findings.add("QB101", module, (not_read,))
        found.refused.add(module)
        return
    weight = source.tensors.get(f"{module}.weight")
    if weight and weight.dtype.is_float and f"{module}.weight_scale" in source.tensors:
        fact = f"weight is {weight.dtype} beside a weight_scale: saved before it was compressed"
        findings.add("QB016", f"{module}.weight", (fact,), ("save it again with save_compressed=True",))
        found.refused.add(module)
        return
    try:
        found.specs.append(_spec(source, module, group, block))
    except ValueError as fault:
        findings.add("QB013", module, (str(fault),))
        found.refused.add(module)


def _not_read(source: Source, module: str, group: Group) -> str | None:
    """Why a sound layer is not read here, in the format's own names; None if it is."""
    weight = group.weight
    packed = source.tensors.get(f"{module}.weight_packed")
    if packed is not None and (weight is None or weight.type != "int" or packed.dtype is not DType.I32):
        return f"format {group.format or 'nvfp4- or mxfp4-pack-quantized'}: {packed.dtype} packed weights"
    if packed is not None and group.name == INFERRED:
        return "packed weights without a quantization block, which alone has their bits"
    if packed is not None:
        return None
    stored = source.tensors[f"{module}.weight"].dtype
    if (weight and weight.type != "int") or stored in (DType.F8_E4M3, DType.F8_E5M2):
        kind = weight.type if weight and weight.type != "int" else str(stored)
        return f"format {group.format or 'float-quantized'}: {kind} weights"
    return None


def _spec(source: Source, module: str, group: Group, block: Mapping[str, Any]) -> Spec:
    if group.weight is None:
        raise ValueError("the group quantizes no weights")
    (rows, columns), dialect = _dims(source, module, group.weight, group.activation is None)
    scale, bias = source.tensors.get(f"{module}.weight_scale"), source.tensors.get(f"{module}.bias")
    scale_dtype = scale.dtype if scale and scale.dtype.is_float else _model_dtype(source)
    static = group.activation is not None and not group.activation.dynamic
    input_scale = source.tensors.get(f"{module}.input_scale")
    scheme = group.weight
    zero = source.tensors.get(f"{module}.weight_zero_point")
    if scheme.symmetric and zero is not None:
        dialect["zero_point"] = "packed zeros" if zero.dtype is DType.I32 else "zeros"
    elif zero is not None and zero.dtype is DType.I8 and f"{module}.weight_packed" in source.tensors:
        dialect["zero_point"] = "unpacked"
    elif not scheme.symmetric and zero is None and _drops_zeros(block):
        scheme, dialect["zero_point"] = replace(scheme, symmetric=True), "lost"
    name = canonical_module(module)
    if name != module:
        dialect["stored_as"] = module
    spec = Spec(
        name=name,
        out_features=rows,
        in_features=columns,
        weight=scheme,
        scale_dtype=scale_dtype,
        activation=group.activation,
        input_scale_dtype=(input_scale.dtype if input_scale else scale_dtype) if static else None,
        bias=bias.dtype if bias else None,
        g_idx=_act_order(source, module, scheme, dialect),
    )
    return replace(spec, dialect=(*sorted(dialect.items()), *_shapes(source, module, spec)))


def _dims(
    source: Source, module: str, scheme: WeightScheme, weights_only: bool
) -> tuple[tuple[int, int], dict[str, str]]:
    """(out_features, in_features) and what the tensors say of the packing's dialect."""
    packed = source.tensors.get(f"{module}.weight_packed")
    if packed is None:
        rows, columns = source.tensors[f"{module}.weight"].shape
        return (rows, columns), {"packed": "no"} if weights_only else {}
    dialect = {} if weights_only else {"packed": "yes"}
    shape = source.tensors.get(f"{module}.weight_shape")
    if len(packed.shape) != 2:
        raise ValueError(f"weight_packed has the shape {list(packed.shape)}, not [rows, words]")
    rows, words = packed.shape
    columns = words * 32 // scheme.bits
    if shape is not None and shape.shape == (2,) and shape.dtype in (DType.I64, DType.I32):
        columns = int(source.read_small(shape.name)[1])
        dialect |= {"weight_shape": "I32"} if shape.dtype is DType.I32 else {}
    dense, padded = -(-columns * scheme.bits // 32), -(-columns // (32 // scheme.bits))
    if words == padded != dense:
        dialect["words"] = "padded"  # releases 0.17, for 3, 5, 6 and 7 bits
    return (rows, columns), dialect


def _act_order(source: Source, module: str, scheme: WeightScheme, dialect: dict[str, str]) -> bool:
    """Whether weight_g_idx says anything, by its content; what it is otherwise goes to the dialect."""
    tensor = source.tensors.get(f"{module}.weight_g_idx")
    if tensor is None or tensor.dtype is not DType.I32 or len(tensor.shape) != 1:
        return False
    index = source.read_small(tensor.name).astype(np.int32)
    if (index < 0).all():
        dialect["g_idx"] = "unset"
    elif (index == np.arange(index.size) // (scheme.group_size or index.size)).all():
        dialect["g_idx"] = "trivial"
    else:
        dialect["g_idx"] = ACT_ORDER
    return dialect["g_idx"] == ACT_ORDER


def _drops_zeros(block: Mapping[str, Any]) -> bool:
    """Releases 0.4 to 0.6, which wrote no version, dropped zero-point tensors that were all zero."""
    return "version" not in block


def _shapes(source: Source, module: str, spec: Spec) -> Dialect:
    """Shapes that differ from today's only by dims of 1: [N] for [N, 1], [] for [1]."""
    column = spec.scale_shape[:1] if spec.weight.granularity is Granularity.TENSOR else spec.scale_shape
    today = {"weight_scale": column, "input_scale": (1,), "input_zero_point": (1,)}
    if f"{module}.weight_packed" not in source.tensors:
        today["weight_zero_point"] = column
    found = []
    for leaf, shape in today.items():
        tensor = source.tensors.get(f"{module}.{leaf}")
        if tensor is not None and tensor.shape != shape and _squeezed(tensor.shape) == _squeezed(shape):
            found.append((f"{leaf}.shape", "x".join(map(str, tensor.shape))))
    return tuple(found)


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(dim for dim in shape if dim != 1)


def _model_dtype(source: Source) -> DType:
    """The dtype that missing scales would have had: that of the first float tensor."""
    return next((t.dtype for t in source.tensors.values() if t.dtype.is_float), DType.F32)
