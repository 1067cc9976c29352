"""Symmetrize: asymmetric weights whose zero-points are all zero, as the symmetric ones they are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qbridge.ir.exactness import Exactness
from qbridge.ir.layer import Layer, Spec


@dataclass(frozen=True, slots=True)
class Symmetrize:
    """Drop all-zero zero-points; ValueError when applied to others."""

    @property
    def name(self) -> str:
        """symmetrize."""
        return "symmetrize"

    @property
    def exactness(self) -> Exactness:
        """The values stay; undo needs to know that zero-points were stored."""
        return Exactness.EQUAL

    @property
    def parts(self) -> frozenset[str]:
        """Only the zero."""
        return frozenset({"zero"})

    def needs_values(self, spec: Spec) -> bool:
        """Only the zeros themselves tell."""
        return True

    def inputs(self, parts: frozenset[str]) -> frozenset[str]:
        """Each part comes from itself alone."""
        return parts

    def plan(self, spec: Spec) -> Spec:
        """The spec, symmetric."""
        return replace(spec, weight=replace(spec.weight, symmetric=True))

    def apply(self, layer: Layer) -> Layer:
        """The layer without its zeros."""
        zero = layer.arrays.get("zero")
        if zero is not None and np.any(zero):
            raise ValueError(f"{np.count_nonzero(zero)} of {zero.size} zero-points are not zero")
        rest = {part: array for part, array in layer.arrays.items() if part != "zero"}
        return Layer(self.plan(layer.spec), rest)

    def undo(self, layer: Layer, before: Spec) -> Layer:
        """The layer with zeros."""
        zero = np.zeros(before.scale_shape, np.int16)
        return Layer(before, {**layer.arrays, "zero": zero})

    def lossy(self) -> None:
        """Other zero-points are another model."""

    def as_dict(self) -> dict[str, Any]:
        """Name."""
        return {"pass": self.name}
