"""Blocks of ggml: a row is a run of blocks, each a struct of scales and codes, so that one tensor holds both parts.

Canonical codes are those of the table; a weight is its code times its scale, with which every value is the one that
ggml computes. f = float16, nibbles (j, j + n) of byte j are its low and its high four bits.

type    weights  bytes  struct                                                  codes
Q4_0    32       18     f scale, 16 bytes of nibbles (j, j + 16)                -8 to 7
Q5_0    32       22     f scale, u32 of the fifth bits, 16 bytes as Q4_0        -16 to 15
Q8_0    32       34     f scale, 32 int8                                        -128 to 127
Q1_0    128      18     f scale, 16 bytes of bits                               -1 and 1
Q2_0    64       18     f scale, 16 bytes of two bits each                      -2 to 1 under the scale's negative
TQ1_0   256      54     48 bytes of 5 digits to base 3, 4 of 4 digits, f scale  -1 to 1
TQ2_0   256      66     64 bytes of two bits, 32 bytes apart, f scale           -2 to 1 under the scale's negative
MXFP4   32       17     e8m0 scale, 16 bytes of nibbles (j, j + 16)             e2m1
NVFP4   64       36     4 e4m3 scales, 4 times 8 bytes of nibbles (j, j + 8)    e2m1

Two bits store 0 to 3 for -1 to 2: those of codes of two bits are -2 to 1, so that the scale changes its sign. Source:
llama.cpp b10359, ggml/src/ggml-common.h and ggml-quants.c (dequantize_row_*).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qbridge.ir.dtypes import Array, DType
from qbridge.ir.slots import NOTHING, Codec, Parts, Region, Slot, Span, _ByRows
from qbridge.source.ggml_types import TYPES, GgmlType

Bytes = npt.NDArray[np.uint8]
Codes = npt.NDArray[Any]  # int8, or uint8 of floats
_POWERS = np.array([1, 3, 9, 27, 81], np.uint8)


@dataclass(frozen=True, slots=True, eq=False)
class Struct:
    """One type of block: where its scales lie, and how its other bytes become codes and back.

    `decode` gets [blocks, bytes without scales] and gives [blocks, elements] of int8 or uint8, `encode` goes back;
    ValueError for what no block holds. A scale is that of `group` elements; `negated` ones change their sign.
    """

    type: GgmlType
    scale_dtype: DType
    decode: Callable[[Bytes], Codes]
    encode: Callable[[Codes], Bytes]
    scale_at: int = 0
    group: int = 0
    negated: bool = False

    @property
    def elements(self) -> int:
        """Weights of a block."""
        return self.type.elements

    @property
    def size(self) -> int:
        """Bytes of a block."""
        return self.type.size

    @property
    def scale_bytes(self) -> int:
        """Bytes of the scales of one block."""
        return self.elements // (self.group or self.elements) * self.scale_dtype.itemsize

    def row_bytes(self, in_features: int) -> int:
        """Bytes of a row; ValueError if it is no whole blocks."""
        if in_features % self.elements:
            raise ValueError(f"{in_features} inputs are no whole blocks of {self.elements}")
        return in_features // self.elements * self.size

    def split(self, stored: Array) -> tuple[Bytes, Bytes]:
        """(scales, the rest) of stored rows, each [blocks, bytes]."""
        blocks = np.ascontiguousarray(stored).view(np.uint8).reshape(-1, self.size)
        end = self.scale_at + self.scale_bytes
        return blocks[:, self.scale_at : end], np.concatenate([blocks[:, : self.scale_at], blocks[:, end:]], axis=1)


def _nibbles(run: int) -> tuple[Callable[[Bytes], Codes], Callable[[Codes], Bytes]]:
    """Two codes to a byte, `run` apart, in sections of 2 * run codes."""

    def decode(data: Bytes) -> Codes:
        sections = data.reshape(data.shape[0], -1, 1, run)
        return np.concatenate([sections & 15, sections >> 4], axis=2).reshape(data.shape[0], -1)

    def encode(codes: Codes) -> Bytes:
        halves = codes.view(np.uint8).reshape(codes.shape[0], -1, 2, run)
        joined: Bytes = np.bitwise_or(halves[:, :, 0] & 15, halves[:, :, 1] << 4, dtype=np.uint8)
        return joined.reshape(codes.shape[0], -1)

    return decode, encode


_LOW_AND_HIGH, _JOINED = _nibbles(16)


def _signed(codes: Codes, bits: int) -> Codes:
    """Stored codes of 0 to 2**bits - 1 as signed ones around the middle."""
    return codes.astype(np.int8) - np.int8(1 << (bits - 1))


def _stored(codes: Codes, bits: int) -> Bytes:
    """The other way; ValueError for a code that does not fit."""
    half = 1 << (bits - 1)
    if codes.size and not (-half <= codes.min() and codes.max() < half):
        raise ValueError(f"codes from {codes.min()} to {codes.max()} do not fit {bits} bits")
    return (codes.astype(np.int16) + half).astype(np.uint8)


def _decode_q5(data: Bytes) -> Codes:
    fifth = np.unpackbits(np.ascontiguousarray(data[:, :4]), axis=1, bitorder="little")
    return _signed(_LOW_AND_HIGH(data[:, 4:]) | fifth << 4, 5)


def _encode_q5(codes: Codes) -> Bytes:
    stored = _stored(codes, 5)
    return np.concatenate([np.packbits(stored >> 4, axis=1, bitorder="little"), _JOINED(stored)], axis=1)


def _decode_q1(data: Bytes) -> Codes:
    bits = np.unpackbits(np.ascontiguousarray(data), axis=1, bitorder="little")
    return (2 * bits.astype(np.int8) - 1).astype(np.int8)


def _encode_q1(codes: Codes) -> Bytes:
    if not (np.abs(codes) == 1).all():
        raise ValueError("codes of one bit are -1 and 1")
    return np.packbits(codes > 0, axis=1, bitorder="little")


_TWO_BITS = np.arange(0, 8, 2, dtype=np.uint8)


def _decode_q2(data: Bytes) -> Codes:
    return (1 - (data[:, :, None] >> _TWO_BITS & 3).astype(np.int8)).reshape(data.shape[0], -1)


def _encode_q2(codes: Codes) -> Bytes:
    """Codes -2 to 1 as 3 to 0."""
    stored = 3 - _stored(codes, 2).reshape(codes.shape[0], -1, 4)
    joined: Bytes = np.bitwise_or.reduce(stored << _TWO_BITS, axis=2)
    return joined


def _decode_tq2(data: Bytes) -> Codes:
    halves = data.reshape(-1, 2, 1, 32) >> _TWO_BITS[:, None] & 3
    return (1 - halves.astype(np.int8)).reshape(data.shape[0], -1)


def _encode_tq2(codes: Codes) -> Bytes:
    stored = 3 - _stored(codes, 2).reshape(-1, 2, 4, 32)
    joined: Bytes = np.bitwise_or.reduce(stored << _TWO_BITS[:, None], axis=2)
    return joined.reshape(codes.shape[0], -1)


_TRITS = ((0, 32, 32, 5), (32, 48, 16, 5), (48, 52, 4, 4))  # first byte, last, elements apart, digits to a byte


def _decode_tq1(data: Bytes) -> Codes:
    parts = []
    for first, last, _, digits in _TRITS:
        scaled = (data[:, None, first:last] * _POWERS[:digits, None]).astype(np.uint16)  # modulo 256, as in C
        parts.append(((scaled * 3) >> 8).reshape(data.shape[0], -1))
    return np.concatenate(parts, axis=1).astype(np.int8) - np.int8(1)


def _encode_tq1(codes: Codes) -> Bytes:
    if codes.size and not (codes.min() >= -1 and codes.max() <= 1):
        raise ValueError("digits to base 3 are codes -1 to 1")
    parts, start = [], 0
    for first, last, apart, digits in _TRITS:
        count = (last - first) * digits
        trits = (codes[:, start : start + count] + 1).astype(np.int64).reshape(codes.shape[0], digits, apart)
        number = np.tensordot(trits, np.array([3 ** (4 - i) for i in range(digits)]), axes=(1, 0))
        parts.append(((number * 256 + 242) // 243).astype(np.uint8))
        start += count
    return np.concatenate(parts, axis=1)


_STRUCTS = (
    Struct(TYPES["Q4_0"], DType.F16, lambda d: _signed(_LOW_AND_HIGH(d), 4), lambda c: _JOINED(_stored(c, 4))),
    Struct(TYPES["Q5_0"], DType.F16, _decode_q5, _encode_q5),
    Struct(TYPES["Q8_0"], DType.F16, lambda d: d.view(np.int8), lambda c: c.view(np.uint8)),
    Struct(TYPES["Q1_0"], DType.F16, _decode_q1, _encode_q1),
    Struct(TYPES["Q2_0"], DType.F16, _decode_q2, _encode_q2, negated=True),
    Struct(TYPES["TQ1_0"], DType.F16, _decode_tq1, _encode_tq1, scale_at=52),
    Struct(TYPES["TQ2_0"], DType.F16, _decode_tq2, _encode_tq2, scale_at=64, negated=True),
    Struct(TYPES["MXFP4"], DType.F8_E8M0, *_nibbles(16)),
    Struct(TYPES["NVFP4"], DType.F8_E4M3, *_nibbles(8), group=16),
)
STRUCTS: Mapping[str, Struct] = {struct.type.name: struct for struct in _STRUCTS}
_SIGN = np.uint16(0x8000)


@dataclass(frozen=True, slots=True)
class _OfBlocks(_ByRows):
    """A part of rows of blocks [out_features, bytes] of the type `kind`."""

    kind: str

    @property
    def block(self) -> str:  # type: ignore[override]  # of others it is the same for all of the class
        """That type."""
        return self.kind

    def stored_size(self, shape: tuple[int, ...], itemsize: int) -> int:
        """Bytes of the rows of a canonical matrix."""
        return math.prod(shape[:-1]) * STRUCTS[self.kind].row_bytes(shape[-1])


@dataclass(frozen=True, slots=True)
class BlockCodes(_OfBlocks):
    """The codes of blocks, which are written together with their scales."""

    needs = frozenset({"scale"})

    def encode(self, array: Array, slot: Slot, beside: Parts = NOTHING) -> Array:
        """The blocks of codes [out, in] and of `beside` their scales; ValueError for a code that does not fit."""
        struct = STRUCTS[self.kind]
        scales = beside["scale"].view(f"u{struct.scale_dtype.itemsize}")
        if struct.negated:
            scales = scales ^ _SIGN
        blocks = np.empty((array.size // struct.elements, struct.size), np.uint8)
        end = struct.scale_at + struct.scale_bytes
        rest = struct.encode(np.ascontiguousarray(array).reshape(-1, struct.elements))
        blocks[:, struct.scale_at : end] = np.ascontiguousarray(scales).view(np.uint8).reshape(-1, struct.scale_bytes)
        blocks[:, : struct.scale_at], blocks[:, end:] = rest[:, : struct.scale_at], rest[:, struct.scale_at :]
        return blocks.reshape(slot.shape)

    def decode(self, stored: Array, dtype: DType, shape: tuple[int, ...], beside: Parts = NOTHING) -> Array:
        """The codes [out, in]."""
        struct = STRUCTS[self.kind]
        return np.ascontiguousarray(struct.decode(struct.split(stored)[1])).reshape(shape)


@dataclass(frozen=True, slots=True)
class BlockScales(_OfBlocks):
    """The scales of blocks, which are written with the codes."""

    inside = "code"

    def encode(self, array: Array, slot: Slot, beside: Parts = NOTHING) -> Array:
        """ValueError."""
        raise ValueError(f"{slot.tensor}: its scales are written with its codes")

    def decode(self, stored: Array, dtype: DType, shape: tuple[int, ...], beside: Parts = NOTHING) -> Array:
        """The scales [out, groups]."""
        struct = STRUCTS[self.kind]
        found = np.ascontiguousarray(struct.split(stored)[0]).view(f"<u{struct.scale_dtype.itemsize}")
        scales = found ^ _SIGN if struct.negated else found
        return scales.view(dtype.numpy).reshape(shape)


@dataclass(frozen=True, slots=True)
class PairedRows(Codec):
    """Rows of `codec` in the order of ggml's rotary embedding: of a head's two halves, the rows take turns."""

    codec: Codec
    head: int

    @property
    def block(self) -> str:  # type: ignore[override]  # of others it is the same for all of the class
        """That of its codec."""
        return self.codec.block

    @property
    def inside(self) -> str:  # type: ignore[override]
        """That of its codec."""
        return self.codec.inside

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """Those of its codec."""
        return self.codec.needs

    def stored_size(self, shape: tuple[int, ...], itemsize: int) -> int:
        """That of its codec."""
        return self.codec.stored_size(shape, itemsize)

    def encode(self, array: Array, slot: Slot, beside: Parts = NOTHING) -> Array:
        """The rows in their other order, as its codec stores them."""
        paired = {part: self._pair(beside[part]) for part in self.needs}
        return self.codec.encode(self._pair(array), slot, paired)

    def decode(self, stored: Array, dtype: DType, shape: tuple[int, ...], beside: Parts = NOTHING) -> Array:
        """The rows in their own order."""
        rows = self.codec.decode(stored, dtype, shape)
        heads = rows.reshape(-1, self.head // 2, 2, *rows.shape[1:])
        return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(rows.shape)

    def factors(self, stored: Array) -> Array:
        """Those of its codec."""
        return self.codec.factors(stored)

    def _pair(self, array: Array) -> Array:
        heads = array.reshape(-1, 2, self.head // 2, *array.shape[1:])
        return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(array.shape)

    def step(self, itemsize: int) -> int:
        """Whole heads."""
        return math.lcm(self.head, self.codec.step(itemsize))

    def rows(self, shape: tuple[int, int], features: tuple[int, int], span: Span, itemsize: int) -> Region | None:
        """Those of its codec, if they are whole heads."""
        return (
            self.codec.rows(shape, features, span, itemsize) if self._aligned(span, features[0], itemsize) else None
        )


def paired(codec: Codec, head: int) -> Codec:
    """`codec` with the rows of each `head` in ggml's order; `codec` itself where that is 0."""
    return PairedRows(codec, head) if head else codec
