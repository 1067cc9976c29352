"""Float4ToNvfp4: MXFP4 as NVFP4, the same codes in groups of 16 under float8 scales and one scale of the tensor."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from qbridge.ir.dtypes import Array, DType
from qbridge.ir.layer import Layer, Spec
from qbridge.ir.scheme import GLOBAL_SCALE, Granularity, WeightScheme
from qbridge.passes import float4
from qbridge.passes.cast import Cast
from qbridge.passes.powers import exponents_of, powers_of
from qbridge.passes.residue import EXPONENTS

_NVFP4 = WeightScheme(4, Granularity.GROUP, type="e2m1", group_size=16, global_scale="multiply")
_HALVES = float4.GROUP // 16  # groups that one becomes


@dataclass(frozen=True, slots=True)
class Float4ToNvfp4(Cast):
    """Scales 2^k as 2^(k - exponent) in e4m3, twice each, times 2^exponent of the tensor; no code changes.

    ValueError when applied to a scale that is outside of what e4m3 holds, unless its group is zero and may be given
    the nearest scale (`zeros`), which is forgotten.
    """

    name = "float4-to-nvfp4"

    exponent: int
    zeros: bool = False

    @property
    def parts(self) -> frozenset[str]:
        """The scales."""
        return frozenset({"scale", "global_scale"})

    @property
    def forgets(self) -> frozenset[str]:
        """The exponents of groups of zeros, where these are moved."""
        return frozenset({EXPONENTS}) if self.zeros else frozenset()

    def needs_values(self, spec: Spec) -> bool:
        """Always: the exponents may be too far apart."""
        return True

    def decisive(self, spec: Spec) -> frozenset[str]:
        """The scales, and the codes where zeros are free."""
        return frozenset({"scale", "code"}) if self.zeros else frozenset({"scale"})

    def inputs(self, parts: frozenset[str]) -> frozenset[str]:
        """The scale of the tensor is an argument; those of groups need to know which are zero."""
        needed = {"scale"} if parts & self.parts else set()
        return (parts - {"global_scale"}) | needed | ({"code"} if self.zeros and needed else set())

    def plan(self, spec: Spec) -> Spec:
        """The spec of NVFP4; ValueError for what is no MXFP4."""
        float4.check_mxfp4(spec)
        if spec.in_features % float4.GROUP:
            raise ValueError(f"{spec.name}: {spec.in_features} inputs are not whole groups of {float4.GROUP}")
        return replace(spec, weight=_NVFP4, scale_dtype=DType.F8_E4M3)

    def apply(self, layer: Layer) -> Layer:
        """The scales of groups and of the tensor."""
        after, arrays = self.plan(layer.spec), dict(layer.arrays)
        if "scale" in arrays:
            found = float4.exponents(arrays["scale"]) - np.int16(self.exponent)
            low, high = float4.scale_range(arrays["scale"], arrays.get("code") if self.zeros else None)
            outside = int(np.count_nonzero((low > self.exponent) | (high < self.exponent)))
            if outside:
                raise ValueError(f"{outside} scales are outside of what a float8 holds times 2^{self.exponent}")
            scale = powers_of(np.clip(found, *float4.SCALES), DType.F8_E4M3)
            arrays["scale"] = np.repeat(scale, _HALVES, axis=1)
            arrays["global_scale"] = _tensor_scale(self.exponent)
        return Layer(after, arrays)

    def undo(self, layer: Layer, before: Spec) -> Layer:
        """The scales of groups of 32; ValueError where two that were one differ, or are no powers of two."""
        arrays = {part: array for part, array in layer.arrays.items() if part != "global_scale"}
        if "global_scale" in layer.arrays and layer.arrays["global_scale"] != _tensor_scale(self.exponent):
            raise ValueError("the scale of the tensor is another one now")
        if "scale" in arrays:
            pairs = arrays["scale"].reshape(len(arrays["scale"]), -1, _HALVES)
            if (pairs != pairs[:, :, :1]).any():
                raise ValueError("scales that were one differ")
            found = exponents_of(np.ascontiguousarray(pairs[:, :, 0]), layer.spec.scale_dtype) + self.exponent
            arrays["scale"] = self._scales_before(found.astype(np.int16), before)
        return Layer(before, arrays)

    def _scales_before(self, found: float4.Integers, before: Spec) -> Array:
        if not self.zeros:
            return float4.powers(found)
        was = self.remembered(EXPONENTS, before)
        low, high = (edge + self.exponent for edge in float4.SCALES)
        if (np.clip(float4.exponents(was), low, high) != found).any():
            raise ValueError("a scale is another one now")
        return was


def _tensor_scale(exponent: int) -> Array:
    return powers_of(np.array([exponent], np.int16), GLOBAL_SCALE)
