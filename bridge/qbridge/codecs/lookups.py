"""Codes replaced by others, by one table for each group of a row: compiled loops over bytes."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from qbridge.codecs.compiling import Kernel, compiled
from qbridge.ir.dtypes import Array

Bytes = npt.NDArray[np.uint8]


def looked_up(codes: Array, tables: Bytes, index: npt.NDArray[np.intp], columns: int) -> Bytes:
    """tables[index[row, group], code] for each code, uint8 [rows, inputs].

    `codes` are bytes [rows, inputs], `tables` uint8 [tables, 256], `index` [rows, groups] for groups of `columns`.
    """
    found = np.empty(codes.shape, np.uint8)
    _kernels()[0](np.ascontiguousarray(codes).view(np.uint8), tables, index, columns, found)
    return found


def translated(codes: Array, table: Bytes) -> Bytes:
    """table[code] for each code, uint8 [rows, inputs]; codes are bytes of any dtype, `table` uint8 [256]."""
    rows, inputs = codes.shape
    return looked_up(codes, table[None, :], np.zeros((rows, 1), np.intp), inputs)


def present(codes: Array, bits: Bytes, columns: int) -> Bytes:
    """bits[code] of all codes of a group in one byte (bitwise or), uint8 [rows, groups]; `bits` is uint8 [256]."""
    rows, inputs = codes.shape
    found = np.zeros((rows, -(-inputs // columns)), np.uint8)
    _kernels()[1](np.ascontiguousarray(codes).view(np.uint8), bits, columns, found)
    return found


@cache
def _kernels() -> tuple[Kernel, Kernel]:
    return compiled(_look_up), compiled(_collect)


def _look_up(codes: Bytes, tables: Bytes, index: npt.NDArray[np.intp], columns: int, found: Bytes) -> None:
    rows, inputs = codes.shape
    for row in range(rows):
        for group in range(index.shape[1]):
            table = tables[index[row, group]]
            for column in range(group * columns, min((group + 1) * columns, inputs)):
                found[row, column] = table[codes[row, column]]


def _collect(codes: Bytes, bits: Bytes, columns: int, found: Bytes) -> None:
    rows, inputs = codes.shape
    for row in range(rows):
        for column in range(inputs):
            found[row, column // columns] |= bits[codes[row, column]]
