"""Bit packing: every width and order as data, one pair of compiled loops for all of them; no format is named here.

A packed row is a row of unsigned words that repeats a *period*: so many lanes in so many words. `pieces` says for a
period which bits of which word are which bits of which lane; streams across word borders, permuted lanes, padded
words and bit planes differ in nothing else.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from qbridge.codecs.bit_kernels import in_parallel, kernels, lane_pieces, pool
from qbridge.ir.dtypes import Array, DType
from qbridge.ir.slots import NOTHING, Codec, Parts, Region, Slot, Span

_BLOCK = 256  # output features that `repack` holds as codes at a time, per thread


@dataclass(frozen=True, slots=True)
class BitPacked(Codec):
    """A canonical [rows, columns] part of signed integers, packed along one of its axes.

    A lane is what one value takes: the lowest `bits` of value + offset. Lanes form a little-endian bit stream, the
    first in the lowest bits of the first word.
    """

    bits: int
    along: Literal[0, 1]  # the canonical axis whose neighbours share a word: 0 out_features, 1 in_features or groups
    offset: int  # 8 where 4 bits store -8 to 7 as 0 to 15; modulo 2**bits
    transposed: bool = False  # GPTQ: the canonical columns are the stored rows
    order: tuple[int, ...] = ()  # AWQ: (0, 2, 4, 6, 1, 3, 5, 7), of each run of so many lanes order[i] comes at i
    padded: bool = False  # compressed-tensors: 3 bits leave the 2 highest of 32 zero, so that no lane is in two words
    word_minus: int = 0  # GPTQ version 1: 0x11111111, subtracted from each whole word, borrows between lanes included
    wraps: bool = False  # the lowest value is stored for the one above the highest, which it cannot be told from
    signed: bool = False  # Quark: lanes that fill words in two's complement, which have the highest bit inverted
    planes: tuple[int, ...] = ()  # (2, 1): 3 bits as the 2 low bits of 32 lanes, then their high bits

    def stored_shape(self, shape: tuple[int, int], word_bits: int = 32) -> tuple[int, int]:
        """Shape of the stored tensor of words for a canonical shape."""
        words = self.words(shape[self.along], word_bits)
        stored = (shape[0], words) if self.along == 1 else (words, shape[1])
        return (stored[1], stored[0]) if self.transposed else stored

    def words(self, lanes: int, word_bits: int = 32) -> int:
        """Words that so many neighbouring lanes take."""
        return -(-lanes // (word_bits // self.bits)) if self.padded else -(-lanes * self.bits // word_bits)

    def stored_size(self, shape: tuple[int, ...], itemsize: int) -> int:
        """Words of a canonical matrix."""
        return math.prod(self.stored_shape((shape[0], shape[1]), 8 * itemsize))

    def period(self, word_bits: int = 32) -> int:
        """Lanes after which the layout of words repeats; each multiple of it begins a word."""
        return lane_pieces(self.bits, word_bits, self.padded, self.order, self.planes)[0]

    def filled_word(self, dtype: np.dtype[Any]) -> Any:
        """The word whose lanes are all the code 0, where whole lanes fill a word."""
        lanes = range(0, 8 * dtype.itemsize, self.bits)
        word = sum(self.offset << shift for shift in lanes) ^ self._inverted(8 * dtype.itemsize)
        return np.array([word], f"<u{dtype.itemsize}").view(dtype)[0]

    def encode(self, array: Array, slot: Slot, beside: Parts = NOTHING) -> Array:
        """The words of `array` in the dtype and shape of `slot`; ValueError for a value that does not fit."""
        if self.wraps:
            top = 2**self.bits - 1 - self.offset
            array = np.where(array == top - 2**self.bits, top, array)
        low, high = int(array.min(initial=-self.offset)), int(array.max(initial=-self.offset))
        if low < -self.offset or high >= 2**self.bits - self.offset:
            raise ValueError(f"{slot.tensor}: values from {low} to {high} do not fit {self.bits} bits")
        words = np.empty(slot.shape, f"<u{slot.dtype.itemsize}")
        lanes = np.ascontiguousarray(array)
        in_parallel(
            lanes.shape, self._rows_step(words), lambda first, end: self._run(0, lanes[first:end], words, first)
        )
        words -= words.dtype.type(self.word_minus)
        words ^= words.dtype.type(self._inverted(8 * words.dtype.itemsize))
        return words.view(slot.dtype.numpy)

    def decode(self, stored: Array, dtype: DType, shape: tuple[int, ...], beside: Parts = NOTHING) -> Array:
        """The canonical array of stored words; what lies beyond its last lane is ignored."""
        lanes = np.empty(shape, dtype.numpy)
        words = _unsigned(stored)
        if self.word_minus:
            words = np.add(words, words.dtype.type(self.word_minus))
        if self.signed:
            words = np.bitwise_xor(words, words.dtype.type(self._inverted(8 * words.dtype.itemsize)))
        in_parallel(
            lanes.shape, self._rows_step(words), lambda first, end: self._run(1, lanes[first:end], words, first)
        )
        if self.wraps:
            top = 2**self.bits - 1 - self.offset
            lanes[lanes == top] -= 2**self.bits
        return lanes

    def values_of_word(self, word: int, word_bits: int = 32) -> Array:
        """The values of one word's lanes, int16 [lanes], in Python: compiling a kernel takes longer than many such.

        ValueError where lanes do not fill a word exactly.
        """
        lanes, words, pieces = lane_pieces(self.bits, word_bits, self.padded, self.order, self.planes)
        if words != 1 or len(pieces) != lanes:
            raise ValueError(f"{self.bits} bits: no whole lanes fill a word of {word_bits} bits")
        plain = (word + self.word_minus & 2**word_bits - 1) ^ self._inverted(word_bits)
        values = [(plain >> piece.word_shift & piece.mask) - self.offset for piece in pieces]
        top = 2**self.bits - 1 - self.offset
        return np.array([top - 2**self.bits if self.wraps and v == top else v for v in values], np.int16)

    def holds_zeros(self, stored: Array, shape: tuple[int, int]) -> bool:
        """Whether every value is 0: whole words need not be taken apart for that."""
        lanes, rest = divmod(8 * stored.dtype.itemsize, self.bits)
        if rest or self.word_minus or self.planes or shape[self.along] % lanes:
            return not np.any(self.decode(stored, DType.I16, shape))
        return bool((stored == self.filled_word(stored.dtype)).all())

    def _inverted(self, word_bits: int) -> int:
        """The bits of a word that are inverted: of each lane the highest, where lanes are in two's complement."""
        return sum(1 << place for place in range(self.bits - 1, word_bits, self.bits)) if self.signed else 0

    def step(self, itemsize: int) -> int:
        """Whole periods of the axis that is packed, any range of the other."""
        return self.period(8 * itemsize) if self.along == 0 else 1

    def rows(self, shape: tuple[int, int], features: tuple[int, int], span: Span, itemsize: int) -> Region | None:
        """Their words."""
        if not self._aligned(span, features[0], itemsize):
            return None
        first, last = (self.words(edge, 8 * itemsize) if self.along == 0 else edge for edge in span)
        return (0, first, shape[0], last - first) if self.transposed else (first, 0, last - first, shape[1])

    def unpack_rows(self, stored: Array, first: int, codes: Array) -> None:
        """Fill `codes`, canonical rows from `first` on, a multiple of the period; only layouts of `can_repack`."""
        self._run(1, codes, _unsigned(stored), first)

    def _rows_step(self, words: Array) -> int:
        """Canonical rows must be taken in multiples of this, so that no two threads write one word."""
        return self.period(words.dtype.itemsize * 8)

    def _run(self, which: Literal[0, 1], lanes: Array, words: Array, first: int) -> None:
        """Pack (0) canonical rows from `first` on into their words, or unpack (1) them."""
        kernel = kernels(self.bits, words.dtype.itemsize * 8, self.padded, self.order, self.planes)[which]
        row, lane = (first, 0) if self.along == 1 else (0, first)
        kernel(lanes, words, self.offset, row, lane, self.transposed == (self.along == 1), self.along == 0)


