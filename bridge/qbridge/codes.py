"""Bit packing: every width and order as data, one pair of compiled loops per shape of them; no format is named here.

A packed row is a little-endian bit stream of unsigned words: lane i of the row takes bits [i*b, (i+1)*b), across
word borders where b does not divide the word. `order` permutes the lanes of a word; `padded` words hold whole lanes
only and leave their high bits zero.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np

from qbridge.dtypes import Array, DType
from qbridge.layout import Slot

_TILE = 64  # rows whose cache lines are reused word after word

Kernel = Callable[[Any, Any, int, int, int], None]


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
        self._run(0, np.ascontiguousarray(array), words)
        words -= words.dtype.type(self.word_minus)
        return words.view(slot.dtype.numpy)

    def decode(self, stored: Array, dtype: DType, shape: tuple[int, ...]) -> Array:
        """The canonical array of stored words; what lies beyond its last lane is ignored."""
        array = np.empty(shape, dtype.numpy)
        words = np.ascontiguousarray(stored).view(f"<u{stored.dtype.itemsize}")
        if self.word_minus:
            words = words + words.dtype.type(self.word_minus)
        self._run(1, array, words)
        if self.wraps:
            top = 2**self.bits - 1 - self.offset
            array[array == top] -= 2**self.bits
        return array

    def _run(self, which: int, array: Array, words: Array) -> None:
        """One kernel over all rows of words, in as many threads as there are cores."""
        rows = words.T if self.transposed == (self.along == 1) else words
        width = words.dtype.itemsize * 8
        whole = width // self.bits if self.padded or width % self.bits == 0 else 0
        across = self.along == 0 and whole > 0
        kernel = kernels(self.bits, width, whole, self.order, across)[which]
        lanes = array if across or self.along == 1 else array.T
        step = max(_TILE, -(-len(rows) // (2 * _threads()) // _TILE) * _TILE)
        starts = range(0, len(rows), step)
        if len(starts) == 1:
            kernel(lanes, rows, self.offset, 0, len(rows))
        else:
            ends = (min(start + step, len(rows)) for start in starts)
            list(_pool().map(lambda start, end: kernel(lanes, rows, self.offset, start, end), starts, ends))


def _threads() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _pool() -> ThreadPoolExecutor:
    """Our own threads: numba's parallel loops abort the process when two threads start one."""
    return ThreadPoolExecutor(_threads(), thread_name_prefix="qbridge-codes")


@cache
def kernels(bits: int, width: int, whole: int, order: tuple[int, ...], across: bool) -> tuple[Kernel, Kernel]:
    """(pack, unpack) of (lanes, words [rows, n], offset, first row, end row), compiled for these constants.

    `whole` is the number of lanes of a word, 0 for a stream that crosses words. Lanes are [rows, count], or [count,
    rows] where neighbouring rows are neighbours in memory (`across`). `pack` wants zeroed words.
    """
    import numba

    def compiled(function: Kernel) -> Kernel:
        try:
            result: Kernel = numba.njit(nogil=True, cache=True)(function)
        except RuntimeError:  # neither the package's folder nor the home may be written
            result = numba.njit(nogil=True)(function)
        return result

    if not whole:
        return compiled(_pack_stream(bits, width)), compiled(_unpack_stream(bits, width))
    lane_of = order or tuple(range(whole))
    makers = (_pack_across, _unpack_across) if across else (_pack_words, _unpack_words)
    return compiled(makers[0](bits, whole, lane_of)), compiled(makers[1](bits, whole, lane_of))


def _pack_stream(bits: int, width: int) -> Kernel:
    mask = (1 << bits) - 1

    def pack(lanes: Any, words: Any, offset: int, first: int, end: int) -> None:
        for row in range(first, end):
            for lane in range(lanes.shape[1]):
                value = (lanes[row, lane] + offset) & mask
                word, shift = lane * bits // width, lane * bits % width
                words[row, word] |= value << shift
                if shift + bits > width:
                    words[row, word + 1] |= value >> (width - shift)

    return pack


def _unpack_stream(bits: int, width: int) -> Kernel:
    mask = (1 << bits) - 1

    def unpack(lanes: Any, words: Any, offset: int, first: int, end: int) -> None:
        for row in range(first, end):
            for lane in range(lanes.shape[1]):
                word, shift = lane * bits // width, lane * bits % width
                value = np.int64(words[row, word]) >> shift
                if shift + bits > width:
                    value |= np.int64(words[row, word + 1]) << (width - shift)
                lanes[row, lane] = (value & mask) - offset

    return unpack


def _pack_words(bits: int, whole: int, lane_of: tuple[int, ...]) -> Kernel:
    mask = np.uint32((1 << bits) - 1)

    def pack(lanes: Any, words: Any, offset: int, first: int, end: int) -> None:
        count = lanes.shape[1]
        for top in range(first, end, _TILE):
            for word in range(words.shape[1]):
                base = word * whole
                for row in range(top, min(top + _TILE, end)):
                    packed = np.uint32(0)
                    for place in range(whole):
                        if base + whole <= count or base + lane_of[place] < count:
                            lane = np.uint32(lanes[row, base + lane_of[place]] + offset) & mask
                            packed |= lane << np.uint32(place * bits)
                    words[row, word] = packed

    return pack


def _unpack_words(bits: int, whole: int, lane_of: tuple[int, ...]) -> Kernel:
    mask = np.uint32((1 << bits) - 1)

    def unpack(lanes: Any, words: Any, offset: int, first: int, end: int) -> None:
        count = lanes.shape[1]
        for top in range(first, end, _TILE):
            for word in range(words.shape[1]):
                base = word * whole
                for row in range(top, min(top + _TILE, end)):
                    packed = np.uint32(words[row, word])
                    for place in range(whole):
                        if base + whole <= count or base + lane_of[place] < count:
                            value = np.int32((packed >> np.uint32(place * bits)) & mask)
                            lanes[row, base + lane_of[place]] = value - np.int32(offset)

    return unpack


def _pack_across(bits: int, whole: int, lane_of: tuple[int, ...]) -> Kernel:
    mask = np.uint32((1 << bits) - 1)

    def pack(lanes: Any, words: Any, offset: int, first: int, end: int) -> None:
        packed = np.empty(_TILE, np.uint32)
        for top in range(first, end, _TILE):
            size = min(_TILE, end - top)
            for word in range(words.shape[1]):
                packed[:] = 0
                for place in range(whole):
                    lane = word * whole + lane_of[place]
                    if lane < lanes.shape[0]:
                        for row in range(size):
                            value = np.uint32(np.int32(lanes[lane, top + row]) + np.int32(offset)) & mask
                            packed[row] |= value << np.uint32(place * bits)
                for row in range(size):
                    words[top + row, word] = packed[row]

    return pack


def _unpack_across(bits: int, whole: int, lane_of: tuple[int, ...]) -> Kernel:
    mask = np.uint32((1 << bits) - 1)

    def unpack(lanes: Any, words: Any, offset: int, first: int, end: int) -> None:
        packed = np.empty(_TILE, np.uint32)
        for top in range(first, end, _TILE):
            size = min(_TILE, end - top)
            for word in range(words.shape[1]):
                for row in range(size):
                    packed[row] = words[top + row, word]
                for place in range(whole):
                    lane = word * whole + lane_of[place]
                    if lane < lanes.shape[0]:
                        for row in range(size):
                            value = np.int32((packed[row] >> np.uint32(place * bits)) & mask)
                            lanes[lane, top + row] = value - np.int32(offset)

    return unpack
