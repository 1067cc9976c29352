"""Slots: where the parts of a layer are stored, and by which codec."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np

from qbridge.ir.dtypes import Array, DType
from qbridge.ir.layer import Kind, Spec

Span = tuple[int, int]
Region = tuple[int, int, int, int]
Parts = Mapping[str, Array]
NOTHING: Parts = {}


class Codec:
    """A reversible map between a canonical array and the array that is stored; compared by value.

    A codec answers for itself: what a planner or a writer wants to know of it is an attribute or a method here, with
    an answer that holds for most. Subclasses are frozen dataclasses.
    """

    __slots__ = ()

    fixed: ClassVar[bool] = False  # the spec alone decides the content, so it stands for no part of the layer
    exclusive: ClassVar[bool] = True  # the tensor holds nothing of other layers
    common: ClassVar[bool] = False  # layers that share the tensor have all of it, the same values
    redundant: ClassVar[bool] = False  # values may be stored that `encode` would never give
    rounds: ClassVar[bool] = False  # what is stored may not give the values back: a proof encodes them again
    block: ClassVar[str] = ""  # the type of the blocks, where rows are blocks of scales and codes
    inside: ClassVar[str] = ""  # the part whose tensor holds this one too, and with which it is written
    needs: ClassVar[frozenset[str]] = frozenset()  # parts without which this one is neither read nor written

    @property
    def whole(self) -> Codec:
        """The codec of the whole tensor, where layers share one."""
        return self

    @property
    def turn(self) -> int:
        """The place of the layer among those that share a tensor."""
        return 0

    @property
    def turns(self) -> tuple[Codec, ...]:
        """The codecs of all layers that share a tensor, in the order of their rows."""
        return (self,)

    @property
    def alternates(self) -> bool:
        """Whether the rows of the layers that share a tensor take turns; else they lie one layer after another."""
        return False

    def join(self, arrays: Sequence[Array]) -> Array:
        """The canonical rows of all layers that share a tensor, given in turn."""
        raise NotImplementedError

    def stored_size(self, shape: tuple[int, ...], itemsize: int) -> int:
        """How many elements of `itemsize` bytes a canonical array of `shape` takes."""
        return math.prod(shape)

    def encode(self, array: Array, slot: Slot, beside: Parts = NOTHING) -> Array:
        """The stored array (dtype and shape of `slot`) of a canonical array; `beside` has the parts in `needs`.

        ValueError for a value that cannot be stored.
        """
        raise NotImplementedError

    def decode(self, stored: Array, dtype: DType, shape: tuple[int, ...], beside: Parts = NOTHING) -> Array:
        """The canonical array (`dtype`, `shape`) of a stored array; `beside` has the parts in `needs`.

        ValueError for a stored value that `encode` could not have given, as far as the codec can tell.
        """
        raise NotImplementedError

    def factors(self, stored: Array) -> Array:
        """The scales and minima in whole stored blocks, flat float16, of weights that are computed from blocks."""
        raise NotImplementedError

    def holds_zeros(self, stored: Array, shape: tuple[int, int]) -> bool:
        """Whether every value of an integer part of `shape` is 0."""
        return not np.any(self.decode(stored, DType.I16, shape))

    def step(self, itemsize: int) -> int:
        """A range of output features is a rectangle of the stored matrix if it begins and ends at multiples of this.

        `itemsize` is that of the stored elements, in bytes. 0: no range is.
        """
        return 0

    def rows(self, shape: tuple[int, int], features: tuple[int, int], span: Span, itemsize: int) -> Region | None:
        """(top, left, rows, columns) in a stored matrix of `shape` of the output features of `span`, [start, end).

        `features` is the canonical shape, [out, in]. None where they are no rectangle.
        """
        return None

    def _aligned(self, span: Span, last: int, itemsize: int) -> bool:
        """Whether a range of output features begins and ends where stored elements do; `last` ends the last one."""
        step = self.step(itemsize)
        return bool(step) and span[0] % step == 0 and (span[1] % step == 0 or span[1] == last)


class _ByRows(Codec):
    """A codec whose stored rows are the canonical ones."""

    __slots__ = ()

    def step(self, itemsize: int) -> int:
        """1: every range of rows."""
        return 1

    def rows(self, shape: tuple[int, int], features: tuple[int, int], span: Span, itemsize: int) -> Region | None:
        """The same rows, if the stored matrix has all of them."""
        return (span[0], 0, span[1] - span[0], shape[1]) if shape[0] == features[0] else None


@dataclass(frozen=True, slots=True)
class Plain(_ByRows):
    """The canonical elements in their canonical order; only the shape may differ ([N] and [N, 1])."""

    def encode(self, array: Array, slot: Slot, beside: Parts = NOTHING) -> Array:
        """`array` in the shape of `slot`."""
        return array.reshape(slot.shape)

    def decode(self, stored: Array, dtype: DType, shape: tuple[int, ...], beside: Parts = NOTHING) -> Array:
        """`stored` in the canonical shape."""
        return stored.reshape(shape)


PLAIN = Plain()


@dataclass(frozen=True, slots=True)
class Slice:
    """Where in a fused tensor a slice lies: at `index` of its first axis, in the `shape` that it has there."""

    tensor: str
    index: int
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """What the slice is called: a tensor of its own as far as slots and sources go."""
        return f"{self.tensor}[{self.index}]"


@dataclass(frozen=True, slots=True)
class Slot:
    """One part of a layer as a whole tensor on disk, or as a slice of one."""

    tensor: str
    dtype: DType
    shape: tuple[int, ...]
    codec: Codec = PLAIN
    slice: Slice | None = None

    @property
    def whole(self) -> str:
        """The tensor on disk that it is, or is a slice of."""
        return self.slice.tensor if self.slice else self.tensor

    def same_bytes(self, other: Slot) -> bool:
        """Whether the same part stored through the other slot has the same bytes."""
        same_shape = self.shape == other.shape or self.codec == PLAIN
        return self.codec.exclusive and self.codec == other.codec and self.dtype is other.dtype and same_shape


def named(slots: Mapping[str, Slot], module: str) -> dict[str, Slot]:
    """The slots of a module, from those of its kind, whose tensors have only the end of their names (".weight")."""
    return {part: Slot(module + slot.tensor, slot.dtype, slot.shape, slot.codec) for part, slot in slots.items()}


def by_kind(slots_of: Callable[[Spec], Mapping[str, Slot]]) -> Callable[[Spec], dict[str, Slot]]:
    """`layout` of a format whose tensors are called by their module: worked out once for all layers of a kind.

    `slots_of` is given specs without a name, and calls the tensors by the ends of their names (".weight").
    """

    @lru_cache(maxsize=1024)
    def of_kind(kind: Kind) -> Mapping[str, Slot]:
        return slots_of(Spec("", *kind))

    def layout(spec: Spec) -> dict[str, Slot]:
        return named(of_kind(spec.kind), spec.name)

    return layout
