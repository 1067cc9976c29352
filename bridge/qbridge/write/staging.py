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
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qbridge.findings.finding import QBridgeError, error
from qbridge.source.foreign import CONFIG
from qbridge.source.positioned import BINARY, NO_FOLLOW
from qbridge.source.weight_files import INDEX
from qbridge.write.destination import Paths, check_destination, is_moving, lines_of, named, paths_for
from qbridge.write.locks import is_free
from qbridge.write.output import fsync_folder

_LOG = logging.getLogger(__name__)

_JOURNAL_FLAGS = os.O_RDWR | os.O_CREAT | os.O_APPEND | NO_FOLLOW | BINARY
_TRIES = 6  # renames that a virus scanner or a Windows drive may refuse at first


@dataclass(slots=True)
class Stage:
    """A folder that becomes DST: `finished` are the names of the shards that an earlier run left whole in it.

    If it is `complete`, an earlier run was cut while DST appeared, and nothing is left to be written.
    """

    folder: Path
    finished: frozenset[str]
    complete: bool
    _journal: int

    @property
    def home(self) -> Path:
        """The folder that it lies in, where there is room for what is needed meanwhile."""
        return self.folder.parent

    def note(self, shard: str) -> None:
        """Record a shard, already flushed to the disk, as finished."""
        _append(self._journal, {"shard": shard, "size": (self.folder / shard).stat().st_size})


@contextlib.contextmanager
def staged(dst: Path, src: Path | None, overwrite: bool, identity: str, size: int) -> Iterator[Stage]:
    """A stage whose folder becomes `dst` when the block ends well.

    `identity` tells one conversion from another: a stage of the same one is gone on with, any other is emptied.
    `size` is the bytes to come. An interrupt keeps a stage with finished shards, any other exception removes it.
    """
    dst = named(dst)
    check_destination(dst, src, overwrite)
    made = [folder for folder in dst.parents if not folder.exists()]
    paths, journal = Paths(dst, inside=False), None
    try:
        dst.parent.mkdir(parents=True, exist_ok=True)
        recover(dst, src, identity)
        paths = paths_for(dst)
        journal = _open_journal_locked(paths)
        check_destination(dst, src, overwrite)  # what a killed run had left may be whole by now
        if is_moving(lines_of(journal)):
            yield Stage(paths.part, frozenset(), True, journal)
        else:
            finished = _resumed(paths, journal, identity)
            _LOG.info("writing %d bytes below %s; %d shards are there already", size, paths.part, len(finished))
            _check_space(paths, size)
            yield Stage(paths.part, finished, False, journal)
            for folder, _, _ in os.walk(paths.part):
                fsync_folder(folder)
            check_destination(dst, src, overwrite)  # hours may have passed
        _swap_in(paths, journal)
        _LOG.info("all is in its place: %s", dst)
        for parent in made:
            fsync_folder(parent.parent)
    except BaseException as fault:
        if journal is not None:
            _clean_up(paths, journal, fault)
        if journal is None or not paths.part.exists():
            with contextlib.suppress(OSError):  # innermost first, as far as they are empty
                for parent in made:
                    parent.rmdir()
        raise
    finally:
        if journal is not None:
            os.close(journal)


def _clean_up(paths: Paths, journal: int, fault: BaseException) -> None:
    """Remove the stage, unless the next run can go on with it; without a stage there is no journal either."""
    if not _is_worth_keeping(fault, lines_of(journal)):
        shutil.rmtree(paths.part, ignore_errors=True)
    if not paths.part.exists():
        _remove_journal(paths)


def recover(dst: Path, src: Path | None, identity: str | None = None) -> None:
    """Finish, or take back, what a killed run was doing at the moment when DST appears.

    A run that was cut while it moved its files into DST is finished if it was one of another `identity` than this,
    and left to `staged` if it was the same, or as long as that is unknown.
    """
    dst = named(dst)
    for paths in (Paths(dst, inside=False), Paths(dst, inside=True)):
        left = paths.left
        if src is not None and any(src.resolve().is_relative_to(path.resolve()) for path in left):
            fact = f"it is what an earlier conversion to {dst} left, and not yet settled"
            raise error("QB031", str(src), (fact,), fix="Run that conversion again, then this one from its DST.")
        if left and left != [paths.part]:
            journal = _open_journal_locked(paths)
            try:
                if _finish_interrupted_swap(paths, lines_of(journal), identity) and not paths.part.exists():
                    _remove_journal(paths)
            finally:
                os.close(journal)


def clean(dst: Path) -> list[Path]:
    """Settle what interrupted runs have left at `dst`, and remove the rest; the paths that are gone.

    A checkpoint that was moved aside comes back, one that was moving in is finished; what had only been begun is
    removed. QBridgeError (QB031) where another process writes, or where the files are not those of qbridge.
    """
    dst, gone = named(dst), []
    for paths in (Paths(dst, inside=False), Paths(dst, inside=True)):
        left = paths.left
        if not left:
            continue
        journal = _open_journal_locked(paths)
        try:
            _finish_interrupted_swap(paths, lines_of(journal), "")
            if paths.part.exists():
                shutil.rmtree(paths.part)
            _remove_journal(paths)
        finally:
            os.close(journal)
        gone += [path for path in left if not path.exists()]
    return gone


