"""FoldZeros: zero-points subtracted from the codes, which take more bits for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qbridge.ir.dtypes import DType
from qbridge.ir.exactness import Exactness
from qbridge.ir.layer import Layer, Spec
from qbridge.ir.values import group_index, row_index
from qbridge.passes import Pass
from qbridge.passes.bits import Kept, array_of
from qbridge.passes.counted import Counted


@dataclass(frozen=True, slots=True)
class FoldZeros(Pass):
    """Asymmetric integer weights as symmetric ones of `bits` bits: the old codes minus their zero-points.

    Every weight keeps its value. Undo finds the old codes by `kept`, the bits of the zero-points, unless these are
    too many to be `recorded`.
    """

    name = "fold-zeros"
    parts = frozenset({"code", "zero"})

    bits: int
    recorded: bool = True
    kept: Kept = ()

    @property
    def exactness(self) -> Exactness:
        """Undo is exact where the zero-points are recorded."""
        return Exactness.REVERSIBLE if self.recorded else Exactness.EQUAL

    @property
    def recorded_parts(self) -> frozenset[str]:
        """The zero-points."""
        return frozenset({"zero"}) if self.recorded else frozenset()

    @property
    def is_final(self) -> bool:
        """Whether they are not."""
        return not self.recorded

    @property
    def whole(self) -> bool:
        """What is kept has all output features."""
        return bool(self.kept)

    def needs_values(self, spec: Spec) -> bool:
        """Unless there is a bit more: zero-points are codes of the old width, or the one above the highest."""
        return self.bits <= spec.weight.bits

    def inputs(self, parts: frozenset[str]) -> frozenset[str]:
        """Codes come from codes and zero-points."""
        return parts | {"zero"} if "code" in parts else parts

    def plan(self, spec: Spec) -> Spec:
        """The spec, symmetric; ValueError for what has no zero-points, or has them in act-order."""
        if spec.weight.symmetric or spec.g_idx:
            raise ValueError(f"{spec.name}: there are no zero-points to fold in the order of the inputs")
        return replace(spec, weight=replace(spec.weight, symmetric=True, bits=self.bits))

    def apply(self, layer: Layer) -> Layer:
        """The codes minus their zero-points; ValueError where one does not fit."""
        after = self.plan(layer.spec)
        arrays = {part: array for part, array in layer.arrays.items() if part != "zero"}
        if "code" in arrays:
            rows, columns = row_index(layer.spec)[:, None], group_index(layer.spec)[None, :]
            codes, zeros = layer.arrays["code"].astype(np.int16), layer.arrays["zero"].astype(np.int16)
            folded = codes - zeros[rows, columns]
            half = 1 << (self.bits - 1)
            if outside := int(np.count_nonzero((folded < -half) | (folded >= half))):
                raise Counted(outside, f"codes minus their zero-points do not fit {self.bits} bits")
            arrays["code"] = folded.astype(np.int8)
        return Layer(after, arrays)

    def undo(self, layer: Layer, before: Spec) -> Layer:
        """The codes with the zero-points that are kept; ValueError where a code does not fit or nothing is kept."""
        kept = dict(self.kept)
        if "zero" not in kept:
            raise ValueError("zero-points that were folded into codes are not recorded")
        arrays = dict(layer.arrays)
        zeros = array_of(kept["zero"], DType.I16, before.scale_shape)
        if "code" in arrays:
            rows, columns = row_index(before)[:, None], group_index(before)[None, :]
            codes = arrays["code"].astype(np.int16) + zeros.astype(np.int16)[rows, columns]
            half = 1 << (before.weight.bits - 1)
            if outside := int(np.count_nonzero((codes < -half) | (codes >= half))):
                raise Counted(outside, f"codes and their zero-points do not fit {before.weight.bits} bits")
            arrays["code"] = codes.astype(np.int8)
        return Layer(before, {**arrays, "zero": zeros})

    def as_dict(self) -> dict[str, Any]:
        """Name and bits, and that nothing is recorded; `kept` differs from layer to layer and stands elsewhere."""
        return {"pass": self.name, "bits": self.bits, **({} if self.recorded else {"recorded": False})}

    @classmethod
    def from_dict(cls, recorded: Mapping[str, Any], bits: Mapping[str, str]) -> FoldZeros:
        """One that gives back the zero-points of these bits."""
        kept = tuple((part, digits) for part, digits in bits.items() if part == "zero")
        return cls(recorded["bits"], recorded.get("recorded", True), kept)
