"""Defects of a GGUF file as a conversion gone wrong would leave them; its metadata stay as they are.

The scales of a GGUF lie in the blocks of codes: one that is dropped leaves the data of its tensor too short, and a
matrix written transposed has its dims the other way round.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gguf_files import F32, entry, padded, text
from qbridge.source.folder import Folder
from qbridge.source.gguf import read_gguf
from qbridge.source.storage import File

F16 = 1
BLOCK, SCALE = 18, 2  # bytes of a block of Q4_0 and of its scale
LAYER, NORM = "blk.0.ffn_down.weight", "blk.0.attn_norm.weight"


class Tensor(NamedTuple):
    """Dims innermost first, the number of the type, and the bytes."""

    dims: tuple[int, ...]
    kind: int
    data: np.ndarray


Tensors = dict[str, Tensor]


def unquantized(tensors: Tensors) -> None:
    dims = tensors[LAYER].dims
    tensors[LAYER] = Tensor(dims, F16, np.ones(dims, np.float16).reshape(-1).view(np.uint8))


def missing(tensors: Tensors) -> None:
    del tensors[NORM]


def one_too_many(tensors: Tensors) -> None:
    tensors["blk.0.ffn_extra.weight"] = Tensor((4, 4), F32, np.ones(16, np.float32).view(np.uint8))


def scale_dropped(tensors: Tensors) -> None:
    dims, kind, data = tensors.pop(LAYER)
    tensors[LAYER] = Tensor(dims, kind, data.reshape(-1, BLOCK)[:, SCALE:].reshape(-1))  # the last one of the file


def transposed(tensors: Tensors) -> None:
    dims, kind, data = tensors[LAYER]
    tensors[LAYER] = Tensor(dims[::-1], kind, data)


DEFECTS: dict[str, tuple[Callable[[Tensors], None], str]] = {
    "a module left unquantized": (unquantized, "model.layers.0.mlp.down_proj"),
    "a tensor missing": (missing, NORM),
    "one too many": (one_too_many, "blk.0.ffn_extra.weight"),
    "a scale dropped": (scale_dropped, LAYER),
    "scales transposed": (transposed, LAYER),
}


def inflict(damage: Callable[[Tensors], None], path: Path) -> None:
    """Write the file anew with the defect."""
    stored = read_gguf(File(Folder(path.parent), path.name)).tensors
    whole = path.read_bytes()
    (count,) = struct.unpack_from("<Q", whole, 8)
    begin = cursor = whole.index(text(next(iter(stored))))
    tensors: Tensors = {}
    for name, tensor in stored.items():
        cursor += len(text(name))
        (rank,) = struct.unpack_from("<I", whole, cursor)
        *dims, kind = struct.unpack_from(f"<{rank}QI", whole, cursor + 4)
        cursor += 4 + 8 * rank + 4 + 8
        tensors[name] = Tensor(tuple(dims), kind, np.frombuffer(whole[tensor.begin : tensor.end], np.uint8))
    assert len(tensors) == count
    damage(tensors)
    offsets, data = padded(*(tensor.data for tensor in tensors.values()))
    entries = [
        entry(name, tensor.dims, tensor.kind, offset)
        for (name, tensor), offset in zip(tensors.items(), offsets, strict=True)
    ]
    head = whole[:8] + struct.pack("<Q", len(entries)) + whole[16:begin] + b"".join(entries)
    path.write_bytes(head + bytes(-len(head) % 32) + data)
