"""GGUF files made by hand, so that each of their bytes can be wrong."""

from __future__ import annotations

import struct

import numpy as np

KINDS = {int: (5, "<i"), float: (6, "<f"), bool: (7, "<?")}
F32, Q4_0 = 0, 2


def text(value):
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data)) + data


def value(found):
    """A value with its type before it; a pair is a type and raw bytes."""
    if isinstance(found, tuple):
        return struct.pack("<I", found[0]) + found[1]
    if isinstance(found, str):
        return struct.pack("<I", 8) + text(found)
    if isinstance(found, list):
        return struct.pack("<IIQ", 9, 8, len(found)) + b"".join(map(text, found))
    kind, code = KINDS[type(found)]
    return struct.pack("<I", kind) + struct.pack(code, found)


def u32(number):
    return 4, struct.pack("<I", number)


def u16(number):
    return 2, struct.pack("<H", number)


def entry(name, dims, kind, offset):
    """What a header says of one tensor; dims innermost first."""
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def gguf(metadata, entries, data=b"", *, version=3, tensors=None, keys=None, alignment=32):
    """A whole file: `entries` as `entry` gives them; counts are those of what is given unless they are."""
    head = b"GGUF" + struct.pack("<I", version)
    head += struct.pack("<QQ", len(entries) if tensors is None else tensors, len(metadata) if keys is None else keys)
    head += b"".join(text(key) + value(found) for key, found in metadata.items()) + b"".join(entries)
    return head + bytes(-len(head) % alignment) + data


def padded(*arrays, alignment=32):
    """(offsets, data) of arrays one after another, each padded."""
    offsets, data = [], b""
    for array in arrays:
        offsets.append(len(data))
        data += array.tobytes()
        data += bytes(-len(data) % alignment)
    return offsets, data


def small(**metadata):
    """A sound file of two tensors: a norm, and a matrix of 3 rows in Q4_0."""
    blocks, norm = np.arange(3 * 2 * 18, dtype=np.uint8), np.ones(64, np.float32)
    (first, second), data = padded(norm, blocks)
    entries = [entry("output_norm.weight", (64,), F32, first), entry("output.weight", (64, 3), Q4_0, second)]
    return gguf({"general.architecture": "llama", **metadata}, entries, data)
