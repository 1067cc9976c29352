"""A file of the output that is a file of the source: its blocks shared, the same file, or a link to it.

Blocks are shared where the file system can (btrfs, XFS): then the two are files of their own, and neither changes
with the other. A hard link is the same file under another name: whoever writes into it, wherever, changes both, so
that nothing here opens an output that is there already for writing. A symbolic link needs the source to stay.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from qbridge.findings.finding import error
from qbridge.source.storage import File

REFLINK, HARD, SYMBOLIC = "shared blocks", "hard link", "symbolic link"
_FICLONE = 0x40049409  # linux/fs.h
_HEAD = 1 << 20  # bytes of a file with shared blocks that are compared, at its beginning


def link(file: File, to: Path) -> str:
    """Have the bytes of `file` at `to`, which does not exist, without writing them; how that was done.

    Raises QBridgeError: QB326 where the file system has no links, QB403 where it is not the same file after all.
    """
    path = file.path
    if path is None:
        raise error("QB326", to.name, (f"{file.name} does not lie on this machine",))
    there = path.resolve()
    for how, make in ((REFLINK, _share_blocks), (HARD, os.link), (SYMBOLIC, os.symlink)):
        try:
            make(there, to)
        except OSError as fault:
            refusal = fault
            continue
        if not _is_same(there, to, how):
            raise error("QB403", to.name, (f"it is no {how} of {there}",))
        return how
    raise error("QB326", to.name, (str(refusal),))


def _share_blocks(file: Path, to: Path) -> None:
    """A new file of the same blocks, flushed to the disk; OSError, and no file, where that cannot be done."""
    try:
        import fcntl
    except ImportError:  # Windows
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP)) from None
    read = os.open(file, os.O_RDONLY)
    try:
        write = os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            fcntl.ioctl(write, _FICLONE, read)
            os.fsync(write)
        except BaseException:
            with contextlib.suppress(OSError):
                to.unlink()
            raise
        finally:
            os.close(write)
    finally:
        os.close(read)


def _is_same(file: Path, to: Path, how: str) -> bool:
    """Whether it is the same file, or one of the same size and beginning whose blocks are shared."""
    if how != REFLINK:
        return os.path.samefile(file, to)
    with open(file, "rb") as first, open(to, "rb") as second:
        return os.path.getsize(file) == os.path.getsize(to) and first.read(_HEAD) == second.read(_HEAD)
