"""Broadcast: one scale (and zero) per tensor repeated to one per channel."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from qbridge.ir.layer import Layer, Spec
from qbridge.ir.scheme import Granularity
from qbridge.passes import Pass


@dataclass(frozen=True, slots=True)
class Broadcast(Pass):
    """Granularity tensor to channel; every weight keeps its value."""

    name = "broadcast"
    parts = frozenset({"scale", "zero", "offset"})

    def plan(self, spec: Spec) -> Spec:
        """The spec with granularity channel."""
        return replace(spec, weight=replace(spec.weight, granularity=Granularity.CHANNEL))

    def apply(self, layer: Layer) -> Layer:
        """The one scale and zero repeated for each row."""
        after = self.plan(layer.spec)
        arrays = {
            name: np.repeat(array, after.out_features, axis=0) if name in self.parts else array
            for name, array in layer.arrays.items()
        }
        return Layer(after, arrays)

    def undo(self, layer: Layer, before: Spec) -> Layer:
        """The first row's scale and zero; ValueError if the rows differ."""
        arrays = dict(layer.arrays)
        for name in self.parts & arrays.keys():
            first = arrays[name][:1]
            if (arrays[name].view(f"u{first.dtype.itemsize}") != first.view(f"u{first.dtype.itemsize}")).any():
                raise ValueError(f"{before.name}: the rows of {name} differ")
            arrays[name] = first
        return Layer(before, arrays)
