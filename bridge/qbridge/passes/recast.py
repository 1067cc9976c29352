"""Recast: the scales in another float dtype, exactly or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qbridge.ir.dtypes import Array, DType, from_float64, survives, to_float64
from qbridge.ir.exactness import Exactness
from qbridge.ir.layer import Layer, Spec
from qbridge.passes import Pass
from qbridge.passes.counted import Counted

_BLOCK = 1 << 20  # values that are held as float64 at a time


@dataclass(frozen=True, slots=True)
class Recast(Pass):
    """Weight scales to `dtype`; ValueError when applied to a scale that has no exact value there.

    With `rounded` such a scale becomes the nearest, and undo does not give it back.
    """

    name = "recast"
    parts = frozenset({"scale"})

    dtype: DType
    rounded: bool = False

    @property
    def exactness(self) -> Exactness:
        """The values stay, and casting back gives the same bits, unless they are rounded."""
        return Exactness.ROUNDED if self.rounded else Exactness.REVERSIBLE

    def needs_values(self, spec: Spec) -> bool:
        """Unless every value of the old dtype is one of the new, or may be rounded."""
        return not self.rounded and not survives(spec.scale_dtype, self.dtype)

    def plan(self, spec: Spec) -> Spec:
        """The spec with the new scale dtype; ValueError for codes with offsets, which are of the scales' dtype."""
        if spec.weight.type == "affine":
            raise ValueError(f"{spec.name}: offsets are of the dtype of its scales")
        return replace(spec, scale_dtype=self.dtype)

    def apply(self, layer: Layer) -> Layer:
        """Every scale cast, its value unchanged unless `rounded`."""
        return self._cast(layer, self.plan(layer.spec), self.rounded)

    def undo(self, layer: Layer, before: Spec) -> Layer:
        """Every scale cast back."""
        return self._cast(layer, before)

    def _cast(self, layer: Layer, after: Spec, rounded: bool = False) -> Layer:
        arrays = dict(layer.arrays)
        if "scale" in arrays:
            arrays["scale"] = cast(arrays["scale"], layer.spec.scale_dtype, after.scale_dtype, rounded)
        return Layer(after, arrays)

    def lossy(self) -> Recast:
        """The same to the nearest value."""
        return replace(self, rounded=True)

    def as_dict(self) -> dict[str, Any]:
        """Name, dtype, and whether it rounds."""
        return {"pass": self.name, "dtype": str(self.dtype), **({"rounded": True} if self.rounded else {})}

    @classmethod
    def from_dict(cls, recorded: Mapping[str, Any], bits: Mapping[str, str]) -> Recast:
        """One that does not round."""
        return cls(DType(recorded["dtype"]))


class Moved(Counted):
    """`count` values have no exact value in the new dtype."""

    def __init__(self, count: int, size: int, after: DType) -> None:
        """Say how many of how many."""
        super().__init__(count, "", f"{count} of {size} values have no exact {after}")


def cast(array: Array, before: DType, after: DType, rounded: bool = False) -> Array:
    """`array` in the bits of `after`; Moved if that changes a value, unless it may be `rounded`.

    A value that would become infinite or zero is Moved in any case.
    """
    result = np.empty(array.shape, after.numpy)
    flat, into = np.ascontiguousarray(array).reshape(-1), result.reshape(-1)
    moved = lost = 0
    for start in range(0, flat.size, _BLOCK):
        values = to_float64(flat[start : start + _BLOCK], before)
        into[start : start + _BLOCK] = from_float64(values, after)
        back = to_float64(into[start : start + _BLOCK], after)
        moved += int(np.count_nonzero(back != values))
        gone = (np.isfinite(values) & ~np.isfinite(back)) | ((values != 0) & (back == 0))
        lost += int(np.count_nonzero(gone))
    if moved and (lost or not rounded):
        raise Moved(lost if rounded else moved, flat.size, after)
    return result
