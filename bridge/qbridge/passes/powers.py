"""Scales that are powers of two, by their exponents: bits of float dtypes, no arithmetic on floats."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qbridge.ir.dtypes import Array, DType

Integers = npt.NDArray[np.int16]

_FIELDS = {  # bits of the exponent, and of the mantissa
    DType.F32: (8, 23),
    DType.BF16: (8, 7),
    DType.F16: (5, 10),
    DType.F8_E4M3: (4, 3),
}


def normal_range(dtype: DType) -> tuple[int, int]:
    """The lowest and highest exponent of a normal power of two (e8m0 has no other)."""
    if dtype is DType.F8_E8M0:
        return -127, 127
    bias = (1 << (_FIELDS[dtype][0] - 1)) - 1
    return 1 - bias, bias + (dtype is DType.F8_E4M3)  # e4m3 has numbers in its highest field


def exact_range(dtype: DType) -> tuple[int, int]:
    """The lowest and highest exponent of a power of two, subnormal ones included."""
    low, high = normal_range(dtype)
    return (low, high) if dtype is DType.F8_E8M0 else (low - _FIELDS[dtype][1], high)


def powers_of(exponents: Integers, dtype: DType) -> Array:
    """2^exponent in the bits of a dtype; ValueError where it has none."""
    low, high = exact_range(dtype)
    if ((exponents < low) | (exponents > high)).any():
        raise ValueError(f"2^{exponents.min()} to 2^{exponents.max()}: {dtype} holds 2^{low} to 2^{high}")
    if dtype is DType.F8_E8M0:
        return (exponents + 127).astype(np.uint8)
    mantissa, first = _FIELDS[dtype][1], normal_range(dtype)[0]
    field = np.maximum(exponents - first + 1, 0).astype(np.int64)
    below = np.minimum(exponents - first, 0).astype(np.int64)  # subnormal: one bit of the mantissa
    bits = np.where(below < 0, 1 << (mantissa + below), field << mantissa)
    return bits.astype(f"<u{dtype.itemsize}").view(dtype.numpy)


def exponents_of(scales: Array, dtype: DType) -> Integers:
    """The exponents of scales, all powers of two; ValueError where one is not."""
    low, high = exact_range(dtype)
    every = np.arange(low, high + 1).astype(np.int16)
    bits = np.ascontiguousarray(scales).view(f"u{dtype.itemsize}")
    table = powers_of(every, dtype).view(f"u{dtype.itemsize}")
    place = np.minimum(np.searchsorted(table, bits), table.size - 1)  # bits of positive floats rise with them
    if (table[place] != bits).any():
        raise ValueError("a scale is not a power of two")
    return every[place]
