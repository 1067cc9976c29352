"""The output files, planned to the byte before a weight is read.

Tensors lie by dtype, widest first, then by name, as the safetensors library lays them, so that every one is
aligned and runs of copied tensors stay contiguous. Headers carry only {"format": "pt"}.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qbridge.ir.dtypes import nbytes
from qbridge.plan.plan import OutputTensor
from qbridge.source.opening import RESIDUE
from qbridge.source.storage import File
from qbridge.source.weight_files import SINGLE


@dataclass(frozen=True, slots=True, eq=False)
class Shard:
    """One output file; `offsets` are absolute positions of its tensors' data.

    `file` is what it is a link to, with the header and order of tensors that are there; None where it is written.
    `end` is where a file ends whose tensors are padded, 0 for the end of the last one.
    """

    name: str
    header: bytes
    tensors: Sequence[OutputTensor]
    offsets: Sequence[int]
    file: File | None = None
    end: int = 0

    @property
    def data_size(self) -> int:
        """Bytes of its tensors."""
        return sum(nbytes(tensor.dtype, tensor.shape) for tensor in self.tensors)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        if self.file is not None:
            return self.file.size
        return self.end or len(self.header) + self.data_size


def plan_shards(outputs: Sequence[OutputTensor], max_size: int | None = None) -> list[Shard]:
    """The output files: at the source's shard boundaries, or filled in order up to `max_size` bytes of data."""
    groups = in_groups(outputs, max_size)
    many = len(groups)
    names = [SINGLE] if many == 1 else [f"model-{i + 1:05}-of-{many:05}.safetensors" for i in range(many)]
    return [shard_of(name, group) for name, group in zip(names, groups, strict=True)]


def in_groups(outputs: Sequence[OutputTensor], max_size: int | None = None) -> list[list[OutputTensor]]:
    """The tensors of each output file, as `plan_shards` shares them out."""
    order = sorted(outputs, key=lambda t: (t.grafted, t.shard.name, t.layer or t.name, t.name))
    groups: list[list[OutputTensor]] = []
    filled, last = 0, None
    for tensor in order:
        size = nbytes(tensor.dtype, tensor.shape)
        new = tensor.shard != last if max_size is None else bool(groups) and filled + size > max_size
        if new or not groups:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled, last = filled + size, tensor.shard
    return groups


def shard_of(name: str, group: Sequence[OutputTensor]) -> Shard:
    """A safetensors file of some tensors."""
    tensors = sorted(group, key=lambda t: (-t.dtype.itemsize, str(t.dtype), t.name))
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position, begins = 0, []
    for tensor in tensors:
        begins.append(position)
        end = position + nbytes(tensor.dtype, tensor.shape)
        entries[tensor.name] = {
            "dtype": str(tensor.dtype),
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    return Shard(name, header, tensors, [len(header) + begin for begin in begins])


def weights_of(shards: Sequence[Shard]) -> list[Shard]:
    """The files without that of the residue, in which nobody looks for weights."""
    return [shard for shard in shards if shard.name != RESIDUE]


def index_of(shards: Sequence[Shard]) -> dict[str, Any]:
    """model.safetensors.index.json with the total size of all tensors."""
    shards = weights_of(shards)
    tensors = sorted((t.name, shard.name) for shard in shards for t in shard.tensors)
    total = sum(nbytes(t.dtype, t.shape) for shard in shards for t in shard.tensors)
    return {"metadata": {"total_size": total}, "weight_map": dict(tensors)}
