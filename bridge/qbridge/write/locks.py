"""A lock on an open file that ends with the process: flock, or the byte locks of Windows."""

from __future__ import annotations

import errno
import importlib
import os
from types import ModuleType
from typing import Any

_TAKEN = (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLOCK)
_FAR = 1 << 40  # Windows locks bytes, and a locked byte cannot be read: one that no journal reaches


def is_free(descriptor: int) -> bool:
    """Lock an open file as long as it is open; False where another process holds it.

    Where the system or the file system has no locks there is nothing to hold, and the answer is True.
    """
    try:
        if unix := _module("fcntl"):
            unix.flock(descriptor, unix.LOCK_EX | unix.LOCK_NB)
        elif windows := _module("msvcrt"):
            _lock_a_byte(windows, descriptor)
    except OSError as fault:
        return fault.errno not in _TAKEN
    return True


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _lock_a_byte(windows: ModuleType, descriptor: int) -> None:
    before = os.lseek(descriptor, 0, os.SEEK_CUR)
    os.lseek(descriptor, _FAR, os.SEEK_SET)
    try:
        windows.locking(descriptor, windows.LK_NBLCK, 1)
    finally:
        os.lseek(descriptor, before, os.SEEK_SET)
