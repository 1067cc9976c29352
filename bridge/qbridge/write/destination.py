"""The destination of a checkpoint: which paths its making touches, and whether it may be made there."""

from __future__ import annotations

import contextlib
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from qbridge.findings.finding import error
from qbridge.findings.hints import word_of_command
from qbridge.findings.way import Way
from qbridge.plan.shared_plan import PLAN
from qbridge.source.foreign import CONFIG, stage_name
from qbridge.source.positioned import BINARY, NO_FOLLOW

_ADDRESS = re.compile(r"(hf|https?|s3|gs|az|file|ssh):/")  # as a Path has it, with one slash


@dataclass(frozen=True, slots=True)
class Paths:
    """Every path that the making of one DST touches."""

    dst: Path
    inside: bool
    part: Path = field(init=False)
    journal: Path = field(init=False)
    aside: Path = field(init=False)
    trash: Path = field(init=False)

    def __post_init__(self) -> None:
        for name, suffix in (("part", "part"), ("journal", "journal"), ("aside", "old"), ("trash", "trash")):
            object.__setattr__(self, name, self.home / stage_name(self.dst.name, suffix))

    @property
    def home(self) -> Path:
        """The folder in which all but DST itself lie."""
        return self.dst if self.inside else self.dst.parent

    @property
    def left(self) -> list[Path]:
        """Those that are there, as an interrupted run leaves them."""
        every = (self.journal, self.part, self.aside, self.trash)
        return [path for path in every if path.exists() or path.is_symlink()]

    @property
    def own(self) -> frozenset[str]:
        """Names inside DST that do not make it a folder with content."""
        return frozenset({self.part.name, self.journal.name, "lost+found"}) if self.inside else frozenset()


def named(dst: Path) -> Path:
    """DST by a name of its own, which `.` and `..` are not."""
    return dst.resolve() if dst.name in ("", "..") else dst


def paths_for(dst: Path) -> Paths:
    """Beside DST, or inside it where it is a folder with nothing of anybody else's in it."""
    inside = Paths(dst, inside=True)
    if dst.is_dir() and not dst.is_symlink():
        names = set(os.listdir(dst))
        if names <= inside.own or inside.journal.name in names:
            return inside
    return Paths(dst, inside=False)


def leftovers(dst: Path) -> list[Path]:
    """What interrupted runs have left beside `dst` or in it."""
    return [path for inside in (False, True) for path in Paths(named(dst), inside).left]


def cleaning(dst: Path) -> Way:
    """The command that removes what interrupted runs have left at DST."""
    return Way(command=f"qbridge clean {word_of_command(str(dst))}", note="removes what interrupted runs have left")


def check_destination(dst: Path, src: Path | None, overwrite: bool) -> None:
    """QBridgeError (QB031) if writing `dst` would touch the source or anything that was not offered.

    `src` is None where the source does not lie on this machine. --overwrite is named as a way out only where it would
    be followed.
    """
    dst = named(dst)
    if _ADDRESS.match(str(dst)):
        fix = "Name a folder; upload it afterwards, for example with hf upload."
        raise error("QB031", str(dst), ("it is an address, and nothing is written there",), fix=fix)
    if src is not None:
        check_apart(dst, src)
    if not (dst.exists() or dst.is_symlink()):
        return
    if dst.is_dir() and not dst.is_symlink() and (paths := paths_for(dst)).inside:
        others = sorted(set(os.listdir(dst)) - paths.own)
        if others and not is_moving(journal_lines(paths.journal)):
            fact = f"it holds {others[0]} besides what an unfinished conversion left there"
            raise error("QB031", str(dst), (fact,), (cleaning(dst),), "Choose another DST.")
        return
    if dst.is_symlink():
        raise error("QB031", str(dst), ("it is a link",), fix="Name the folder that it leads to, or another DST.")
    _check_no_parts(dst)
    if not dst.is_dir() or not (dst / CONFIG).is_file():
        fact = (
            f"it is {'a folder' if dst.is_dir() else 'a file'} and no checkpoint, which --overwrite does not remove"
        )
        raise error("QB031", str(dst), (fact,), fix="Choose another DST, or remove it.")
    if _is_mount(dst):
        fact = "it is a mount point, which cannot be moved aside"
        raise error("QB031", str(dst), (fact,), fix="Empty it, or choose another DST.")
    if not overwrite:
        raise error("QB031", str(dst), ("a checkpoint is there",), (Way("--overwrite"),), "Choose another DST.")


def _check_no_parts(dst: Path) -> None:
    """QBridgeError (QB031) where parts of a conversion are, of which no checkpoint has become."""
    if (dst / PLAN).is_file() and not (dst / CONFIG).exists():
        finishing = Way(command=f"qbridge finish {word_of_command(str(dst))}", note="when all parts are there")
        fact = "parts of a conversion are there"
        raise error("QB031", str(dst), (fact,), (finishing, cleaning(dst)), "Choose another DST.")


def check_apart(dst: Path, src: str | os.PathLike[str]) -> None:
    """QBridgeError (QB031) where one of two paths lies in the other."""
    if _lie_in_each_other(dst.resolve(), Path(src).resolve()):
        fix = "Name a DST outside of SRC that does not hold it."
        raise error("QB031", str(dst), ("SRC and DST lie in each other",), fix=fix)


def _lie_in_each_other(here: Path, there: Path) -> bool:
    return here.is_relative_to(there) or there.is_relative_to(here)


def lines_of(journal: int) -> list[dict[str, object]]:
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


def journal_lines(journal: Path) -> list[dict[str, object]]:
    """What the journal of another process says, as far as there is one."""
    try:
        descriptor = os.open(journal, os.O_RDONLY | NO_FOLLOW | BINARY)
    except OSError:
        return []
    try:
        return lines_of(descriptor)
    finally:
        os.close(descriptor)


def is_moving(lines: list[dict[str, object]]) -> bool:
    """Whether a run was cut while it moved its files into DST."""
    return any("moving" in line for line in lines)


def _is_mount(folder: Path) -> bool:
    """Whether something is mounted there; os.path.ismount does not see a bind mount of the same file system."""
    if os.path.ismount(folder):
        return True
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
        name = re.sub(rb"[\\ \t\n]", lambda found: b"\\%03o" % found[0][0], os.fsencode(folder.resolve()))
        return any(line.split()[4] == name for line in lines)
    return False