NIBBLES = BitPacked(4, 1, 0)  # raw 4-bit codes, two to a byte, the even column in the low bits


@dataclass(frozen=True, slots=True)
class Tiled(Codec):
    """Codes in tiles of (out_features, in_features), each laid out in an order of its own and then packed.

    Place i of a tile holds its code order[i], counted row by row (out_features first). A stored row holds a row of
    tiles along in_features, or along out_features with `across`; its places are packed as a row of `packed`.
    """

    tile: tuple[int, int]
    order: tuple[int, ...]
    packed: BitPacked
    across: bool

    def stored_shape(self, shape: tuple[int, int], word_bits: int = 32) -> tuple[int, int]:
        """Shape of the stored tensor of words for a canonical shape of whole tiles; ValueError for another."""
        if shape[0] % self.tile[0] or shape[1] % self.tile[1]:
            raise ValueError(f"{shape[0]} x {shape[1]} is not whole tiles of {self.tile[0]} x {self.tile[1]}")
        return self.packed.stored_shape(self._places(shape), word_bits)

    def _places(self, shape: tuple[int, int]) -> tuple[int, int]:
        along = shape[1] // self.tile[1] if self.across else shape[0] // self.tile[0]
        return along, shape[0] * shape[1] // along

    def encode(self, array: Array, slot: Slot, beside: Parts = NOTHING) -> Array:
        """The words of `array` in the dtype and shape of `slot`; ValueError for a value that does not fit."""
        (rows, columns), (high, wide) = array.shape, self.tile
        axes = (2, 0, 1, 3) if self.across else (0, 2, 1, 3)
        tiles = array.reshape(rows // high, high, columns // wide, wide).transpose(axes)
        places = tiles.reshape(-1, high * wide)[:, self.order].reshape(self._places((rows, columns)))
        return self.packed.encode(places, slot)

    def decode(self, stored: Array, dtype: DType, shape: tuple[int, ...], beside: Parts = NOTHING) -> Array:
        """The canonical array of stored words."""
        (rows, columns), (high, wide) = shape, self.tile
        places = self.packed.decode(stored, dtype, self._places((rows, columns)))
        codes = places.reshape(-1, high * wide)[:, np.argsort(self.order)]
        if self.across:
            tiles = codes.reshape(columns // wide, rows // high, high, wide).transpose(1, 2, 0, 3)
        else:
            tiles = codes.reshape(rows // high, columns // wide, high, wide).transpose(0, 2, 1, 3)
        return np.ascontiguousarray(tiles).reshape(shape)

    def step(self, itemsize: int) -> int:
        """Whole tiles."""
        return self.tile[0]

    def rows(self, shape: tuple[int, int], features: tuple[int, int], span: Span, itemsize: int) -> Region | None:
        """The words of their tiles."""
        if not self._aligned(span, features[0], itemsize):
            return None
        size = self.stored_shape((span[1] - span[0], features[1]), 8 * itemsize)
        before = self.stored_shape((span[0], features[1]), 8 * itemsize) if span[0] else (0, 0)
        return (0, before[1], *size) if self.across else (before[0], 0, *size)


def can_repack(read: BitPacked, write: BitPacked) -> bool:
    """Whether codes stored through `read` can go into the words of `write` block by block, none of them unfit."""
    return (
        read.bits <= write.bits
        and (read.offset, write.offset) == (2 ** (read.bits - 1), 2 ** (write.bits - 1))
        and not (read.word_minus or write.word_minus or read.wraps or write.wraps or read.signed or write.signed)
    )


def repack(stored: Array, read: BitPacked, write: BitPacked, shape: tuple[int, int], out: Array) -> None:
    """Fill `out` with the words of `write` for codes of `shape` stored through `read`, a few rows at a time.

    Only layouts of `can_repack`; `out` is C-ordered.
    """
    words, into = _unsigned(stored), out.view(f"<u{out.itemsize}")

    def block(first: int, end: int) -> None:
        for top in range(first, end, size):
            codes = np.empty((min(size, end - top), shape[1]), np.int8)
            read._run(1, codes, words, top)
            write._run(0, codes, into, top)

    step = math.lcm(read._rows_step(words), write._rows_step(into))
    size = -(-_BLOCK // step) * step
    in_parallel(shape, step, block)


def _unsigned(stored: Array) -> Array:
    return np.ascontiguousarray(stored).view(f"<u{stored.dtype.itemsize}")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: pool.cache_clear())
