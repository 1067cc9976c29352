"""A checkpoint on disk: config, index, checked headers, tensors read on demand. Never writes."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from qbridge.blocks import Rectangle
from qbridge.dtypes import Array, nbytes
from qbridge.findings import Findings, error
from qbridge.headers import HeaderError, StoredTensor, load_json, read_header
from qbridge.weight_files import (
    INDEX,
    SINGLE,
    WEIGHTS,
    check_pickles,
    is_stale,
    json_object,
    pickle_names,
    shard_names,
    weight_map,
)

MANIFEST = "qbridge.json"
TOKENIZER = "tokenizer_config.json"
OPEN_FILES = 16  # of one thread; a checkpoint may have more shards than a process may open files
_SHORT = 1 << 16  # bytes of a row below which a call of the system costs more than its bytes
SMALL = 1 << 30  # bytes; scales, zero-points and g_idx of the largest linears there are take a quarter of it


@dataclass(slots=True, eq=False)
class Source:
    """An opened checkpoint folder.

    `config` is config.json as parsed; `tensors` every tensor of every shard; `shards` the shard files in the
    order of their names; `side_files` what is neither weights nor config, relative to the folder; `memory` the bytes
    of tensors that lie in no safetensors file; `stamps` the size and time of change (ns) of every shard;
    `open_files` how many shards a thread keeps open, `keep` how many bytes of a tensor it may.
    """

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]
    shards: Sequence[Path]
    side_files: Sequence[Path]
    memory: Mapping[str, Array] = field(default_factory=dict)
    stamps: Mapping[Path, tuple[int, int]] = field(default_factory=dict)
    open_files: int = OPEN_FILES
    keep: int = 0
    _handles: list[OrderedDict[Path, int]] = field(default_factory=list)
    _own: threading.local = field(default_factory=threading.local)

    def read(self, name: str) -> Array:
        """A whole tensor in its stored shape, as the numpy dtype of its tag."""
        tensor = self.tensors[name]
        array = np.empty(tensor.shape, tensor.dtype.numpy)
        self.read_into(name, 0, array.reshape(-1).view(np.uint8))
        return array

    def read_small(self, name: str) -> Array:
        """`read` for what a reader looks at before anything is planned; QBridgeError (QB028) if it is not small."""
        tensor = self.tensors[name]
        if tensor.end - tensor.begin > SMALL:
            raise error("QB028", name, (f"{tensor.end - tensor.begin} bytes",))
        return self.read(name)

    def split(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Have the slices of some tensors' first axes in their place: name[0], name[1] ..., each of the given shape.

        ValueError for a shape that does not have as many elements as a slice.
        """
        kept = {name: tensor for name, tensor in self.tensors.items() if name not in shapes}
        bytes_of = dict(self.memory)
        for name, shape in shapes.items():
            whole, size = self.tensors[name], nbytes(self.tensors[name].dtype, shape)
            if size * whole.shape[0] != whole.end - whole.begin:
                raise ValueError(f"{name}: {list(whole.shape)} is not {whole.shape[0]} times {list(shape)}")
            for number in range(whole.shape[0]):
                begin, own = number * size, f"{name}[{number}]"
                kept[own] = StoredTensor(
                    own, whole.file, whole.dtype, shape, whole.begin + begin, whole.begin + begin + size
                )
                if name in self.memory:
                    bytes_of[own] = self.memory[name][begin : begin + size]
        self.tensors, self.memory = kept, bytes_of

    def read_into(self, name: str, offset: int, buffer: Array) -> None:
        """Fill `buffer` (bytes) from `offset` bytes into the tensor's data."""
        if name in self.memory:
            buffer[:] = self.memory[name][offset : offset + buffer.nbytes]
            return
        tensor = self.tensors[name]
        if not read_all(self.descriptor(tensor.file), buffer, tensor.begin + offset):
            raise error("QB004", tensor.file.name, (f"{name}: the file ended while it was read",))

    def read_rectangle(self, name: str, place: Rectangle, array: Array) -> None:
        """Fill `array`, C-ordered, with some rows and columns of a stored matrix.

        Of those whose rows would be read in bits and pieces, each thread keeps the last ones, `keep` bytes in all.
        """
        size = place.shape[0] * place.shape[1] * array.itemsize
        if place.rows > 1 and place.columns * array.itemsize < _SHORT and size <= self.keep:
            whole = self._kept(name, size).view(array.dtype).reshape(place.shape)
            array[...] = whole[place.top : place.top + place.rows, place.left : place.left + place.columns]
            return
        data, done = array.reshape(-1).view(np.uint8), 0
        for offset, length in place.segments(array.itemsize):
            self.read_into(name, offset, data[done : done + length])
            done += length

    def _kept(self, name: str, size: int) -> Array:
        """The bytes of a whole tensor, read by this thread now or lately."""
        kept: OrderedDict[str, Array] | None = getattr(self._own, "kept", None)
        if kept is None:
            kept = self._own.kept = OrderedDict()
        if name not in kept:
            while kept and sum(array.nbytes for array in kept.values()) + size > self.keep:
                kept.popitem(last=False)  # its memory is free before more is taken
            found = np.empty(size, np.uint8)
            self.read_into(name, 0, found)
            kept[name] = found
        kept.move_to_end(name)
        return kept[name]

    def blocks(self, name: str, size: int) -> Iterator[Array]:
        """The bytes of a tensor in blocks of at most `size`, each valid until the next is asked for."""
        tensor = self.tensors[name]
        total = tensor.end - tensor.begin
        buffer = np.empty(min(size, total), np.uint8)
        for start in range(0, total, size):
            block = buffer[: min(size, total - start)]
            self.read_into(name, start, block)
            yield block

    def tokenizer(self) -> dict[str, Any]:
        """tokenizer_config.json as parsed; empty if there is none or it is no JSON object."""
        try:
            value = load_json(self.path / TOKENIZER)
        except (OSError, ValueError):
            return {}  # a side file: carried over byte for byte whatever it holds
        return value if isinstance(value, dict) else {}

    def descriptor(self, file: Path) -> int:
        """An open read-only file descriptor of a shard, good until the same thread asks for many others."""
        handles: OrderedDict[Path, int] | None = getattr(self._own, "handles", None)
        if handles is None:
            handles = self._own.handles = OrderedDict()
            self._handles.append(handles)
        if file in handles:
            handles.move_to_end(file)
            return handles[file]
        while len(handles) >= self.open_files:
            os.close(handles.popitem(last=False)[1])
        handles[file] = os.open(file, os.O_RDONLY)
        return handles[file]

    def close(self) -> None:
        """Close every file; the source can be read again afterwards."""
        for handles in self._handles:
            while handles:
                os.close(handles.popitem()[1])

    def check_unchanged(self) -> None:
        """QBridgeError (QB038) if a shard has another size or time of change than when it was opened."""
        changed = [file.name for file, stamp in self.stamps.items() if _stamp(file) != stamp]
        if changed:
            raise error("QB038", changed)

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def read_all(descriptor: int, buffer: Array, offset: int) -> bool:
    """Fill `buffer` (bytes) from an offset of a file; whether the file had that many."""
    view, done = buffer.data.cast("B"), 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done:]], offset + done)
        if count == 0:
            return False
        done += count
    return True


