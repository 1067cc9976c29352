"""Recast: the scales in another float dtype, exactly or not at all."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qbridge.dtypes import Array, DType, from_float64, survives, to_float64
from qbridge.exactness import Exactness
from qbridge.ir import Layer, Spec


@dataclass(frozen=True, slots=True)
class Recast:
    """Weight scales to `dtype`; ValueError when applied to a scale that has no exact value there."""

    dtype: DType

    @property
    def name(self) -> str:
        """recast."""
        return "recast"

    @property
    def exactness(self) -> Exactness:
        """The values stay, and casting back gives the same bits."""
        return Exactness.REVERSIBLE

    @property
    def parts(self) -> frozenset[str]:
        """Only the scale."""
        return frozenset({"scale"})

    def needs_values(self, spec: Spec) -> bool:
        """Unless every value of the old dtype is one of the new."""
        return not survives(spec.scale_dtype, self.dtype)

    def plan(self, spec: Spec) -> Spec:
        """The spec with the new scale dtype."""
        return replace(spec, scale_dtype=self.dtype)

    def apply(self, layer: Layer) -> Layer:
        """Every scale cast, its value unchanged."""
        scale = cast(layer.arrays["scale"], layer.spec.scale_dtype, self.dtype)
        return Layer(self.plan(layer.spec), {**layer.arrays, "scale": scale})

    def undo(self, layer: Layer, before: Spec) -> Layer:
        """Every scale cast back."""
        scale = cast(layer.arrays["scale"], layer.spec.scale_dtype, before.scale_dtype)
        return Layer(before, {**layer.arrays, "scale": scale})

    def as_dict(self) -> dict[str, Any]:
        """Name and dtype."""
        return {"pass": self.name, "dtype": str(self.dtype)}


def cast(array: Array, before: DType, after: DType) -> Array:
    """`array` in the bits of `after`; ValueError naming how many values would move."""
    values = to_float64(array, before)
    result = from_float64(values, after)
    moved = int(np.count_nonzero(to_float64(result, after) != values))
    if moved:
        raise ValueError(f"{moved} of {values.size} values have no exact {after}")
    return result
