"""Reads and writes at an offset of an open file, also on systems that have no call for it (Windows)."""

from __future__ import annotations

import os
import threading

BINARY: int = getattr(os, "O_BINARY", 0)  # Windows translates line ends without it
NO_FOLLOW: int = getattr(os, "O_NOFOLLOW", 0)  # Windows has no such flag

_TURN = threading.Lock()  # a seek and what follows it are one step, whoever shares the file


def read_at(descriptor: int, buffer: memoryview, offset: int) -> int:
    """Read bytes at an offset into `buffer`; how many were there, 0 at the end of the file."""
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [buffer], offset)
    with _TURN:
        os.lseek(descriptor, offset, os.SEEK_SET)
        data = os.read(descriptor, len(buffer))
    buffer[: len(data)] = data
    return len(data)


def write_at(descriptor: int, data: memoryview, offset: int) -> None:
    """Write every byte of `data` at an offset."""
    done = 0
    while done < len(data):
        done += _write_some(descriptor, data[done:], offset + done)


def _write_some(descriptor: int, data: memoryview, offset: int) -> int:
    if hasattr(os, "pwrite"):
        return os.pwrite(descriptor, data, offset)
    with _TURN:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.write(descriptor, data)
