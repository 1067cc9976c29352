"""Where an output grows until it is whole: a temporary folder, its journal, and the moment at which DST appears.

DST is absent or complete at every instant. The output grows in `.NAME.qbridge-part` beside DST, or inside DST where
that is an empty folder or a mount point. `.NAME.qbridge-journal`, which is also the lock, lists the shards that are
whole on the disk, so that the same command goes on after the last of them. Order matters for a power loss: a shard is
flushed before the journal names it, everything before the rename.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from qbridge.findings import error
from qbridge.source import INDEX

_TRIES = 6  # renames that a virus scanner or a Windows drive may refuse at first
_CONFIG = "config.json"


@dataclass(slots=True)
class Stage:
    """A folder that becomes DST: `finished` are the names of the shards that an earlier run left whole in it.

    If it is `complete`, an earlier run was cut while DST appeared, and nothing is left to be written.
    """

    folder: Path
    finished: frozenset[str]
    complete: bool
    _journal: int

    def note(self, shard: str) -> None:
        """Record a shard, already flushed to the disk, as finished."""
        _append(self._journal, {"shard": shard})


@dataclass(frozen=True, slots=True)
class _Places:
    """Every path that the making of one DST touches."""

    dst: Path
    inside: bool
    part: Path = field(init=False)
    journal: Path = field(init=False)
    aside: Path = field(init=False)

    def __post_init__(self) -> None:
        home = self.dst if self.inside else self.dst.parent
        for name, suffix in (("part", "part"), ("journal", "journal"), ("aside", "old")):
            object.__setattr__(self, name, home / f".{self.dst.name}.qbridge-{suffix}")

    @property
    def own(self) -> frozenset[str]:
        """Names inside DST that do not make it a folder with content."""
        return frozenset({self.part.name, self.journal.name, "lost+found"}) if self.inside else frozenset()


def _places(dst: Path) -> _Places:
    """Beside DST, or inside it where it is a folder with nothing of anybody else's in it."""
    inside = _Places(dst, inside=True)
    if dst.is_dir() and not dst.is_symlink():
        names = set(os.listdir(dst))
        if names <= inside.own or inside.journal.name in names:
            return inside
    return _Places(dst, inside=False)


@contextlib.contextmanager
def staged(dst: Path, src: Path, overwrite: bool, identity: str, size: int) -> Iterator[Stage]:
    """A stage whose folder becomes `dst` when the block ends well.

    `identity` tells one conversion from another: a stage of the same one is gone on with, any other is emptied.
    `size` is the bytes to come. An interrupt keeps a stage with finished shards, any other exception removes it.
    """
    check_destination(dst, src, overwrite)
    recover(dst, identity)
    made = [folder for folder in dst.parents if not folder.exists()]
    dst.parent.mkdir(parents=True, exist_ok=True)
    places = _places(dst)
    journal: int | None = None
    try:
        journal = _locked(places)
        check_destination(dst, src, overwrite)  # what a killed run had left may be whole by now
        if _is_moving(_lines(journal)):
            yield Stage(places.part, frozenset(), True, journal)
        else:
            finished = _resumed(places, journal, identity)
            _check_space(places, size)
            yield Stage(places.part, finished, False, journal)
            _fsync_folder(places.part)
        _put(places, journal)
    except BaseException as fault:
        if journal is not None and not _is_worth_keeping(fault, journal):
            shutil.rmtree(places.part, ignore_errors=True)
            _forget(places)
        if journal is None or not places.part.exists():
            with contextlib.suppress(OSError):  # innermost first, as far as they are empty
                for folder in made:
                    folder.rmdir()
        raise
    finally:
        if journal is not None:
            os.close(journal)


def check_destination(dst: Path, src: Path, overwrite: bool) -> None:
    """QBridgeError (QB031) if writing `dst` would touch the source or anything that was not offered."""
    here, there = dst.resolve(), src.resolve()
    if here == there or here.is_relative_to(there) or there.is_relative_to(here):
        raise error("QB031", str(dst), ("SRC and DST lie in each other",))
    if not (dst.exists() or dst.is_symlink()):
        return
    if dst.is_dir() and not dst.is_symlink() and _places(dst).inside:
        return
    if not overwrite:
        raise error("QB031", str(dst), ("it exists",), ("--overwrite",))
    if dst.is_symlink():
        raise error("QB031", str(dst), ("it is a link; name the folder that it leads to",))
    if not dst.is_dir() or not (dst / _CONFIG).is_file():
        raise error("QB031", str(dst), ("it is no checkpoint, so --overwrite does not remove it",))
    if os.path.ismount(dst):
        raise error("QB031", str(dst), ("it is a mount point, which cannot be moved aside; empty it",))


