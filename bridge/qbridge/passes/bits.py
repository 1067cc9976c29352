"""What a manifest records of arrays that no undo can compute: their bits, as hexadecimal digits.

Of zero-points, which are many and small, it is "LEAST:WIDTH:BASE64": each less the least one, in WIDTH bits, one
after another from the lowest bit of the first byte on.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping

import numpy as np

from qbridge.ir.dtypes import Array, DType

Kept = tuple[tuple[str, str], ...]  # by part, the digits


def bits_of(arrays: Mapping[str, Array]) -> dict[str, str]:
    """By part, an array's little-endian bytes as one number: its highest digits, so the last bytes, come first."""
    return {
        part: _packed(array) if array.dtype == np.int16 and array.size > 1 else _digits(array)
        for part, array in sorted(arrays.items())
    }


def array_of(digits: str, dtype: DType, shape: tuple[int, ...]) -> Array:
    """The array of `bits_of`; ValueError if the digits are not those of one of this dtype and shape."""
    if ":" in digits:
        return _unpacked(digits, math.prod(shape)).astype(dtype.numpy).reshape(shape)
    return np.frombuffer(bytes.fromhex(digits)[::-1], dtype.numpy).reshape(shape).copy()


def _digits(array: Array) -> str:
    return np.ascontiguousarray(array).tobytes()[::-1].hex()


def _packed(array: Array) -> str:
    values = array.reshape(-1).astype(np.int32)
    least = int(values.min())
    width = int(values.max() - least).bit_length()
    bits = (values - least)[:, None] >> np.arange(width) & 1
    data = np.packbits(bits.astype(np.uint8).reshape(-1), bitorder="little").tobytes()
    return f"{least}:{width}:{base64.b64encode(data).decode()}"


def _unpacked(text: str, count: int) -> Array:
    least, width, data = text.split(":")
    size = int(width)
    stored = np.frombuffer(base64.b64decode(data, validate=True), np.uint8)
    if not 0 <= size <= 16 or stored.size != -(-count * size // 8):
        raise ValueError(f"{stored.size} bytes are not {count} numbers of {size} bits")
    bits = np.unpackbits(stored, bitorder="little")[: count * size].reshape(count, size)
    values: Array = (bits.astype(np.int32) << np.arange(size)).sum(axis=1, dtype=np.int32) + int(least)
    return values
