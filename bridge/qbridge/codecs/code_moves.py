"""Codes of a layer on their way from one tensor to another, in blocks that fit into a bounded memory.

A block is a range of output or of input features. What of a tensor belongs to it is a rectangle of its stored
matrix, so that any part of a layer can be read, moved and written by itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from qbridge.codecs.bits import BitPacked, can_repack, repack
from qbridge.codecs.word_moves import differs, movable, move
from qbridge.ir.dtypes import Array
from qbridge.ir.slots import Slot
from qbridge.source.regions import Rectangle

_ROWS, _COLUMNS = 256, 256  # a block's edges are multiples of these: whole tiles, whole cache lines
_CODES = 1 << 20  # codes that a comparison holds at a time


@dataclass(frozen=True, slots=True)
class CodeMove:
    """The codes of a layer in the words of `read`, wanted in those of `write`.

    `source_dims` is the canonical shape [out, in] that is read, `target_dims` the one that is written: where it is
    larger, codes of 0 fill the rest.
    """

    read: Slot
    write: Slot
    source_dims: tuple[int, int]
    target_dims: tuple[int, int]

    @classmethod
    def between(
        cls, read: Slot, write: Slot, source_dims: tuple[int, int], target_dims: tuple[int, int]
    ) -> CodeMove | None:
        """The move between two slots, or None if the codes must be decoded as a whole."""
        if not isinstance(read.codec, BitPacked) or not isinstance(write.codec, BitPacked):
            return None
        way = cls(read, write, source_dims, target_dims)
        if way.by_words or (source_dims == target_dims and can_repack(read.codec, write.codec)):
            return way
        return None

    @property
    def by_words(self) -> bool:
        """Whether words are moved without being unpacked."""
        sizes = self.read.dtype.itemsize, self.write.dtype.itemsize
        layouts = self.layouts
        lanes = 32 // layouts[0].bits
        return (
            movable(*layouts, self.source_dims, sizes)
            and self.target_dims[0] % lanes == self.target_dims[1] % lanes == 0
        )

    @property
    def layouts(self) -> tuple[BitPacked, BitPacked]:
        """How the two slots pack their words."""
        read, write = self.read.codec, self.write.codec
        if not (isinstance(read, BitPacked) and isinstance(write, BitPacked)):
            raise TypeError("only packed codes are moved")
        return read, write

    def blocks(self, limit: int) -> Iterator[Block]:
        """Blocks of at most `limit` bytes of the larger of the two tensors, as far as their layouts allow."""
        size = max(slot.dtype.itemsize * math.prod(slot.shape) for slot in (self.read, self.write))
        count = -(-size // max(1, limit))
        axis = min((0, 1), key=self._segments) if count > 1 else _rows_along(self.layouts[1])
        step = self.step(axis)
        share = max(step, self.target_dims[axis] // count // step * step) if count > 1 else self.target_dims[axis]
        for start in range(0, self.target_dims[axis], share):
            yield Block(self, axis, start, min(start + share, self.target_dims[axis]))

    def units(self, axis: int) -> Iterator[Block]:
        """The smallest blocks along an axis, one after another."""
        step, size = self.step(axis), self.target_dims[axis]
        return (Block(self, axis, start, min(start + step, size)) for start in range(0, size, step))

    def _segments(self, axis: int) -> int:
        """Contiguous pieces that a block along the axis consists of."""
        return sum(
            1 if _rows_along(layout) == axis else slot.shape[0]
            for layout, slot in zip(self.layouts, (self.read, self.write), strict=True)
        )

    def step(self, axis: int) -> int:
        """A block's edges along an axis are multiples of this."""
        steps = [_ROWS if axis == 0 else _COLUMNS]
        for layout, slot in zip(self.layouts, (self.read, self.write), strict=True):
            if layout.along == axis:
                steps.append(layout.period(slot.dtype.itemsize * 8))
        return math.lcm(*steps)


