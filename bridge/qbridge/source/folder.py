"""A folder of this machine as a storage; the blobs of a Hugging Face cache belong to its snapshots."""

from __future__ import annotations

import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from qbridge.ir.dtypes import Array
from qbridge.source.json_text import MAX_HEADER
from qbridge.source.positioned import BINARY, read_at
from qbridge.source.storage import Storage

SCANNED = 1000  # entries of a folder that are looked at, where it is asked what it is
OPEN_FILES = 16  # of one thread; a checkpoint may have more shards than a process may open files
_ATTRIBUTES = ".gitattributes"  # says which files of a repository are Git LFS's, as in the output
_PARTIAL = (".incomplete", ".aria2", ".crdownload", ".part")  # huggingface_hub, aria2, Chrome, Firefox and wget
_DOWNLOADS = ".cache/huggingface/download"  # of `hf download --local-dir`


class Folder(Storage):
    """The files below a folder; a thread keeps those open that it read last."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        """Nothing is read yet, and the folder need not exist."""
        self._root = Path(root)
        self._open_files = OPEN_FILES
        self._names: list[str] | None = None
        self._handles: list[OrderedDict[str, int]] = []
        self._thread = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        """What is sent to another process: no open file, no thread."""
        return {"root": self._root, "open_files": self._open_files}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """The same folder, with no file open."""
        Folder.__init__(self, state["root"])
        self._open_files = state["open_files"]

    def __eq__(self, other: object) -> bool:
        """Whether it is a folder by the same path, as a copy in another process is."""
        return isinstance(other, Folder) and self._root == other._root

    def __hash__(self) -> int:
        """That of its path."""
        return hash(self._root)

    @property
    def url(self) -> str:
        """The path as it was given."""
        return str(self._root)

    @property
    def identity(self) -> str:
        """The path without links."""
        return str(self._root.resolve())

    def names(self) -> Sequence[str]:
        """Files of the folder first, then of the folders in it, each in order."""
        if self._names is None:
            self._names = list(self._walk())
        return self._names

    def _walk(self) -> Iterator[str]:
        for folder, folders, files in os.walk(self._root, followlinks=False):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            relative = os.path.relpath(folder, self._root)
            prefix = "" if relative == os.curdir else f"{relative}/"
            yield from (f"{prefix}{name}/" for name in folders if os.path.islink(os.path.join(folder, name)))
            yield from (prefix + name for name in sorted(files) if not name.startswith(".") or name == _ATTRIBUTES)

    def has(self, name: str) -> bool:
        """Whether it is a file; OSError for a name that no file can have."""
        return (self._at(name)).is_file()

    def size(self, name: str) -> int:
        """Bytes of a file."""
        return os.stat(self._at(name)).st_size

    def stamp(self, name: str) -> str:
        """Its size and the time of its last change, in ns."""
        status = os.stat(self._at(name))
        return f"{status.st_size} {status.st_mtime_ns}"

    def read_into(self, name: str, offset: int, buffer: Array) -> bool:
        """Fill `buffer` (bytes) from an offset of a file; whether the file had that many."""
        return read_all(self.descriptor(name), buffer, offset)

    def read(self, name: str, most: int = MAX_HEADER) -> bytes:
        """The first bytes of a file, which is not left open."""
        with open(self._at(name), "rb") as stream:
            return stream.read(most)

    def descriptor(self, name: str) -> int:
        """An open read-only file, good until the same thread asks for many others."""
        handles: OrderedDict[str, int] | None = getattr(self._thread, "handles", None)
        if handles is None:
            handles = self._thread.handles = OrderedDict()
            self._handles.append(handles)
        if name in handles:
            handles.move_to_end(name)
            return handles[name]
        while len(handles) >= self._open_files:
            os.close(handles.popitem(last=False)[1])
        handles[name] = os.open(self._at(name), os.O_RDONLY | BINARY)
        return handles[name]

    def path(self, name: str = "") -> Path:
        """The folder, or a file in it."""
        return self._at(name)

    def _at(self, name: str) -> Path:
        return self._root / name

    def strays(self, name: str) -> bool:
        """Whether it lies, its links followed, neither in the folder nor in the blobs of a Hugging Face cache.

        A folder of the cache has its own blobs; `--local-dir` of huggingface_hub before 0.23 left links into the
        cache.
        """
        file = self._at(name)
        if file.parent == self._root and not file.is_symlink():
            return False
        home, there = self._root.resolve(), file.resolve()
        homes = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
        return not (any(there.is_relative_to(place) for place in homes) or _is_blob(there))

    def unfinished(self) -> Sequence[str]:
        """Files that tools name as unfinished, or that `hf download` has not ended."""
        there = [(name, name) for name in entries(self._root)]
        there += [(name, f"{_DOWNLOADS}/{name}") for name in entries(self._root / _DOWNLOADS)]
        return sorted(relative for name, relative in there if name.endswith(_PARTIAL))

    def limit(self, open_files: int) -> None:
        """Have at most so many files open in each thread."""
        self._open_files = min(self._open_files, open_files)

    def close(self) -> None:
        """Close every file of every thread."""
        for handles in self._handles:
            while handles:
                os.close(handles.popitem()[1])


def read_all(descriptor: int, buffer: Array, offset: int) -> bool:
    """Fill `buffer` (bytes) from an offset of a file; whether the file had that many."""
    view, done = buffer.data.cast("B"), 0
    while done < len(view):
        count = read_at(descriptor, view[done:], offset + done)
        if count == 0:
            return False
        done += count
    return True


def model_name(path: str | os.PathLike[str]) -> str:
    """The name of a model by its folder, or by its repository in a Hugging Face cache (models--owner--name)."""
    folder = Path(path).absolute()
    cached = re.fullmatch(r"models--(?:.+--)?(.+)", folder.parent.parent.name)
    return cached[1] if cached and folder.parent.name == "snapshots" else folder.name or "model"


def _is_blob(file: Path) -> bool:
    """Whether a file is one of a Hugging Face cache by its whole path: models--owner--name/blobs/<digest>."""
    digest = len(file.name) in (40, 64) and not set(file.name) - set("0123456789abcdef")
    return digest and file.parent.name == "blobs" and file.parent.parent.name.startswith("models--")


def entries(folder: Path) -> list[str]:
    """The names in a folder, the first of them where there are very many; none where it cannot be read."""
    try:
        with os.scandir(folder) as found:
            return [entry.name for entry in islice(found, SCANNED)]
    except OSError:
        return []
