"""How one part of a layer lies in a tensor on disk, as data.

A format says for each part of a spec which tensor holds it, with which dtype and shape, and through which codec.
Two slots of the same part with the same codec, dtype and number of elements hold the same bytes, which is how the
engine knows that a tensor can be copied instead of decoded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from qbridge.dtypes import Array, DType


class Codec(Protocol):
    """A reversible map between a canonical array and the array that is stored; compared by value."""

    def encode(self, array: Array, slot: Slot) -> Array:
        """The stored array (dtype and shape of `slot`) of a canonical array."""

    def decode(self, stored: Array, dtype: DType, shape: tuple[int, ...]) -> Array:
        """The canonical array (`dtype`, `shape`) of a stored array."""


@dataclass(frozen=True, slots=True)
class Plain:
    """The canonical elements in their canonical order; only the shape may differ ([N] and [N, 1])."""

    def encode(self, array: Array, slot: Slot) -> Array:
        """`array` in the shape of `slot`."""
        return array.reshape(slot.shape)

    def decode(self, stored: Array, dtype: DType, shape: tuple[int, ...]) -> Array:
        """`stored` in the canonical shape."""
        return stored.reshape(shape)


@dataclass(frozen=True, slots=True)
class Narrowed:
    """Integers stored in a narrower or wider integer dtype (int16 zeros kept as int8).

    Encoding refuses values that the stored dtype cannot hold (ValueError).
    """

    def encode(self, array: Array, slot: Slot) -> Array:
        """`array` in the dtype and shape of `slot`."""
        stored = array.astype(slot.dtype.numpy)
        if (stored.astype(array.dtype) != array).any():
            raise ValueError(f"{slot.tensor}: a value does not fit {slot.dtype}")
        return stored.reshape(slot.shape)

    def decode(self, stored: Array, dtype: DType, shape: tuple[int, ...]) -> Array:
        """`stored` in the canonical dtype and shape."""
        return stored.astype(dtype.numpy).reshape(shape)


@dataclass(frozen=True, slots=True)
class Constant:
    """A tensor whose content the spec alone decides; it stands for no part of the layer.

    `values` fill it in order, a single one everywhere. Decoding anything else is a ValueError.
    """

    values: tuple[int, ...]

    def encode(self, array: Array, slot: Slot) -> Array:
        """The values in the dtype and shape of `slot`, whatever the array."""
        flat = np.array(self.values, slot.dtype.numpy)
        return flat.reshape(slot.shape) if len(self.values) > 1 else np.full(slot.shape, flat[0])

    def decode(self, stored: Array, dtype: DType, shape: tuple[int, ...]) -> Array:
        """`stored` itself, if it holds the values."""
        wanted = np.array(self.values if len(self.values) > 1 else self.values * stored.size)
        return _same(stored, wanted)


@dataclass(frozen=True, slots=True)
class GroupIndex:
    """The g_idx of columns in their own order, i // group_size: it says nothing, so it stands for no part."""

    group_size: int

    def encode(self, array: Array, slot: Slot) -> Array:
        """i // group_size in the dtype and shape of `slot`, whatever the array."""
        return (np.arange(slot.shape[0]) // self.group_size).astype(slot.dtype.numpy)

    def decode(self, stored: Array, dtype: DType, shape: tuple[int, ...]) -> Array:
        """`stored` itself, if it is trivial."""
        return _same(stored, np.arange(stored.size) // self.group_size)


@dataclass(frozen=True, slots=True)
class Transposed:
    """The canonical array with its two axes exchanged."""

    def encode(self, array: Array, slot: Slot) -> Array:
        """`array` transposed."""
        return np.ascontiguousarray(array.T)

    def decode(self, stored: Array, dtype: DType, shape: tuple[int, ...]) -> Array:
        """`stored` transposed."""
        return np.ascontiguousarray(stored.T)


@dataclass(frozen=True, slots=True)
class Filled:
    """A canonical part of `shape` that is `value` everywhere, stored through `codec` all the same.

    It stands for no part (the zero-points of symmetric weights in formats that always store some).
    """

    codec: Codec
    value: int
    shape: tuple[int, int]

    def encode(self, array: Array, slot: Slot) -> Array:
        """The filled part as its codec stores it, whatever the array."""
        return self.codec.encode(np.full(self.shape, self.value, np.int16), slot)

    def decode(self, stored: Array, dtype: DType, shape: tuple[int, ...]) -> Array:
        """`stored` itself, if it is that part."""
        found = self.codec.decode(stored, DType.I16, self.shape)
        _same(found, np.full(found.size, self.value))
        return stored


@dataclass(frozen=True, slots=True)
class Padded:
    """A matrix stored through `codec` in the upper left corner of a larger one, `shape` of it, the rest zero."""

    codec: Codec
    shape: tuple[int, int]

    def encode(self, array: Array, slot: Slot) -> Array:
        """The inner array in a matrix of zeros of the slot's shape."""
        stored = np.zeros(slot.shape, slot.dtype.numpy)
        stored[: self.shape[0], : self.shape[1]] = self.codec.encode(array, replace(slot, shape=self.shape))
        return stored

    def decode(self, stored: Array, dtype: DType, shape: tuple[int, ...]) -> Array:
        """The inner array; ValueError if anything beyond it is not zero."""
        inner = np.ascontiguousarray(stored[: self.shape[0], : self.shape[1]])
        if np.count_nonzero(stored) != np.count_nonzero(inner):
            raise ValueError("what lies beyond its last group is not zero")
        return self.codec.decode(inner, dtype, shape)


@dataclass(frozen=True, slots=True)
class Shared:
    """Rows of `count` layers that take turns in one array, stored through `codec`; the layer's own begin at `place`.

    No layer alone has all of the tensor, so it is `plan.Woven` that writes it.
    """

    codec: Codec
    place: int
    count: int

    @property
    def turns(self) -> tuple[Shared, ...]:
        """This of every layer in turn."""
        return tuple(replace(self, place=place) for place in range(self.count))

    def encode(self, array: Array, slot: Slot) -> Array:
        """ValueError."""
        raise ValueError(f"{slot.tensor}: it holds the rows of {self.count} layers, and is not written from one")

    def decode(self, stored: Array, dtype: DType, shape: tuple[int, ...]) -> Array:
        """The canonical array of the layer's rows alone."""
        rows = self.codec.decode(stored, dtype, (self.count * shape[0], *shape[1:]))
        return np.ascontiguousarray(rows[self.place :: self.count])


@dataclass(frozen=True, slots=True)
class Shuffled:
    """The canonical columns as rows, each run of len(order) elements permuted: place i holds element order[i]."""

    order: tuple[int, ...]

    def encode(self, array: Array, slot: Slot) -> Array:
        """`array` transposed and permuted."""
        return np.ascontiguousarray(array.T).reshape(-1, len(self.order))[:, self.order].reshape(slot.shape)

    def decode(self, stored: Array, dtype: DType, shape: tuple[int, ...]) -> Array:
        """`stored` permuted back and transposed."""
        back = stored.reshape(-1, len(self.order))[:, np.argsort(self.order)]
        return np.ascontiguousarray(back.reshape(shape[::-1]).T)


@dataclass(frozen=True, slots=True)
class ScaledZeros:
    """Zero-points stored as -(zero + offset) * scale in float16, rounded once, groups as rows; `scale` is needed."""

    offset: int

    def encode_with(self, array: Array, slot: Slot, scale: Array) -> Array:
        """The products in the shape of `slot`, zero beyond the last group."""
        stored = np.zeros(slot.shape, np.float16)
        zeros = (array + self.offset).astype(np.float16)
        with np.errstate(invalid="ignore", over="ignore"):
            stored[: array.shape[1]] = -(zeros * scale.view(np.float16)).T
        return stored

    def decode_with(self, stored: Array, shape: tuple[int, ...], scale: Array) -> Array:
        """The integers, int16 of `shape`; ValueError if other products than theirs are stored."""
        inner, scales = stored[: shape[1]].T, scale.view(np.float16)
        with np.errstate(divide="ignore", invalid="ignore"):
            found = np.nan_to_num(np.rint(inner.astype(np.float64) / -scales.astype(np.float64)))
        zeros: Array = (np.clip(found, -(2**14), 2**14) - self.offset).astype(np.int16)
        again = self.encode_with(zeros, Slot("", DType.F16, stored.shape), scale)
        differing = int(np.count_nonzero(again.view(np.uint16) != stored.view(np.uint16)))
        if differing or (scales == 0).any():
            raise ValueError(f"{differing} of {inner.size} are no integer times their scale")
        return zeros


def _same(stored: Array, wanted: Array) -> Array:
    differing = np.count_nonzero(stored.reshape(-1) != wanted)
    if differing:
        raise ValueError(f"{differing} of {stored.size} are not what the scheme says")
    return stored


def is_fixed(codec: Codec | ScaledZeros) -> bool:
    """Whether a slot of this codec stands for no part of the layer."""
    return isinstance(codec, Constant | GroupIndex | Filled)


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
    codec: Codec | ScaledZeros = PLAIN
    slice: Slice | None = None

    def same_bytes(self, other: Slot) -> bool:
        """Whether the same part stored through the other slot has the same bytes."""
        same_shape = self.shape == other.shape or self.codec == PLAIN
        alone = not isinstance(self.codec, Shared)  # nobody else's rows are in the tensor
        return alone and self.codec == other.codec and self.dtype is other.dtype and same_shape


def named(slots: Mapping[str, Slot], module: str) -> dict[str, Slot]:
    """The slots of a module, from those of its kind, whose tensors have only the end of their names (".weight")."""
    return {part: Slot(module + slot.tensor, slot.dtype, slot.shape, slot.codec) for part, slot in slots.items()}
