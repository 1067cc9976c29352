"""Invert: global scales that multiply become ones that divide, or back; exactly or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qbridge.ir.dtypes import Array
from qbridge.ir.exactness import Exactness
from qbridge.ir.layer import Layer, Spec
from qbridge.ir.scheme import GLOBAL_SCALE, GlobalScale
from qbridge.passes import Pass
from qbridge.passes.bits import Kept, array_of


@dataclass(frozen=True, slots=True)
class Invert(Pass):
    """Global scales of weights and inputs (float32 [1]) that do what `to` says to the scales of groups.

    A number g becomes 1 / g. That is a float32 only where g is a power of two, so any other is a ValueError when
    applied; with `rounded` it becomes the nearest, ties to even. `kept` are the bits that there were before, by part
    (`bits.bits_of`): undo gives these back, where they become what is there now.
    """

    name = "invert"
    parts = frozenset({"global_scale", "input_global_scale"})

    to: GlobalScale
    rounded: bool = False
    kept: Kept = ()

    @property
    def recorded_parts(self) -> frozenset[str]:
        """The global scales whose reciprocals are rounded."""
        return self.parts if self.rounded else frozenset()

    @property
    def exactness(self) -> Exactness:
        """The values stay unless they are rounded."""
        return Exactness.ROUNDED if self.rounded else Exactness.EQUAL

    def needs_values(self, spec: Spec) -> bool:
        """Always: even the nearest reciprocal may be infinite."""
        return True

    def plan(self, spec: Spec) -> Spec:
        """The spec whose global scales, if it has any, do what `to` says."""
        weight, activation = spec.weight, spec.activation
        if weight.global_scale:
            weight = replace(weight, global_scale=self.to)
        if activation and activation.global_scale:
            activation = replace(activation, global_scale=self.to)
        return replace(spec, weight=weight, activation=activation)

    def apply(self, layer: Layer) -> Layer:
        """Every global scale that did the other thing, inverted."""
        after = self.plan(layer.spec)
        arrays = dict(layer.arrays)
        for part in sorted(_turned(layer.spec, after) & arrays.keys()):
            arrays[part] = reciprocal(arrays[part], self.rounded)
        return Layer(after, arrays)

    def undo(self, layer: Layer, before: Spec) -> Layer:
        """The global scales that there were; ValueError where they are neither kept nor exact reciprocals."""
        arrays, kept = dict(layer.arrays), dict(self.kept)
        for part in sorted(_turned(before, layer.spec) & arrays.keys()):
            if part not in kept:
                arrays[part] = reciprocal(arrays[part])
                continue
            was = array_of(kept[part], GLOBAL_SCALE, (1,))
            if reciprocal(was, self.rounded).tobytes() != arrays[part].tobytes():
                raise ValueError(f"{part} is not the reciprocal of what it was")
            arrays[part] = was
        return Layer(before, arrays)

    def lossy(self) -> Invert:
        """The same to the nearest float32."""
        return replace(self, rounded=True)

    def as_dict(self) -> dict[str, Any]:
        """Name, direction, and whether it rounds; `kept` differs from layer to layer and stands elsewhere."""
        return {"pass": self.name, "to": self.to, **({"rounded": True} if self.rounded else {})}

    @classmethod
    def from_dict(cls, recorded: Mapping[str, Any], bits: Mapping[str, str]) -> Invert:
        """One that gives back the bits."""
        return cls(recorded["to"], bool(recorded.get("rounded")), tuple(bits.items()))


def reciprocal(array: Array, rounded: bool = False) -> Array:
    """1 / g in float32, rounded once; ValueError if that changes its value, or makes it infinite, zero or NaN."""
    one = np.float32(1)
    with np.errstate(all="ignore"):  # zero, NaN and infinity are refused below
        found: Array = (one / array.astype(np.float32)).astype(GLOBAL_SCALE.numpy)
        wide = found.astype(np.float64)
        exact = bool((wide * array.astype(np.float64) == 1).all())  # 24 bits times 24 bits fit 53
    if exact or (rounded and np.isfinite(wide).all() and wide.all()):
        return found
    raise ValueError(
        "the reciprocal of one is infinite, zero or NaN" if rounded else "the reciprocal of one is no float32"
    )


def _turned(before: Spec, after: Spec) -> set[str]:
    """The parts whose meaning changes from one spec to the other."""
    kinds = {
        "global_scale": (before.weight.global_scale, after.weight.global_scale),
        "input_global_scale": tuple(s.activation and s.activation.global_scale for s in (before, after)),
    }
    return {part for part, (was, now) in kinds.items() if was != now}