def open_source(path: str | os.PathLike[str], findings: Findings) -> Source:
    """Open a folder; raises QBridgeError with everything that is wrong with config, index and headers."""
    root = Path(path)
    if not (root / "config.json").is_file():
        fact = "there is no config.json" if root.is_dir() else "there is no such folder"
        raise error("QB001", str(root), (fact,))
    config = json_object(root, "config.json", findings)
    index = weight_map(root, findings) if (root / INDEX).is_file() else None
    findings.stop_on_errors()
    stale = index if index and is_stale(root, index) else None
    index = None if stale else index
    names = shard_names(root, index, findings)
    if not names:
        findings.stop_on_errors()
        return _open_pickled(root, config or {}, findings)
    found = [name for name in names if _is_inside(root, name, findings)]
    shards = {name: root / name for name in found}
    stamps = {file: _stamp(file) for file in shards.values()}
    tensors = _headers(root, shards, findings)
    if index is not None and tensors is not None and (found == names or findings.allows("QB003")):
        held = {name: file for name, file in index.items() if str(Path(file)) in shards}
        _check_index(shards, held, tensors, findings)
    if stale and tensors:
        findings.add("QB040", INDEX, _stale(stale, tensors))
    sides = _side_files(root, names, findings)
    findings.stop_on_errors()
    return Source(root, config or {}, tensors or {}, list(shards.values()), sides, stamps=stamps)


def _stale(index: Mapping[str, str], tensors: Mapping[str, StoredTensor]) -> tuple[str, ...]:
    """What an index of other files says that the single file has or lacks, by modules: quantizing renames tensors."""
    held = {name.rpartition(".")[0] for name in tensors}
    lost = sorted({name.rpartition(".")[0] for name in index} - held)
    absent = f"none of the {len(set(index.values()))} files that it names is there"
    if lost:
        return (absent, f"{SINGLE} is read; it lacks {len(lost)} modules that the index names, such as {lost[0]}")
    return (absent, f"{SINGLE} is read; it is complete by itself: it has every module that the index names")