def _finish_interrupted_swap(paths: Paths, lines: list[dict[str, object]], identity: str | None) -> bool:
    """Under the lock; whether nothing is left for the same command to finish."""
    if paths.inside:
        if not is_moving(lines):
            return True
        if identity is None or lines[0].get("identity") == identity:
            return False
        _move_inside(paths)
        return True
    if paths.aside.is_dir() and not paths.aside.is_symlink():
        _remove_empty_dst(paths.dst)
        if not paths.dst.exists():
            _rename(paths.aside, paths.dst)
        elif paths.part.exists() or not (paths.dst / CONFIG).exists():  # what stands there is not the new one
            fact = f"{paths.aside} is what it was before --overwrite, and something else was put there since"
            raise error("QB031", str(paths.dst), (fact,), fix="Remove one of the two, then run the command again.")
        else:
            _rename(paths.aside, paths.trash)
    if paths.trash.is_dir() and not paths.trash.is_symlink():
        shutil.rmtree(paths.trash)
    if paths_for(paths.dst).inside:  # an empty folder was made there since, and is staged in
        shutil.rmtree(paths.part, ignore_errors=True)
    return True


def _open_journal_locked(paths: Paths) -> int:
    """The journal, locked; a stage that is no stage of ours, or another process's, is refused."""
    for path, wants_folder in ((paths.part, True), (paths.journal, False)):
        if path.is_symlink() or (path.exists() and path.is_dir() is not wants_folder):
            raise error("QB031", str(path), ("qbridge did not make it",), fix="Move it away, or choose another DST.")
    if paths.part.exists() and not paths.journal.exists() and any(paths.part.iterdir()):
        fact = "it holds files and no journal of qbridge lies beside it"
        raise error("QB031", str(paths.part), (fact,), fix="Move it away, or choose another DST.")
    while True:
        journal = os.open(paths.journal, _JOURNAL_FLAGS, 0o666)
        if not is_free(journal):
            os.close(journal)
            fix = "Wait until it has ended, or choose another DST."
            raise error("QB031", str(paths.part), ("another qbridge is writing it",), fix=fix)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(journal), os.stat(paths.journal)):
                return journal
        os.close(journal)  # a process that has just finished removed what we opened


def _encoded(*lines: dict[str, object]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def _append(journal: int, *lines: dict[str, object]) -> None:
    data = _encoded(*lines)
    if os.write(journal, data) != len(data):  # a full disk takes what fits
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.fsync(journal)


def _resumed(paths: Paths, journal: int, identity: str) -> frozenset[str]:
    """The finished shards of the same conversion; of anything else the stage is emptied."""
    lines = lines_of(journal)
    same = bool(lines) and lines[0].get("identity") == identity
    sizes = {line["shard"]: line.get("size") for line in lines if "shard" in line} if same else {}
    paths.part.mkdir(exist_ok=True)
    fsync_folder(paths.home)  # a stage without its journal would be refused for ever
    finished = set()
    for entry in paths.part.iterdir():
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


def _check_space(paths: Paths, size: int) -> None:
    there = sum(file.stat().st_size for file in paths.part.iterdir())
    free = shutil.disk_usage(paths.part).free
    if size - there > free:
        raise error("QB402", str(paths.dst), (f"{size - there} bytes are to be written, {free} are free",))


def _is_worth_keeping(fault: BaseException, lines: list[dict[str, object]]) -> bool:
    """Whether the next run can go on: a shard is finished and nothing failed, or files are in DST already."""
    refused = isinstance(fault, QBridgeError) and fault.findings[0].code in ("QB031", "QB402")
    stopped = refused or isinstance(fault, KeyboardInterrupt)
    return is_moving(lines) or (stopped and any("shard" in line for line in lines))


def _swap_in(paths: Paths, journal: int) -> None:
    """The one moment at which DST appears; an old DST is moved aside first and removed last."""
    if paths.inside:
        if not is_moving(lines_of(journal)):
            _append(journal, {"moving": True})
        _move_inside(paths)
        _remove_journal(paths)
        return
    _remove_empty_dst(paths.dst)
    try:
        if (paths.dst / CONFIG).exists():  # else a rename over anything but nothing fails
            _rename(paths.dst, paths.aside)
        _rename(paths.part, paths.dst)
    except BaseException:
        if paths.aside.exists() and paths.part.exists():
            _rename(paths.aside, paths.dst)
        raise
    fsync_folder(paths.dst.parent)
    if paths.aside.exists():
        _rename(paths.aside, paths.trash)  # half a checkpoint must never look like the old one
        shutil.rmtree(paths.trash)
    _remove_journal(paths)


def _remove_empty_dst(dst: Path) -> None:
    """Remove an empty folder that stands where DST is to appear."""
    if dst.is_dir() and not dst.is_symlink():
        with contextlib.suppress(OSError):
            dst.rmdir()


def _move_inside(paths: Paths) -> None:
    """Everything of the stage into the folder that it lies in; what makes it a checkpoint comes last."""
    last = (INDEX, CONFIG)
    if not paths.part.is_dir():
        return
    names = sorted(os.listdir(paths.part), key=lambda name: (last.index(name) + 1 if name in last else 0, name))
    for name in names:
        if os.path.lexists(paths.dst / name):
            fact = f"{name} was put there while it was written"
            raise error("QB031", str(paths.dst), (fact,), fix="Remove that file; the same command goes on.")
    for name in names:
        if name == CONFIG:
            fsync_folder(paths.dst)
        _rename(paths.part / name, paths.dst / name)
    fsync_folder(paths.dst)
    paths.part.rmdir()


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


def _remove_journal(paths: Paths) -> None:
    """The last thing that is removed: it is the lock."""
    with contextlib.suppress(FileNotFoundError):
        paths.journal.unlink()
