"""Where an output grows until it is whole: a temporary folder, its journal, and the moment at which DST appears.

DST is absent or complete at every instant. The output grows in `.NAME.qbridge-part` beside DST, or inside DST where
that is an empty folder or a mount point. `.NAME.qbridge-journal`, which is also the lock, lists the shards that are
whole on the disk, so that the same command goes on after the last of them. An old DST is `.NAME.qbridge-old` until
the new one stands, and `.NAME.qbridge-trash` while it is removed. Order matters for a power loss: a shard is flushed
before the journal names it, everything before the rename.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from qbridge.findings.finding import QBridgeError, error
from qbridge.findings.way import Way
from qbridge.source.weight_files import INDEX

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
        _append(self._journal, {"shard": shard, "size": (self.folder / shard).stat().st_size})


@dataclass(frozen=True, slots=True)
class _Places:
    """Every path that the making of one DST touches."""

    dst: Path
    inside: bool
    part: Path = field(init=False)
    journal: Path = field(init=False)
    aside: Path = field(init=False)
    trash: Path = field(init=False)

    def __post_init__(self) -> None:
        for name, suffix in (("part", "part"), ("journal", "journal"), ("aside", "old"), ("trash", "trash")):
            object.__setattr__(self, name, self.home / f".{self.dst.name}.qbridge-{suffix}")

    @property
    def home(self) -> Path:
        """The folder in which all but DST itself lie."""
        return self.dst if self.inside else self.dst.parent

    @property
    def own(self) -> frozenset[str]:
        """Names inside DST that do not make it a folder with content."""
        return frozenset({self.part.name, self.journal.name, "lost+found"}) if self.inside else frozenset()


def _named(dst: Path) -> Path:
    """DST by a name of its own, which `.` and `..` are not."""
    return dst.resolve() if dst.name in ("", "..") else dst


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
    dst = _named(dst)
    check_destination(dst, src, overwrite)
    made = [folder for folder in dst.parents if not folder.exists()]
    places, journal = _Places(dst, inside=False), None
    try:
        dst.parent.mkdir(parents=True, exist_ok=True)
        recover(dst, src, identity)
        places = _places(dst)
        journal = _locked(places)
        check_destination(dst, src, overwrite)  # what a killed run had left may be whole by now
        if _is_moving(_lines(journal)):
            yield Stage(places.part, frozenset(), True, journal)
        else:
            finished = _resumed(places, journal, identity)
            _check_space(places, size)
            yield Stage(places.part, finished, False, journal)
            for folder, _, _ in os.walk(places.part):
                _fsync_folder(folder)
            check_destination(dst, src, overwrite)  # hours may have passed
        _put(places, journal)
        for parent in made:
            _fsync_folder(parent.parent)
    except BaseException as fault:
        if journal is not None:
            _clean(places, journal, fault)
        if journal is None or not places.part.exists():
            with contextlib.suppress(OSError):  # innermost first, as far as they are empty
                for parent in made:
                    parent.rmdir()
        raise
    finally:
        if journal is not None:
            os.close(journal)


def _clean(places: _Places, journal: int, fault: BaseException) -> None:
    if not _is_worth_keeping(fault, _lines(journal)):
        shutil.rmtree(places.part, ignore_errors=True)
    if not places.part.exists():
        _forget(places)


def check_destination(dst: Path, src: Path, overwrite: bool) -> None:
    """QBridgeError (QB031) if writing `dst` would touch the source or anything that was not offered."""
    dst = _named(dst)
    here, there = dst.resolve(), src.resolve()
    if here == there or here.is_relative_to(there) or there.is_relative_to(here):
        raise error("QB031", str(dst), ("SRC and DST lie in each other",))
    if not (dst.exists() or dst.is_symlink()):
        return
    if dst.is_dir() and not dst.is_symlink() and (places := _places(dst)).inside:
        others = sorted(set(os.listdir(dst)) - places.own)
        if others and not _is_moving(_read(places.journal)):
            fact = f"it holds {others[0]} besides what an unfinished conversion left there"
            raise error("QB031", str(dst), (fact,), (f"remove {places.part} and {places.journal}",))
        return
    if not overwrite:
        raise error("QB031", str(dst), ("it exists",), (Way("--overwrite"),))
    if dst.is_symlink():
        raise error("QB031", str(dst), ("it is a link; name the folder that it leads to",))
    if not dst.is_dir() or not (dst / _CONFIG).is_file():
        raise error("QB031", str(dst), ("it is no checkpoint, so --overwrite does not remove it",))
    if _is_mount(dst):
        raise error("QB031", str(dst), ("it is a mount point, which cannot be moved aside; empty it",))


def recover(dst: Path, src: Path, identity: str | None = None) -> None:
    """Finish, or take back, what a killed run was doing at the moment when DST appears.

    A run that was cut while it moved its files into DST is finished if it was one of another `identity` than this,
    and left to `staged` if it was the same, or as long as that is unknown.
    """
    dst = _named(dst)
    for places in (_Places(dst, inside=False), _Places(dst, inside=True)):
        left = [path for path in (places.journal, places.part, places.aside, places.trash) if path.exists()]
        if any(src.resolve().is_relative_to(path.resolve()) for path in left):
            raise error("QB031", str(src), (f"it is what an earlier conversion to {dst} left, and not yet settled",))
        if left and left != [places.part]:
            journal = _locked(places)
            try:
                if _settle(places, _lines(journal), identity) and not places.part.exists():
                    _forget(places)
            finally:
                os.close(journal)


def _settle(places: _Places, lines: list[dict[str, object]], identity: str | None) -> bool:
    """Under the lock; whether nothing is left for the same command to finish."""
    if places.inside:
        if not _is_moving(lines):
            return True
        if identity is None or lines[0].get("identity") == identity:
            return False
        _move_inside(places)
        return True
    if places.aside.is_dir() and not places.aside.is_symlink():
        _give_way(places.dst)
        if not places.dst.exists():
            _rename(places.aside, places.dst)
        elif places.part.exists() or not (places.dst / _CONFIG).exists():  # what stands there is not the new one
            fact = f"{places.aside} is what it was before --overwrite, and something else was put there since"
            raise error("QB031", str(places.dst), (fact,), ("remove one of the two",))
        else:
            _rename(places.aside, places.trash)
    if places.trash.is_dir() and not places.trash.is_symlink():
        shutil.rmtree(places.trash)
    if _places(places.dst).inside:  # an empty folder was made there since, and is staged in
        shutil.rmtree(places.part, ignore_errors=True)
    return True


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


def _read(journal: Path) -> list[dict[str, object]]:
    """What the journal of another process says, as far as there is one."""
    try:
        descriptor = os.open(journal, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return []
    try:
        return _lines(descriptor)
    finally:
        os.close(descriptor)


def _encoded(*lines: dict[str, object]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def _append(journal: int, *lines: dict[str, object]) -> None:
    data = _encoded(*lines)
    if os.write(journal, data) != len(data):  # a full disk takes what fits
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.fsync(journal)


def _is_moving(lines: list[dict[str, object]]) -> bool:
    """Whether a run was cut while it moved its files into DST."""
    return any("moving" in line for line in lines)


def _resumed(places: _Places, journal: int, identity: str) -> frozenset[str]:
    """The finished shards of the same conversion; of anything else the stage is emptied."""
    lines = _lines(journal)
    same = bool(lines) and lines[0].get("identity") == identity
    sizes = {line["shard"]: line.get("size") for line in lines if "shard" in line} if same else {}
    places.part.mkdir(exist_ok=True)
    _fsync_folder(places.home)  # a stage without its journal would be refused for ever
    finished = set()
    for entry in places.part.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif not entry.is_symlink() and entry.stat().st_size == sizes.get(entry.name):
            finished.add(entry.name)
        else:
            entry.unlink()
    wanted: list[dict[str, object]] = [{"identity": identity}]
    wanted += [{"shard": name, "size": sizes[name]} for name in sizes if name in finished]
    if lines != wanted or os.fstat(journal).st_size != len(_encoded(*wanted)):  # else a cut here would lose them all
        os.ftruncate(journal, 0)
        _append(journal, *wanted)
    return frozenset(finished)


def _check_space(places: _Places, size: int) -> None:
    there = sum(file.stat().st_size for file in places.part.iterdir())
    free = shutil.disk_usage(places.part).free
    if size - there > free:
        raise error("QB402", str(places.dst), (f"{size - there} bytes are to be written, {free} are free",))


def _is_worth_keeping(fault: BaseException, lines: list[dict[str, object]]) -> bool:
    """Whether the next run can go on: a shard is finished and nothing failed, or files are in DST already."""
    refused = isinstance(fault, QBridgeError) and fault.findings[0].code in ("QB031", "QB402")
    stopped = refused or isinstance(fault, KeyboardInterrupt)
    return _is_moving(lines) or (stopped and any("shard" in line for line in lines))


def _put(places: _Places, journal: int) -> None:
    """The one moment at which DST appears; an old DST is moved aside first and removed last."""
    if places.inside:
        if not _is_moving(_lines(journal)):
            _append(journal, {"moving": True})
        _move_inside(places)
        _forget(places)
        return
    _give_way(places.dst)
    try:
        if (places.dst / _CONFIG).exists():  # else a rename over anything but nothing fails
            _rename(places.dst, places.aside)
        _rename(places.part, places.dst)
    except BaseException:
        if places.aside.exists() and places.part.exists():
            _rename(places.aside, places.dst)
        raise
    _fsync_folder(places.dst.parent)
    if places.aside.exists():
        _rename(places.aside, places.trash)  # half a checkpoint must never look like the old one
        shutil.rmtree(places.trash)
    _forget(places)


def _give_way(dst: Path) -> None:
    """Remove an empty folder that stands where DST is to appear."""
    if dst.is_dir() and not dst.is_symlink():
        with contextlib.suppress(OSError):
            dst.rmdir()


def _move_inside(places: _Places) -> None:
    """Everything of the stage into the folder that it lies in; what makes it a checkpoint comes last."""
    last = (INDEX, _CONFIG)
    if not places.part.is_dir():
        return
    names = sorted(os.listdir(places.part), key=lambda name: (last.index(name) + 1 if name in last else 0, name))
    for name in names:
        if os.path.lexists(places.dst / name):
            fact = f"{name} was put there while it was written"
            raise error("QB031", str(places.dst), (fact,), ("remove that file; the same command goes on",))
    for name in names:
        if name == _CONFIG:
            _fsync_folder(places.dst)
        _rename(places.part / name, places.dst / name)
    _fsync_folder(places.dst)
    places.part.rmdir()


def _is_mount(folder: Path) -> bool:
    """Whether something is mounted there; os.path.ismount does not see a bind mount of the same file system."""
    if os.path.ismount(folder):
        return True
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
        name = re.sub(rb"[\\ \t\n]", lambda found: b"\\%03o" % found[0][0], os.fsencode(folder.resolve()))
        return any(line.split()[4] == name for line in lines)
    return False


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


def _fsync_folder(folder: str | Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as fault:
        if fault.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that flushes no folders
            raise
    finally:
        os.close(descriptor)
