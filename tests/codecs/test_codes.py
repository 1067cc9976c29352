"""Packing against a definition that shares nothing with the kernels: one big integer per row."""

from __future__ import annotations

import itertools
import os
import signal
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qbridge.codecs.bits import BitPacked, Tiled, can_repack, repack
from qbridge.ir.dtypes import DType
from qbridge.ir.slots import Slot

WORDS = {32: DType.I32, 16: DType.I16, 8: DType.I8}
AWQ = (0, 2, 4, 6, 1, 3, 5, 7)
PLANES = {3: (2, 1), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1)}


def stream(lanes, bits, offset, padded, word_bits):
    """The words of one row: every lane at its place in one integer, cut into words."""
    total, whole = 0, word_bits // bits
    if padded:
        for lane, value in enumerate(lanes):
            word, place = divmod(lane, whole)
            total |= (int(value) + offset) % 2**bits << (word * word_bits + place * bits)
    else:
        for lane, value in enumerate(lanes):
            total |= (int(value) + offset) % 2**bits << lane * bits
    return total


@given(
    bits=st.integers(1, 8),
    along=st.sampled_from([0, 1]),
    transposed=st.booleans(),
    padded=st.booleans(),
    word_bits=st.sampled_from([32, 16, 8]),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 70)),
    seed=st.integers(0, 2**32 - 1),
)
def test_words_are_the_definition_and_come_back(bits, along, transposed, padded, word_bits, shape, seed):
    codec = BitPacked(bits, along, 2 ** (bits - 1), transposed, padded=padded)
    codes = np.random.default_rng(seed).integers(-(2 ** (bits - 1)), 2 ** (bits - 1), shape).astype(np.int8)
    slot = Slot("x", WORDS[word_bits], codec.stored_shape(shape, word_bits), codec)
    words = codec.encode(codes, slot)
    assert words.shape == slot.shape and words.dtype == slot.dtype.numpy
    rows = words.T if transposed == (along == 1) else words
    rows = (
        rows.view(f"u{word_bits // 8}")
        if rows.flags.c_contiguous
        else np.ascontiguousarray(rows).view(f"u{word_bits // 8}")
    )
    for row, lanes in zip(rows, codes if along == 1 else codes.T, strict=True):
        packed = sum(int(word) << (word_bits * i) for i, word in enumerate(row))
        assert packed == stream(lanes, bits, codec.offset, padded, word_bits)
    assert np.array_equal(codec.decode(words, DType.I8, shape), codes)


