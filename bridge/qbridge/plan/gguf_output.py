"""GGUF files, planned to the byte before a weight is read: `qbridge.source.gguf` says how they lie.

Metadata are in the first file. Each of several says which one it is; their names are those that llama.cpp gives them.
Source: llama.cpp b10359, tools/gguf-split/gguf-split.cpp.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qbridge.ir.dtypes import nbytes
from qbridge.plan.output_files import Shard, in_groups
from qbridge.plan.plan import OutputTensor
from qbridge.source.ggml_types import TYPES, GgmlType
from qbridge.source.gguf import ALIGNMENT, ARRAY, BOOL, MAGIC, NUMBERS, STRING, UINT32
from qbridge.source.gguf_files import COUNT, NUMBER, SUFFIX, TENSORS, split_name

STEM = "model"
_VERSION = 3
_FLOAT32 = 6
_KINDS: Mapping[type, int] = {bool: BOOL, int: UINT32, float: _FLOAT32}


def gguf_shards(
    outputs: Sequence[OutputTensor], metadata: Mapping[str, Any], max_size: int | None = None
) -> list[Shard]:
    """model.gguf, or splits that are filled up to `max_size` bytes of data."""
    groups = in_groups(outputs, sys.maxsize if max_size is None else max_size)
    count = len(groups)
    names = [STEM + SUFFIX] if count == 1 else [split_name(STEM, number, count) for number in range(count)]
    shards = []
    for number, (name, group) in enumerate(zip(names, groups, strict=True)):
        own = dict(metadata) if number == 0 else {}
        if count > 1:
            own |= {NUMBER: np.uint16(number), COUNT: np.uint16(count), TENSORS: np.int32(len(outputs))}
        shards.append(_shard(name, group, own))
    return shards


def _shard(name: str, group: Sequence[OutputTensor], metadata: Mapping[str, Any]) -> Shard:
    head = MAGIC + struct.pack("<IQQ", _VERSION, len(group), len(metadata))
    head += b"".join(_text(key) + _value(value) for key, value in metadata.items())
    position, begins = 0, []
    for tensor in group:
        type_ = type_of(tensor)
        dims = type_.shape(tensor.shape or (1,))[::-1]
        head += _text(tensor.name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, type_.number, position)
        begins.append(position)
        position += _padded(nbytes(tensor.dtype, tensor.shape))
    header = head + bytes(_padded(len(head)) - len(head))
    return Shard(name, header, group, [len(header) + begin for begin in begins], end=len(header) + position)


def type_of(tensor: OutputTensor) -> GgmlType:
    """The type of ggml that a tensor is stored as; KeyError for a dtype that ggml has not."""
    return TYPES[tensor.block or str(tensor.dtype)]


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> bytes:
    """A value with its type: int as u32, float as f32, numbers and arrays of numpy as they are, sequences of str."""
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _text(value)
    if type(value) in _KINDS:
        kind = _KINDS[type(value)]
        return struct.pack("<I", kind) + np.array(value, NUMBERS[kind]).tobytes()
    if isinstance(value, np.generic):
        return struct.pack("<I", _number(value.dtype)) + value.tobytes()
    if isinstance(value, np.ndarray):
        return struct.pack("<IIQ", ARRAY, _number(value.dtype), value.size) + value.tobytes()
    return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(map(_text, value))


def _number(dtype: np.dtype[Any]) -> int:
    """The number of the type of GGUF for a dtype of numpy."""
    return next(number for number, own in NUMBERS.items() if own == dtype and number != BOOL)
