"""The dtypes of safetensors files, as tags that numpy arrays carry beside them.

numpy has no bfloat16 and no float8, so an array of such a dtype holds the raw bits in an unsigned integer of
the same width and its `DType` says what they mean. Source: safetensors 0.8.0, `safetensors/src/tensor.rs`.
"""

from __future__ import annotations

from enum import Enum

import numpy as np
import numpy.typing as npt

from qbridge.ir.floats import VALUES, code_of, nearest

Array = npt.NDArray[np.generic]


class DType(str, Enum):
    """One dtype by its safetensors name."""

    BOOL = "BOOL"
    U8 = "U8"
    I8 = "I8"
    F8_E5M2 = "F8_E5M2"
    F8_E4M3 = "F8_E4M3"
    F8_E8M0 = "F8_E8M0"
    I16 = "I16"
    U16 = "U16"
    F16 = "F16"
    BF16 = "BF16"
    I32 = "I32"
    U32 = "U32"
    F32 = "F32"
    I64 = "I64"
    U64 = "U64"
    F64 = "F64"

    @property
    def itemsize(self) -> int:
        """Bytes per element."""
        return self.numpy.itemsize

    @property
    def numpy(self) -> np.dtype[np.generic]:
        """The little-endian numpy dtype that holds this dtype's bits."""
        return _NUMPY[self]

    @property
    def is_float(self) -> bool:
        """Whether the bits are a floating-point number of 16 bits or more (a model's compute dtype)."""
        return self in (DType.F16, DType.BF16, DType.F32, DType.F64)

    def __str__(self) -> str:
        return self.value

    __hash__ = str.__hash__  # the same number as Enum's own, which takes a call in Python for it


_NUMPY: dict[DType, np.dtype[np.generic]] = {
    DType.BOOL: np.dtype("?"),
    DType.U8: np.dtype("<u1"),
    DType.I8: np.dtype("<i1"),
    DType.F8_E5M2: np.dtype("<u1"),
    DType.F8_E4M3: np.dtype("<u1"),
    DType.F8_E8M0: np.dtype("<u1"),
    DType.I16: np.dtype("<i2"),
    DType.U16: np.dtype("<u2"),
    DType.F16: np.dtype("<f2"),
    DType.BF16: np.dtype("<u2"),
    DType.I32: np.dtype("<i4"),
    DType.U32: np.dtype("<u4"),
    DType.F32: np.dtype("<f4"),
    DType.I64: np.dtype("<i8"),
    DType.U64: np.dtype("<u8"),
    DType.F64: np.dtype("<f8"),
}


_SMALL = {DType.F8_E4M3: "e4m3fn", DType.F8_E5M2: "e5m2", DType.F8_E8M0: "e8m0"}


def nbytes(dtype: DType, shape: tuple[int, ...]) -> int:
    """Bytes of a dense tensor, computed in Python integers so that no product can wrap."""
    size = dtype.itemsize
    for dim in shape:
        size *= dim
    return size


def to_float64(array: Array, dtype: DType) -> npt.NDArray[np.float64]:
    """The exact values of a float array, any shape, as float64; ValueError for an integer dtype."""
    if dtype in _SMALL:
        small: npt.NDArray[np.float64] = VALUES[_SMALL[dtype]][array]
        return small
    if not dtype.is_float:
        raise ValueError(f"{dtype} is not a float dtype")
    wide = (array.astype(np.uint32) << 16).view(np.float32) if dtype is DType.BF16 else array
    with np.errstate(invalid="ignore"):  # a signalling NaN is a NaN all the same
        return wide.astype(np.float64)


def from_float64(values: npt.NDArray[np.float64], dtype: DType) -> Array:
    """`values` rounded once, to nearest even, in the bits of a float dtype of any width."""
    if dtype in _SMALL:
        return nearest(values, _SMALL[dtype])
    if dtype is DType.BF16:
        return _bfloat16_bits(values)
    if not dtype.is_float:
        raise ValueError(f"{dtype} is not a float dtype")
    with np.errstate(over="ignore", invalid="ignore"):  # beyond the range is infinity, which the caller compares
        return values.astype(dtype.numpy)


def one(dtype: DType) -> np.generic:
    """The number 1 in the bits of a float dtype of any width."""
    if dtype in _SMALL:
        return np.uint8(code_of(1.0, _SMALL[dtype]))
    found: np.generic = from_float64(np.ones(1), dtype)[0]
    return found


def is_finite(array: Array, dtype: DType) -> npt.NDArray[np.bool_]:
    """Which elements of a float array, any shape, are neither NaN nor infinite."""
    if dtype in _SMALL:
        small: npt.NDArray[np.bool_] = np.isfinite(VALUES[_SMALL[dtype]])[array]
        return small
    exponent = {DType.F16: 0x7C00, DType.BF16: 0x7F80, DType.F32: 0x7F800000, DType.F64: 0x7FF << 52}[dtype]
    bits = array.view(f"<u{dtype.itemsize}")
    found: npt.NDArray[np.bool_] = (bits & bits.dtype.type(exponent)) != exponent
    return found


def survives(before: DType, after: DType) -> bool:
    """Whether every finite value of `before` has an exact value in `after`, so that none need be read."""
    wide = {DType.F16, DType.BF16, DType.F32, DType.F64}
    wider = {
        DType.F8_E4M3: {DType.F8_E4M3, *wide},
        DType.F8_E5M2: {DType.F8_E5M2, *wide},
        DType.F8_E8M0: {DType.F8_E8M0, DType.BF16, DType.F32, DType.F64},
        DType.F16: {DType.F16, DType.F32, DType.F64},
        DType.BF16: {DType.BF16, DType.F32, DType.F64},
        DType.F32: {DType.F32, DType.F64},
        DType.F64: {DType.F64},
    }
    return after in wider.get(before, set())


def _bfloat16_bits(values: npt.NDArray[np.float64]) -> Array:
    """Nearest-even bfloat16 bits; float32 is reached by rounding to odd, so that nothing rounds twice."""
    with np.errstate(over="ignore", invalid="ignore"):
        near = values.astype(np.float32)
    back = near.astype(np.float64)
    bits = near.view(np.uint32)
    inexact = np.isfinite(near) & (back != values)
    away = inexact & (np.abs(back) > np.abs(values))
    odd = np.where(inexact, (bits - away.astype(np.uint32)) | np.uint32(1), bits)
    rounded = odd + np.uint32(0x7FFF) + ((odd >> 16) & np.uint32(1))
    nan = np.isnan(near)
    return np.where(nan, (bits >> 16) | np.uint32(0x40), rounded >> 16).astype("<u2")
