"""What comes from a server and is read more than once, or in small pieces: unnamed files, fetched in large blocks.

A block is fetched once, whoever asks first; the next ones of the file are asked for meanwhile. Files that were not
read lately are given up, and fetched again if they are read after all. Nothing has a name, so nothing is left behind.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qbridge.ir.dtypes import Array
from qbridge.source.folder import read_all
from qbridge.source.positioned import write_at

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK = 4 << 20  # bytes of one request
CONNECTIONS = 16  # requests under way at a time, as far as memory allows

Fetch = Callable[[str, int, Array], None]


@dataclass(slots=True)
class _File:
    """An unnamed file that has some blocks of one on a server, and how many threads read it."""

    descriptor: int
    blocks: dict[int, Future[None]] = field(default_factory=dict)
    readers: int = 0


class Spool:
    """Files of known sizes that `fetch` fills buffers from, read through unnamed files of a folder."""

    def __init__(self, sizes: Mapping[str, int], fetch: Fetch, folder: Path, memory: int, files: int) -> None:
        """At most `memory` bytes are under way at a time, one block at least; of `files` files the bytes are kept."""
        self._sizes, self._fetch, self._folder, self._most = sizes, fetch, folder, files
        self._ahead = max(1, min(CONNECTIONS, memory // BLOCK))
        self._fetching = ThreadPoolExecutor(self._ahead, "qbridge-fetch")
        self._files: OrderedDict[str, _File] = OrderedDict()
        self._lock = threading.Lock()

    def read_into(self, name: str, offset: int, buffer: Array) -> None:
        """Fill `buffer` from an offset of a file, which has that many bytes."""
        first, last = offset // BLOCK, (offset + buffer.nbytes - 1) // BLOCK
        with self._reading(name) as file:
            blocks = file.blocks
            with self._lock:
                end = min(last + self._ahead, (self._sizes[name] - 1) // BLOCK)
                for number in range(first, end + 1):
                    if number not in blocks or _has_failed(blocks[number]):
                        blocks[number] = self._fetching.submit(self._fill, name, file, number)
                waiting = [blocks[number] for number in range(first, last + 1)]
            for block in waiting:
                block.result()
            if not read_all(file.descriptor, buffer, offset):
                raise OSError(f"{name} ended in the spool")

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
            os.close(self._files.pop(name).descriptor)

    def _fill(self, name: str, file: _File, number: int) -> None:
        buffer = np.empty(min(BLOCK, self._sizes[name] - number * BLOCK), np.uint8)
        self._fetch(name, number * BLOCK, buffer)
        write_at(file.descriptor, buffer.data, number * BLOCK)


def _has_failed(block: Future[None]) -> bool:
    return block.done() and (block.cancelled() or block.exception() is not None)


def _is_quiet(file: _File) -> bool:
    return all(block.done() for block in file.blocks.values())


def _unnamed(folder: Path) -> int:
    """An open file without a name: it is gone when it is closed, or when the process is killed."""
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        return os.dup(file.fileno())
