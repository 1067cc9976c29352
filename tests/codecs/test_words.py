"""Words moved whole, and codes moved in blocks, against the canonical path: decode everything, encode everything."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from qbridge.codecs.bits import BitPacked
from qbridge.codecs.code_moves import Block, CodeMove
from qbridge.codecs.word_moves import differs, movable, move
from qbridge.ir.dtypes import DType
from qbridge.ir.slots import Slot

ORDERS = {2: tuple(range(16))[::-1], 4: (0, 2, 4, 6, 1, 3, 5, 7), 8: (0, 2, 1, 3)}
PAIRS = list(itertools.product(("in_major", "out_major", "across"), repeat=2))


def layouts(bits):
    half = 2 ** (bits - 1)
    return {
        "in_major": BitPacked(bits, 1, half, transposed=True),
        "out_major": BitPacked(bits, 1, half),
        "across": BitPacked(bits, 0, half, transposed=True, order=ORDERS[bits]),
    }


def stored(layout, codes, word=DType.I32):
    slot = Slot("t", word, layout.stored_shape(codes.shape, 8 * word.itemsize), layout)
    return layout.encode(codes, slot), slot


def random_codes(bits, shape):
    return np.random.default_rng(bits).integers(-(2 ** (bits - 1)), 2 ** (bits - 1), shape, np.int8)


@pytest.mark.parametrize(("read", "write"), PAIRS)
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("shape", [(16, 32), (272, 144), (48, 1040), (528, 2064)])
def test_moved_words_are_those_of_decoded_and_encoded_codes(bits, read, write, shape):
    first, second = layouts(bits)[read], layouts(bits)[write]
    codes = random_codes(bits, shape)
    (words, _), (expected, _) = stored(first, codes), stored(second, codes)
    assert movable(first, second, shape, (4, 4))
    out = np.full_like(expected, -1)
    move(words, first, second, shape, out)
    assert np.array_equal(out, expected)
    assert not differs(words, first, second, shape, out)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(
    "change", [{}, {"word_minus": True}, {"wraps": True, "offset": -1}, {"order": True}, {"signed": True}]
)
def test_values_of_one_word_are_those_that_a_kernel_decodes(bits, change):
    offset = 2 ** (bits - 1) + change.get("offset", 0)
    order = ORDERS[bits] if "order" in change else ()
    minus = sum(1 << shift for shift in range(0, 32, bits)) if "word_minus" in change else 0
    codec = BitPacked(
        bits, 0, offset, True, order=order, word_minus=minus, wraps="wraps" in change, signed="signed" in change
    )
    for word in (0, -1, 0x76543210, -0x12345678, 0x7FFFFFFF):
        by_kernel = codec.decode(np.array([[word]], np.int32), DType.I16, (32 // bits, 1))
        assert np.array_equal(codec.values_of_word(word), by_kernel[:, 0])


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_signed_lanes_are_in_twos_complement(bits):
    half, lanes = 2 ** (bits - 1), 32 // bits
    codec, plain = BitPacked(bits, 0, half, True, signed=True), BitPacked(bits, 0, 0, True)
    codes = np.resize(np.arange(-half, half), (lanes * 4, 3)).astype(np.int8)
    words = codec.encode(codes, Slot("x", DType.I32, codec.stored_shape(codes.shape), codec))
    lowest = plain.decode(words, DType.I16, codes.shape)
    assert np.array_equal(lowest, codes.astype(np.int16) & 2**bits - 1)
    assert np.array_equal(codec.decode(words, DType.I8, codes.shape), codes)
    assert codec.holds_zeros(np.zeros_like(words), codes.shape) and not codec.holds_zeros(words, codes.shape)


@pytest.mark.parametrize("codec", [BitPacked(3, 0, 4, True), BitPacked(3, 1, 4, padded=True, planes=(2, 1))])
def test_words_that_lanes_do_not_fill_are_refused(codec):
    with pytest.raises(ValueError, match="no whole lanes"):
        codec.values_of_word(0)


@pytest.mark.parametrize(("read", "write"), PAIRS)
def test_any_bit_that_differs_is_seen(read, write):
    first, second, codes = layouts(4)[read], layouts(4)[write], random_codes(4, (48, 144))
    (words, _), (out, _) = stored(first, codes), stored(second, codes)
    flat = out.reshape(-1)
    for place in range(0, flat.size, 7):
        bit = np.int32(1 << place % 31)
        flat[place] ^= bit
        assert differs(words, first, second, codes.shape, out)
        flat[place] ^= bit


@pytest.mark.parametrize(
    ("change", "shape", "sizes"),
    [
        ({"bits": 3, "offset": 4}, (32, 32), (4, 4)),
        ({"offset": 7}, (32, 32), (4, 4)),
        ({"word_minus": 1}, (32, 32), (4, 4)),
        ({"signed": True}, (32, 32), (4, 4)),
        ({"padded": True}, (32, 32), (2, 4)),
        ({}, (32, 36), (4, 4)),
        ({"planes": (4,)}, (32, 32), (4, 4)),
        ({"along": 0, "transposed": False}, (32, 32), (4, 4)),
        ({"along": 0, "transposed": True}, (36, 32), (4, 4)),
    ],
)
def test_what_words_alone_cannot_say_is_not_moved(change, shape, sizes):
    plain = BitPacked(4, 1, 8)
    other = BitPacked(**{"bits": 4, "along": 1, "offset": 8, **change})
    assert not movable(plain, other, shape, sizes) and not movable(other, plain, shape, sizes)


def rectangle(words, place):
    return np.ascontiguousarray(words[place.top : place.top + place.rows, place.left : place.left + place.columns])


def in_blocks(found, words, shape, limit):
    """The written tensor put together from blocks, each proved; and how many there were."""
    out, count = np.full(shape, -1, np.int32), 0
    for block in found.blocks(limit):
        here, place = rectangle(words, block.source), block.written
        part = np.full((place.rows, place.columns), -1, np.int32)
        block.run(here, part)
        assert not block.differs(here, part)
        part[-1, -1] ^= 1
        assert block.differs(here, part)
        part[-1, -1] ^= 1
        out[place.top : place.top + place.rows, place.left : place.left + place.columns] = part
        count += 1
    return out, count


WIDER = {"widened": (4, 8), "three bits": (3, 3), "three widened": (3, 4), "eight": (8, 8), "four": (4, 4)}


@pytest.mark.parametrize(("read", "write"), PAIRS)
@pytest.mark.parametrize("bits", WIDER.values(), ids=WIDER)
@pytest.mark.parametrize("limit", [1, 70_000, 10**9])
def test_blocks_put_together_are_the_whole(bits, read, write, limit):
    def layout(width, kind):
        found = layouts(width if width != 3 else 4)[kind]
        return BitPacked(width, found.along, 2 ** (width - 1), found.transposed)

    codes = random_codes(bits[0], (1056, 544))
    words, slot = stored(layout(bits[0], read), codes)
    expected, wanted = stored(layout(bits[1], write), codes)
    found = CodeMove.between(slot, wanted, codes.shape, codes.shape)
    out, count = in_blocks(found, words, wanted.shape, limit)
    assert np.array_equal(out, expected) and (count > 1) == (limit < 10**6)


@pytest.mark.parametrize(("read", "write"), PAIRS)
@pytest.mark.parametrize("outer", [(1056, 800), (1600, 544), (1600, 800)])
@pytest.mark.parametrize("limit", [1, 10**9])
def test_blocks_of_a_padded_layer_are_filled_with_zero_codes(read, write, outer, limit):
    codes = random_codes(4, (1056, 544))
    words, slot = stored(layouts(4)[read], codes)
    larger = np.zeros(outer, np.int8)
    larger[:1056, :544] = codes
    expected, wanted = stored(layouts(4)[write], larger)
    found = CodeMove.between(slot, wanted, codes.shape, outer)
    out, _ = in_blocks(found, words, wanted.shape, limit)
    assert np.array_equal(out, expected)


def test_block_reads_and_writes_its_rectangle_only():
    codes = random_codes(4, (1024, 512))
    _, slot = stored(layouts(4)["in_major"], codes)
    _, wanted = stored(layouts(4)["out_major"], codes)
    blocks = list(CodeMove.between(slot, wanted, codes.shape, codes.shape).blocks(100_000))
    assert {block.axis for block in blocks} == {0} and len(blocks) > 1
    for block in blocks:
        assert list(block.written.segments(4)) == [(block.start * 256, (block.end - block.start) * 256)]
        assert len(list(block.source.segments(4))) == 64
    assert sum(block.written.words for block in blocks) == sum(block.source.words for block in blocks) == 65536


def test_codes_that_need_a_whole_layer_have_no_move():
    codes = random_codes(4, (32, 64))
    _, slot = stored(layouts(4)["in_major"], codes)
    _, narrow = stored(BitPacked(3, 1, 4), random_codes(3, (32, 64)))
    assert CodeMove.between(slot, narrow, codes.shape, codes.shape) is None
    assert CodeMove.between(slot, Slot("t", DType.I8, (32, 64)), codes.shape, codes.shape) is None
    assert isinstance(CodeMove.between(narrow, slot, codes.shape, codes.shape), CodeMove)
    assert CodeMove.between(narrow, slot, codes.shape, (64, 64)) is None
    assert Block(CodeMove(slot, slot, (32, 64), (32, 64)), 0, 0, 32).source.words == slot.shape[0] * slot.shape[1]
