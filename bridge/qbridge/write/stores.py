"""Where the files of an output come to lie one by one: a seam, of which a folder is the first kind.

A file appears whole or not at all. What is needed until the output is whole has names that begin with `HIDDEN`, and
no reader takes the output for a checkpoint before its config.json, the last of all, is there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from qbridge.write.locks import is_free
from qbridge.write.output import fsync_folder

HIDDEN = ".qbridge-parts/"
_GROWING = ".qbridge-growing-"  # what a small file is called, beside its place, before it is whole
_LOCK = "lock"


def is_hidden(name: str) -> bool:
    """Whether a file is no part of the output: what is needed until it is whole, or what a killed process left."""
    return name.startswith(HIDDEN) or name.rpartition("/")[2].startswith(_GROWING)


@runtime_checkable
class Store(Protocol):
    """Named files of one output. Names are relative, with "/" between folders. OSError where something fails."""

    @property
    def url(self) -> str:
        """The store as a person named it."""

    def names(self) -> Sequence[str]:
        """Every file that is there, hidden ones included."""

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where there is none."""

    def read(self, name: str, most: int | None = None) -> bytes | None:
        """A file, or its first bytes; None where there is none."""

    def create(self, name: str, data: bytes) -> bool:
        """Have a small file where none is; False where one is already, which stays as it is."""

    def put(self, name: str, data: bytes) -> None:
        """Have a small file, in place of any that is there."""

    def take(self, path: Path, name: str) -> None:
        """Have a file of this machine, which is whole, flushed, and gone afterwards."""

    def remove(self, names: Iterable[str]) -> None:
        """Have some files no more, whether they are there or not."""

    def working(self, name: str) -> contextlib.AbstractContextManager[Path]:
        """A folder of this machine in which files grow; the one that an earlier run of this name left is emptied."""

    @property
    def shows_parts(self) -> bool:
        """Whether others see what was put and taken before the output is whole."""
        return True

    def abort_uploads(self) -> list[str]:
        """Abort what killed processes have begun to send, and have not ended; the names."""
        return []

    def is_worked_on(self) -> bool:
        """Whether some process makes a part of it, as far as that is known."""
        return False

    def commit(self, whole: bool) -> None:
        """Have all that was put and taken be seen by others, where that is not so at once; `whole` if it is all."""

    def check_writable(self, restricted: str) -> None:
        """QBridgeError where the output cannot be written here, asked before anything of the source is converted.

        `restricted` says why not everybody may read the source.
        """
        return None

    def room(self, largest: int) -> int | None:
        """How many files of at most so many bytes may grow at a time; None where nobody counts."""
        return None


class FolderStore(Store):
    """A folder of this machine, or one that several machines see."""

    def __init__(self, root: Path) -> None:
        """It need not exist."""
        self._root = root

    @property
    def url(self) -> str:
        """The path as it was given."""
        return str(self._root)

    def names(self) -> Sequence[str]:
        """Those of folders in it, too."""
        found = (path for path in self._root.rglob("*") if not path.is_dir() or path.is_symlink())
        return sorted(path.relative_to(self._root).as_posix() for path in found)

    def size(self, name: str) -> int | None:
        """As `Store.size`."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return (self._root / name).stat().st_size
        return None

    def read(self, name: str, most: int | None = None) -> bytes | None:
        """As `Store.read`."""
        try:
            with open(self._root / name, "rb") as stream:
                return stream.read(-1 if most is None else most)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def create(self, name: str, data: bytes) -> bool:
        """A link from a file that is whole: where the name exists, the kernel refuses it."""
        with self._written(name, data) as there:
            try:
                os.link(there, self._root / name)
            except FileExistsError:
                return False
            except OSError as fault:
                if fault.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
                    raise
                if (self._root / name).exists():  # a file system without links: two may meet here, with the same text
                    return False
                os.replace(there, self._root / name)
            self._flush_folder(name)
            return True

    def put(self, name: str, data: bytes) -> None:
        """A rename of a file that is whole."""
        with self._written(name, data) as there:
            os.replace(there, self._root / name)
            self._flush_folder(name)

    def take(self, path: Path, name: str) -> None:
        """A rename."""
        (self._root / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, self._root / name)
        self._flush_folder(name)

    def remove(self, names: Iterable[str]) -> None:
        """Folders that are empty then go, too."""
        for name in names:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                (self._root / name).unlink()
            folder = (self._root / name).parent
            with contextlib.suppress(OSError):
                while folder != self._root:
                    folder.rmdir()
                    folder = folder.parent

    @contextlib.contextmanager
    def working(self, name: str) -> Iterator[Path]:
        """In the store itself, so that a rename is enough; a second run of the name at a time gets its own folder."""
        home = self._root / HIDDEN
        home.mkdir(parents=True, exist_ok=True)
        lock = os.open(home / f"{name}.{_LOCK}", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not is_free(lock):
                folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=home))
            else:
                folder = home / name
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)

    def is_worked_on(self) -> bool:
        """Whether a lock is held."""
        for file in (self._root / HIDDEN).glob(f"*.{_LOCK}"):
            lock = os.open(file, os.O_RDWR)
            try:
                if not is_free(lock):
                    return True
            finally:
                os.close(lock)
        return False

    def commit(self, whole: bool) -> None:
        """All is seen at once."""

    @contextlib.contextmanager
    def _written(self, name: str, data: bytes) -> Iterator[Path]:
        """A file beside the one of a name that has some bytes on the disk; it is gone afterwards."""
        folder = (self._root / name).parent
        folder.mkdir(parents=True, exist_ok=True)
        there = folder / f"{_GROWING}{secrets.token_hex(8)}"
        try:
            with open(there, "xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            yield there
        finally:
            there.unlink(missing_ok=True)

    def _flush_folder(self, name: str) -> None:
        fsync_folder((self._root / name).parent)
