"""Widen: the same codes counted as codes of more bits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qbridge.ir.exactness import Exactness
from qbridge.ir.layer import Layer, Spec


@dataclass(frozen=True, slots=True)
class Widen:
    """Integer codes to `bits`; codes, zero-points and scales stay as they are, so every weight keeps its value."""

    bits: int

    @property
    def name(self) -> str:
        """widen."""
        return "widen"

    @property
    def exactness(self) -> Exactness:
        """The values stay; undo needs to know the width."""
        return Exactness.EQUAL

    @property
    def parts(self) -> frozenset[str]:
        """None: canonical codes are int8 whatever their width, and only their layout on disk changes."""
        return frozenset()

    def needs_values(self, spec: Spec) -> bool:
        """Never."""
        return False

    def inputs(self, parts: frozenset[str]) -> frozenset[str]:
        """Each part comes from itself alone."""
        return parts

    def plan(self, spec: Spec) -> Spec:
        """The spec with the new width."""
        return replace(spec, weight=replace(spec.weight, bits=self.bits))

    def apply(self, layer: Layer) -> Layer:
        """The same arrays."""
        return Layer(self.plan(layer.spec), layer.arrays)

    def undo(self, layer: Layer, before: Spec) -> Layer:
        """The same arrays; ValueError if a code does not fit the old width."""
        codes, half = layer.arrays.get("code"), 2 ** (before.weight.bits - 1)
        outside = 0 if codes is None else np.count_nonzero((codes < -half) | (codes >= half))
        if outside:
            raise ValueError(f"{outside} codes do not fit {before.weight.bits} bits")
        return Layer(before, layer.arrays)

    def lossy(self) -> None:
        """It cannot fail."""

    def as_dict(self) -> dict[str, Any]:
        """Name and width."""
        return {"pass": self.name, "bits": self.bits}
