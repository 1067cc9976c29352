"""Float4ToMxfp8: MXFP4 as MXFP8, the same numbers as float8 (e4m3) under the same scales."""

from __future__ import annotations

from dataclasses import dataclass, replace

from qbridge.ir.layer import Layer, Spec
from qbridge.ir.scheme import Granularity, WeightScheme
from qbridge.passes import float4
from qbridge.passes.cast import CodesCast, by_table

_MXFP8 = WeightScheme(8, Granularity.GROUP, type="e4m3fn", group_size=float4.GROUP)


@dataclass(frozen=True, slots=True)
class Float4ToMxfp8(CodesCast):
    """Each code of e2m1 as the float8 of the same value, -0 as -0; always possible, and nothing is forgotten."""

    name = "float4-to-mxfp8"

    def plan(self, spec: Spec) -> Spec:
        """The spec of MXFP8; ValueError for what is no MXFP4."""
        float4.check_mxfp4(spec)
        return replace(spec, weight=_MXFP8)

    def apply(self, layer: Layer) -> Layer:
        """The codes by a table."""
        return Layer(self.plan(layer.spec), by_table(layer, float4.FLOAT8[-float4.FIRST]))

    def undo(self, layer: Layer, before: Spec) -> Layer:
        """The codes by the table backwards; ValueError for a float8 that no code becomes."""
        arrays = by_table(layer, float4.FROM_FLOAT8[-float4.FIRST])
        if "code" in arrays and (arrays["code"] == float4.INVALID).any():
            raise ValueError("a weight is not the value of a code any more")
        return Layer(before, arrays)
