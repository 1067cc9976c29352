"""The shipped laws of a codec, on every codec of ours, on one of a third party, and on broken ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from qbridge.codecs.arrays import (
    NARROWED,
    TRANSPOSED,
    Concatenated,
    Constant,
    Filled,
    GroupIndex,
    Interleaved,
    Padded,
    ScaledZeros,
    Shared,
    Shuffled,
    Turned,
)
from qbridge.codecs.bits import NIBBLES, BitPacked, Tiled
from qbridge.ir.dtypes import DType
from qbridge.ir.slots import NOTHING, PLAIN, Codec, Slot
from qbridge.testing.laws import check_codec

OUT, IN = 32, 48
random = np.random.default_rng(5)
CODES = random.integers(-8, 8, (OUT, IN)).astype(np.int8)
ZEROS = random.integers(-8, 8, (OUT, IN)).astype(np.int16)
WIDE = np.repeat(CODES, 2, axis=0)
TILE = Tiled((16, 8), tuple(int(at) for at in random.permutation(128)), BitPacked(4, 1, 8), across=True)


def packed(*arguments, **fields):
    codec = BitPacked(*arguments, **fields)
    return codec, Slot("x", DType.I32, codec.stored_shape((OUT, IN)), codec)


CASES = {
    "plain": (PLAIN, Slot("x", DType.I8, (OUT, IN)), CODES),
    "narrowed": (NARROWED, Slot("x", DType.I8, (OUT, IN)), ZEROS),
    "transposed": (TRANSPOSED, Slot("x", DType.I8, (IN, OUT)), CODES),
    "constant": (Constant((3,)), Slot("x", DType.I32, (4,)), CODES),
    "group index": (GroupIndex(16), Slot("x", DType.I32, (IN,)), CODES),
    "filled": (Filled(PLAIN, 0, (OUT, 3)), Slot("x", DType.I16, (OUT, 3)), CODES),
    "padded": (Padded(TRANSPOSED, (IN, OUT)), Slot("x", DType.I8, (IN + 8, OUT)), CODES),
    "shuffled": (Shuffled((1, 0, 3, 2)), Slot("x", DType.I8, (IN, OUT)), CODES),
    "first of two": (Interleaved(PLAIN, 0, 2), Slot("x", DType.I8, (2 * OUT, IN)), CODES),
    "second of two": (Interleaved(NIBBLES, 1, 2), Slot("x", DType.U8, (2 * OUT, IN // 2)), CODES & 15),
    "first of two halves": (Concatenated(PLAIN, 0, 2), Slot("x", DType.I8, (2 * OUT, IN)), CODES),
    "second of two halves": (Concatenated(TRANSPOSED, 1, 2), Slot("x", DType.I8, (IN, 2 * OUT)), CODES),
    "last of three, packed": (Concatenated(NIBBLES, 2, 3), Slot("x", DType.U8, (3 * OUT, IN // 2)), CODES & 15),
    "packed columns": (Turned(NIBBLES), Slot("x", DType.U8, (IN // 2, OUT)), CODES & 15),
    "half of packed columns": (
        Concatenated(Turned(NIBBLES), 1, 2),
        Slot("x", DType.U8, (IN // 2, 2 * OUT)),
        CODES & 15,
    ),
    "the same for all": (Shared(TRANSPOSED), Slot("x", DType.I8, (IN, OUT)), CODES),
    "gptq": (*packed(4, 1, 8, True), CODES),
    "awq": (*packed(4, 0, 8, order=(0, 2, 4, 6, 1, 3, 5, 7)), CODES),
    "3 bits": (*packed(3, 1, 4), CODES >> 1),
    "padded words": (*packed(3, 1, 4, padded=True), CODES >> 1),
    "across, 3 bits": (*packed(3, 0, 4, True), CODES >> 1),
    "tiled": (TILE, Slot("x", DType.I32, TILE.stored_shape((OUT, IN)), TILE), CODES),
    "all zero": (*packed(4, 0, 8), CODES * 0),
    "all zero, 3 bits": (*packed(3, 0, 4), CODES * 0),
}


@pytest.mark.parametrize("case", CASES)
def test_the_laws_hold_for_ours(case):
    codec, slot, array = CASES[case]
    check_codec(codec, slot, array, DType.I16 if array.dtype == np.int16 else DType.I8)


def test_the_laws_hold_for_zero_points_that_need_their_scale():
    zeros = random.integers(-8, 8, (OUT, 3)).astype(np.int16)
    scale = random.uniform(0.1, 1, (OUT, 3)).astype(np.float16).view(np.uint16)
    slot = Slot("x", DType.F16, (8, OUT), ScaledZeros(8))
    check_codec(ScaledZeros(8), slot, zeros, DType.I16, {"scale": scale.view(np.float16)})
    with pytest.raises(AssertionError, match="a part that it needs"):
        check_codec(ScaledZeros(8), slot, zeros, DType.I16)


@dataclass(frozen=True, slots=True)
class Backwards(Codec):
    """A third party's codec: output features from the last to the first."""

    moved: int = 0

    def encode(self, array, slot, beside=NOTHING):
        return np.ascontiguousarray(array[::-1])

    def decode(self, stored, dtype, shape, beside=NOTHING):
        return np.ascontiguousarray(stored[::-1])

    def step(self, itemsize):
        return 4

    def rows(self, shape, features, span, itemsize):
        return shape[0] - span[1] + self.moved, 0, span[1] - span[0], shape[1]


@dataclass(frozen=True, slots=True)
class Forgetful(Backwards):
    def decode(self, stored, dtype, shape, beside=NOTHING):
        return np.abs(np.ascontiguousarray(stored[::-1]))


@dataclass(frozen=True, slots=True)
class Wide(Backwards):
    def encode(self, array, slot, beside=NOTHING):
        return array[::-1].astype(np.int16)


@dataclass(frozen=True, slots=True)
class Liar(Backwards):
    def holds_zeros(self, stored, shape):
        return True


SLOT = Slot("x", DType.I8, (OUT, IN))


def test_the_laws_hold_for_a_codec_of_a_third_party():
    check_codec(Backwards(), SLOT, CODES, DType.I8)


@pytest.mark.parametrize(
    ("codec", "law"),
    [
        (Backwards(moved=-1), "rows . to . are others|rows 0 to 4 are others"),
        (Forgetful(), "is not x"),
        (Wide(), "dtype and shape"),
        (Liar(), "holds_zeros"),
    ],
)
def test_the_laws_catch_broken_ones(codec, law):
    with pytest.raises(AssertionError, match=law):
        check_codec(codec, SLOT, CODES, DType.I8)


@pytest.mark.parametrize("case", ["gptq", "awq", "tiled", "transposed"])
def test_the_laws_catch_a_region_that_is_off(case, monkeypatch):
    codec, slot, array = CASES[case]
    real = type(codec).rows

    def off(self, shape, features, span, itemsize):
        region = real(self, shape, features, span, itemsize)
        return region and (max(0, region[0] - 1), max(0, region[1] - 1), *region[2:])

    monkeypatch.setattr(type(codec), "rows", off)
    with pytest.raises((AssertionError, ValueError)):
        check_codec(codec, slot, array, DType.I8)
