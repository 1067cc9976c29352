"""IntegersToFloat8: symmetric integers of at most 5 bits as float8 (e4m3) under the same scales."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from qbridge.ir.layer import Layer, Spec
from qbridge.passes import float4
from qbridge.passes.cast import CodesCast, by_table

MOST_BITS = 5  # -16 to 15: e4m3 has four significant bits, and 17 needs five


def _float8_of(value: int) -> int:
    """The byte of e4m3 that is an integer from -16 to 16."""
    size = abs(value)
    halvings = max(size.bit_length() - 4, 0)  # the four significant bits, and what they are shifted by
    return (0x80 if value < 0 else 0) | _magnitude(size >> halvings, halvings)


def _magnitude(significant: int, shift: int) -> int:
    if not significant:
        return 0
    top = significant.bit_length() - 1
    return (top + shift + 7) << 3 | (significant << 3 >> top) & 7


_VALUES = range(-(1 << (MOST_BITS - 1)), 1 << (MOST_BITS - 1))
_TABLE = np.full(256, float4.INVALID, np.uint8)
_BACK = np.full(256, float4.INVALID, np.uint8)  # no integer of so few bits has its byte
for _value in _VALUES:
    _TABLE[_value % 256] = _float8_of(_value)
    _BACK[_float8_of(_value)] = _value % 256


@dataclass(frozen=True, slots=True)
class IntegersToFloat8(CodesCast):
    """Each integer as the float8 of the same value, granularity and scales as they are; nothing is forgotten."""

    name = "integers-to-float8"

    def plan(self, spec: Spec) -> Spec:
        """The spec of float8; ValueError for zero-points, act-order, and integers that no float8 holds."""
        weight = spec.weight
        if weight.type != "int" or weight.bits > MOST_BITS or not weight.symmetric or spec.g_idx:
            raise ValueError(f"{spec.name}: its weights are no symmetric integers of {MOST_BITS} bits or fewer")
        return replace(spec, weight=replace(weight, bits=8, type="e4m3fn"))

    def apply(self, layer: Layer) -> Layer:
        """The codes by a table."""
        return Layer(self.plan(layer.spec), by_table(layer, _TABLE))

    def undo(self, layer: Layer, before: Spec) -> Layer:
        """The integers; ValueError for a float8 that is none of so many bits."""
        arrays = by_table(layer, _BACK)
        if "code" in arrays:
            found = arrays["code"]
            values, half = found.view(np.int8), 1 << (before.weight.bits - 1)
            if (found == float4.INVALID).any() or (values < -half).any() or (values >= half).any():
                raise ValueError(f"a weight is no integer of {before.weight.bits} bits any more")
            arrays["code"] = values
        return Layer(before, arrays)
