"""Widen: the same codes counted as codes of more bits."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from qbridge.ir.layer import Layer, Spec
from qbridge.passes import Pass


@dataclass(frozen=True, slots=True)
class Widen(Pass):
    """Integer codes to `bits`; codes, zero-points and scales stay as they are, so every weight keeps its value."""

    name = "widen"

    bits: int

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
