"""Linears whose codes are their weights, as layers of a model or among its unquantized tensors."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model, TensorInfo
from qbridge.ir.scheme import DENSE, Granularity, WeightScheme
from qbridge.ir.slots import Slot

_TYPES = {dtype: name for name, dtype in DENSE.items()}


def plain_spec(name: str, dims: tuple[int, int], dtype: DType, bias: DType | None = None) -> Spec:
    """The spec of a linear without codes, of `dims` [out_features, in_features] and a dtype of `DENSE`."""
    weight = WeightScheme(8 * dtype.itemsize, Granularity.TENSOR, type=_TYPES[dtype])  # type: ignore[arg-type]
    return Spec(name, *dims, weight, dtype, bias=bias)


def plain_layout(spec: Spec) -> dict[str, Slot]:
    """The slots of a layer without codes: `weight` [out_features, in_features], and `bias` where it has one."""
    slots = {"code": Slot(f"{spec.name}.weight", DENSE[spec.weight.type], spec.dims)}
    if spec.bias is not None:
        slots["bias"] = Slot(f"{spec.name}.bias", spec.bias, (spec.out_features,))
    return slots


def as_tensors(model: Model, names: Collection[str]) -> Model:
    """The model in which these layers, which have no codes, are unquantized tensors."""
    specs = {name: spec for name, spec in model.specs.items() if name not in names}
    slots = {name: parts for name, parts in model.slots.items() if name not in names}
    plain = (slot for name in names for slot in plain_layout(model.specs[name]).values())
    tensors = {slot.tensor: TensorInfo(slot.dtype, slot.shape, slot.tensor) for slot in plain}
    return replace(model, specs=specs, slots=slots, tensors={**model.tensors, **tensors})


def as_layers(model: Model, names: Iterable[str]) -> Model:
    """The model in which these linears are layers without codes; not of names without an unquantized weight."""
    specs, slots, tensors = dict(model.specs), dict(model.slots), dict(model.tensors)
    for name in names:
        weight, bias = tensors.get(f"{name}.weight"), tensors.get(f"{name}.bias")
        if weight is None or len(weight.shape) != 2 or weight.dtype not in _TYPES:
            continue
        rows, columns = weight.shape
        specs[name] = plain_spec(name, (rows, columns), weight.dtype, bias.dtype if bias else None)
        slots[name] = _stored(plain_layout(specs[name]), tensors)
        for slot in plain_layout(specs[name]).values():
            del tensors[slot.tensor]
    return replace(model, specs=specs, slots=slots, tensors=tensors)


def _stored(slots: Mapping[str, Slot], tensors: Mapping[str, TensorInfo]) -> dict[str, Slot]:
    """The slots under the names that the tensors have on disk."""
    return {part: replace(slot, tensor=tensors[slot.tensor].stored) for part, slot in slots.items()}
