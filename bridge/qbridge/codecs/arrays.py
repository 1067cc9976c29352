"""How one part of a layer lies in a tensor on disk, as data.

A format says for each part of a spec which tensor holds it, with which dtype and shape, and through which codec.
Two slots of the same part with the same codec, dtype and number of elements hold the same bytes, which is how the
engine knows that a tensor can be copied instead of decoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from qbridge.ir.dtypes import Array, DType, from_float64, to_float64
from qbridge.ir.slots import NOTHING, PLAIN, Codec, Parts, Region, Slot, Span, _ByRows


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
class AsFloat32(_ByRows):
    """Floats of `dtype` stored as float32, which holds them all but those of float64 (ValueError)."""

    dtype: DType

    def encode(self, array: Array, slot: Slot, beside: Parts = NOTHING) -> Array:
        """`array` as float32 in the shape of `slot`."""
        wide = to_float64(array, self.dtype)
        stored = wide.astype(np.float32)
        if (stored.astype(np.float64) != wide).any():
            raise ValueError(f"{slot.tensor}: a value is no float32")
        return stored.reshape(slot.shape)

    def decode(self, stored: Array, dtype: DType, shape: tuple[int, ...], beside: Parts = NOTHING) -> Array:
        """`stored` in its own dtype; ValueError for a value that it does not have."""
        found = from_float64(stored.astype(np.float64), self.dtype)
        if (to_float64(found, self.dtype) != stored).any():
            raise ValueError(f"a value is no {self.dtype}")
        return found.reshape(shape)


@dataclass(frozen=True, slots=True)
class PlusOne(_ByRows):
    """Floats of `dtype` stored plus 1 in float32, each sum rounded once: llama.cpp has the norms of Gemma so."""

    dtype: DType

    rounds = True

    def encode(self, array: Array, slot: Slot, beside: Parts = NOTHING) -> Array:
        """`array` plus 1 in the shape of `slot`."""
        return (to_float64(array, self.dtype) + 1).astype(np.float32).reshape(slot.shape)

    def decode(self, stored: Array, dtype: DType, shape: tuple[int, ...], beside: Parts = NOTHING) -> Array:
        """`stored` less 1; ValueError for a value that its dtype does not have."""
        exact = stored.astype(np.float64) - 1
        found = from_float64(exact, self.dtype)
        if (to_float64(found, self.dtype) != exact).any():
            raise ValueError(f"a value less 1 is no {self.dtype}")
        return found.reshape(shape)


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
class Turned(Codec):
    """What `codec` stores with its two axes exchanged: bytes that neighbours along in_features share, in a column."""

    codec: Codec

    def stored_size(self, shape: tuple[int, ...], itemsize: int) -> int:
        """That of its codec."""
        return self.codec.stored_size(shape, itemsize)

    def encode(self, array: Array, slot: Slot, beside: Parts = NOTHING) -> Array:
        """What its codec stores, transposed."""
        return np.ascontiguousarray(self.codec.encode(array, replace(slot, shape=slot.shape[::-1]), beside).T)

    def decode(self, stored: Array, dtype: DType, shape: tuple[int, ...], beside: Parts = NOTHING) -> Array:
        """`stored` transposed and decoded."""
        return self.codec.decode(np.ascontiguousarray(stored.T), dtype, shape, beside)

    def step(self, itemsize: int) -> int:
        """That of its codec."""
        return self.codec.step(itemsize)

    def rows(self, shape: tuple[int, int], features: tuple[int, int], span: Span, itemsize: int) -> Region | None:
        """Those of its codec, as columns."""
        region = self.codec.rows((shape[1], shape[0]), features, span, itemsize)
        return None if region is None else (region[1], region[0], region[3], region[2])


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
class _OfLayers(Codec):
    """One array [count * out, ...] of the rows of `count` layers, stored through `codec`; this one is at `index`.

    No layer alone has all of the tensor, so `plan.Woven` writes it.
    """

    codec: Codec
    index: int
    count: int

    exclusive = False

    @property
    def whole(self) -> Codec:
        """The codec of all layers' rows."""
        return self.codec

    @property
    def turn(self) -> int:
        """Which of the layers it is."""
        return self.index

    @property
    def turns(self) -> tuple[Codec, ...]:
        """This of every layer in turn."""
        return tuple(replace(self, index=index) for index in range(self.count))

    def encode(self, array: Array, slot: Slot, beside: Parts = NOTHING) -> Array:
        """ValueError."""
        raise ValueError(f"{slot.tensor}: it holds the rows of {self.count} layers, and is not written from one")

    def step(self, itemsize: int) -> int:
        """That of the whole tensor."""
        return self.codec.step(itemsize)


