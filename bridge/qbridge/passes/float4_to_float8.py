"""Float4ToFloat8: MXFP4 as float8 (e4m3) under scales per block, output channel or tensor, all powers of two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Layer, Spec
from qbridge.ir.scheme import Granularity, WeightScheme
from qbridge.passes import float4
from qbridge.passes.cast import Cast
from qbridge.passes.powers import exponents_of, powers_of
from qbridge.passes.residue import EXPONENTS
from qbridge.passes.spread import UNITS, Outside, Unit, common, spread

if TYPE_CHECKING:
    from typing_extensions import Self  # typing has it from Python 3.11 on


@dataclass(frozen=True, slots=True)
class Float4ToFloat8(Cast):
    """Codes of e4m3 under a scale 2^n of each unit; `granularity` is that of the scales, a block is 128 x 128.

    n is the lowest at which every group of the unit fits: by the exponents of the groups alone, or also by which
    codes occur (`codes`). ValueError (Outside) when applied where there is none. One scale for the tensor is
    2^`exponent`, for no window of a layer shows them all. `scale_dtype` is F32 or F8_E8M0.
    """

    name = "float4-to-float8"

    granularity: Granularity
    codes: bool = False
    exponent: int | None = None
    scale_dtype: DType = DType.F32

    @property
    def forgets(self) -> frozenset[str]:
        """The exponents of groups: several lead to the same float8."""
        return frozenset({EXPONENTS})

    def needs_values(self, spec: Spec) -> bool:
        """Always: the exponents may be too far apart."""
        return True

    def decisive(self, spec: Spec) -> frozenset[str]:
        """The scales, or also the codes."""
        return self.parts if self.codes else frozenset({"scale"})

    def inputs(self, parts: frozenset[str]) -> frozenset[str]:
        """Scales, and where these alone do not tell, codes."""
        if not parts & self.parts:
            return parts
        return parts | {"scale"} | ({"code"} if self.codes else frozenset())

    def plan(self, spec: Spec) -> Spec:
        """The spec of float8 weights; ValueError for what is no MXFP4."""
        float4.check_mxfp4(spec)
        if (self.granularity is Granularity.TENSOR) != (self.exponent is not None):
            raise ValueError("an exponent goes with one scale for the tensor")
        block = UNITS[self.granularity].block
        weight = WeightScheme(8, self.granularity, type="e4m3fn", block=block)
        return replace(spec, weight=weight, scale_dtype=DType(self.scale_dtype))

    def apply(self, layer: Layer) -> Layer:
        """Codes and scales; ValueError (Outside) for a unit whose groups fit under no scale."""
        after, arrays = self.plan(layer.spec), dict(layer.arrays)
        if "scale" not in arrays:
            return Layer(after, arrays)
        unit = UNITS[self.granularity]
        chosen = self._chosen(layer, unit)
        if "code" in arrays:
            found = float4.exponents(layer.arrays["scale"]) - spread(chosen, unit, layer.arrays["scale"].shape)
            codes = arrays["code"] = float4.recoded(arrays["code"], float4.FLOAT8, found)
            if (codes & 0x7F == float4.INVALID).any():
                raise ValueError("a weight is no float8 under the scale of its unit")
        arrays["scale"] = powers_of(chosen, after.scale_dtype)
        return Layer(after, arrays)

    def _chosen(self, layer: Layer, unit: Unit) -> float4.Integers:
        """n of each unit, in the shape of the scales."""
        if self.exponent is not None:
            return np.full((1, 1), self.exponent, np.int16)
        codes = layer.arrays["code"] if self.codes else None
        low, high = float4.float8_range(layer.arrays["scale"], codes)
        found, outside = common(low, high, unit)
        if outside:
            raise Outside.of(layer.arrays["scale"], low, high, unit)
        return found

    def undo(self, layer: Layer, before: Spec) -> Layer:
        """The codes under the exponents that were stored; ValueError where a weight is not a code under its own."""
        arrays = dict(layer.arrays)
        if "scale" not in arrays:
            return Layer(before, arrays)
        was = self.remembered(EXPONENTS, before)
        now = exponents_of(arrays["scale"], layer.spec.scale_dtype)
        if "code" in arrays:
            found = float4.exponents(was) - spread(now, UNITS[self.granularity], was.shape)
            arrays["code"] = float4.recoded(arrays["code"], float4.FROM_FLOAT8, found)
            if (arrays["code"] == float4.INVALID).any():
                raise ValueError("a weight is not the value of a code any more")
        arrays["scale"] = was
        return Layer(before, arrays)

    @classmethod
    def from_dict(cls, recorded: Mapping[str, Any], bits: Mapping[str, str]) -> Self:
        """The pass of these arguments."""
        types: dict[str, Any] = {"granularity": Granularity(recorded["granularity"])}
        if "scale_dtype" in recorded:
            types["scale_dtype"] = DType(recorded["scale_dtype"])
        return super(Float4ToFloat8, cls).from_dict({**recorded, **types}, bits)
