"""The bytes of a checkpoint's tensors, read in ranges into buffers that are used again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from itertools import dropwhile
from pathlib import Path
from typing import Any

import numpy as np

from qbridge.findings.finding import error
from qbridge.ir.dtypes import Array, DType, nbytes
from qbridge.source.regions import Rectangle
from qbridge.source.storage import File, Range, Storage, load_json
from qbridge.source.stored import StoredTensor

TOKENIZER = "tokenizer_config.json"
_SHORT = 1 << 16  # bytes of a row below which a call of the system costs more than its bytes
VALUE = 1 << 24  # bytes of a tensor that is kept while a conversion is planned
VALUES = 1 << 26  # bytes of all that are kept then
AHEAD = 3 << 24  # bytes of small tensors that are fetched at a time where each read waits for a server
FEW = 1 << 22  # bytes of those that opening alone keeps: fresh memory costs more than to read again
SMALL = 1 << 30  # bytes; scales, zero-points and g_idx of the largest linears there are take a quarter of it


@dataclass(slots=True, eq=False, repr=False)
class Source:
    """An opened checkpoint.

    `storage` is where its files lie; `config` is config.json as parsed; `tensors` every tensor of every shard;
    `shards` the names of the shards in order; `side_files` those of what is neither weights nor config; `memory` the
    bytes of tensors that lie in no safetensors file; `stamps` what tells that a shard has changed; `unstored` heads
    that the index names and no shard holds, as tied ones are; `adopted` are of another checkpoint; `slices` lie in
    another tensor as well; `keep` how many bytes of a tensor a thread may hold; `values` whether any may be read;
    `metadata` what the files say besides, of a container that says anything.
    """

    storage: Storage
    config: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]
    shards: Sequence[str]
    side_files: Sequence[str]
    memory: Mapping[str, Array] = field(default_factory=dict)
    stamps: Mapping[File, str] = field(default_factory=dict)
    unstored: tuple[str, ...] = ()
    adopted: frozenset[str] = frozenset()
    slices: frozenset[str] = frozenset()
    keep: int = 0
    stretch: int = 0
    values: bool = True
    metadata: Mapping[str, Any] = field(default_factory=dict)
    _own: threading.local = field(default_factory=threading.local)
    _values: OrderedDict[str, Array] = field(default_factory=OrderedDict)
    _known: dict[Hashable, Any] = field(default_factory=dict)
    _ahead: set[str] = field(default_factory=set)
    _alike: dict[tuple[str, int], dict[str, Range]] = field(default_factory=dict)
    _remembers: bool = False
    _held: int = 0  # bytes of `_values`, at most `_room`
    _room: int = VALUES

    def __repr__(self) -> str:
        return f"<Source: {self.url!r}, {len(self.tensors)} tensors, {len(self.shards)} shards>"

    def __getstate__(self) -> dict[str, Any]:
        """What is sent to another process: nothing that a thread holds, no value that was read."""
        held = {"_own", "_values", "_known", "_alike", "_ahead", "_remembers", "_held", "_room"}
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name not in held}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """The same checkpoint, of which no value was read."""
        Source.__init__(self, **state)

    @property
    def url(self) -> str:
        """The place of its files as a person named it."""
        return self.storage.url

    def file(self, name: str) -> File:
        """One of its files by name, whether it is there or not."""
        return File(self.storage, name)

    def document(self, name: str) -> Any:
        """A JSON file beside the weights, None where there is none."""
        return load_json(self.file(name)) if name in self.side_files else None

    def read(self, name: str) -> Array:
        """A whole tensor in its stored shape, as the numpy dtype of its tag; read-only within `remembering`."""
        tensor = self.tensors[name]
        if self._remembers and tensor.end - tensor.begin <= VALUE:
            return self._value(name).view(tensor.dtype.numpy).reshape(tensor.shape)
        array = np.empty(tensor.shape, tensor.dtype.numpy)
        self.read_into(name, 0, array.reshape(-1).view(np.uint8))
        return array

    @contextmanager
    def remembering(self, forget: bool = True, room: int | None = None) -> Iterator[None]:
        """Within this, small tensors and answers (`once`) are kept, so that planning reads no value twice.

        For one thread; at most `room` bytes (or `VALUES`) of tensors of at most `VALUE` bytes each. Without `forget`
        they are there again when it is entered the next time.
        """
        self._remembers, self._room = True, VALUES if room is None else room
        try:
            yield
        finally:
            self._remembers = False
            if forget:
                self._values.clear()
                self._known.clear()
                self._held = 0

    def once(self, key: Hashable, find: Callable[[], Any]) -> Any:
        """What `find` gives; within `remembering` asked once for a key."""
        if not self._remembers:
            return find()
        if key not in self._known:
            self._known[key] = find()
        return self._known[key]

    def _value(self, name: str) -> Array:
        """The bytes of a small tensor, read now or before."""
        if name in self._values:
            self._values.move_to_end(name)
            return self._values[name]
        tensor = self.tensors[name]
        if tensor.file.storage.is_far and self.values and name not in self.memory:
            self._fetch_alike(name)
        data = np.empty(tensor.end - tensor.begin, np.uint8)
        self.read_into(name, 0, data)
        data.flags.writeable = False
        while self._values and self._held + data.nbytes > self._room:
            self._held -= self._values.popitem(last=False)[1].nbytes
        self._values[name] = data
        self._held += data.nbytes
        return data

    def _fetch_alike(self, name: str) -> None:
        """Fetch a small tensor and those after it that have its last name: who asks for one asks for the others."""
        if name in self._ahead:  # fetched with one before it
            self._ahead.remove(name)
            return
        leaf, storage = name.rpartition(".")[2], self.tensors[name].file.storage
        key = leaf, id(storage)
        if key not in self._alike:
            self._alike[key] = self._ranges_alike(leaf, storage)
            storage.announce(self._alike[key].values(), leaf)
        ranges, room = self._alike[key], AHEAD
        names: list[str] = []
        for each in dropwhile(lambda other: other != name, ranges):
            room -= ranges[each].end - ranges[each].begin
            if room < 0 and names:
                break
            names.append(each)
        storage.prefetch(ranges[each] for each in names)
        self._ahead.update(names)
        self._ahead.discard(name)

    def _ranges_alike(self, leaf: str, storage: Storage) -> dict[str, Range]:
        """By name, where the small tensors lie that have this last name."""
        alike = (each for name, each in self.tensors.items() if name.rpartition(".")[2] == leaf)
        small = (each for each in alike if each.file.storage is storage and each.end - each.begin <= VALUE)
        return {each.name: Range(each.file.name, each.begin, each.end) for each in small}

    def read_small(self, name: str) -> Array:
        """`read` for what a reader looks at before anything is planned; QBridgeError (QB028) if it is not small."""
        tensor = self.tensors[name]
        if tensor.end - tensor.begin > SMALL:
            raise error("QB028", name, (f"{tensor.end - tensor.begin} bytes",))
        return self.read(name)

    def split(self, shapes: Mapping[str, tuple[int, ...]], whole: bool = False) -> None:
        """Have the slices of some tensors' first axes in their place: name[0], name[1] ..., each of the given shape.

        With `whole` the tensors stay there as well.

        ValueError for a shape that does not have as many elements as a slice.
        """
        kept = {name: tensor for name, tensor in self.tensors.items() if whole or name not in shapes}
        bytes_of, slices = dict(self.memory), set(self.slices)
        for name, shape in shapes.items():
            tensor, size = self.tensors[name], nbytes(self.tensors[name].dtype, shape)
            if size * tensor.shape[0] != tensor.end - tensor.begin:
                raise ValueError(f"{name}: {list(tensor.shape)} is not {tensor.shape[0]} times {list(shape)}")
            for number in range(tensor.shape[0]):
                begin, own = number * size, f"{name}[{number}]"
                first = tensor.begin + begin
                kept[own] = StoredTensor(own, tensor.file, tensor.dtype, shape, first, first + size, tensor.kind)
                if name in self.memory:
                    bytes_of[own] = self.memory[name][begin : begin + size]
                if whole:
                    slices.add(own)
        self.tensors, self.memory, self.slices = kept, bytes_of, frozenset(slices)

    def adopt(self, other: Source, names: Collection[str]) -> None:
        """Have tensors of another checkpoint among its own, whose files must not change either."""
        taken = {name: other.tensors[name] for name in names}
        files = {tensor.file for tensor in taken.values()}
        self.tensors = {**self.tensors, **taken}
        self.memory = {**self.memory, **{name: other.memory[name] for name in taken if name in other.memory}}
        self.stamps = {**self.stamps, **{file: other.stamps[file] for file in files if file in other.stamps}}
        self.adopted = self.adopted.union(taken)

    def hold(self, name: str, array: Array, dtype: DType) -> None:
        """Have a tensor that was computed and lies in no file."""
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        file = next(iter(self.tensors.values())).file
        self.tensors = {**self.tensors, name: StoredTensor(name, file, dtype, array.shape, 0, data.nbytes)}
        self.memory, self.slices = {**self.memory, name: data}, self.slices | {name}

    def leave_out(self, names: Collection[str]) -> None:
        """Have some tensors no more."""
        self.tensors = {name: tensor for name, tensor in self.tensors.items() if name not in names}

    def rename(self, names: Mapping[str, str]) -> None:
        """Call tensors by other names, each by its own; nothing moves."""
        self.tensors = {names.get(name, name): tensor for name, tensor in self.tensors.items()}
        self.memory = {names.get(name, name): data for name, data in self.memory.items()}
        self.unstored = tuple(names.get(name, name) for name in self.unstored)
        self._values = OrderedDict((names.get(name, name), data) for name, data in self._values.items())
        self._known.clear()

    def read_into(self, name: str, offset: int, buffer: Array) -> None:
        """Fill `buffer` (bytes) from `offset` bytes into the tensor's data; QBridgeError (QB064) without `values`."""
        if not self.values:
            raise error("QB064", name)
        if name in self.memory:
            buffer[:] = self.memory[name][offset : offset + buffer.nbytes]
            return
        tensor = self.tensors[name]
        if not tensor.file.read_into(tensor.begin + offset, buffer):
            raise error("QB004", tensor.file.name, (f"{name}: the file ended while it was read",))

    def read_rectangle(self, name: str, place: Rectangle, array: Array) -> None:
        """Fill `array`, C-ordered, with some rows and columns of a stored matrix.

        Many short rows are not read one by one: the whole tensor is read and kept, at most `keep` bytes per thread;
        but with `stretch`, where its contiguous pieces have at least so many bytes.
        """
        size = place.shape[0] * place.shape[1] * array.itemsize
        if self._remembers and size <= VALUE:
            whole = self._value(name).view(array.dtype).reshape(place.shape)
            array[...] = whole[place.top : place.top + place.rows, place.left : place.left + place.columns]
            return
        short = place.rows > 1 and place.columns * array.itemsize < _SHORT
        if short and size <= self.keep and not self._in_stretches(place, array.itemsize):
            whole = self._kept(name, size).view(array.dtype).reshape(place.shape)
            array[...] = whole[place.top : place.top + place.rows, place.left : place.left + place.columns]
            return
        data, done = array.reshape(-1).view(np.uint8), 0
        for offset, length in place.segments(array.itemsize):
            self.read_into(name, offset, data[done : done + length])
            done += length

    def _in_stretches(self, place: Rectangle, itemsize: int) -> bool:
        """Whether some rows and columns are read piece by piece, though their rows are short."""
        _, length = next(place.segments(itemsize))
        return 0 < self.stretch <= length

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
        if self._remembers and total <= VALUE:
            data = self._value(name)
            yield from (data[start : start + size] for start in range(0, total, size))
            return
        buffer = np.empty(min(size, total), np.uint8)
        for start in range(0, total, size):
            block = buffer[: min(size, total - start)]
            self.read_into(name, start, block)
            yield block

    def tokenizer(self) -> dict[str, Any]:
        """tokenizer_config.json as parsed; empty if there is none or it is no JSON object."""
        return self.side_object(TOKENIZER)

    def side_object(self, name: str) -> dict[str, Any]:
        """A JSON file beside config.json as parsed; empty if there is none or it is no JSON object."""
        try:
            value = load_json(self.file(name))
        except (OSError, ValueError):
            return {}  # a side file: carried over byte for byte whatever it holds
        return value if isinstance(value, dict) else {}

    def side_text(self, name: str, most: int) -> str:
        """At most so many bytes of a file beside config.json as text; empty if there is none."""
        try:
            return self.file(name).read(most).decode("utf-8", "replace")
        except OSError:
            return ""

    def spool(self, folder: Path, memory: int, files: int) -> None:
        """From now on all is read once, in order; what is fetched may lie in a folder, see `Storage.spool`."""
        for storage in self._storages():
            storage.spool(folder, memory, files)

    def announce(self) -> None:
        """Say how many bytes of weights will be read, where a person waits for them."""
        shards = (Range(name, 0, self.storage.size(name)) for name in self.shards)
        self.storage.announce(shards, "weights")

    def limit(self, open_files: int) -> None:
        """Have at most so many files open in each thread."""
        for storage in self._storages():
            storage.limit(open_files)

    def close(self) -> None:
        """Close every file; the source can be read again afterwards."""
        for storage in self._storages():
            storage.close()

    def _storages(self) -> Iterator[Storage]:
        """Its own, and those of what it adopted."""
        yield self.storage
        yield from {
            id(file.storage): file.storage for file in self.stamps if file.storage is not self.storage
        }.values()

    def check_unchanged(self) -> None:
        """QBridgeError: QB038 if a shard has another size or time of change than when it was opened.

        QB063 if what a server gave of a file is not what its digest says.
        """
        for storage in self._storages():
            storage.check_read()
        changed = [file.name for file, stamp in self.stamps.items() if file.stamp != stamp]
        if changed:
            raise error("QB038", changed)

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
