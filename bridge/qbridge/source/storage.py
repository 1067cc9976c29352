"""Named bytes: what a checkpoint's files are read from, wherever they lie. Nothing here writes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from qbridge.ir.dtypes import Array
from qbridge.source.json_text import MAX_HEADER, parse_json


class Range(NamedTuple):
    """Some bytes of a file of a storage."""

    name: str
    begin: int
    end: int


@runtime_checkable
class Storage(Protocol):
    """Named files below one place: a folder, a repository, a bucket.

    Names are relative and have "/" between folders. Files may be read from several threads at a time; OSError where
    one cannot be. A subclass has what it needs of `names` to `read_into`; the rest has a default.
    """

    @property
    def url(self) -> str:
        """The place as a person named it."""

    @property
    def identity(self) -> str:
        """The place by the one name that tells it from every other."""

    def names(self) -> Sequence[str]:
        """Every file, hidden ones left out but .gitattributes, as they were when it was first asked.

        A folder that is a link is not followed: its name is there with "/" at the end.
        """

    def has(self, name: str) -> bool:
        """Whether there is such a file, by any plain relative name; links are followed."""

    def size(self, name: str) -> int:
        """Bytes of a file."""

    def stamp(self, name: str) -> str:
        """What changes when a file is replaced or written."""

    def read_into(self, name: str, offset: int, buffer: Array) -> bool:
        """Fill `buffer` (bytes) from an offset of a file; whether the file had that many."""

    def etag(self, name: str) -> str:
        """What tells the content of a file from every other, where a server says it; else empty."""
        return ""

    @property
    def pinned(self) -> str:
        """The address that will always mean this content; empty where there is none."""
        return ""

    @property
    def restricted(self) -> str:
        """Why not everybody may read it (gated, private), where a server says so; else empty."""
        return ""

    def read(self, name: str, most: int = MAX_HEADER) -> bytes:
        """The first bytes of a file, `most` or as many as it has."""
        buffer = np.empty(min(most, self.size(name)), np.uint8)
        if not self.read_into(name, 0, buffer):
            raise OSError(f"{name} ended while it was read")
        return buffer.tobytes()

    def descriptor(self, name: str) -> int | None:
        """An open file that the kernel can copy from, good until the same thread asks for many others; or None."""
        return None

    def path(self, name: str = "") -> Path | None:
        """Where a file, or the place itself, lies on this machine; None if it does not."""
        return None

    @property
    def is_far(self) -> bool:
        """Whether each read waits for a server, so that many small ones are fetched together (`prefetch`)."""
        return False

    def prefetch(self, ranges: Iterable[Range]) -> None:
        """Have bytes at hand that will be read soon, where that saves time."""
        return None

    def announce(self, ranges: Iterable[Range], what: str) -> None:
        """Say how much will be read, where a person waits for it; `what` it is."""
        return None

    def expect(self, ranges: Iterable[Range]) -> None:
        """Nothing else will be read from now on, so that nothing else need be fetched before it is asked for."""
        return None

    def spool(self, folder: Path, memory: int, files: int) -> None:
        """From now on all is read once, in order: what is fetched may lie in unnamed files of a folder meanwhile.

        `memory` is how many bytes may be under way at a time, `files` how many files are read at a time.
        """
        return None

    def check_read(self) -> None:
        """QBridgeError (QB063) for a file that was read whole and is not what its digest says, where one is known."""
        return None

    def strays(self, name: str) -> bool:
        """Whether a file is a link that leads out of the place."""
        return False

    def unfinished(self) -> Sequence[str]:
        """Files that a download has begun and not ended."""
        return ()

    def limit(self, open_files: int) -> None:
        """Have at most so many files open in each thread."""
        return None

    def close(self) -> None:
        """Close every file; it can be read again afterwards."""


class File(NamedTuple):
    """One file of a storage."""

    storage: Storage
    name: str

    @property
    def size(self) -> int:
        """Its bytes."""
        return self.storage.size(self.name)

    @property
    def stamp(self) -> str:
        """What changes when it is replaced or written."""
        return self.storage.stamp(self.name)

    @property
    def path(self) -> Path | None:
        """Where it lies on this machine; None if it does not."""
        return self.storage.path(self.name)

    @property
    def descriptor(self) -> int | None:
        """`Storage.descriptor` of it."""
        return self.storage.descriptor(self.name)

    def read(self, most: int = MAX_HEADER) -> bytes:
        """Its first bytes, `most` or as many as it has."""
        return self.storage.read(self.name, most)

    def read_into(self, offset: int, buffer: Array) -> bool:
        """Fill `buffer` (bytes) from an offset; whether it had that many."""
        return self.storage.read_into(self.name, offset, buffer)

    def blocks(self, size: int) -> Iterator[Array]:
        """All its bytes in blocks of at most `size`, each valid until the next is asked for."""
        left, buffer = self.size, np.empty(size, np.uint8)
        for start in range(0, left, size):
            block = buffer[: left - start]
            if not self.read_into(start, block):
                raise OSError(f"{self.name} ended while it was read")
            yield block


def load_json(file: File) -> Any:
    """A file as JSON that names every key once; ValueError also if it is larger than any config or index, OSError."""
    text = file.read(MAX_HEADER + 1)
    if len(text) > MAX_HEADER:
        raise ValueError(f"it has more than {MAX_HEADER} bytes")
    return parse_json(text)
