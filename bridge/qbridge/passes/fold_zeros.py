"""FoldZeros: zero-points subtracted from the codes, which take more bits for it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from qbridge.ir.layer import Layer, Spec
from qbridge.ir.values import group_index, row_index
from qbridge.passes import Pass
from qbridge.passes.counted import Counted


@dataclass(frozen=True, slots=True)
class FoldZeros(Pass):
    """Asymmetric integer weights as symmetric ones of `bits` bits: the old codes minus their zero-points.

    Every weight keeps its value. Zero-points are not recorded, so that nothing undoes it.
    """

    name = "fold-zeros"
    parts = frozenset({"code", "zero"})
    is_final = True

    bits: int

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
        """ValueError: many zero-points lead to the same codes."""
        raise ValueError("zero-points that were folded into codes are not recorded")
