"""Compiled loops that pack and unpack codes of any width, on threads of our own."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from qbridge.codecs.compiling import Kernel, compiled

_ROWS = 128  # rows of a tile; with 16 words to a row, a tile and its lanes stay in the first cache
_WORDS = 16  # one cache line of 32-bit words
_ALONE = 1 << 20  # codes that one thread is left with, whatever others could do


def in_parallel(shape: tuple[int, ...], step: int, work: Callable[[int, int], None]) -> None:
    """`work` on ranges of rows that begin at multiples of `step`, in as many threads as there are cores.

    Ranges that are done before a thread would be woken are not made.
    """
    rows = shape[0]
    share = max(_ROWS, -(-rows // (2 * _threads())), _ALONE // max(1, math.prod(shape[1:])))
    share = -(-share // step) * step
    if rows <= share:
        work(0, rows)
    else:
        starts = range(0, rows, share)
        list(pool().map(lambda start: work(start, min(start + share, rows)), starts))


def _threads() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def pool() -> ThreadPoolExecutor:
    """Our own threads: numba's parallel loops abort the process when two threads start one.

    A forked child has none of its parent's threads, so it makes its own.
    """
    return ThreadPoolExecutor(_threads(), thread_name_prefix="qbridge-codes")


class Piece(NamedTuple):
    """Bits of a lane in a word: (word >> word_shift & mask) << lane_shift."""

    word: int
    word_shift: int
    lane_shift: int
    mask: int


@cache
def lane_pieces(
    bits: int, width: int, padded: bool, order: tuple[int, ...], planes: tuple[int, ...]
) -> tuple[int, int, tuple[Piece, ...]]:
    """(lanes, words) of a period, and by level and lane the `Piece` of it.

    A lane has as many pieces as there are levels, of which those with mask 0 say nothing. One period of 3 bits in
    words of 32 is 32 lanes in 3 words, and two levels, because lanes 10 and 21 lie in two words each:

        word 0   lanes 0 to 9, the 2 low bits of lane 10
        word 1   the high bit of lane 10, lanes 11 to 20, the low bit of lane 21
        word 2   the 2 high bits of lane 21, lanes 22 to 31
    """
    if planes:
        pieces, first_word, lane_shift = [], 0, 0
        for plane in planes:
            per_word = width // plane
            pieces += [
                Piece(first_word + i // per_word, i % per_word * plane, lane_shift, 2**plane - 1)
                for i in range(width)
            ]
            first_word, lane_shift = first_word + plane, lane_shift + plane
        return width, bits, tuple(pieces)
    lanes_per_word = width // bits if padded or width % bits == 0 else 0  # 0 where lanes straddle words
    run = len(order) or 1
    lanes = math.lcm(lanes_per_word or width, run)
    low, high = [], []
    for lane in range(lanes):
        at = lane - lane % run + order.index(lane % run) if order else lane
        if lanes_per_word:
            word, word_shift = at // lanes_per_word, at % lanes_per_word * bits
        else:
            word, word_shift = divmod(at * bits, width)
        in_word = min(bits, width - word_shift)  # the other bits of the lane lie in the next word
        low.append(Piece(word, word_shift, 0, 2**in_word - 1))
        beyond = Piece(word + 1, 0, in_word, 2 ** (bits - in_word) - 1)
        high.append(beyond if in_word < bits else Piece(word, 0, 0, 0))
    words = lanes // lanes_per_word if lanes_per_word else lanes * bits // width
    return lanes, words, tuple(low) if lanes_per_word else (*low, *high)


@cache
def kernels(  # noqa: C901, PLR0915 - numba compiles closures over constants, and cannot cache calls between them
    bits: int, width: int, padded: bool, order: tuple[int, ...], planes: tuple[int, ...]
) -> tuple[Kernel, Kernel]:
    """(pack, unpack) of (lanes, words, offset, first row, first lane, flip_words, flip_lanes), compiled.

    Both go through tiles of words and of raw lanes that lie row by row, whatever the two arrays look like: with
    `flip_words` words are [words of a row, rows], with `flip_lanes` lanes are [lanes, rows].
    """
    lanes_of, words_of, pieces = lane_pieces(bits, width, padded, order, planes)
    periods = max(1, _WORDS // words_of)
    wide, deep, pieces_of = periods * words_of, periods * lanes_of, len(pieces)
    word_type = np.dtype(f"u{width // 8}").type
    places = tuple(piece[0] for piece in pieces)
    shifts, ups, masks = (tuple(word_type(piece[i]) for piece in pieces) for i in (1, 2, 3))
    lane_mask = np.uint8(2**bits - 1)
    by_word = sorted(range(pieces_of), key=lambda at: pieces[at][0])
    starts = tuple(sum(piece[0] < word for piece in pieces) for word in range(words_of + 1))
    lane_of = tuple(at % lanes_of for at in by_word)
    shift_of, up_of, mask_of = (tuple(column[at] for at in by_word) for column in (shifts, ups, masks))

    def pack(  # noqa: C901
        lanes: Any, words: Any, offset: int, row: int, lane: int, flip_words: bool, flip_lanes: bool
    ) -> None:
        rows, count = (lanes.shape[1], lanes.shape[0]) if flip_lanes else lanes.shape
        tile, raw = np.empty(_ROWS * wide, word_type), np.zeros(_ROWS * deep, np.uint8)
        for top in range(0, rows, _ROWS):
            high = min(_ROWS, rows - top)
            for begin in range(0, count, deep):
                many = min(deep, count - begin)
                if many < deep:
                    raw[:] = 0
                if flip_lanes:
                    for i in range(many):
                        line, into = lanes[begin + i, top : top + high], raw[i:]
                        for j in range(high):
                            into[j * deep] = np.uint8(line[j] + offset) & lane_mask
                else:
                    for j in range(high):
                        line, into = lanes[top + j, begin : begin + many], raw[j * deep : j * deep + many]
                        for i in range(many):
                            into[i] = np.uint8(line[i] + offset) & lane_mask
                for period in range(_ROWS * periods):
                    for word in range(words_of):
                        value = word_type(0)
                        for at in range(starts[word], starts[word + 1]):
                            piece = word_type(raw[period * lanes_of + lane_of[at]])
                            value |= ((piece >> up_of[at]) & mask_of[at]) << shift_of[at]
                        tile[period * words_of + word] = value
                first = (lane + begin) // lanes_of * words_of
                filled = -(-many // lanes_of) * words_of  # what lies beyond may be another thread's
                if flip_words:
                    for i in range(min(filled, words.shape[0] - first)):
                        target, kept = words[first + i, row + top : row + top + high], tile[i:]
                        for j in range(high):
                            target[j] = kept[j * wide]
                else:
                    used = min(filled, words.shape[1] - first)
                    for j in range(high):
                        target, kept = words[row + top + j, first : first + used], tile[j * wide : j * wide + used]
                        for i in range(used):
                            target[i] = kept[i]

    def unpack(  # noqa: C901
        lanes: Any, words: Any, offset: int, row: int, lane: int, flip_words: bool, flip_lanes: bool
    ) -> None:
        rows, count = (lanes.shape[1], lanes.shape[0]) if flip_lanes else lanes.shape
        tile, raw = np.zeros(_ROWS * wide, word_type), np.empty(_ROWS * deep, np.uint8)
        for top in range(0, rows, _ROWS):
            high = min(_ROWS, rows - top)
            for begin in range(0, count, deep):
                first = (lane + begin) // lanes_of * words_of
                if flip_words:
                    for i in range(min(wide, words.shape[0] - first)):
                        origin, into = words[first + i, row + top : row + top + high], tile[i:]
                        for j in range(high):
                            into[j * wide] = origin[j]
                else:
                    used = min(wide, words.shape[1] - first)
                    for j in range(high):
                        origin, into = words[row + top + j, first : first + used], tile[j * wide : j * wide + used]
                        for i in range(used):
                            into[i] = origin[i]
                for period in range(_ROWS * periods):
                    for i in range(lanes_of):
                        value = word_type(0)
                        for at in range(i, pieces_of, lanes_of):
                            value |= ((tile[period * words_of + places[at]] >> shifts[at]) & masks[at]) << ups[at]
                        raw[period * lanes_of + i] = np.uint8(value)
                many = min(deep, count - begin)
                if flip_lanes:
                    for i in range(many):
                        line, kept = lanes[begin + i, top : top + high], raw[i:]
                        for j in range(high):
                            line[j] = kept[j * deep] - offset
                else:
                    for j in range(high):
                        line, kept = lanes[top + j, begin : begin + many], raw[j * deep : j * deep + many]
                        for i in range(many):
                            line[i] = kept[i] - offset

    return compiled(pack), compiled(unpack)
