"""Matrices whose rows lie head by head: several that share each head's rows, and one whose heads are turned.

Latent attention has keys and values of a head one after the other in one matrix, kv_b_proj [heads * (keys + values),
rank]; ggml has them apart, the keys turned, [heads, rank, keys]. Source: llama.cpp b10359, conversion/deepseek.py
(DeepseekV2Model.modify_tensors).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from qbridge.ir.dtypes import Array, DType
from qbridge.ir.slots import NOTHING, PLAIN, Codec, Parts, Slot


@dataclass(frozen=True, slots=True)
class HeadRows(Codec):
    """Rows of every head in a matrix that several share: of each head, the `counts[index]` after those before."""

    counts: tuple[int, ...]
    index: int

    exclusive = False

    @property
    def whole(self) -> Codec:
        """The codec of all rows."""
        return PLAIN

    @property
    def turn(self) -> int:
        """Which of those that share the matrix it is."""
        return self.index

    @property
    def turns(self) -> tuple[Codec, ...]:
        """This of each of them in turn."""
        return tuple(replace(self, index=index) for index in range(len(self.counts)))

    @property
    def alternates(self) -> bool:
        """True: head by head."""
        return True

    def encode(self, array: Array, slot: Slot, beside: Parts = NOTHING) -> Array:
        """ValueError."""
        raise ValueError(f"{slot.tensor}: it holds the rows of {len(self.counts)}, and is not written from one")

    def decode(self, stored: Array, dtype: DType, shape: tuple[int, ...], beside: Parts = NOTHING) -> Array:
        """The rows [heads * counts[index], columns] of one of them."""
        heads = stored.reshape(-1, sum(self.counts), stored.shape[-1])
        first = sum(self.counts[: self.index])
        return np.ascontiguousarray(heads[:, first : first + self.counts[self.index]]).reshape(shape)

    def join(self, arrays: Sequence[Array]) -> Array:
        """All rows, head by head."""
        heads = [a.reshape(-1, count, a.shape[-1]) for a, count in zip(arrays, self.counts, strict=True)]
        return np.concatenate(heads, axis=1).reshape(-1, arrays[0].shape[-1])


@dataclass(frozen=True, slots=True)
class TurnedHeads(Codec):
    """A matrix [heads * rows, columns] stored as [heads, columns, rows]."""

    rows_of_head: int

    def encode(self, array: Array, slot: Slot, beside: Parts = NOTHING) -> Array:
        """The matrix of every head, turned."""
        heads = array.reshape(-1, self.rows_of_head, array.shape[-1])
        return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(slot.shape)

    def decode(self, stored: Array, dtype: DType, shape: tuple[int, ...], beside: Parts = NOTHING) -> Array:
        """The rows of all heads, one head after another."""
        heads = stored.reshape(-1, shape[-1], self.rows_of_head)
        return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(shape)
