"""The tensor types of ggml: how many elements a block has, and how many bytes it takes.

Source: llama.cpp b10359, ggml/src/ggml-common.h (the block structs) and ggml/include/ggml.h (enum ggml_type).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from qbridge.ir.dtypes import DType


class GgmlType(NamedTuple):
    """One type: its number in a file, elements and bytes of a block, and the dtype of what is no block."""

    name: str
    number: int
    elements: int
    size: int
    dtype: DType | None = None

    @property
    def stored(self) -> DType:
        """The dtype of its elements; bytes where they lie in blocks."""
        return self.dtype or DType.U8

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a tensor, outermost first, in elements of `stored`; ValueError for a row of broken blocks."""
        if self.dtype is not None:
            return shape
        if shape[-1] % self.elements:
            raise ValueError(f"rows of {shape[-1]} elements are no whole blocks of {self.elements} ({self.name})")
        return (*shape[:-1], shape[-1] // self.elements * self.size)

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """The shape in elements of a tensor with this `stored_shape`."""
        return stored if self.dtype is not None else (*stored[:-1], stored[-1] // self.size * self.elements)


def _plain(number: int, dtype: DType) -> GgmlType:
    return GgmlType(str(dtype), number, 1, dtype.itemsize, dtype)


_TYPES = (
    _plain(0, DType.F32),
    _plain(1, DType.F16),
    GgmlType("Q4_0", 2, 32, 18),
    GgmlType("Q4_1", 3, 32, 20),
    GgmlType("Q5_0", 6, 32, 22),
    GgmlType("Q5_1", 7, 32, 24),
    GgmlType("Q8_0", 8, 32, 34),
    GgmlType("Q8_1", 9, 32, 36),
    GgmlType("Q2_K", 10, 256, 84),
    GgmlType("Q3_K", 11, 256, 110),
    GgmlType("Q4_K", 12, 256, 144),
    GgmlType("Q5_K", 13, 256, 176),
    GgmlType("Q6_K", 14, 256, 210),
    GgmlType("Q8_K", 15, 256, 292),
    GgmlType("IQ2_XXS", 16, 256, 66),
    GgmlType("IQ2_XS", 17, 256, 74),
    GgmlType("IQ3_XXS", 18, 256, 98),
    GgmlType("IQ1_S", 19, 256, 50),
    GgmlType("IQ4_NL", 20, 32, 18),
    GgmlType("IQ3_S", 21, 256, 110),
    GgmlType("IQ2_S", 22, 256, 82),
    GgmlType("IQ4_XS", 23, 256, 136),
    _plain(24, DType.I8),
    _plain(25, DType.I16),
    _plain(26, DType.I32),
    _plain(27, DType.I64),
    _plain(28, DType.F64),
    GgmlType("IQ1_M", 29, 256, 56),
    _plain(30, DType.BF16),
    GgmlType("TQ1_0", 34, 256, 54),
    GgmlType("TQ2_0", 35, 256, 66),
    GgmlType("MXFP4", 39, 32, 17),
    GgmlType("NVFP4", 40, 64, 36),
    GgmlType("Q1_0", 41, 128, 18),
    GgmlType("Q2_0", 42, 64, 18),
)
TYPES: Mapping[str, GgmlType] = {each.name: each for each in _TYPES}
BY_NUMBER: Mapping[int, GgmlType] = {each.number: each for each in _TYPES}
