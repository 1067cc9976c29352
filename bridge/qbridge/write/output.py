"""Where the bytes of a file go that is being written: a seam, of which a file of this machine is the first kind."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, runtime_checkable

from qbridge.ir.dtypes import Array
from qbridge.source.folder import read_all
from qbridge.source.positioned import BINARY, write_at

_flush_data: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)  # macOS has none


@runtime_checkable
class Output(Protocol):
    """Bytes at offsets, written in any order by several threads, and read back by them.

    OSError where that fails. A subclass has what it needs of `write` to `close`; `descriptor` has a default.
    """

    def write(self, data: bytes | memoryview, offset: int) -> None:
        """Write every byte at its place."""

    def read_into(self, offset: int, buffer: Array) -> bool:
        """Fill `buffer` (bytes) from an offset; whether so many have been written."""

    def extend(self, size: int) -> None:
        """Have so many bytes at least; what nobody writes is zero."""

    def flush(self, whole: bool) -> None:
        """Have what was written outlast a loss of power; `whole` with all that the file system says of it."""

    def close(self) -> None:
        """Nothing is written or read afterwards."""

    @property
    def descriptor(self) -> int | None:
        """An open file that the kernel can copy into; or None."""
        return None


class FileOutput(Output):
    """An open file."""

    def __init__(self, descriptor: int) -> None:
        """It is closed by `close`."""
        self._descriptor = descriptor

    @classmethod
    def new(cls, path: Path) -> FileOutput:
        """A file that is not there yet."""
        return cls(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | BINARY, 0o666))

    @classmethod
    def of(cls, path: Path) -> FileOutput:
        """A file that is there, to be read back."""
        return cls(os.open(path, os.O_RDONLY | BINARY))

    def write(self, data: bytes | memoryview, offset: int) -> None:
        """Write every byte at its place."""
        write_at(self._descriptor, memoryview(data), offset)

    def read_into(self, offset: int, buffer: Array) -> bool:
        """Fill `buffer` (bytes) from an offset; whether the file had that many."""
        return read_all(self._descriptor, buffer, offset)

    def extend(self, size: int) -> None:
        """Lengthen the file; it is never shortened."""
        if os.fstat(self._descriptor).st_size < size:
            os.ftruncate(self._descriptor, size)

    def flush(self, whole: bool) -> None:
        """To the disk; its times and the like only if `whole`."""
        (os.fsync if whole else _flush_data)(self._descriptor)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    @property
    def descriptor(self) -> int:
        """The open file."""
        return self._descriptor


def fsync_folder(folder: str | Path) -> None:
    """Have the names in a folder outlast a loss of power."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except (PermissionError, IsADirectoryError):  # Windows opens no folders
        return
    try:
        os.fsync(descriptor)
    except OSError as fault:
        if fault.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that flushes no folders
            raise
    finally:
        os.close(descriptor)
