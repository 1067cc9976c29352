"""The spec of a compressed-tensors layer from its group and the headers of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.scheme import GLOBAL_SCALE, ActivationScheme, Dialect, Granularity, WeightScheme
from qbridge.source.reader import Source
from qbridge_formats._shared.modules import ModuleTensors, SpecsByKind, headers
from qbridge_formats._shared.stacked_experts import Modules
from qbridge_formats.compressed_tensors import floats as _ct_floats
from qbridge_formats.compressed_tensors.config import Group

ACT_ORDER = "act-order"


class Reader:
    """Specs from tensors, worked out once for all modules whose tensors are alike."""

    def __init__(self, source: Source, block: Mapping[str, Any], modules: Modules) -> None:
        """A source, the block of its config, and its modules."""
        self._source, self._block, self._modules = source, block, modules
        self.version = str(block.get("version") or "")
        self._specs = SpecsByKind()
        self._is_ordered = any(name.endswith(".weight_g_idx") for name in source.tensors)

    def spec(self, module: str, own: ModuleTensors, group: Group) -> Spec:
        """The spec of a module; ValueError where its tensors do not fit together."""
        if group.weight is None:
            raise ValueError("the group quantizes no weights")
        if group.act_order and self._is_ordered and "weight_g_idx" not in own:
            raise ValueError("weight_g_idx is absent, and other layers of act-order have theirs")
        name = self._modules.known_name(module)
        stored_as = None if name == module else module
        columns, index = _columns(self._source, own), _index(self._source, own, group.weight)
        scales = own.get("weight_scale")
        meant = _ct_floats.scale_dtype(group, scales.dtype if scales else None)
        weight, activation = group.weight, group.activation
        dialect = {} if stored_as is None else {"stored_as": stored_as}
        dialect |= {} if index is None else {"g_idx": index}
        stack = self._modules.dialects.get(module, ())
        alike = headers(own), weight, activation, meant, columns, index, stored_as, stack
        return self._specs.spec(
            name,
            alike,
            lambda: self._modules.kept(module, self._spec(name, own, weight, activation, meant, columns, dialect)),
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
    return int(source.read(shape.name).reshape(-1)[-1])  # of stacked experts there may be more


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