def _stamp(file: Path) -> tuple[int, int]:
    status = os.stat(file)
    return status.st_size, status.st_mtime_ns


def _open_pickled(root: Path, config: dict[str, Any], findings: Findings) -> Source:
    """The source of pickled weights, which the user has allowed."""
    from qbridge.pickles import read_pickles

    names = [name for name in pickle_names(root) if _is_inside(root, name, findings)]
    findings.add("QB007", names)
    check_pickles(root, names, findings)
    tensors, memory = read_pickles(root, names, findings)
    sides = _side_files(root, names, findings)
    findings.stop_on_errors()
    return Source(root, config, tensors, [root / name for name in names], sides, memory)


def _is_inside(root: Path, name: str, findings: Findings) -> bool:
    """Whether the shard is a file of the folder, or of the blobs of the Hugging Face cache it belongs to."""
    plain = Path(name)
    if plain.is_absolute() or ".." in plain.parts or "\0" in name:
        findings.add("QB006", name)
        return False
    try:
        there = (root / plain).is_file()
    except OSError:  # a name that no file can have
        there = False
    if not there:
        findings.add("QB003", name)
        return False
    if not _stays(root, root / plain):
        findings.add("QB006", name, ("it is a link out of the folder",))
        return False
    return True


def _stays(root: Path, file: Path) -> bool:
    """Whether a file, its links followed, lies in the folder or in the blobs of its Hugging Face cache."""
    home = root.resolve()
    homes = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    return any(file.resolve().is_relative_to(place) for place in homes)


def _headers(root: Path, shards: Mapping[str, Path], findings: Findings) -> dict[str, StoredTensor] | None:
    found: dict[str, StoredTensor] = {}
    sound = True
    for name, file in shards.items():
        try:
            header = read_header(file)
        except HeaderError as fault:
            sound = False
            for tensor, what in fault.faults:
                findings.add("QB004", f"{name}: {tensor}" if tensor else name, (what,))
            continue
        for twice in sorted(found.keys() & header.keys()):
            where = found[twice].file.relative_to(root)
            findings.add("QB005", twice, (f"it is in {where} and in {name}",))
        found.update(header)
    return found if sound else None


def _check_index(
    shards: Mapping[str, Path], index: Mapping[str, str], tensors: Mapping[str, StoredTensor], findings: Findings
) -> None:
    places = {name: shards[str(Path(name))] for name in set(index.values())}
    # a tensor's file is one of the objects in `shards`: comparing 100 000 paths by value would take a while
    moved = sorted(n for n, tensor in tensors.items() if n in index and places[index[n]] is not tensor.file)
    for names, fact in (
        (sorted(index.keys() - tensors.keys()), "the index names it, no shard holds it"),
        (sorted(tensors.keys() - index.keys()), "a shard holds it, the index does not name it"),
        (moved, "it is in another shard than the index says"),
    ):
        if names:
            findings.add("QB005", names, (fact,))


def _side_files(root: Path, shards: Sequence[str], findings: Findings) -> list[Path]:
    """Every other file to carry over, folders included; hidden ones belong to git and to caches."""
    ours = {"config.json", INDEX, MANIFEST, *shards}
    found, behind = [], []
    for folder, folders, files in os.walk(root, followlinks=False):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        behind += [str(Path(folder, name).relative_to(root)) for name in folders if Path(folder, name).is_symlink()]
        for name in sorted(files):
            relative = (Path(folder) / name).relative_to(root)
            if name.startswith(".") or str(relative) in ours:
                continue
            if not (root / relative).is_file() or not _stays(root, root / relative):
                findings.add("QB006", str(relative), ("it is a link out of the folder, or to nothing",))
            elif relative.suffix in WEIGHTS or name.endswith(tuple(f"{s}.index.json" for s in WEIGHTS)):
                behind.append(str(relative))
            else:
                found.append(relative)
    if behind:
        findings.add("QB009", behind, _contents(root, behind))
    return found


def _contents(root: Path, names: Sequence[str], most: int = 5) -> tuple[str, ...]:
    """What is lost with safetensors files that are left behind, of the first ones."""
    facts = []
    for name in [name for name in names if name.endswith(".safetensors")][:most]:
        try:
            tensors = sorted(read_header(root / name))
        except (HeaderError, OSError):
            continue  # it holds nothing that can be named
        if tensors:
            facts.append(f"{name}: {len(tensors)} tensors, such as {tensors[0]}")
    return tuple(facts)
