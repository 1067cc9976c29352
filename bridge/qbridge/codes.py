"""Bit packing: every width and order as data, two compiled kernels for all of them; no format is named here.

A packed row is a little-endian bit stream of unsigned words: lane i of the row takes bits [i*b, (i+1)*b), across
word borders where b does not divide the word. `order` permutes the lanes of a word; `padded` words hold whole lanes
only and leave their high bits zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from qbridge.dtypes import Array, DType
from qbridge.layout import Slot

_TILE = 64  # rows whose cache lines are reused word after word


@dataclass(frozen=True, slots=True)
class BitPacked:
    """A canonical [rows, columns] part of signed integers, packed along one of its axes.

    A stored lane is (value + offset) modulo 2**bits. `along` is the canonical axis whose neighbours share a word: 0
    (out_features) or 1 (in_features, groups). `transposed` tensors have the canonical columns as their rows.
    `word_minus` is subtracted from each whole word when it is stored, borrows between lanes included. With `wraps`
    the lowest value takes the place of the one above the highest.
    """

    bits: int
    along: Literal[0, 1]
    offset: int
    transposed: bool = False
    order: tuple[int, ...] = ()
    padded: bool = False
    word_minus: int = 0
    wraps: bool = False

    def stored_shape(self, shape: tuple[int, int], word_bits: int = 32) -> tuple[int, int]:
        """Shape of the stored tensor of words for a canonical shape."""
        lanes = shape[self.along]
        words = -(-lanes // (word_bits // self.bits)) if self.padded else -(-lanes * self.bits // word_bits)
        stored = (shape[0], words) if self.along == 1 else (words, shape[1])
        return (stored[1], stored[0]) if self.transposed else stored

    def encode(self, array: Array, slot: Slot) -> Array:
        """The words of `array` in the dtype and shape of `slot`; ValueError for a value that does not fit."""
        if self.wraps:
            top = 2**self.bits - 1 - self.offset
            array = np.where(array == top - 2**self.bits, top, array)
        low, high = int(array.min(initial=-self.offset)), int(array.max(initial=-self.offset))
        if low < -self.offset or high >= 2**self.bits - self.offset:
            raise ValueError(f"{slot.tensor}: values from {low} to {high} do not fit {self.bits} bits")
        words = np.zeros(slot.shape, f"<u{slot.dtype.itemsize}")
        pack, _ = _kernels()
        pack(self._lanes(array), self._rows(words), self.bits, self.offset, *self._plan(slot.dtype))
        words -= words.dtype.type(self.word_minus)
        return words.view(slot.dtype.numpy)

    def decode(self, stored: Array, dtype: DType, shape: tuple[int, ...]) -> Array:
        """The canonical array of stored words; what lies beyond its last lane is ignored."""
        array = np.empty(shape, dtype.numpy)
        words = np.ascontiguousarray(stored).view(f"<u{stored.dtype.itemsize}")
        words = words + words.dtype.type(self.word_minus)
        _, unpack = _kernels()
        unpack(self._rows(words), self._lanes(array), self.bits, self.offset, *self._plan(words.dtype))
        if self.wraps:
            top = 2**self.bits - 1 - self.offset
            array[array == top] -= 2**self.bits
        return array

    def _lanes(self, array: Array) -> Array:
        """The canonical array as [rows, lanes]."""
        return array if self.along == 1 else array.T

    def _rows(self, words: Array) -> Array:
        """The stored words as [rows, words]."""
        return words.T if self.transposed == (self.along == 1) else words

    def _plan(self, word: DType | np.dtype[Any]) -> tuple[int, int, Array]:
        """Bits of a word, its whole lanes (0 for a stream that crosses words), the lane of each place in it."""
        width = word.itemsize * 8
        whole = width // self.bits if self.padded or width % self.bits == 0 else 0
        return width, whole, np.array(self.order or range(max(whole, 1)), np.int64)


@lru_cache(maxsize=1)
def _kernels() -> tuple[Callable[..., None], Callable[..., None]]:
    """(pack, unpack), compiled on first use, from numba's cache where it may write one."""
    import numba

    def compiled(function: Callable[..., None]) -> Callable[..., None]:
        try:
            result: Callable[..., None] = numba.njit(nogil=True, cache=True)(function)
        except RuntimeError:  # neither the package's folder nor the home may be written
            result = numba.njit(nogil=True)(function)
        return result

    return compiled(_pack), compiled(_unpack)


def _pack(lanes: Any, words: Any, bits: int, offset: int, width: int, whole: int, lane_of: Any) -> None:
    """Or every lane of [rows, count] into zeroed [rows, n] words."""
    rows, count = lanes.shape
    mask = (1 << bits) - 1
    if whole == 0:
        for row in range(rows):
            for lane in range(count):
                value = (lanes[row, lane] + offset) & mask
                word, shift = lane * bits // width, lane * bits % width
                words[row, word] |= value << shift
                if shift + bits > width:
                    words[row, word + 1] |= value >> (width - shift)
        return
    for first in range(0, rows, _TILE):
        for word in range(words.shape[1]):
            base = word * whole
            for row in range(first, min(first + _TILE, rows)):
                packed = 0
                for place in range(whole):
                    lane = base + lane_of[place]
                    if lane < count:
                        packed |= ((lanes[row, lane] + offset) & mask) << (place * bits)
                words[row, word] = packed


def _unpack(words: Any, lanes: Any, bits: int, offset: int, width: int, whole: int, lane_of: Any) -> None:
    """Fill [rows, count] lanes from [rows, n] words."""
    rows, count = lanes.shape
    mask = (1 << bits) - 1
    if whole == 0:
        for row in range(rows):
            for lane in range(count):
                word, shift = lane * bits // width, lane * bits % width
                value = np.int64(words[row, word]) >> shift
                if shift + bits > width:
                    value |= np.int64(words[row, word + 1]) << (width - shift)
                lanes[row, lane] = (value & mask) - offset
        return
    for first in range(0, rows, _TILE):
        for word in range(words.shape[1]):
            base = word * whole
            for row in range(first, min(first + _TILE, rows)):
                packed = np.int64(words[row, word])
                for place in range(whole):
                    lane = base + lane_of[place]
                    if lane < count:
                        lanes[row, lane] = ((packed >> (place * bits)) & mask) - offset
