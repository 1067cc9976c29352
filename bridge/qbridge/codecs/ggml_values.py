"""Blocks of ggml whose weights are no code times one scale: K-quants, Q4_1 and Q5_1, read as the weights themselves.

A weight is its code times the scale of its group, minus the minimum of its group. f = float16, one of the block; the
scales and minima of groups are products of those and small integers.

type    weights  bytes  struct                                                     codes   groups of
Q4_1    32       20     f scale, f minimum, 16 bytes of nibbles (j, j + 16)        0 to 15  32, minimum added
Q5_1    32       24     f scale, f minimum, u32 of the fifth bits, 16 bytes        0 to 31  32, minimum added
Q2_K    256      84     16 bytes of a scale and a minimum of 4 bits, 64 bytes of   0 to 3   16
                        two bits (32 apart), f scale, f minimum
Q3_K    256      110    32 bytes of the third bits, 64 bytes of two bits, 12       -4 to 3  16, no minimum
                        bytes of scales of 6 bits less 32, f scale
Q4_K    256      144    f scale, f minimum, 12 bytes of scales and minima of 6     0 to 15  32
                        bits, 128 bytes of nibbles (j, j + 32)
Q5_K    256      176    as Q4_K, with 32 bytes of the fifth bits before them       0 to 31  32
Q6_K    256      210    128 bytes of nibbles (j, j + 64), 64 bytes of the upper    -32 to   16, no minimum
                        two bits, 16 int8 scales, f scale                          31

Every float16 is a multiple of 2^-24 below 2^16, and the integers that multiply it have 12 bits at most: a weight is a
multiple of 2^-24 below 2^28, which float64 holds exactly. Source: llama.cpp b10359, ggml/src/ggml-common.h and
ggml-quants.c (dequantize_row_*).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from qbridge.codecs.ggml_blocks import Bytes
from qbridge.ir.dtypes import Array, DType
from qbridge.ir.slots import NOTHING, Parts, Slot, _ByRows
from qbridge.source.ggml_types import TYPES

Floats = npt.NDArray[np.float64]


class Groups(NamedTuple):
    """Blocks as codes [blocks, groups, weights of a group], with scale and minimum [blocks, groups] of each group."""

    codes: npt.NDArray[Any]
    scales: Floats
    minima: Floats | None = None

    @property
    def weights(self) -> Floats:
        """Codes times scales, less minima: [blocks, weights of a block], each exact."""
        values: Floats = self.codes * self.scales[:, :, None]
        if self.minima is not None:
            values -= self.minima[:, :, None]
        return values.reshape(len(values), -1)


def _float16(blocks: Bytes, begin: int) -> Floats:
    """The float16 of each block that begins at a byte, [blocks, 1]."""
    return np.ascontiguousarray(blocks[:, begin : begin + 2]).view("<f2").astype(np.float64)


def _nibbles(data: Bytes, run: int) -> Bytes:
    """Two codes to a byte, `run` apart, in sections of 2 * run codes."""
    sections = data.reshape(len(data), -1, 1, run)
    return np.concatenate([sections & 15, sections >> 4], axis=2).reshape(len(data), -1)


def _pairs_of_bits(data: Bytes) -> Bytes:
    """Four codes to a byte, 32 apart, in sections of 128 codes."""
    shifts = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    codes: Bytes = data.reshape(len(data), -1, 1, 32) >> shifts & np.uint8(3)
    return codes.reshape(len(data), -1)


def _bits(data: Bytes) -> Bytes:
    """Eight codes to a byte, 32 apart."""
    shifts = np.arange(8, dtype=np.uint8)[:, None]
    codes: Bytes = data.reshape(len(data), 1, 32) >> shifts & np.uint8(1)
    return codes.reshape(len(data), -1)


def _in_groups(codes: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    return codes.reshape(len(codes), -1, size)


def _q4_1(blocks: Bytes) -> Groups:
    return Groups(_in_groups(_nibbles(blocks[:, 4:], 16), 32), _float16(blocks, 0), -_float16(blocks, 2))


def _q5_1(blocks: Bytes) -> Groups:
    fifth = np.unpackbits(np.ascontiguousarray(blocks[:, 4:8]), axis=1, bitorder="little")
    codes = _nibbles(blocks[:, 8:], 16) | fifth << 4
    return Groups(_in_groups(codes, 32), _float16(blocks, 0), -_float16(blocks, 2))


def _q2_k(blocks: Bytes) -> Groups:
    small = blocks[:, :16]
    codes = _in_groups(_pairs_of_bits(blocks[:, 16:80]), 16)
    return Groups(codes, _float16(blocks, 80) * (small & 15), _float16(blocks, 82) * (small >> 4))


def _q3_k(blocks: Bytes) -> Groups:
    third, low, packed = blocks[:, :32], blocks[:, 32:96], blocks[:, 96:108]
    shifts = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    upper = (packed[:, None, 8:] >> shifts & 3).reshape(-1, 16)
    small = (_nibbles(packed[:, :8], 8) | upper << 4).astype(np.int8) - np.int8(32)
    codes = (_pairs_of_bits(low) | _bits(third) << 2).astype(np.int8) - np.int8(4)
    return Groups(_in_groups(codes, 16), _float16(blocks, 108) * small)


def _six_bits(packed: Bytes) -> tuple[Bytes, Bytes]:
    """(scales, minima) of eight groups, 6 bits each in 12 bytes."""
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([first & 63, third & 15 | first >> 6 << 4], axis=1)
    minima = np.concatenate([second & 63, third >> 4 | second >> 6 << 4], axis=1)
    return scales, minima


def _q4_k(blocks: Bytes) -> Groups:
    scales, minima = _six_bits(blocks[:, 4:16])
    codes = _in_groups(_nibbles(blocks[:, 16:], 32), 32)
    return Groups(codes, _float16(blocks, 0) * scales, _float16(blocks, 2) * minima)


def _q5_k(blocks: Bytes) -> Groups:
    scales, minima = _six_bits(blocks[:, 4:16])
    codes = _in_groups(_nibbles(blocks[:, 48:], 32) | _bits(blocks[:, 16:48]) << 4, 32)
    return Groups(codes, _float16(blocks, 0) * scales, _float16(blocks, 2) * minima)


def _q6_k(blocks: Bytes) -> Groups:
    small = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8)
    codes = (_nibbles(blocks[:, :128], 64) | _pairs_of_bits(blocks[:, 128:192]) << 4).astype(np.int8) - np.int8(32)
    return Groups(_in_groups(codes, 16), _float16(blocks, 208) * small)


@dataclass(frozen=True, slots=True, eq=False)
class ValueStruct:
    """One type of block: how it is taken apart, and at which bytes its float16 factors begin."""

    groups: Callable[[Bytes], Groups]
    factors: tuple[int, ...]


VALUE_STRUCTS: Mapping[str, ValueStruct] = {
    "Q4_1": ValueStruct(_q4_1, (0, 2)),
    "Q5_1": ValueStruct(_q5_1, (0, 2)),
    "Q2_K": ValueStruct(_q2_k, (80, 82)),
    "Q3_K": ValueStruct(_q3_k, (108,)),
    "Q4_K": ValueStruct(_q4_k, (0, 2)),
    "Q5_K": ValueStruct(_q5_k, (0, 2)),
    "Q6_K": ValueStruct(_q6_k, (208,)),
}


@dataclass(frozen=True, slots=True)
class BlockValues(_ByRows):
    """The weights of rows of blocks [out_features, bytes] of the type `kind`, float64; they are not written."""

    kind: str

    @property
    def block(self) -> str:  # type: ignore[override]  # of others it is the same for all of the class
        """That type."""
        return self.kind

    def stored_size(self, shape: tuple[int, ...], itemsize: int) -> int:
        """Bytes of the rows of a canonical matrix; ValueError if they are no whole blocks."""
        return math.prod(TYPES[self.kind].stored_shape(shape))

    def encode(self, array: Array, slot: Slot, beside: Parts = NOTHING) -> Array:
        """ValueError: codes would have to be chosen."""
        raise ValueError(f"{slot.tensor}: no weights are written as {self.kind}")

    def decode(self, stored: Array, dtype: DType, shape: tuple[int, ...], beside: Parts = NOTHING) -> Array:
        """The weights, float64 of `shape`."""
        return VALUE_STRUCTS[self.kind].groups(self._blocks(stored)).weights.reshape(shape)

    def factors(self, stored: Array) -> Array:
        """The float16 scales and minima of whole blocks, flat."""
        blocks = self._blocks(stored)
        starts = VALUE_STRUCTS[self.kind].factors
        return np.concatenate([np.ascontiguousarray(blocks[:, at : at + 2]) for at in starts]).view("<f2").reshape(-1)

    def _blocks(self, stored: Array) -> Bytes:
        return np.ascontiguousarray(stored).view(np.uint8).reshape(-1, TYPES[self.kind].size)
