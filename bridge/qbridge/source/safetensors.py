"""Safetensors headers, checked in full before anything trusts them.

Layout (safetensors 0.8.0, `safetensors/src/tensor.rs`): 8 bytes little-endian header length N, N bytes of JSON
{name: {"dtype", "shape", "data_offsets": [begin, end]}}, then the data, which the offsets cover without a hole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from math import prod
from operator import attrgetter
from typing import Any

from qbridge.ir.dtypes import DType, nbytes
from qbridge.source.json_text import MAX_HEADER, parse_json
from qbridge.source.storage import File, Range, Storage
from qbridge.source.stored import StoredTensor

MAX_RANK = 64  # numpy's
MAX_DIM = 2**63 - 1
MAX_PRODUCT = 2**64 - 1

_FIRST = 1 << 16  # bytes that are read at once, in which most headers end
_FRAME = 256  # bytes of a header besides its entries, at most: its length, metadata, spaces at the end
_ENTRY = 112  # bytes of a tensor's entry besides its name, at most where its numbers are not absurd

_KEYS = frozenset({"dtype", "shape", "data_offsets"})
_DTYPES = {dtype.value: dtype for dtype in DType}


class HeaderError(Exception):
    """A header that lies; `faults` lists (tensor name or empty, what is wrong)."""

    def __init__(self, faults: list[tuple[str, str]]) -> None:
        """Keep every fault."""
        self.faults = faults
        super().__init__("; ".join(f"{name}: {fault}" if name else fault for name, fault in faults))


def _unsigned(digits: str) -> int:
    """An integer as the library reads one: to it -0 is none. Called only where there may be one, for it is slow."""
    if digits == "-0":
        raise ValueError("-0 is no integer")
    return int(digits)


def read_header(file: File) -> dict[str, StoredTensor]:
    """Every tensor of a safetensors file by name; HeaderError if the file is not what its header says."""
    size, head = file.size, file.read(8 if file.storage.is_far else _FIRST)
    if len(head) < 8:
        raise HeaderError([("", f"the file has {size} bytes, too few for a safetensors header")])
    length = int.from_bytes(head[:8], "little")
    if length > min(MAX_HEADER, size - 8):
        raise HeaderError([("", f"the header claims {length} bytes, the file has {size}")])
    text = (head if 8 + length <= len(head) else file.read(8 + length))[8 : 8 + length]
    try:
        header = parse_json(text, _unsigned if b"-0" in text else None)
    except ValueError as fault:
        raise HeaderError([("", f"the header is not valid JSON: {fault}")]) from fault
    if not isinstance(header, dict):
        raise HeaderError([("", "the header is not a JSON object")])
    return _tensors(file, header, 8 + length, size)


def prefetch_headers(storage: Storage, names: Iterable[str], index: Mapping[str, str]) -> None:
    """Have the headers of some files at hand, each in one request where an index tells how long it is about."""
    if not storage.is_far:
        return
    names, lengths = list(names), Counter[str]()
    for tensor, file in index.items():
        lengths[file] += len(tensor) + _ENTRY
    first = [Range(name, 0, _FRAME + lengths[name] if name in lengths else _FIRST) for name in names]
    storage.announce(first, "headers")
    storage.prefetch(first)
    storage.prefetch(_whole_headers(storage, names))  # of those that are longer


def _whole_headers(storage: Storage, names: Iterable[str]) -> Iterator[Range]:
    for name in names:
        length = int.from_bytes(storage.read(name, 8), "little")
        if length <= MAX_HEADER:
            yield Range(name, 0, 8 + length)


def _tensors(file: File, header: Mapping[str, Any], start: int, size: int) -> dict[str, StoredTensor]:
    faults: list[tuple[str, str]] = []
    found: dict[str, StoredTensor] = {}
    for name, entry in header.items():
        if name == "__metadata__":
            if not _is_metadata(entry):
                faults.append(("", "__metadata__ is not an object of strings"))
            continue
        if not _is_text(name):
            faults.append((repr(name), "its name is not text"))
            continue
        try:
            found[name] = _tensor(file, name, entry, start)
        except ValueError as fault:
            faults.append((name, str(fault)))
    if not faults:
        faults = _layout_faults(found, start, size)
    if faults:
        raise HeaderError(faults)
    return found


def _is_text(value: Any) -> bool:
    """Whether a JSON value is a string, and without halves of a character, which the library refuses."""
    try:
        str(value).encode()
    except UnicodeEncodeError:
        return False
    return isinstance(value, str)


def _is_metadata(entry: Any) -> bool:
    """Whether the library takes it: nothing, or an object of strings."""
    return entry is None or (isinstance(entry, dict) and all(map(_is_text, (*entry, *entry.values()))))


def _tensor(file: File, name: str, entry: Any, start: int) -> StoredTensor:
    if not isinstance(entry, dict) or entry.keys() != _KEYS:
        raise ValueError("the entry is not {dtype, shape, data_offsets}")
    named, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    dtype = _DTYPES.get(named) if isinstance(named, str) else None
    if dtype is None:
        raise ValueError(f"unknown dtype {named!r}")
    size = _size(dtype, tuple(shape)) if _naturals(shape) else None
    if size is None:
        raise ValueError(f"shape {str(shape)[:80]} is not a list of dims (at most {MAX_RANK})")
    begin, end = offsets if isinstance(offsets, list) and len(offsets) == 2 else (None, None)
    if type(begin) is not int or type(end) is not int or not 0 <= begin <= end:
        raise ValueError(f"data_offsets {offsets!r} are not [begin, end]")
    if end - begin != size:
        raise ValueError(f"{dtype}{shape} takes {size} bytes, data_offsets give {end - begin}")
    return StoredTensor(name, file, dtype, tuple(shape), start + begin, start + end)


@lru_cache
def _size(dtype: DType, shape: tuple[int, ...]) -> int | None:
    """Bytes of a tensor, None if numpy or the library can have no such shape; few shapes are in a checkpoint."""
    if len(shape) > MAX_RANK or any(dim > MAX_DIM for dim in shape):
        return None
    # the library multiplies in 64 bits, one dim after the other: it can overflow before a 0 makes nothing of it all
    before_none = shape[: shape.index(0)] if 0 in shape else ()
    if prod(before_none) > MAX_PRODUCT:
        return None
    return nbytes(dtype, shape)


def _naturals(value: Any) -> bool:
    """Whether a value is a list of integers (True is none) of which none is negative."""
    return isinstance(value, list) and {int}.issuperset(map(type, value)) and min(value, default=0) >= 0


def _layout_faults(found: Mapping[str, StoredTensor], start: int, size: int) -> list[tuple[str, str]]:
    """Holes and overlaps, and data that the file does not have."""
    faults, position = [], start
    for tensor in sorted(found.values(), key=attrgetter("begin", "end")):
        if tensor.begin != position:
            kind = "overlaps the tensor before it" if tensor.begin < position else "leaves a hole before it"
            faults.append((tensor.name, f"its data {kind}"))
        position = max(position, tensor.end)
    if position > size:
        faults.append(("", f"the file is truncated: tensors end at byte {position}, the file at {size}"))
    elif position < size and not faults:
        faults.append(("", f"{size - position} bytes after the last tensor belong to none"))
    return faults
