"""Codes of MXFP4 (e2m1, groups of 32 under a power of two) in other number formats: which fit, by integers alone.

A code is worth halves / 2, `halves` being 0, 1, 2, 3, 4, 6, 8 or 12. Under the exponent k of its group and another
scale 2^n it must be halves / 2 * 2^d, d = k - n. float8 e4m3 holds that for d from -8 to 6 whatever the code is, for
more where only some codes occur; the scale of NVFP4, a float8 itself, holds 2^d for d from -9 to 8. Sources: OCP
microscaling formats specification 1.0 and OCP 8-bit floating point specification 1.0.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qbridge.codecs.lookups import Bytes, looked_up, present
from qbridge.ir.dtypes import Array, DType
from qbridge.ir.layer import Spec
from qbridge.ir.scheme import Granularity, WeightScheme

Integers = npt.NDArray[np.int16]

GROUP = 32
MXFP4 = WeightScheme(4, Granularity.GROUP, type="e2m1", group_size=GROUP)
HALVES = (0, 1, 2, 3, 4, 6, 8, 12)  # twice the magnitudes of e2m1, by the lowest three bits of a code
SIGN = 8
ANY = 1000  # further than any exponent: a group of zeros fits under every scale
INVALID = 0x7F  # NaN of e4m3: no float8 has the value

FIRST, LAST = -11, 9  # the differences d at which some code other than zero is a float8
SCALES = (-9, 8)  # the differences at which the scale of NVFP4 is one
_BIAS, _MANTISSA = 127, 7  # of e8m0; of e4m3


def is_mxfp4(spec: Spec) -> bool:
    """Whether a layer's weights are MXFP4."""
    return spec.weight == MXFP4 and spec.scale_dtype is DType.F8_E8M0 and not spec.g_idx


def check_mxfp4(spec: Spec) -> None:
    """ValueError for what is no MXFP4."""
    if not is_mxfp4(spec):
        raise ValueError(f"{spec.name}: its weights are no MXFP4")


def exponents(scale: Array) -> Integers:
    """k of the scales 2^k of groups, from their bytes (e8m0); ValueError for the byte that is NaN."""
    if (scale == 0xFF).any():
        raise ValueError("a scale is NaN")
    return scale.astype(np.int16) - np.int16(_BIAS)


def powers(found: Integers) -> Array:
    """Exponents as bytes of e8m0; ValueError for what it does not hold."""
    if ((found < -_BIAS) | (found > _BIAS)).any():
        raise ValueError("an exponent is none of e8m0")
    return (found + _BIAS).astype(np.uint8)


def float8_of(halves: int, exponent: int) -> int:
    """The byte of e4m3 that is halves / 2 * 2^exponent; INVALID where none is."""
    if not halves:
        return 0
    top = halves.bit_length() - 1
    power = top + exponent - 1
    if power >= -6:  # normal: 2^(field - 7) * (1 + mantissa / 8)
        found = (power + _MANTISSA) << 3 | (halves << 3 >> top) & 7
        return found if found < INVALID else INVALID
    shift = exponent - 1 + 9  # subnormal: multiples of 2^-9
    if shift < 0 and halves & ((1 << -shift) - 1):
        return INVALID
    return halves << shift if shift >= 0 else halves >> -shift


def _float8_tables() -> npt.NDArray[np.uint8]:
    """By difference from FIRST to LAST, the byte of e4m3 for each code of e2m1, uint8 [differences + 1, 256].

    The last table is for all other differences, at which only zeros are float8.
    """
    tables = np.full((LAST - FIRST + 2, 256), INVALID, np.uint8)
    tables[-1, [0, SIGN]] = 0, 0x80
    for difference in range(FIRST, LAST + 1):
        for code in range(2 * SIGN):
            sign = 0x80 if code & SIGN else 0
            tables[difference - FIRST, code] = sign | float8_of(HALVES[code % SIGN], difference)
    return tables


def _inverse(tables: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The code of e2m1 for each byte of e4m3; INVALID where no code becomes the byte."""
    found = np.full_like(tables, INVALID)
    for table, back in zip(tables, found, strict=True):
        for code in range(2 * SIGN):
            if table[code] & 0x7F != INVALID:
                back[table[code]] = code
    return found


FLOAT8 = _float8_tables()
FROM_FLOAT8 = _inverse(FLOAT8)
_BITS = np.array([1 << (code % SIGN) for code in range(256)], np.uint8)


def recoded(codes: Array, tables: npt.NDArray[np.uint8], differences: Integers) -> Bytes:
    """Codes by the table (FLOAT8 or FROM_FLOAT8) of their group's difference; INVALID where there is none."""
    inside = (differences >= FIRST) & (differences <= LAST)
    index = np.where(inside, differences - FIRST, len(tables) - 1).astype(np.intp)
    return looked_up(codes, tables, index, GROUP)


def _limits() -> tuple[Integers, Integers]:
    """By the set of magnitudes in a group (bit i: HALVES[i]), the lowest and the highest difference that fits."""
    low, high = np.full(256, -ANY, np.int16), np.full(256, ANY, np.int16)
    for held in range(256):
        for magnitude in range(1, SIGN):
            if held >> magnitude & 1:
                fitting = np.flatnonzero(FLOAT8[:-1, magnitude] != INVALID) + FIRST
                low[held], high[held] = max(low[held], fitting[0]), min(high[held], fitting[-1])
    return low, high


_LOW, _HIGH = _limits()
_ALL = 0xFE  # every magnitude but zero: what a group may hold of which no code was looked at


def float8_range(scale: Array, codes: Array | None) -> tuple[Integers, Integers]:
    """The lowest and the highest n for each group, so that its codes under 2^n are float8, int16 [rows, groups].

    Without `codes` (uint8 [rows, inputs]) every group may hold every code.
    """
    held = np.full(scale.shape, _ALL, np.uint8) if codes is None else present(codes, _BITS, GROUP)
    found = exponents(scale)
    return found - _HIGH[held], found - _LOW[held]


def scale_range(scale: Array, codes: Array | None) -> tuple[Integers, Integers]:
    """The lowest and the highest n for each group, so that its scale over 2^n is a float8, int16 [rows, groups]."""
    found = exponents(scale)
    low, high = found - np.int16(SCALES[1]), found - np.int16(SCALES[0])
    if codes is not None:
        zeros = present(codes, _BITS, GROUP) & _ALL == 0
        low[zeros], high[zeros] = -ANY, ANY
    return low, high
