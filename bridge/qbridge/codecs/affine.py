"""Zero-points stored as what is added to each code times its scale: biases, -(zero + offset) * scale.

They are stored in the dtype of the scales, exactly or not at all; one that is zero is +0. Source: mlx 0.32.4,
mlx/core/__init__.pyi (dequantize, mode affine: a weight is its code times the scale, plus the bias).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qbridge.ir.dtypes import Array, DType, from_float64, to_float64
from qbridge.ir.slots import NOTHING, Parts, Slot, _ByRows


@dataclass(frozen=True, slots=True)
class Biases(_ByRows):
    """Zero-points of a matrix of scales of `scale_dtype`, [out, groups]; `offset` is the code that the zero 0 is."""

    offset: int
    scale_dtype: DType

    redundant = True
    needs = frozenset({"scale"})

    def encode(self, array: Array, slot: Slot, beside: Parts = NOTHING) -> Array:
        """The products in the shape of `slot`; ValueError for one that the dtype does not hold exactly."""
        stored, lost = biases_of(array.astype(np.int64) + self.offset, beside["scale"], self.scale_dtype)
        if lost:
            raise ValueError(f"{slot.tensor}: {lost} of {stored.size} biases are no {self.scale_dtype}")
        return stored.reshape(slot.shape)

    def decode(self, stored: Array, dtype: DType, shape: tuple[int, ...], beside: Parts = NOTHING) -> Array:
        """The integers in `dtype` and `shape`; ValueError for biases that are no product of one and its scale."""
        found, other = zeros_of(stored.reshape(shape), beside["scale"], self.scale_dtype, self.offset)
        if other:
            raise ValueError(f"{other} of {stored.size} biases are no integer times their scale")
        return (found - self.offset).astype(dtype.numpy)


@dataclass(frozen=True, slots=True)
class MiddleBiases(_ByRows):
    """The biases of symmetric codes, -offset * scale; they stand for no part."""

    offset: int
    scale_dtype: DType

    fixed = True
    needs = frozenset({"scale"})

    def encode(self, array: Array, slot: Slot, beside: Parts = NOTHING) -> Array:
        """The products, whatever the array; ValueError for one that the dtype does not hold."""
        scale = beside["scale"]
        return Biases(self.offset, self.scale_dtype).encode(np.zeros(scale.shape, np.int16), slot, beside)

    def decode(self, stored: Array, dtype: DType, shape: tuple[int, ...], beside: Parts = NOTHING) -> Array:
        """`stored` itself, if it holds the products."""
        wanted = self.encode(stored, Slot("", self.scale_dtype, stored.shape), beside)
        if differing := int(np.count_nonzero(wanted != stored)):
            raise ValueError(f"{differing} of {stored.size} biases are not those of symmetric codes")
        return stored


Codes = npt.NDArray[np.int64]


def biases_of(zeros: Codes, scale: Array, dtype: DType) -> tuple[Array, int]:
    """(-zeros * scale in the bits of `dtype`, how many of them it does not hold); zeros are codes from 0 on."""
    with np.errstate(invalid="ignore", over="ignore"):
        exact = -zeros.astype(np.float64) * to_float64(scale, dtype) + 0.0  # no -0
        stored = from_float64(exact, dtype)
    return stored, int(np.count_nonzero(to_float64(stored, dtype) != exact))


def zeros_of(biases: Array, scale: Array, dtype: DType, middle: int) -> tuple[Codes, int]:
    """(int64 codes from 0 on whose weight is 0, how many biases are of none); `middle` where the scale is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        quotients = np.rint(to_float64(biases, dtype) / -to_float64(scale, dtype))
    known = np.isfinite(quotients) & (np.abs(quotients) < 2**14)
    zeros = np.where(known, quotients, middle).astype(np.int64)
    exact = -zeros.astype(np.float64) * to_float64(scale, dtype)
    values = to_float64(biases, dtype)
    negative = np.signbit(values) & (values == 0)  # it is stored as +0 here
    return zeros, int(np.count_nonzero((values != exact) | negative))