@dataclass(frozen=True, slots=True)
class Block:
    """Output features (axis 0) or input features (axis 1) from `start` to `end` of a move."""

    move: CodeMove
    axis: int
    start: int
    end: int

    @property
    def source(self) -> Rectangle:
        """What is read for it; without rows or columns where all of it is filled."""
        start, end = (min(edge, self.move.source_dims[self.axis]) for edge in (self.start, self.end))
        return _rectangle(self.move.read, self.move.layouts[0], self.axis, start, end)

    @property
    def written(self) -> Rectangle:
        """What of the written tensor it is."""
        return _rectangle(self.move.write, self.move.layouts[1], self.axis, self.start, self.end)

    @property
    def _source_dims(self) -> tuple[int, int]:
        dims = list(self.move.source_dims)
        dims[self.axis] = max(0, min(self.end, dims[self.axis]) - self.start)
        return dims[0], dims[1]

    def pieces(self, size: int) -> Iterator[Block]:
        """The same block in pieces of about `size` written bytes, which stay in a core's cache.

        Where a piece would not lie in one stretch, the block is the only piece.
        """
        if _rows_along(self.move.layouts[1]) != self.axis:
            yield self
            return
        total = self.written.words * self.move.write.dtype.itemsize
        step = self.move.step(self.axis)
        share = max(step, (self.end - self.start) * size // max(1, total) // step * step)
        for start in range(self.start, self.end, share):
            yield Block(self.move, self.axis, start, min(start + share, self.end))

    def run(self, stored: Array, out: Array, piece: Block | None = None) -> None:
        """Fill `out`, the words that are written for a piece (or all), from `stored`, the words of `source`."""
        piece = piece or self
        read, write = self.move.layouts
        for padding in piece._padding_words(out):
            padding[...] = write.filled_word(out.dtype)
        if self.move.by_words:
            move(stored, read, write, piece._source_dims, out, self._offset_in_block(piece))
        else:
            repack(piece._words_of_piece(stored, self), read, write, piece._source_dims, out)

    def differs(self, stored: Array, out: Array, piece: Block | None = None) -> bool:
        """Whether `out`, words as written for a piece (or all), says anything else than `stored`.

        It is the way back, compared and not kept.
        """
        piece = piece or self
        read, write = self.move.layouts
        if any((padding != write.filled_word(out.dtype)).any() for padding in piece._padding_words(out)):
            return True
        if self.move.by_words:
            return differs(out, write, read, piece._source_dims, stored, self._offset_in_block(piece))
        stored = piece._words_of_piece(stored, self)
        rows, columns = piece._source_dims
        step = math.lcm(*(layout.period(8 * words.itemsize) for layout, words in ((read, stored), (write, out))))
        step *= -(-_CODES // (step * columns))
        for top in range(0, rows, step):
            shape = min(step, rows - top), columns
            were, are = np.empty(shape, np.int8), np.empty(shape, np.int8)
            read.unpack_rows(stored, top, were)
            write.unpack_rows(out, top, are)
            if not np.array_equal(were, are):
                return True
        return False

    def _offset_in_block(self, piece: Block) -> tuple[int, int]:
        """The output and input feature of this block with which a piece of it begins."""
        ahead = min(piece.start, self.move.source_dims[self.axis]) - self.start
        return (ahead, 0) if self.axis == 0 else (0, ahead)

    def _words_of_piece(self, stored: Array, block: Block) -> Array:
        """The words of this piece, cut out of those of its block."""
        of_block, of_piece = block.source, self.source
        top, left = of_piece.top - of_block.top, of_piece.left - of_block.left
        return stored[top : top + of_piece.rows, left : left + of_piece.columns]

    def _padding_words(self, out: Array) -> tuple[Array, ...]:
        """The written words that hold no code that is read."""
        if self.move.source_dims == self.move.target_dims:
            return ()
        rows, columns = self.move.layouts[1].stored_shape(self._source_dims, 8 * out.itemsize)
        return out[rows:], out[:rows, columns:]


def _rows_along(layout: BitPacked) -> int:
    """The canonical axis whose ranges are ranges of stored rows."""
    return 1 if layout.transposed else 0


def _rectangle(slot: Slot, layout: BitPacked, axis: int, start: int, end: int) -> Rectangle:
    """The words of a range of features."""
    if layout.along == axis:
        start, end = (layout.words(edge, 8 * slot.dtype.itemsize) for edge in (start, end))
    shape = slot.shape[0], slot.shape[1]
    if _rows_along(layout) == axis:
        return Rectangle(shape, start, 0, end - start, shape[1])
    return Rectangle(shape, 0, start, shape[0], end - start)
