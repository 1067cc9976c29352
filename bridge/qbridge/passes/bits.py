"""What a manifest records of arrays that no undo can compute: their bits, as hexadecimal digits."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qbridge.ir.dtypes import Array, DType

Kept = tuple[tuple[str, str], ...]  # by part, the digits


def bits_of(arrays: Mapping[str, Array]) -> dict[str, str]:
    """By part, an array's little-endian bytes as one number: its highest digits, so the last bytes, come first."""
    return {part: np.ascontiguousarray(array).tobytes()[::-1].hex() for part, array in sorted(arrays.items())}


def array_of(digits: str, dtype: DType, shape: tuple[int, ...]) -> Array:
    """The array of `bits_of`; ValueError if the digits are not those of one of this dtype and shape."""
    return np.frombuffer(bytes.fromhex(digits)[::-1], dtype.numpy).reshape(shape).copy()