@given(shape=st.tuples(st.integers(1, 9).map(lambda n: 8 * n), st.integers(1, 30)), seed=st.integers(0, 2**32 - 1))
def test_order_says_which_lane_each_place_of_a_word_holds(shape, seed):
    codec = BitPacked(4, 0, 8, True, AWQ)
    codes = np.random.default_rng(seed).integers(-8, 8, shape).astype(np.int8)
    words = codec.encode(codes, Slot("x", DType.I32, codec.stored_shape(shape), codec)).view(np.uint32)
    for column in range(shape[1]):
        for word in range(shape[0] // 8):
            for place in range(8):
                assert (int(words[column, word]) >> 4 * place) & 15 == codes[8 * word + AWQ[place], column] + 8
    assert np.array_equal(codec.decode(words.view(np.int32), DType.I8, shape), codes)


def test_zero_points_of_16_bits_are_packed_by_the_same_kernels():
    codec = BitPacked(8, 0, 127, True)
    zeros = np.array([[128, -127], [0, 5], [1, 2], [3, 4]], np.int16)
    words = codec.encode(zeros, Slot("x", DType.I32, codec.stored_shape(zeros.shape), codec))
    assert np.array_equal(codec.decode(words, DType.I16, zeros.shape), zeros)


@pytest.mark.parametrize("value", [8, -9])
def test_a_value_that_does_not_fit_is_refused(value):
    codec = BitPacked(4, 1, 8)
    with pytest.raises(ValueError, match="do not fit 4 bits"):
        codec.encode(np.full((1, 8), value, np.int8), Slot("x", DType.I32, (1, 1), codec))


def random_codes(bits, shape, seed=0):
    return np.random.default_rng(seed).integers(-(2 ** (bits - 1)), 2 ** (bits - 1), shape).astype(np.int8)


def slot_of(codec, shape, word_bits=32):
    return Slot("x", WORDS[word_bits], codec.stored_shape(shape, word_bits), codec)


@pytest.mark.parametrize("bits", [5, 6, 7])
def test_order_permutes_every_eight_of_a_stream_across_word_borders(bits):
    codes = random_codes(bits, (96, 3))
    codec = BitPacked(bits, 0, 2 ** (bits - 1), True, AWQ)
    words = codec.encode(codes, slot_of(codec, codes.shape)).view(np.uint32)
    for column, row in enumerate(words):
        places = [codes[8 * eight + AWQ[place], column] for eight in range(12) for place in range(8)]
        total = sum(int(word) << 32 * i for i, word in enumerate(row))
        assert total == stream(places, bits, codec.offset, False, 32)
    assert np.array_equal(codec.decode(words.view(np.int32), DType.I8, codes.shape), codes)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("along", [0, 1])
@pytest.mark.parametrize("bits", PLANES)
def test_bit_planes_hold_their_bits_of_32_lanes_low_ones_first(bits, along, transposed):
    codes = random_codes(bits, (96, 160))
    codec = BitPacked(bits, along, 2 ** (bits - 1), transposed, planes=PLANES[bits])
    words = codec.encode(codes, slot_of(codec, codes.shape))
    rows = (words.T if transposed == (along == 1) else words).view(np.uint32)
    for row, lanes in zip(rows, codes if along == 1 else codes.T, strict=True):
        for period in range(len(lanes) // 32):
            first, low = period * bits, 0
            for width in PLANES[bits]:
                for j in range(32):
                    code = int(lanes[32 * period + j]) + codec.offset
                    held = int(row[first + j // (32 // width)]) >> (width * (j % (32 // width))) & (2**width - 1)
                    assert held == code >> low & (2**width - 1)
                first, low = first + width, low + width
    assert np.array_equal(codec.decode(words, DType.I8, codes.shape), codes)


CODECS = {
    "stream": BitPacked(4, 1, 8, True),
    "rows": BitPacked(4, 0, 8),
    "awq": BitPacked(4, 0, 8, True, AWQ),
    "three": BitPacked(3, 1, 4, True),
    "padded": BitPacked(3, 1, 4, padded=True),
    "planes": BitPacked(3, 1, 4, True, planes=(2, 1)),
    "planes across": BitPacked(5, 0, 16, True, planes=(4, 1)),
    "ordered six": BitPacked(6, 0, 32, True, AWQ),
    "seven": BitPacked(7, 0, 64),
    "bytes": BitPacked(8, 1, 128, True),
}


@pytest.mark.parametrize("word_bits", [32, 16, 8])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("bits", range(1, 9))
def test_pieces_that_threads_pack_touch_none_of_their_neighbours_words(bits, transposed, word_bits):
    check_pieces(BitPacked(bits, 0, 2 ** (bits - 1), transposed), word_bits)


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_pieces_of_every_codec_touch_none_of_their_neighbours_words(codec):
    check_pieces(codec, 32)


def check_pieces(codec, word_bits):
    codes = random_codes(codec.bits, (640, 70 if codec.along == 0 else 96))
    slot = slot_of(codec, codes.shape, word_bits)
    whole = codec.encode(codes, slot)
    step = codec._rows_step(whole.view(f"u{word_bits // 8}"))
    for size in (160, step):
        starts = range(0, 640, size)
        for pieces in (starts, starts[::-1], [*starts[1::2], *starts[::2]]):
            words = np.full(slot.shape, 2**word_bits - 1, f"<u{word_bits // 8}")
            for first in pieces:
                codec._run(0, codes[first : first + size], words, first)
            assert words.tobytes() == whole.tobytes()


@pytest.mark.parametrize(("read", "write"), list(itertools.product(CODECS.values(), repeat=2)))
@pytest.mark.parametrize("shape", [(640, 96), (32, 160)])
def test_repacked_words_are_those_of_decoded_and_encoded_codes(read, write, shape):
    if read.bits > write.bits:
        assert not can_repack(read, write)
        return
    assert can_repack(read, write)
    stored, slot = read.encode(random_codes(read.bits, shape), slot_of(read, shape)), slot_of(write, shape)
    expected = write.encode(read.decode(stored, DType.I8, shape), slot)
    out = np.full(slot.shape, -1, np.int32)
    repack(stored, read, write, shape, out)
    assert out.tobytes() == expected.tobytes()


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("word_bits", [32, 16])
def test_tiles_are_the_definition_and_come_back(across, word_bits):
    high, wide, shape = 4, 8, (12, 32)
    order = tuple(int(place) for place in np.random.default_rng(1).permutation(high * wide))
    codec = Tiled((high, wide), order, BitPacked(4, 1, 8), across)
    codes = random_codes(4, shape)
    slot = slot_of(codec, shape, word_bits)
    words = codec.encode(codes, slot)
    tiles = [(top, left) for top in range(0, 12, high) for left in range(0, 32, wide)]
    if across:
        tiles = [(top, left) for left in range(0, 32, wide) for top in range(0, 12, high)]
    places = [
        codes[top + order[place] // wide, left + order[place] % wide]
        for top, left in tiles
        for place in range(high * wide)
    ]
    flat = words.view(f"u{word_bits // 8}").reshape(-1)
    per = word_bits // 4
    for i, code in enumerate(places):
        assert int(flat[i // per]) >> 4 * (i % per) & 15 == code + 8
    assert words.shape == ((4, 96 // per) if across else (3, 128 // per))
    assert np.array_equal(codec.decode(words, DType.I8, shape), codes)


def test_tiles_have_no_shape_for_a_part_of_one():
    with pytest.raises(ValueError, match="not whole tiles"):
        Tiled((4, 8), tuple(range(32)), BitPacked(4, 1, 8), True).stored_shape((12, 36))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the operating system has no fork")
def test_codes_are_packed_in_a_forked_child_too():
    codec, codes = BitPacked(3, 1, 4), random_codes(3, (2048, 96))
    expected = codec.encode(codes, slot_of(codec, codes.shape))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the parent has threads: that is the point
        child = os.fork()
    if not child:
        signal.alarm(20)
        same = np.array_equal(codec.encode(codes, slot_of(codec, codes.shape)), expected)
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
