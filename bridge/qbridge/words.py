"""Words of packed codes moved from one layout to another whole, without unpacking them to codes.

Where codes of 2, 4 or 8 bits fill 32-bit words and only the order differs, a block of words is turned like a matrix:
in-major words (GPTQ) against out-major ones (compressed-tensors) is a transposition of words, words along
out_features (AWQ) against words along in_features one of lanes, by exchanging halves, quarters, eighths of words.
`codes` does the same through canonical codes, for every layout, and is what these are tested against.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import numpy as np

from qbridge.codes import BitPacked
from qbridge.compiling import Kernel, compiled
from qbridge.dtypes import Array

Kind = Literal["in_major", "out_major", "across"]

_DEEP = 16  # words along in_features of a tile: one cache line of an out-major row
_WIDE = 256  # output features of a tile; the two copies of it that a turn needs stay in the first cache


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
    kernel = _kernel(read.bits, _kind(read), read.order, _kind(write), write.order, compare)
    depth, word, out_word = (columns * read.bits // 32 for columns in (shape[1], here[1], there[1]))
    words = stored.view(np.uint32), out.view(np.uint32)
    return bool(kernel(*words, shape[0], depth, here[0], word, there[0], out_word))


def _is_whole(layout: BitPacked) -> bool:
    along_inputs = layout.along == 1 and not layout.order  # an order is one of output features
    permuted = not layout.order or len(layout.order) == 32 // layout.bits
    plain = not (layout.planes or layout.word_minus or layout.wraps)
    return plain and permuted and (along_inputs or layout.transposed)


def _kind(layout: BitPacked) -> Kind:
    if layout.along == 0:
        return "across"
    return "in_major" if layout.transposed else "out_major"


@cache
def _kernel(  # noqa: C901, PLR0915 - numba compiles closures over constants, and cannot cache calls between them
    bits: int, read: Kind, read_order: tuple[int, ...], write: Kind, write_order: tuple[int, ...], compare: bool
) -> Kernel:
    """(stored, out, output features, words along in_features, first of each in stored and in out) -> difference.

    The difference is whether any word differed, if it compares.

    A tile holds in-major words: input word i of output feature j lies at i * _WIDE + j.
    """
    lanes = 32 // bits
    columns = _WIDE // lanes  # words of a row of `across`
    turned = _DEEP * columns  # words of a tile that hold the same lane
    exchanges = [
        (low * turned, (low + step) * turned, step * bits, _mask(bits, step))
        for step in (lanes >> power for power in range(1, lanes.bit_length()))
        for low in range(lanes)
        if not low & step
    ]
    lows, highs = (tuple(exchange[side] for exchange in exchanges) for side in (0, 1))
    shifts, masks = (tuple(np.uint32(exchange[side]) for exchange in exchanges) for side in (2, 3))
    count = len(exchanges)
    features = tuple(read_order or range(lanes)), tuple(write_order or range(lanes))
    feature_read, feature_written = features
    is_read_across, is_written_across = read == "across", write == "across"
    is_read_in_major, is_written_in_major = read == "in_major", write == "in_major"

    def kernel(stored, out, rows, depth, row, word, out_row, out_word):  # type: ignore[no-untyped-def]  # noqa: C901, PLR0915
        tile, turn = np.empty(_DEEP * _WIDE, np.uint32), np.zeros(_DEEP * _WIDE, np.uint32)
        wrong = np.uint32(0)
        for left in range(0, rows, _WIDE):
            wide = min(_WIDE, rows - left)
            words, first, into_first = wide // lanes, (row + left) // lanes, (out_row + left) // lanes
            here, there = row + left, out_row + left
            for top in range(0, depth, _DEEP):
                deep = min(_DEEP, depth - top)
                if is_read_in_major:
                    for i in range(deep):
                        line, into = stored[word + top + i, here : here + wide], tile[i * _WIDE : i * _WIDE + wide]
                        for j in range(wide):
                            into[j] = line[j]
                elif not is_read_across:
                    for j in range(wide):
                        line, into = stored[here + j, word + top : word + top + deep], tile[j:]
                        for i in range(deep):
                            into[i * _WIDE] = line[i]
                else:
                    for i in range(deep):
                        for lane in range(lanes):
                            at = lane * turned + i * columns
                            line = stored[(word + top + i) * lanes + lane, first : first + words]
                            into = turn[at : at + words]
                            for j in range(words):
                                into[j] = line[j]
                    for pair in range(count):
                        low, high = turn[lows[pair] : lows[pair] + turned], turn[highs[pair] : highs[pair] + turned]
                        shift, mask = shifts[pair], masks[pair]
                        for at in range(turned):
                            x, y = low[at], high[at]
                            both = ((x >> shift) ^ y) & mask
                            high[at] = y ^ both
                            low[at] = x ^ (both << shift)
                    for place in range(lanes):
                        for i in range(deep):
                            at = place * turned + i * columns
                            line, into = turn[at : at + columns], tile[i * _WIDE + feature_read[place] :]
                            for j in range(columns):
                                into[j * lanes] = line[j]
                if is_written_in_major:
                    for i in range(deep):
                        line, into = tile[i * _WIDE : i * _WIDE + wide], out[out_word + top + i, there : there + wide]
                        for j in range(wide):
                            if compare:
                                wrong |= into[j] ^ line[j]
                            else:
                                into[j] = line[j]
                elif not is_written_across:
                    for j in range(wide):
                        line, into = tile[j:], out[there + j, out_word + top : out_word + top + deep]
                        for i in range(deep):
                            if compare:
                                wrong |= into[i] ^ line[i * _WIDE]
                            else:
                                into[i] = line[i * _WIDE]
                else:
                    for place in range(lanes):
                        for i in range(deep):
                            at = place * turned + i * columns
                            line, into = tile[i * _WIDE + feature_written[place] :], turn[at : at + columns]
                            for j in range(columns):
                                into[j] = line[j * lanes]
                    for pair in range(count):
                        low, high = turn[lows[pair] : lows[pair] + turned], turn[highs[pair] : highs[pair] + turned]
                        shift, mask = shifts[pair], masks[pair]
                        for at in range(turned):
                            x, y = low[at], high[at]
                            both = ((x >> shift) ^ y) & mask
                            high[at] = y ^ both
                            low[at] = x ^ (both << shift)
                    for i in range(deep):
                        for lane in range(lanes):
                            at = lane * turned + i * columns
                            line = turn[at : at + words]
                            into = out[(out_word + top + i) * lanes + lane, into_first : into_first + words]
                            for j in range(words):
                                if compare:
                                    wrong |= into[j] ^ line[j]
                                else:
                                    into[j] = line[j]
        return wrong != 0

    return compiled(kernel)


def _mask(bits: int, step: int) -> int:
    """The lanes of a word that stay where they are when lanes are exchanged over a distance of `step`."""
    return int(sum(((1 << bits) - 1) << (lane * bits) for lane in range(32 // bits) if not lane & step))
