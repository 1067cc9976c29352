"""Words of packed codes moved from one layout to another whole, without unpacking them to codes.

Where codes of 2, 4 or 8 bits fill 32-bit words and only the order differs, a block of words is turned like a matrix:
in-major words (GPTQ) against out-major ones (compressed-tensors) is a transposition of words, words along
out_features (AWQ) against words along in_features one of lanes, by exchanging halves, quarters, eighths of words.
`bits.repack` does the same through canonical codes, for every layout; the moves are tested against it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

from qbridge.codecs.bits import BitPacked
from qbridge.codecs.compiling import Kernel, compiled
from qbridge.ir.dtypes import Array

Kind = Literal["in_major", "out_major", "across"]

_DEEP = 32  # words along in_features of a tile
_WIDE = 256  # output features of a tile; two tiles stay in the first cache


def movable(read: BitPacked, write: BitPacked, shape: tuple[int, int], word_bytes: tuple[int, int]) -> bool:
    """Whether `move` can bring codes of a canonical shape from words of one layout into words of the other."""
    lanes = 32 // read.bits
    whole = 32 % read.bits == 0 and shape[1] % lanes == 0
    if "across" in (_kind(read), _kind(write)):
        whole = whole and shape[0] % lanes == 0
    same = (read.bits, read.offset) == (write.bits, write.offset)
    return same and whole and word_bytes == (4, 4) and all(_is_whole(layout) for layout in (read, write))


def move(
    stored: Array,
    read: BitPacked,
    write: BitPacked,
    shape: tuple[int, int],
    out: Array,
    first: tuple[int, int] = (0, 0),
) -> None:
    """Fill `out`, words as `write` lays them, with codes of `shape` whose words `read` lays out in `stored`.

    Both are C-ordered matrices of 32-bit words; where `out` is larger, what lies beyond `shape` is left alone. The
    codes begin at `first`, an output and an input feature that begin words, in `stored`, and at (0, 0) in `out`.
    """
    _run(stored, read, write, shape, out, first, (0, 0), False)


def differs(
    stored: Array,
    read: BitPacked,
    write: BitPacked,
    shape: tuple[int, int],
    out: Array,
    first: tuple[int, int] = (0, 0),
) -> bool:
    """Whether `out`, from `first` on, is anything but what `move` would put there from the beginning of `stored`."""
    return _run(stored, read, write, shape, out, (0, 0), first, True)


def _run(
    stored: Array,
    read: BitPacked,
    write: BitPacked,
    shape: tuple[int, int],
    out: Array,
    here: tuple[int, int],
    there: tuple[int, int],
    compare: bool,
) -> bool:
    words = stored.view(np.uint32), out.view(np.uint32)
    kinds = _kind(read), _kind(write)
    if kinds[0] != kinds[1]:
        kernel = _turn(read.bits, *kinds, read.order or write.order, compare)
        depth, word, out_word = (columns * read.bits // 32 for columns in (shape[1], here[1], there[1]))
        return bool(kernel(*words, shape[0], depth, here[0], word, there[0], out_word))
    sides = _corner(words[0], read, shape, here), _corner(words[1], write, shape, there)
    if read.order != write.order:
        return bool(_reorder(read.bits, read.order, write.order, compare)(*sides))
    if compare:
        return not np.array_equal(*sides)
    np.copyto(sides[1], sides[0])
    return False


def _corner(words: Array, layout: BitPacked, shape: tuple[int, int], first: tuple[int, int]) -> Array:
    """The words of codes of `shape` that begin at `first`, as stored."""
    (top, left), (rows, columns) = (layout.stored_shape(place) for place in (first, shape))
    return words[top : top + rows, left : left + columns]


def _is_whole(layout: BitPacked) -> bool:
    along_inputs = layout.along == 1 and not layout.order  # an order is one of output features
    permuted = not layout.order or len(layout.order) == 32 // layout.bits
    plain = not (layout.planes or layout.word_minus or layout.wraps or layout.signed)
    return plain and permuted and (along_inputs or layout.transposed)


def _kind(layout: BitPacked) -> Kind:
    if layout.along == 0:
        return "across"
    return "in_major" if layout.transposed else "out_major"


@cache
def _reorder(bits: int, read: tuple[int, ...], write: tuple[int, ...], compare: bool) -> Kernel:
    """(words, the same words with their lanes in another order) -> whether any differed, if it compares."""
    lanes = 32 // bits
    places = list(read or range(lanes))
    shifts = tuple(np.uint32(places.index(feature) * bits) for feature in write or range(lanes))
    mask, width = np.uint32(2**bits - 1), np.uint32(bits)

    def kernel(stored, out):  # type: ignore[no-untyped-def]
        wrong = np.uint32(0)
        for i in range(stored.shape[0]):
            line, into = stored[i], out[i]
            for j in range(stored.shape[1]):
                word = np.uint32(0)
                for lane in range(lanes):
                    word |= ((line[j] >> shifts[lane]) & mask) << (np.uint32(lane) * width)
                if compare:
                    wrong |= into[j] ^ word
                else:
                    into[j] = word
        return wrong != 0

    return compiled(kernel)


@dataclass(frozen=True, slots=True)
class _Lines:
    """Where the lines of one matrix of words, each contiguous in it, lie in a tile (see `_turn`).

    With 4 bits, 8 x 8 codes are 8 words, which are rows of this square or, where a matrix lies across, its columns:

        in_features  0 1 2 3 4 5 6 7
        feature 0    a a a a a a a a    in_major, out_major: the 8 codes of one feature are a word
        feature 1    b b b b b b b b    across: a, b, ... of one in_feature are a word
        ...

    Line k begins at lane_offsets[k % lanes] + k // lanes * run_step, and has `full_length` words in a whole tile.
    `lines_per_word` lines belong to a word along in_features; 0 if each line is an output feature.
    """

    lines_per_word: int
    full_length: int
    lane_offsets: tuple[int, ...]
    run_step: int

    @classmethod
    def of(cls, kind: Kind, other: Kind, feature: tuple[int, ...]) -> _Lines:
        """Of one side of a move whose other side is of another kind."""
        lanes = len(feature)
        columns, turned = _WIDE // lanes, _DEEP * _WIDE // lanes
        if kind == "in_major":
            return cls(1, _WIDE, tuple(range(0, lanes * _WIDE, _WIDE)), lanes * _WIDE)
        if kind == "out_major" and other == "in_major":
            return cls(0, _DEEP, tuple(range(0, lanes * _DEEP, _DEEP)), lanes * _DEEP)
        if kind == "out_major":
            return cls(0, _DEEP, tuple(range(0, lanes * turned, turned)), _DEEP)
        if other == "in_major":
            return cls(lanes, columns, tuple(lane * turned for lane in feature), columns)
        return cls(lanes, columns, tuple(lane * columns for lane in feature), _WIDE)


@cache
def _turn(  # noqa: C901, PLR0915 - numba compiles closures over constants, and cannot cache calls between them
    bits: int, read: Kind, write: Kind, order: tuple[int, ...], compare: bool
) -> Kernel:
    """(stored, out, output features, words along in_features, first of each in stored and in out) -> difference.

    The difference is whether any word differed, if it compares.

    Everything is done to whole tiles of contiguous words, so that it compiles to vectors. A tile is an array of three
    axes: words along in_features; runs of as many output features as a word has lanes; and the place of a feature in
    its run. It is filled in the order in which words are read and rotated to the one in which they are written; where
    one side lies across, lanes of words are exchanged for lanes of features while the place is its first axis.
    """
    lanes = 32 // bits
    size, half, turned = _DEEP * _WIDE, _DEEP * _WIDE // 2, _DEEP * _WIDE // lanes
    feature = tuple(order or range(lanes))
    exchanges = [
        (feature[low] * turned, feature[low + step] * turned, step * bits, _mask(bits, step))
        for step in (lanes >> power for power in range(1, lanes.bit_length()))
        for low in range(lanes)
        if not low & step
    ]
    lows, highs = (tuple(exchange[side] for exchange in exchanges) for side in (0, 1))
    shifts, masks = (tuple(np.uint32(exchange[side]) for exchange in exchanges) for side in (2, 3))
    count = len(exchanges) if "across" in (read, write) else 0
    before = count if read == "out_major" or write == "in_major" else 0
    rotations = (_DEEP if "out_major" in (read, write) else lanes).bit_length() - 1
    splits = write == "across" or (read, write) == ("out_major", "in_major")
    here, there = _Lines.of(read, write, feature), _Lines.of(write, read, feature)
    # constants of the kernel
    per, full, minor, major = here.lines_per_word, here.full_length, here.lane_offsets, here.run_step
    out_per, out_full = there.lines_per_word, there.full_length
    out_minor, out_major = there.lane_offsets, there.run_step
    word_mask, word_bits = np.uint64(2**32 - 1), np.uint64(32)  # two words as one: faster than one of two

    def kernel(stored, out, rows, depth, row, word, out_row, out_word):  # type: ignore[no-untyped-def]  # noqa: C901
        tile, other, wrong = np.zeros(size, np.uint32), np.zeros(size, np.uint32), np.uint32(0)
        for left in range(0, rows, _WIDE):
            wide = min(_WIDE, rows - left)
            for top in range(0, depth, _DEEP):
                deep = min(_DEEP, depth - top)
                if per:
                    first, column, lines, length = (word + top) * per, (row + left) // per, deep * per, wide // per
                else:
                    first, column, lines, length = row + left, word + top, wide, deep
                for line in range(lines):
                    at = minor[line % lanes] + line // lanes * major
                    words, into = stored[first + line, column : column + length], tile[at : at + length]
                    if length == full:
                        for i in range(full):
                            into[i] = words[i]
                    else:
                        for i in range(length):
                            into[i] = words[i]
                for pair in range(before):
                    low, high = tile[lows[pair] : lows[pair] + turned], tile[highs[pair] : highs[pair] + turned]
                    shift, mask = shifts[pair], masks[pair]
                    for i in range(turned):
                        both = ((low[i] >> shift) ^ high[i]) & mask
                        high[i] ^= both
                        low[i] ^= both << shift
                for _ in range(rotations):
                    if splits:
                        pairs, low, high = tile.view(np.uint64), other[:half], other[half:]
                        for i in range(half):
                            low[i], high[i] = np.uint32(pairs[i] & word_mask), np.uint32(pairs[i] >> word_bits)
                    else:
                        pairs, low, high = other.view(np.uint64), tile[:half], tile[half:]
                        for i in range(half):
                            pairs[i] = np.uint64(low[i]) | (np.uint64(high[i]) << word_bits)
                    tile, other = other, tile
                for pair in range(before, count):
                    low, high = tile[lows[pair] : lows[pair] + turned], tile[highs[pair] : highs[pair] + turned]
                    shift, mask = shifts[pair], masks[pair]
                    for i in range(turned):
                        both = ((low[i] >> shift) ^ high[i]) & mask
                        high[i] ^= both
                        low[i] ^= both << shift
                if out_per:
                    first, column = (out_word + top) * out_per, (out_row + left) // out_per
                    lines, length = deep * out_per, wide // out_per
                else:
                    first, column, lines, length = out_row + left, out_word + top, wide, deep
                for line in range(lines):
                    at = out_minor[line % lanes] + line // lanes * out_major
                    words, into = tile[at : at + length], out[first + line, column : column + length]
                    if compare:
                        for i in range(length):
                            wrong |= into[i] ^ words[i]
                    elif length == out_full:
                        for i in range(out_full):
                            into[i] = words[i]
                    else:
                        for i in range(length):
                            into[i] = words[i]
        return wrong != 0

    return compiled(kernel)


def _mask(bits: int, step: int) -> int:
    """The lanes of a word that stay where they are when lanes are exchanged over a distance of `step`."""
    return int(sum(((1 << bits) - 1) << (lane * bits) for lane in range(32 // bits) if not lane & step))
