"""Floating-point numbers of 8 and 4 bits by their bits: what each one is worth, exact in float64.

Sources: OCP 8-bit floating point specification 1.0 (e5m2, and e4m3 with NaN but no infinity: torch's e4m3fn) and
OCP microscaling formats specification 1.0 (e2m1; e8m0, a power of two without sign).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]


def _table(exponent_bits: int, mantissa_bits: int) -> Values:
    """Sign, exponent, mantissa: the value of every code as if none were special."""
    codes = np.arange(2 ** (1 + exponent_bits + mantissa_bits))
    bias = 2 ** (exponent_bits - 1) - 1
    exponent, mantissa = (codes >> mantissa_bits) & (2**exponent_bits - 1), codes & (2**mantissa_bits - 1)
    fraction = mantissa / 2.0**mantissa_bits + (exponent > 0)
    values = fraction * 2.0 ** (np.maximum(exponent, 1) - bias)
    signed: Values = np.where(codes >= codes.size // 2, -values, values)
    return signed


def _e4m3fn() -> Values:
    values = _table(4, 3)
    values[[0x7F, 0xFF]] = np.nan
    return values


def _e5m2() -> Values:
    values = _table(5, 2)
    for sign, first in ((1, 0x7C), (-1, 0xFC)):
        values[first] = sign * np.inf
        values[first + 1 : first + 4] = np.nan
    return values


def _e8m0() -> Values:
    return np.append(2.0 ** (np.arange(255) - 127.0), np.nan)


VALUES: Mapping[str, Values] = {"e4m3fn": _e4m3fn(), "e5m2": _e5m2(), "e2m1": _table(2, 1), "e8m0": _e8m0()}


def nearest(values: Values, kind: str) -> npt.NDArray[np.uint8]:
    """The code of each value, rounded once to nearest even; beyond the range infinity, or NaN where there is none.

    Codes of e8m0 have neither sign nor zero: they get the nearest power of two of the magnitude.
    """
    table = VALUES[kind]
    signed = kind != "e8m0"
    positive = table[: table.size // 2] if signed else table
    finite = positive[np.isfinite(positive)]
    size = np.abs(values)
    high = np.clip(np.searchsorted(finite, size), 1, finite.size - 1)
    below, above = size - finite[high - 1], finite[high] - size
    codes = np.where((above < below) | ((above == below) & (high % 2 == 0)), high, high - 1)
    limit = finite[-1] + (finite[-1] - finite[-2]) / 2
    if finite.size < positive.size:  # otherwise there is no code beyond the largest
        codes = np.where((size > limit) | ((size == limit) & (finite.size % 2 == 0)), finite.size, codes)
        codes = np.where(np.isnan(size), positive.size - 1, codes)
    if signed:
        codes = np.where(np.signbit(values), codes + table.size // 2, codes)
    return codes.astype(np.uint8)


def code_of(value: float, kind: str) -> int:
    """The code of a value; ValueError where it has none."""
    matches = np.flatnonzero(VALUES[kind] == value)
    if not matches.size:
        raise ValueError(f"{value} has no exact {kind}")
    return int(matches[0])
