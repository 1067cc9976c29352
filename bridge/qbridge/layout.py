"""How one part of a layer lies in a tensor on disk, as data.

A format says for each part of a spec which tensor holds it, with which dtype and shape, and through which codec.
Two slots of the same part with the same codec, dtype and number of elements hold the same bytes, which is how the
engine knows that a tensor can be copied instead of decoded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from qbridge.dtypes import Array, DType

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
    redundant: ClassVar[bool] = False  # values may be stored that `encode` would never give
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


@dataclass(frozen=True, slots=True)
class Narrowed(_ByRows):
    """Integers stored in a narrower or wider integer dtype (int16 zeros kept as int8).

    Encoding refuses values that the stored dtype cannot hold (ValueError).
    """

    def encode(self, array: Array, slot: Slot, beside: Parts = NOTHING) -> Array:
        """`array` in the dtype and shape of `slot`."""
        stored = array.astype(slot.dtype.numpy)
        if (stored.astype(array.dtype) != array).any():
            raise ValueError(f"{slot.tensor}: a value does not fit {slot.dtype}")
        return stored.reshape(slot.shape)

    def decode(self, stored: Array, dtype: DType, shape: tuple[int, ...], beside: Parts = NOTHING) -> Array:
        """`stored` in the canonical dtype and shape."""
        return stored.astype(dtype.numpy).reshape(shape)


@dataclass(frozen=True, slots=True)
class Constant(Codec):
    """A tensor whose content the spec alone decides; it stands for no part of the layer.

    `values` fill it in order, a single one everywhere. Decoding anything else is a ValueError.
    """

    values: tuple[int, ...]

    fixed = True

    def encode(self, array: Array, slot: Slot, beside: Parts = NOTHING) -> Array:
        """The values in the dtype and shape of `slot`, whatever the array."""
        flat = np.array(self.values, slot.dtype.numpy)
        return flat.reshape(slot.shape) if len(self.values) > 1 else np.full(slot.shape, flat[0])

    def decode(self, stored: Array, dtype: DType, shape: tuple[int, ...], beside: Parts = NOTHING) -> Array:
        """`stored` itself, if it holds the values."""
        wanted = np.array(self.values if len(self.values) > 1 else self.values * stored.size)
        return _same(stored, wanted)


@dataclass(frozen=True, slots=True)
class GroupIndex(Codec):
    """The g_idx of columns in their own order, i // group_size: it says nothing, so it stands for no part."""

    group_size: int

    fixed = True

    def encode(self, array: Array, slot: Slot, beside: Parts = NOTHING) -> Array:
        """i // group_size in the dtype and shape of `slot`, whatever the array."""
        return (np.arange(slot.shape[0]) // self.group_size).astype(slot.dtype.numpy)

    def decode(self, stored: Array, dtype: DType, shape: tuple[int, ...], beside: Parts = NOTHING) -> Array:
        """`stored` itself, if it is trivial."""
        return _same(stored, np.arange(stored.size) // self.group_size)


@dataclass(frozen=True, slots=True)
class Transposed(Codec):
    """The canonical array with its two axes exchanged."""

    def encode(self, array: Array, slot: Slot, beside: Parts = NOTHING) -> Array:
        """`array` transposed."""
        return np.ascontiguousarray(array.T)

    def decode(self, stored: Array, dtype: DType, shape: tuple[int, ...], beside: Parts = NOTHING) -> Array:
        """`stored` transposed."""
        return np.ascontiguousarray(stored.T)

    def step(self, itemsize: int) -> int:
        """1: every range of columns."""
        return 1

    def rows(self, shape: tuple[int, int], features: tuple[int, int], span: Span, itemsize: int) -> Region | None:
        """The columns of these output features, if the stored matrix has all of them."""
        return (0, span[0], shape[0], span[1] - span[0]) if shape[1] == features[0] else None


@dataclass(frozen=True, slots=True)
class Filled(Codec):
    """A canonical part of `shape` that is `value` everywhere, stored through `codec` all the same.

    It stands for no part (the zero-points of symmetric weights in formats that always store some).
    """

    codec: Codec
    value: int
    shape: tuple[int, int]

    fixed = True

    def encode(self, array: Array, slot: Slot, beside: Parts = NOTHING) -> Array:
        """The filled part as its codec stores it, whatever the array."""
        return self.codec.encode(np.full(self.shape, self.value, np.int16), slot)

    def decode(self, stored: Array, dtype: DType, shape: tuple[int, ...], beside: Parts = NOTHING) -> Array:
        """`stored` itself, if it is that part."""
        found = self.codec.decode(stored, DType.I16, self.shape)
        _same(found, np.full(found.size, self.value))
        return stored


@dataclass(frozen=True, slots=True)
class Padded(Codec):
    """A matrix stored through `codec` in the upper left corner of a larger one, `shape` of it, the rest zero."""

    codec: Codec
    shape: tuple[int, int]

    redundant = True

    def encode(self, array: Array, slot: Slot, beside: Parts = NOTHING) -> Array:
        """The inner array in a matrix of zeros of the slot's shape."""
        stored = np.zeros(slot.shape, slot.dtype.numpy)
        stored[: self.shape[0], : self.shape[1]] = self.codec.encode(array, replace(slot, shape=self.shape))
        return stored

    def decode(self, stored: Array, dtype: DType, shape: tuple[int, ...], beside: Parts = NOTHING) -> Array:
        """The inner array; ValueError if anything beyond it is not zero."""
        inner = np.ascontiguousarray(stored[: self.shape[0], : self.shape[1]])
        if np.count_nonzero(stored) != np.count_nonzero(inner):
            raise ValueError("what lies beyond its last group is not zero")
        return self.codec.decode(inner, dtype, shape)


@dataclass(frozen=True, slots=True)
class Shared(Codec):
    """Rows of `count` layers that take turns in one array, stored through `codec`; the layer's own begin at `place`.

    No layer alone has all of the tensor, so it is `plan.Woven` that writes it.
    """

    codec: Codec
    place: int
    count: int

    exclusive = False

    @property
    def whole(self) -> Codec:
        """The codec of all layers' rows."""
        return self.codec

    @property
    def turn(self) -> int:
        """The row of the tensor with which the layer's begin."""
        return self.place

    @property
    def turns(self) -> tuple[Codec, ...]:
        """This of every layer in turn."""
        return tuple(replace(self, place=place) for place in range(self.count))

    def encode(self, array: Array, slot: Slot, beside: Parts = NOTHING) -> Array:
        """ValueError."""
        raise ValueError(f"{slot.tensor}: it holds the rows of {self.count} layers, and is not written from one")

    def decode(self, stored: Array, dtype: DType, shape: tuple[int, ...], beside: Parts = NOTHING) -> Array:
        """The canonical array of the layer's rows alone."""
        rows = self.codec.decode(stored, dtype, (self.count * shape[0], *shape[1:]))
        return np.ascontiguousarray(rows[self.place :: self.count])

    def step(self, itemsize: int) -> int:
        """That of the whole tensor."""
        return self.codec.step(itemsize)

    def rows(self, shape: tuple[int, int], features: tuple[int, int], span: Span, itemsize: int) -> Region | None:
        """Those of every layer."""
        of_all = (features[0] * self.count, features[1]), (span[0] * self.count, span[1] * self.count)
        return self.codec.rows(shape, *of_all, itemsize)


@dataclass(frozen=True, slots=True)
class Shuffled(Codec):
    """The canonical columns as rows, each run of len(order) elements permuted: place i holds element order[i]."""

    order: tuple[int, ...]

    def encode(self, array: Array, slot: Slot, beside: Parts = NOTHING) -> Array:
        """`array` transposed and permuted."""
        return np.ascontiguousarray(array.T).reshape(-1, len(self.order))[:, self.order].reshape(slot.shape)

    def decode(self, stored: Array, dtype: DType, shape: tuple[int, ...], beside: Parts = NOTHING) -> Array:
        """`stored` permuted back and transposed."""
        back = stored.reshape(-1, len(self.order))[:, np.argsort(self.order)]
        return np.ascontiguousarray(back.reshape(shape[::-1]).T)


@dataclass(frozen=True, slots=True)
class ScaledZeros(Codec):
    """Zero-points stored as -(zero + offset) * scale in float16, rounded once, groups as rows; `scale` is needed."""

    offset: int

    redundant = True
    needs = frozenset({"scale"})

    def encode(self, array: Array, slot: Slot, beside: Parts = NOTHING) -> Array:
        """The products in the shape of `slot`, zero beyond the last group."""
        stored = np.zeros(slot.shape, np.float16)
        zeros, scale = (array + self.offset).astype(np.float16), beside["scale"].view(np.float16)
        with np.errstate(invalid="ignore", over="ignore"):
            stored[: array.shape[1]] = -(zeros * scale).T
        return stored

    def decode(self, stored: Array, dtype: DType, shape: tuple[int, ...], beside: Parts = NOTHING) -> Array:
        """The integers, int16 of `shape`; ValueError if other products than theirs are stored."""
        inner, scales = stored[: shape[1]].T, beside["scale"].view(np.float16)
        with np.errstate(divide="ignore", invalid="ignore"):
            found = np.nan_to_num(np.rint(inner.astype(np.float64) / -scales.astype(np.float64)))
        zeros: Array = (np.clip(found, -(2**14), 2**14) - self.offset).astype(np.int16)
        again = self.encode(zeros, Slot("", DType.F16, stored.shape), beside)
        differing = int(np.count_nonzero(again.view(np.uint16) != stored.view(np.uint16)))
        if differing or (scales == 0).any():
            raise ValueError(f"{differing} of {inner.size} are no integer times their scale")
        return zeros


def _same(stored: Array, wanted: Array) -> Array:
    differing = np.count_nonzero(stored.reshape(-1) != wanted)
    if differing:
        raise ValueError(f"{differing} of {stored.size} are not what the scheme says")
    return stored


PLAIN = Plain()
TRANSPOSED = Transposed()
ZEROS = Constant((0,))
NARROWED = Narrowed()


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

    def same_bytes(self, other: Slot) -> bool:
        """Whether the same part stored through the other slot has the same bytes."""
        same_shape = self.shape == other.shape or self.codec == PLAIN
        return self.codec.exclusive and self.codec == other.codec and self.dtype is other.dtype and same_shape


def named(slots: Mapping[str, Slot], module: str) -> dict[str, Slot]:
    """The slots of a module, from those of its kind, whose tensors have only the end of their names (".weight")."""
    return {part: Slot(module + slot.tensor, slot.dtype, slot.shape, slot.codec) for part, slot in slots.items()}
