"""Which modules of a compressed-tensors checkpoint are quantized, and how: config groups against headers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from qbridge.architecture.names import canonical_module, is_embedding, is_router
from qbridge.findings.finding import Findings
from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.scheme import GLOBAL_SCALE, ActivationScheme, Dialect, Granularity, WeightScheme
from qbridge.source.reader import Source
from qbridge.source.stored import StoredTensor
from qbridge_formats._shared.modules import ModuleTensors, SpecsByKind, headers, tensors_of_modules
from qbridge_formats.compressed_tensors import floats as _ct_floats
from qbridge_formats.compressed_tensors.config import Group, Matcher, Parsed

INFERRED = "inferred"
ACT_ORDER = "act-order"
_CODES = (DType.I8, DType.U8, DType.F8_E4M3, DType.I32)
ASSUMED = ActivationScheme(8, Granularity.TOKEN, dynamic=True)


@dataclass(frozen=True, slots=True)
class Found:
    """The layers that can be read, and the modules about which there is a finding instead."""

    specs: list[Spec] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)


def listed_layers(source: Source, block: Parsed, findings: Findings) -> Found | None:
    """The layers that the block's groups claim; whatever config and tensors disagree on is a finding.

    None with findings (QB013) if a target or an ignore entry is no regular expression.
    """
    modules, reader, found = _matrices(source), _Reader(source, block.raw), Found()
    matcher = Matcher(block, list(modules))
    for pattern, fault in matcher.faults.items():
        findings.add("QB013", f"{block.key}: {pattern!r}", (f"not a regular expression: {fault}",))
    if matcher.faults:
        return None
    for module, own in modules.items():
        quantized = _is_quantized(own)
        group = _group_of(module, quantized, matcher, findings)
        if group is not None:
            _add(found, reader, module, own, group, findings)
        elif quantized:
            found.refused.add(module)
    return found


def inferred_layers(source: Source, findings: Findings) -> Found:
    """The layers that the tensors show where config.json has no block.

    Static activations show, by their scales. Their absence may mean dynamic ones or none, so that is assumed only
    with `--allow assumed-activations` (QB021).
    """
    reader, found = _Reader(source, {}), Found()
    for module, own in _matrices(source).items():
        if not _is_quantized(own):
            continue
        try:
            group = _inferred(own)
        except ValueError as fault:
            findings.add("QB016", module, (str(fault),))
            found.refused.add(module)
            continue
        _add(found, reader, module, own, group, findings)
        if group.activation is ASSUMED and module not in found.refused:
            findings.add("QB021", module, (f"no tensor shows its activation scheme; {ASSUMED} would be assumed",))
    return found


def _matrices(source: Source) -> dict[str, ModuleTensors]:
    """Modules that own a weight matrix, packed or not, in the order of these, with all their tensors."""
    modules, matrices = tensors_of_modules(source), dict[str, ModuleTensors]()
    for name, tensor in source.tensors.items():
        module, _, leaf = name.rpartition(".")
        if leaf == "weight_packed" or (leaf == "weight" and len(tensor.shape) == 2):
            matrices[module] = modules[module]
    return matrices


def _is_quantized(own: ModuleTensors) -> bool:
    return "weight_packed" in own or "weight_scale" in own or own["weight"].dtype in _CODES


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
    rivals = {rival.name for rival in matcher.rivals(module)}
    if len(rivals) > 1:
        findings.add("QB014", module, (f"targets of groups {' and '.join(sorted(rivals))} match it alike",))
        return None
    # transformers 5 has routers and embeddings as classes of their own, which the target Linear does not mean
    if not quantized and (is_router(module) or is_embedding(module)) and matcher.named(module) is None:
        return None
    return group


def _inferred(own: ModuleTensors) -> Group:
    """The scheme that a module's own tensors show."""
    weight, scale = own.get("weight"), own.get("weight_scale")
    granularity, size = Granularity.CHANNEL, None
    if scale is not None and weight is not None:
        columns = scale.shape[1] if len(scale.shape) == 2 else 1
        if _elements(scale) == 1 < weight.shape[0]:
            granularity = Granularity.TENSOR
        elif columns > 1:
            granularity, size = Granularity.GROUP, -(-weight.shape[1] // columns)
    scheme = WeightScheme(8, granularity, "weight_zero_point" not in own, group_size=size)
    symmetric = "input_zero_point" not in own
    activation = ActivationScheme(8, Granularity.TENSOR, False, symmetric) if "input_scale" in own else ASSUMED
    return Group(INFERRED, (), scheme, activation, None, False)


def _elements(tensor: StoredTensor) -> int:
    return (tensor.end - tensor.begin) // tensor.dtype.itemsize


def _add(found: Found, reader: _Reader, module: str, own: ModuleTensors, group: Group, findings: Findings) -> None:
    """The module's spec to the found ones, or a finding and the module to the refused ones."""
    not_read = _not_read(own, group, reader.version)
    if not_read:
        findings.add("QB101", module, (not_read,))
        found.refused.add(module)
        return
    weight = own.get("weight")
    if weight and weight.dtype.is_float and "weight_scale" in own:
        fact = f"weight is {weight.dtype} beside a weight_scale: saved before it was compressed"
        findings.add("QB016", f"{module}.weight", (fact,), ("save it again with save_compressed=True",))
        found.refused.add(module)
        return
    try:
        found.specs.append(reader.spec(module, own, group))
    except ValueError as fault:
        findings.add("QB013", module, (str(fault),))
        found.refused.add(module)


def _not_read(own: ModuleTensors, group: Group, version: str) -> str | None:
    """Why a sound layer is not read here, in the format's own names; None if it is."""
    packed = own.get("weight_packed")
    if packed is not None and group.name == INFERRED:
        return "packed weights without a quantization block, which alone has their bits"
    if group.name == INFERRED and own["weight"].dtype in (DType.F8_E4M3, DType.F8_E5M2):
        return f"{own['weight'].dtype} weights without a quantization block, which alone has their activations"
    return _ct_floats.not_read(group, own.get("weight_scale"), version)


class _Reader:
    """Specs from tensors, worked out once for all modules whose tensors are alike."""

    def __init__(self, source: Source, block: Mapping[str, Any]) -> None:
        """A source and the block of its config."""
        self._source, self._block = source, block
        self.version = str(block.get("version") or "")
        self._specs = SpecsByKind()

    def spec(self, module: str, own: ModuleTensors, group: Group) -> Spec:
        """The spec of a module; ValueError where its tensors do not fit together."""
        if group.weight is None:
            raise ValueError("the group quantizes no weights")
        name = canonical_module(module)
        stored_as = None if name == module else module
        columns, index = _columns(self._source, own), _index(self._source, own, group.weight)
        scales = own.get("weight_scale")
        meant = _ct_floats.scale_dtype(group, scales.dtype if scales else None)
        weight, activation = group.weight, group.activation
        dialect = {} if stored_as is None else {"stored_as": stored_as}
        dialect |= {} if index is None else {"g_idx": index}
        alike = headers(own), weight, activation, meant, columns, index, stored_as
        return self._specs.spec(
            name, alike, lambda: self._spec(name, own, weight, activation, meant, columns, dialect)
        )

    def _spec(
        self,
        name: str,
        own: ModuleTensors,
        scheme: WeightScheme,
        activation: ActivationScheme | None,
        scales: DType | None,
        columns: int | None,
        dialect: dict[str, str],
    ) -> Spec:
        rows, columns = _dims(own, scheme, activation is None, columns, dialect)
        scale, bias, zero = own.get("weight_scale"), own.get("bias"), own.get("weight_zero_point")
        scale_dtype = scales or (scale.dtype if scale and scale.dtype.is_float else _model_dtype(self._source))
        if scheme.symmetric and zero is not None:
            dialect["zero_point"] = "packed zeros" if zero.dtype is DType.I32 else "zeros"
        elif zero is not None and zero.dtype is DType.I8 and "weight_packed" in own:
            dialect["zero_point"] = "unpacked"
        elif not scheme.symmetric and zero is None and _drops_zeros(self._block):
            scheme, dialect["zero_point"] = replace(scheme, symmetric=True), "lost"
        spec = Spec(
            name=name,
            out_features=rows,
            in_features=columns,
            weight=scheme,
            scale_dtype=scale_dtype,
            activation=activation,
            input_scale_dtype=_input_scale(own, activation, scale_dtype),
            bias=bias.dtype if bias else None,
            g_idx=dialect.get("g_idx") == ACT_ORDER,
        )
        return replace(spec, dialect=(*sorted(dialect.items()), *_shapes(own, spec)))


def _input_scale(own: ModuleTensors, activation: ActivationScheme | None, otherwise: DType) -> DType | None:
    """The dtype of the stored scale of activations, None where none is stored."""
    if activation is None or not activation.is_stored:
        return None
    stored = own.get("input_global_scale" if activation.global_scale else "input_scale")
    return (
        stored.dtype if stored and stored.dtype.is_float else GLOBAL_SCALE if activation.global_scale else otherwise
    )


def _columns(source: Source, own: ModuleTensors) -> int | None:
    """The in_features that weight_shape holds, None where it says nothing."""
    shape = own.get("weight_shape")
    if shape is None or "weight_packed" not in own:
        return None
    if shape.shape != (2,) or shape.dtype not in (DType.I64, DType.I32):
        return None
    return int(source.read(shape.name)[1])


def _dims(
    own: ModuleTensors, scheme: WeightScheme, weights_only: bool, columns: int | None, dialect: dict[str, str]
) -> tuple[int, int]:
    """(out_features, in_features); what the tensors say of the packing's dialect goes there."""
    packed = own.get("weight_packed")
    if packed is None:
        if scheme.type == "e2m1":
            raise ValueError("4-bit floats are packed, and there is no weight_packed")
        dialect |= {"packed": "no"} if weights_only and scheme.type == "int" else {}
        rows, inputs = own["weight"].shape
        return rows, inputs
    if len(packed.shape) != 2:
        raise ValueError(f"weight_packed has the shape {list(packed.shape)}, not [rows, words]")
    rows, words = packed.shape
    if scheme.type == "e2m1":
        return rows, 2 * words
    if scheme.type != "int":
        raise ValueError("8-bit floats are not packed, and there is a weight_packed")
    dialect |= {} if weights_only else {"packed": "yes"}
    if columns is None:
        columns = words * 32 // scheme.bits
    elif own["weight_shape"].dtype is DType.I32:
        dialect["weight_shape"] = "I32"
    dense, padded = -(-columns * scheme.bits // 32), -(-columns // (32 // scheme.bits))
    if words == padded != dense:
        dialect["words"] = "padded"  # releases 0.17, for 3, 5, 6 and 7 bits
    return rows, columns


def _index(source: Source, own: ModuleTensors, scheme: WeightScheme) -> str | None:
    """What weight_g_idx is by its content: unset, trivial or act-order; None where there is none."""
    tensor = own.get("weight_g_idx")
    if tensor is None or tensor.dtype is not DType.I32 or len(tensor.shape) != 1:
        return None
    index = source.read_small(tensor.name).astype(np.int32)
    if (index < 0).all():
        return "unset"
    trivial = (index == np.arange(index.size) // (scheme.group_size or index.size)).all()
    return "trivial" if trivial else ACT_ORDER


def _drops_zeros(block: Mapping[str, Any]) -> bool:
    """Releases 0.4 to 0.6, which wrote no version, dropped zero-point tensors that were all zero."""
    return "version" not in block


def _shapes(own: ModuleTensors, spec: Spec) -> Dialect:
    """Shapes that differ from today's only by dims of 1: [N] for [N, 1], [] for [1]."""
    column = spec.scale_shape[:1] if spec.weight.granularity is Granularity.TENSOR else spec.scale_shape
    today = {"weight_scale": column}
    today |= dict.fromkeys(("input_scale", "input_zero_point", "weight_global_scale", "input_global_scale"), (1,))
    if "weight_packed" not in own:
        today["weight_zero_point"] = column
    found = []
    for leaf, shape in today.items():
        tensor = own.get(leaf)
        if tensor is not None and tensor.shape != shape and _squeezed(tensor.shape) == _squeezed(shape):
            found.append((f"{leaf}.shape", "x".join(map(str, tensor.shape))))
    return tuple(found)


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(dim for dim in shape if dim != 1)


def _model_dtype(source: Source) -> DType:
    """The dtype that missing scales would have had: that of the first float tensor."""
    return next((t.dtype for t in source.tensors.values() if t.dtype.is_float), DType.F32)
