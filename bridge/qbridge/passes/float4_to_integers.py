"""Float4ToIntegers: MXFP4 as symmetric int8 in the same groups, codes of twice the value under half the scale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from qbridge.codecs.lookups import translated
from qbridge.ir.dtypes import Array, DType
from qbridge.ir.layer import Layer, Spec
from qbridge.ir.scheme import Granularity, WeightScheme
from qbridge.passes import float4
from qbridge.passes.cast import Cast
from qbridge.passes.counted import Counted
from qbridge.passes.powers import exact_range, exponents_of, powers_of
from qbridge.passes.residue import NEGATIVE_ZEROS

if TYPE_CHECKING:
    from typing_extensions import Self  # typing has it from Python 3.11 on

_INT8 = WeightScheme(8, Granularity.GROUP, group_size=float4.GROUP)
_TO_INTEGERS = np.zeros(256, np.uint8)  # bytes of int8
_FROM_INTEGERS = np.full(256, float4.INVALID, np.uint8)
for _magnitude, _halves in enumerate(float4.HALVES):
    _TO_INTEGERS[[_magnitude, _magnitude + float4.SIGN]] = _halves, -_halves % 256
    _FROM_INTEGERS[[-_halves % 256, _halves]] = _magnitude + float4.SIGN, _magnitude  # of 0 the one without a sign


@dataclass(frozen=True, slots=True)
class Float4ToIntegers(Cast):
    """Codes -12 to 12 under scales 2^(k - 1) in `dtype`; ValueError (Counted) where that has none.

    -0 becomes 0, which is forgotten.
    """

    name = "float4-to-integers"

    dtype: DType

    @property
    def forgets(self) -> frozenset[str]:
        """Which zeros were negative."""
        return frozenset({NEGATIVE_ZEROS})

    def needs_values(self, spec: Spec) -> bool:
        """Unless the dtype holds every power of two."""
        low, high = exact_range(self.dtype)
        return low > -128 or high < 126

    def decisive(self, spec: Spec) -> frozenset[str]:
        """The scales."""
        return frozenset({"scale"})

    def inputs(self, parts: frozenset[str]) -> frozenset[str]:
        """Every part comes from itself."""
        return parts

    def plan(self, spec: Spec) -> Spec:
        """The spec of int8; ValueError for what is no MXFP4."""
        float4.check_mxfp4(spec)
        return replace(spec, weight=_INT8, scale_dtype=DType(self.dtype))

    def apply(self, layer: Layer) -> Layer:
        """Codes by a table, scales with an exponent less."""
        after, arrays = self.plan(layer.spec), dict(layer.arrays)
        if "code" in arrays:
            arrays["code"] = translated(arrays["code"], _TO_INTEGERS).view(np.int8)
        if "scale" in arrays:
            arrays["scale"] = self._halved(arrays["scale"])
        return Layer(after, arrays)

    def _halved(self, scale: Array) -> Array:
        found = float4.exponents(scale) - np.int16(1)
        low, high = exact_range(DType(self.dtype))
        outside = int(np.count_nonzero((found < low) | (found > high)))
        if outside:
            raise Counted(outside, f"scales are outside of what {self.dtype} holds, 2^{low} to 2^{high}")
        return powers_of(found, DType(self.dtype))

    def undo(self, layer: Layer, before: Spec) -> Layer:
        """The codes, zeros with the signs that were stored; ValueError for an integer that no code becomes."""
        arrays = dict(layer.arrays)
        if "code" in arrays:
            arrays["code"] = self._codes(arrays["code"], before)
        if "scale" in arrays:
            found = exponents_of(arrays["scale"], layer.spec.scale_dtype) + 1
            arrays["scale"] = float4.powers(found.astype(np.int16))
        return Layer(before, arrays)

    def _codes(self, integers: Array, before: Spec) -> Array:
        found = translated(integers, _FROM_INTEGERS)
        negative = self.remembered(NEGATIVE_ZEROS, before).astype(bool)
        if (found == float4.INVALID).any() or found[negative].any():
            raise ValueError("a weight is not the value of a code any more")
        found[negative] = float4.SIGN
        return found

    @classmethod
    def from_dict(cls, recorded: Mapping[str, Any], bits: Mapping[str, str]) -> Self:
        """The pass of these arguments."""
        return super(Float4ToIntegers, cls).from_dict({**recorded, "dtype": DType(recorded["dtype"])}, bits)
