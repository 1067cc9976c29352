"""Packing against a definition that shares nothing with the kernels: one big integer per row."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qbridge.codes import BitPacked
from qbridge.dtypes import DType
from qbridge.layout import Slot

WORDS = {32: DType.I32, 16: DType.I16, 8: DType.I8}


def stream(lanes, bits, offset, order, padded, word_bits):
    """The words of one row: every lane at its place in one integer, cut into words."""
    total, whole = 0, word_bits // bits
    if padded or order:
        for lane, value in enumerate(lanes):
            word, place = divmod(lane, whole)
            place = order.index(place) if order else place
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
        assert packed == stream(lanes, bits, codec.offset, (), padded, word_bits)
    assert np.array_equal(codec.decode(words, DType.I8, shape), codes)


@given(shape=st.tuples(st.integers(1, 9).map(lambda n: 8 * n), st.integers(1, 30)), seed=st.integers(0, 2**32 - 1))
def test_order_says_which_lane_each_place_of_a_word_holds(shape, seed):
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    codec = BitPacked(4, 0, 8, True, order)
    codes = np.random.default_rng(seed).integers(-8, 8, shape).astype(np.int8)
    words = codec.encode(codes, Slot("x", DType.I32, codec.stored_shape(shape), codec)).view(np.uint32)
    for column in range(shape[1]):
        for word in range(shape[0] // 8):
            for place in range(8):
                assert (int(words[column, word]) >> 4 * place) & 15 == codes[8 * word + order[place], column] + 8
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
