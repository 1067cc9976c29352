"""One scale for many groups: the exponents that fit all groups of a unit, or how far apart these are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qbridge.ir.dtypes import Array, DType
from qbridge.ir.scheme import Granularity
from qbridge.passes import float4
from qbridge.passes.counted import Counted
from qbridge.passes.powers import normal_range

BLOCK = 128


@dataclass(frozen=True, slots=True)
class Unit:
    """What shares a scale: rows and groups of 32 inputs, 0 for all of them; `block` is that of a scheme, if any."""

    word: str
    rows: int
    groups: int
    block: tuple[int, int] | None = None


UNITS: Mapping[Granularity, Unit] = {
    Granularity.BLOCK: Unit(f"blocks of {BLOCK} x {BLOCK}", BLOCK, BLOCK // float4.GROUP, (BLOCK, BLOCK)),
    Granularity.CHANNEL: Unit("output channels", 1, 0),
    Granularity.TENSOR: Unit("tensors", 0, 0),
}


def common(low: float4.Integers, high: float4.Integers, unit: Unit) -> tuple[float4.Integers, int]:
    """The lowest exponent of each unit that fits all its groups, and how many units have none.

    `low` and `high` are those that fit a group, int16 [rows, groups]. A unit of zeros alone has 0.
    """
    least, most = normal_range(
        DType.F32
    )  # those of e8m0 are among them, and engines may take subnormal ones for zero
    bottom = _reduced(np.maximum, np.maximum(low, least), unit)
    top = _reduced(np.minimum, np.minimum(high, most), unit)
    free = (bottom == least) & (top == most)
    return np.where(free, 0, bottom).astype(np.int16), int(np.count_nonzero(bottom > top))


def _reduced(ufunc: np.ufunc, array: float4.Integers, unit: Unit) -> float4.Integers:
    rows, groups = array.shape
    tops = np.arange(0, rows, unit.rows or rows)
    lefts = np.arange(0, groups, unit.groups or groups)
    found: float4.Integers = ufunc.reduceat(ufunc.reduceat(array, lefts, axis=1), tops, axis=0)
    return found


def spread(exponents: float4.Integers, unit: Unit, shape: tuple[int, ...]) -> float4.Integers:
    """The exponent of each group's unit, int16 of `shape` [rows, groups]."""
    rows = np.arange(shape[0]) // (unit.rows or shape[0])
    groups = np.arange(shape[1]) // (unit.groups or shape[1])
    return exponents[rows[:, None], groups[None, :]]


class Outside(Counted):
    """Units of which no scale fits all groups: how many of how many, and the exponents in the widest."""

    def __init__(self, count: int, total: int, least: int, most: int, unit: str) -> None:
        """Keep the numbers; the same words for every layer."""
        self.total, self.least, self.most, self.unit = total, least, most, unit
        what = f"{unit} have groups under scales too far apart for one"
        super().__init__(count, what, f"{count} of {total} {what}: 2^{least} to 2^{most}")

    @classmethod
    def of(cls, scale: Array, low: float4.Integers, high: float4.Integers, unit: Unit) -> Outside:
        """Of some rows of a layer: the scales of its groups, and the exponents that fit these."""
        _, count = common(low, high, unit)
        found, used = float4.exponents(scale), low > -float4.ANY  # zeros are under any scale
        least = _reduced(np.minimum, np.where(used, found, np.int16(float4.ANY)), unit)
        most = _reduced(np.maximum, np.where(used, found, np.int16(-float4.ANY)), unit)
        widest = np.unravel_index(np.argmax(most.astype(np.int32) - least), least.shape)
        return cls(count, least.size, int(least[widest]), int(most[widest]), unit.word)

    @classmethod
    def of_all(cls, faults: Sequence[Outside]) -> Outside:
        """Several of the same unit as one."""
        widest = max(faults, key=lambda fault: fault.most - fault.least)
        count, total = (sum(getattr(fault, name) for fault in faults) for name in ("count", "total"))
        return cls(count, total, widest.least, widest.most, widest.unit)