def recover(dst: Path, identity: str | None = None) -> None:
    """Finish, or take back, what a killed run was doing at the moment when DST appears.

    A run that was cut while it moved its files into DST is finished if it was one of another `identity` than this,
    and left to `staged` if it was the same, or as long as that is unknown.
    """
    places = _places(dst)
    if not (places.journal.exists() or places.aside.exists()):
        return
    journal = _locked(places)
    try:
        lines = _lines(journal)
        if identity and _is_moving(lines) and lines[0].get("identity") != identity:
            _move_inside(places)
        if places.aside.is_dir() and not places.aside.is_symlink():
            if places.dst.exists():
                shutil.rmtree(places.aside)  # the new one stands already
            else:
                _rename(places.aside, places.dst)
        if not places.part.exists():
            _forget(places)
    finally:
        os.close(journal)


def _locked(places: _Places) -> int:
    """The journal, locked; a stage that is no stage of ours, or another process's, is refused."""
    for path in (places.part, places.journal):
        if path.is_symlink() or (path.exists() and path.is_dir() != (path == places.part)):
            raise error("QB031", str(path), ("it is no folder of qbridge",))
    if places.part.exists() and not places.journal.exists() and any(places.part.iterdir()):
        raise error("QB031", str(places.part), ("it holds files and no journal of qbridge lies beside it",))
    while True:
        journal = os.open(places.journal, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as fault:
            if fault.errno in (errno.EWOULDBLOCK, errno.EACCES):
                os.close(journal)
                raise error("QB031", str(places.part), ("another qbridge is writing it",)) from None
            # a file system without locks: there is nothing to hold
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(journal), os.stat(places.journal)):
                return journal
        os.close(journal)  # a process that has just finished removed what we opened


def _lines(journal: int) -> list[dict[str, object]]:
    """What the journal says; a line that was cut off, and all after it, is as if it were not there."""
    found = []
    with open(os.dup(journal), "rb") as stream:
        stream.seek(0)
        for line in stream:
            try:
                value = json.loads(line)
            except ValueError:
                break
            if not line.endswith(b"\n") or not isinstance(value, dict):
                break
            found.append(value)
    return found


def _append(journal: int, line: dict[str, object]) -> None:
    os.write(journal, json.dumps(line).encode() + b"\n")
    os.fsync(journal)


def _is_moving(lines: list[dict[str, object]]) -> bool:
    """Whether a run was cut while it moved its files into DST."""
    return any("moving" in line for line in lines)


def _resumed(places: _Places, journal: int, identity: str) -> frozenset[str]:
    """The finished shards of the same conversion; of anything else the stage is emptied."""
    lines = _lines(journal)
    same = bool(lines) and lines[0].get("identity") == identity and places.part.is_dir()
    finished = {str(line["shard"]) for line in lines if "shard" in line} if same else set()
    places.part.mkdir(exist_ok=True)
    for entry in places.part.iterdir():
        if entry.name in finished:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    if not same or any(not (places.part / name).is_file() for name in finished):
        finished = set()
    os.ftruncate(journal, 0)
    _append(journal, {"identity": identity})
    for name in sorted(finished):
        _append(journal, {"shard": name})
    return frozenset(finished)


def _check_space(places: _Places, size: int) -> None:
    there = sum(file.stat().st_size for file in places.part.iterdir())
    free = shutil.disk_usage(places.part).free
    if size - there > free:
        raise error("QB402", str(places.dst), (f"{size - there} bytes are to be written, {free} are free",))


def _is_worth_keeping(fault: BaseException, journal: int) -> bool:
    """An interrupted stage with a finished shard is gone on with by the next run."""
    return isinstance(fault, KeyboardInterrupt) and any("shard" in line for line in _lines(journal))


def _put(places: _Places, journal: int) -> None:
    """The one moment at which DST appears; an old DST is moved aside first and removed last."""
    if places.inside:
        _append(journal, {"moving": True})
        _move_inside(places)
        _forget(places)
        return
    replaced = places.dst.exists()
    if replaced:
        _rename(places.dst, places.aside)
    try:
        _rename(places.part, places.dst)
    except OSError:
        if replaced:
            _rename(places.aside, places.dst)
        raise
    _fsync_folder(places.dst.parent)
    if replaced:
        shutil.rmtree(places.aside)
    _forget(places)


def _move_inside(places: _Places) -> None:
    """Everything of the stage into the folder that it lies in; what makes it a checkpoint comes last."""
    last = (INDEX, _CONFIG)
    if not places.part.is_dir():
        return
    names = sorted(os.listdir(places.part), key=lambda name: (last.index(name) + 1 if name in last else 0, name))
    for name in names:
        if name == _CONFIG:
            _fsync_folder(places.dst)
        _rename(places.part / name, places.dst / name)
    _fsync_folder(places.dst)
    places.part.rmdir()


def _rename(here: Path, there: Path) -> None:
    for attempt in range(_TRIES):
        try:
            here.rename(there)
        except PermissionError:
            if attempt == _TRIES - 1:
                raise
            time.sleep(0.05 * 2**attempt)
        else:
            return


def _forget(places: _Places) -> None:
    with contextlib.suppress(FileNotFoundError):
        places.journal.unlink()


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as fault:
        if fault.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that flushes no folders
            raise
    finally:
        os.close(descriptor)
