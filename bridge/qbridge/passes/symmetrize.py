"""Symmetrize: asymmetric weights whose zero-points are all zero, as the symmetric ones they are."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from qbridge.ir.layer import Layer, Spec
from qbridge.passes import Pass
from qbridge.passes.counted import Counted


@dataclass(frozen=True, slots=True)
class Symmetrize(Pass):
    """Drop all-zero zero-points; ValueError when applied to others."""

    name = "symmetrize"
    parts = frozenset({"zero"})

    def needs_values(self, spec: Spec) -> bool:
        """Only the zeros themselves tell."""
        return True

    def plan(self, spec: Spec) -> Spec:
        """The spec, symmetric."""
        return replace(spec, weight=replace(spec.weight, symmetric=True))

    def apply(self, layer: Layer) -> Layer:
        """The layer without its zeros."""
        zero = layer.arrays.get("zero")
        if zero is not None and np.any(zero):
            raise Counted(int(np.count_nonzero(zero)), "zero-points are not zero")
        rest = {part: array for part, array in layer.arrays.items() if part != "zero"}
        return Layer(self.plan(layer.spec), rest)

    def undo(self, layer: Layer, before: Spec) -> Layer:
        """The layer with zeros."""
        zero = np.zeros(before.scale_shape, np.int16)
        return Layer(before, {**layer.arrays, "zero": zero})
