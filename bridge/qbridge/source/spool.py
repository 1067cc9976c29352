"""What comes from a server and is read more than once, or in small pieces: unnamed files, fetched in large blocks.

A block is fetched once, whoever asks first; the next ones of the file are asked for meanwhile. Files that were not
read lately are given up, and fetched again if they are read after all. Nothing has a name, so nothing is left behind.
A file that was fetched whole is held against its digest, where one is known.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qbridge.findings.finding import error
from qbridge.ir.dtypes import Array
from qbridge.source.folder import read_all
from qbridge.source.positioned import write_at
from qbridge.source.storage import Range

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK = 4 << 20  # bytes of one request
CONNECTIONS = 16  # requests under way at a time, as far as memory allows

NOTHING: Mapping[str, str] = {}
Fetch = Callable[[str, int, Array], None]


@dataclass(slots=True)
class _File:
    """An unnamed file that has some blocks of one on a server, and how many threads read it."""

    descriptor: int
    blocks: dict[int, Future[None]] = field(default_factory=dict)
    readers: int = 0


class Spool:
    """Files of known sizes that `fetch` fills buffers from, read through unnamed files of a folder."""

    def __init__(
        self,
        sizes: Mapping[str, int],
        fetch: Fetch,
        folder: Path,
        memory: int,
        files: int,
        expected: Iterable[Range] | None = None,
        digests: Mapping[str, str] = NOTHING,
    ) -> None:
        """At most `memory` bytes are under way at a time, one block at least; of `files` files the bytes are kept.

        Blocks without anything that is `expected` are not fetched before they are asked for; None expects all.
        `digests` has the sha256 of files, in hexadecimal.
        """
        self._sizes, self._fetch, self._folder, self._most = sizes, fetch, folder, files
        self._ahead = max(1, min(CONNECTIONS, memory // BLOCK))
        self._fetching = ThreadPoolExecutor(self._ahead, "qbridge-fetch")
        self._files: OrderedDict[str, _File] = OrderedDict()
        self._lock = threading.Lock()
        self._digests, self._checks = digests, list[Future[None]]()
        self._expected: dict[str, set[int]] | None = None if expected is None else _blocks(expected)

    def read_into(self, name: str, offset: int, buffer: Array) -> None:
        """Fill `buffer` from an offset of a file, which has that many bytes."""
        first, last = offset // BLOCK, (offset + buffer.nbytes - 1) // BLOCK
        with self._reading(name) as file:
            blocks = file.blocks
            with self._lock:
                end = min(last + self._ahead, (self._sizes[name] - 1) // BLOCK)
                for number in range(first, end + 1):
                    if number > last and not self._is_expected(name, number):
                        continue
                    if number not in blocks or _has_failed(blocks[number]):
                        blocks[number] = self._fetching.submit(self._fill, name, file, number)
                waiting = [blocks[number] for number in range(first, last + 1)]
            for block in waiting:
                block.result()
            if not read_all(file.descriptor, buffer, offset):
                raise OSError(f"{name} ended in the spool")

    def _is_expected(self, name: str, number: int) -> bool:
        return self._expected is None or number in self._expected.get(name, ())

    def check(self) -> None:
        """QBridgeError (QB063) for a file that was fetched whole and is not what its digest says."""
        with self._lock:
            for name in [name for name, file in self._files.items() if not file.readers and _is_quiet(file)]:
                self._give_up(name)
            checks, self._checks = self._checks, []
        for each in checks:
            each.result()

    def close(self) -> None:
        """Give up every file."""
        self._fetching.shutdown(cancel_futures=True)
        with self._lock:
            while self._files:
                os.close(self._files.popitem()[1].descriptor)

    @contextmanager
    def _reading(self, name: str) -> Iterator[_File]:
        """The unnamed file of one on the server, which stays as long as this lasts."""
        with self._lock:
            if name not in self._files:
                self._give_up_old()
                self._files[name] = _File(_unnamed(self._folder))
            file = self._files[name]
            self._files.move_to_end(name)
            file.readers += 1
        try:
            yield file
        finally:
            with self._lock:
                file.readers -= 1

    def _give_up_old(self) -> None:
        """Under the lock: close the oldest of the files that nobody reads or fetches, where there are too many."""
        idle = [name for name, file in self._files.items() if not file.readers and _is_quiet(file)]
        for name in idle[: max(0, len(self._files) - self._most + 1)]:
            self._give_up(name)

    def _give_up(self, name: str) -> None:
        """Under the lock: have a file no more; its bytes are looked at once again where they are all there."""
        file, digest = self._files.pop(name), self._digests.get(name)
        whole = len(file.blocks) == -(-self._sizes[name] // BLOCK) and not any(map(_has_failed, file.blocks.values()))
        if digest and whole:
            self._checks.append(self._fetching.submit(_check, name, file.descriptor, digest))
        else:
            os.close(file.descriptor)

    def _fill(self, name: str, file: _File, number: int) -> None:
        buffer = np.empty(min(BLOCK, self._sizes[name] - number * BLOCK), np.uint8)
        self._fetch(name, number * BLOCK, buffer)
        write_at(file.descriptor, buffer.data, number * BLOCK)


def _check(name: str, descriptor: int, digest: str) -> None:
    """Close a file; QBridgeError (QB063) where its bytes have another sha256."""
    found = hashlib.sha256()
    with open(descriptor, "rb", buffering=0) as stream:
        stream.seek(0)
        while data := stream.read(BLOCK):
            found.update(data)
    if found.hexdigest() != digest:
        raise error("QB063", name, (f"its sha256 is {found.hexdigest()}, the listing says {digest}",))


def _blocks(ranges: Iterable[Range]) -> dict[str, set[int]]:
    """By file, the numbers of the blocks in which some ranges lie."""
    found: dict[str, set[int]] = {}
    for name, begin, end in ranges:
        found.setdefault(name, set()).update(range(begin // BLOCK, -(-end // BLOCK)))
    return found


def _has_failed(block: Future[None]) -> bool:
    return block.done() and (block.cancelled() or block.exception() is not None)


def _is_quiet(file: _File) -> bool:
    return all(block.done() for block in file.blocks.values())


def _unnamed(folder: Path) -> int:
    """An open file without a name: it is gone when it is closed, or when the process is killed."""
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        return os.dup(file.fileno())