@dataclass(frozen=True, slots=True)
class Interleaved(_OfLayers):
    """Layers' rows in turns: index, index + count ... are this layer's; of gate and up, gate has every even row."""

    @property
    def alternates(self) -> bool:
        """True."""
        return True

    def join(self, arrays: Sequence[Array]) -> Array:
        """Their rows in turns, [rows of one, layers, ...]."""
        return np.stack(arrays, axis=1)

    def decode(self, stored: Array, dtype: DType, shape: tuple[int, ...], beside: Parts = NOTHING) -> Array:
        """The canonical array of the layer's rows alone."""
        rows = self.codec.decode(stored, dtype, (self.count * shape[0], *shape[1:]))
        return np.ascontiguousarray(rows[self.index :: self.count])

    def rows(self, shape: tuple[int, int], features: tuple[int, int], span: Span, itemsize: int) -> Region | None:
        """Those of every layer."""
        of_all = (features[0] * self.count, features[1]), (span[0] * self.count, span[1] * self.count)
        return self.codec.rows(shape, *of_all, itemsize)


@dataclass(frozen=True, slots=True)
class Concatenated(_OfLayers):
    """Layers' rows one layer after another: this layer's begin at index * out."""

    def join(self, arrays: Sequence[Array]) -> Array:
        """Their rows one layer after another."""
        return np.concatenate(arrays)

    def stored_size(self, shape: tuple[int, ...], itemsize: int) -> int:
        """That of this layer's rows."""
        return self.codec.stored_size(shape, itemsize)

    def decode(self, stored: Array, dtype: DType, shape: tuple[int, ...], beside: Parts = NOTHING) -> Array:
        """The canonical array of the layer's rows alone, from the whole tensor or from what `rows` says of it."""
        if stored.size == self.codec.stored_size(shape, stored.dtype.itemsize):
            return self.codec.decode(stored, dtype, shape)
        rows = self.codec.decode(stored, dtype, (self.count * shape[0], *shape[1:]))
        return np.ascontiguousarray(rows[self.index * shape[0] : (self.index + 1) * shape[0]])

    def rows(self, shape: tuple[int, int], features: tuple[int, int], span: Span, itemsize: int) -> Region | None:
        """The layer's own."""
        first = self.index * features[0]
        of_all = features[0] * self.count, features[1]
        return self.codec.rows(shape, of_all, (span[0] + first, span[1] + first), itemsize)


@dataclass(frozen=True, slots=True)
class Shared(Codec):
    """A part that several layers have in one tensor, every one all of it (a scale of all experts)."""

    codec: Codec = PLAIN

    exclusive = False
    common = True

    @property
    def fixed(self) -> bool:  # type: ignore[override]  # of others it is the same for all of the class
        """Whether that of its codec is."""
        return self.codec.fixed

    @property
    def whole(self) -> Codec:
        """The codec of the tensor."""
        return self.codec

    def encode(self, array: Array, slot: Slot, beside: Parts = NOTHING) -> Array:
        """As its codec."""
        return self.codec.encode(array, slot, beside)

    def decode(self, stored: Array, dtype: DType, shape: tuple[int, ...], beside: Parts = NOTHING) -> Array:
        """As its codec."""
        return self.codec.decode(stored, dtype, shape, beside)


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


TRANSPOSED = Transposed()
ZEROS = Constant((0,))
NARROWED = Narrowed()
