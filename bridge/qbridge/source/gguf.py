"""GGUF files: metadata, tensors and where their data lie, checked in full before anything trusts them.

Layout (llama.cpp b10359, ggml/src/gguf.cpp; little endian): "GGUF", u32 version, u64 tensors, u64 keys; the keys,
each (name, u32 type, value); the tensors, each (name, u32 dims, u64 of every dim, the innermost first, u32 type, u64
offset from the start of the data); from the next multiple of `general.alignment` on the data, each tensor padded to
that. A string is a u64 of bytes and the bytes; an array a u32 type, a u64 count and the values. Version 3 is version
2 in files that may be big-endian, which this one is not.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from math import prod
from typing import Any

import numpy as np

from qbridge.ir.dtypes import Array, nbytes
from qbridge.source.ggml_types import BY_NUMBER
from qbridge.source.json_text import MAX_HEADER
from qbridge.source.safetensors import MAX_DIM, HeaderError
from qbridge.source.storage import File
from qbridge.source.stored import StoredTensor

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32  # where no key says another one
MAX_RANK = 4  # ggml.h, GGML_MAX_DIMS
MAX_NAME = 63  # bytes of a tensor's name: ggml.h, GGML_MAX_NAME, with the NUL at its end
MAX_KEY = 65535  # bytes of a key, by the specification of GGUF
MAX_STRINGS = 1 << 21  # of one array; the largest vocabularies have a quarter of a million
_CHUNK = 1 << 20  # bytes of a header that are read at once

STRING, ARRAY, BOOL, UINT32 = 8, 9, 7, 4  # gguf.h, enum gguf_type
NUMBERS: Mapping[int, np.dtype[Any]] = {
    number: np.dtype(name)
    for number, name in {
        **{0: "u1", 1: "i1", 2: "<u2", 3: "<i2", UINT32: "<u4", 5: "<i4", 6: "<f4", BOOL: "u1"},
        **{10: "<u8", 11: "<i8", 12: "<f8"},
    }.items()
}
_LEAST = 12 + 8 + 4 + 8  # bytes that a tensor takes in a header at least: a name, one dim, type, offset
_LEAST_KEY = 8 + 1 + 4 + 1  # and a key


@dataclass(frozen=True, slots=True, eq=False)
class GgufHeader:
    """What a file says of itself: its metadata, and its tensors by name, in the order of the file.

    Values are int, float, bool, str, tuples of str, and numpy arrays of numbers. Tensors of blocks are bytes, with
    whole rows of blocks in their last dim; `StoredTensor.kind` names the type of ggml.
    """

    version: int
    alignment: int
    metadata: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]


class _Cursor:
    """A header that is read from its beginning; ValueError where it ends too early or is larger than any."""

    def __init__(self, file: File) -> None:
        self.file, self.size = file, file.size
        self.position = 0
        self._data = bytearray()

    @property
    def left(self) -> int:
        """Bytes of the file, or of the largest header that is read, from here on."""
        return min(self.size, MAX_HEADER) - self.position

    def take(self, count: int) -> bytes:
        """The next bytes."""
        if count > self.left:
            beyond = f"than {MAX_HEADER} bytes" if self.size > MAX_HEADER else "than the file has"
            raise ValueError(f"at byte {self.position} it asks for {count} bytes more, which is longer {beyond}")
        end = self.position + count
        while len(self._data) < end:
            chunk = np.empty(min(max(_CHUNK, end - len(self._data)), self.size - len(self._data)), np.uint8)
            if not self.file.read_into(len(self._data), chunk):
                raise ValueError("the file ended while it was read")
            self._data += chunk.tobytes()
        found = bytes(self._data[self.position : end])
        self.position = end
        return found

    def number(self, kind: int) -> Any:
        """A number of one of the types of GGUF, as Python has it; ValueError for a bool that is neither 0 nor 1."""
        dtype = NUMBERS[kind]
        value = np.frombuffer(self.take(dtype.itemsize), dtype)[0].item()
        if kind != BOOL:
            return value
        if value > 1:
            raise ValueError(f"a bool is {value}")
        return bool(value)

    def u32(self) -> int:
        """An unsigned number of 32 bits."""
        return int(struct.unpack("<I", self.take(4))[0])

    def u64(self) -> int:
        """An unsigned number of 64 bits."""
        return int(struct.unpack("<Q", self.take(8))[0])

    def string(self) -> str:
        """A string; what is no UTF-8 in it is replaced."""
        return self.take(self.u64()).decode("utf-8", "replace")

    def name(self, most: int) -> str:
        """A string that names something; ValueError if it is empty, too long, no text or holds a NUL."""
        data = self.take(self.u64())
        if not data or len(data) > most:
            raise ValueError(f"a name has {len(data)} bytes, not 1 to {most}")
        if b"\0" in data:
            raise ValueError(f"the name {data!r} holds a NUL")
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise ValueError(f"the name {data!r} is not text") from None

    def value(self) -> Any:
        """A value of metadata, its type before it."""
        kind = self.u32()
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            return self._array()
        if kind not in NUMBERS:
            raise ValueError(f"there is no type {kind} of values")
        return self.number(kind)

    def _array(self) -> tuple[str, ...] | Array:
        kind, count = self.u32(), self.u64()
        if kind == STRING:
            if count > MAX_STRINGS or count * 8 > self.left:
                raise ValueError(f"an array claims {count} strings, for which there is no room")
            return tuple(self.string() for _ in range(count))
        if kind not in NUMBERS:
            raise ValueError(f"there is no array of values of type {kind}")
        found = np.frombuffer(self.take(count * NUMBERS[kind].itemsize), NUMBERS[kind])
        if kind != BOOL:
            return found
        if (found > 1).any():
            raise ValueError("an array of bools holds another number than 0 and 1")
        return found.astype(np.bool_)


def is_gguf(file: File) -> bool:
    """Whether a file begins as a GGUF file does; OSError where it cannot be read."""
    return file.size >= len(MAGIC) and file.read(len(MAGIC)) == MAGIC


def read_gguf(file: File) -> GgufHeader:
    """Everything that a file says before its data; HeaderError if the file is not what its header says."""
    cursor = _Cursor(file)
    try:
        version = _version(cursor)
        tensors, keys = cursor.u64(), cursor.u64()
        for count, least, what in ((keys, _LEAST_KEY, "keys"), (tensors, _LEAST, "tensors")):
            if count * least > cursor.left:
                raise ValueError(f"it claims {count} {what}, for which there is no room")
        metadata = _metadata(cursor, keys)
        alignment = _alignment(metadata)
        entries = list(islice(_entries(cursor), tensors))
    except ValueError as fault:
        raise HeaderError([("", str(fault))]) from fault
    start = -(-cursor.position // alignment) * alignment
    return GgufHeader(version, alignment, metadata, _tensors(file, entries, start, alignment, cursor.size))


def _version(cursor: _Cursor) -> int:
    if cursor.take(4) != MAGIC:
        raise ValueError("it does not begin with GGUF")
    version = cursor.u32()
    if version and not version & 0xFFFF:
        raise ValueError("it is big-endian, which is not read: convert it with gguf_convert_endian.py of llama.cpp")
    if version not in VERSIONS:
        raise ValueError(f"it is of version {version}; versions 2 and 3 are read")
    return version


def _metadata(cursor: _Cursor, count: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _ in range(count):
        key = cursor.name(MAX_KEY)
        if key in found:
            raise ValueError(f"key {key!r} appears twice")
        try:
            found[key] = cursor.value()
        except ValueError as fault:
            raise ValueError(f"{key}: {fault}") from fault
    return found


def _alignment(metadata: Mapping[str, Any]) -> int:
    value = metadata.get("general.alignment", ALIGNMENT)
    if type(value) is not int or value <= 0 or value & (value - 1) or value > 1 << 31:
        raise ValueError(f"general.alignment is {str(value)[:40]}, not a power of two")
    return value


Entry = tuple[str, tuple[int, ...], int, int]  # name, dims as stored, type, offset


def _entries(cursor: _Cursor) -> Iterator[Entry]:
    """The tensors as the header lists them."""
    while True:
        name, rank = cursor.name(MAX_NAME), cursor.u32()
        if not 1 <= rank <= MAX_RANK:
            raise ValueError(f"{name} has {rank} dims, not 1 to {MAX_RANK}")
        yield name, struct.unpack(f"<{rank}Q", cursor.take(8 * rank)), cursor.u32(), cursor.u64()


def _tensors(file: File, entries: list[Entry], start: int, alignment: int, size: int) -> dict[str, StoredTensor]:
    """Every tensor by name; HeaderError with all that is wrong with them.

    They lie one after another in the order of the header, each from the next multiple of the alignment on.
    """
    faults: list[tuple[str, str]] = []
    found: dict[str, StoredTensor] = {}
    position = 0
    for name, dims, number, offset in entries:
        try:
            tensor = _tensor(file, name, dims, number, start + offset)
        except ValueError as fault:
            faults.append((name, str(fault)))
            continue
        if name in found:
            faults.append((name, "two tensors have this name"))
        elif not faults and offset != position:
            kind = "overlaps the tensor before it" if offset < position else "leaves a hole before it"
            faults.append((name, f"its data {kind}: they begin at {offset} and not at {position}"))
        found[name] = tensor
        position = -(-(offset + tensor.end - tensor.begin) // alignment) * alignment
    if not faults:
        end = max((tensor.end for tensor in found.values()), default=0)
        if end > size:
            faults.append(("", f"the file is truncated: tensors end at byte {end}, the file at {size}"))
        elif size > (last := start + position):
            faults.append(("", f"{size - last} bytes after the last tensor belong to none"))
    if faults:
        raise HeaderError(faults)
    return found


def _tensor(file: File, name: str, dims: tuple[int, ...], number: int, begin: int) -> StoredTensor:
    kind = BY_NUMBER.get(number)
    if kind is None:
        raise ValueError(f"there is no tensor type {number}, or it is one that ggml has dropped")
    if 0 in dims or prod(dims) > MAX_DIM:
        raise ValueError(f"dims {list(dims)} are 1 or more, and no tensor has 2^63 elements")
    shape = kind.stored_shape(dims[::-1])
    return StoredTensor(name, file, kind.stored, shape, begin, begin + nbytes(kind.stored, shape), kind.name)
