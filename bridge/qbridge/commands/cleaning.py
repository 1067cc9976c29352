"""clean: remove what interrupted conversions have left at a destination."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qbridge.commands.checkpoint import PathLike
from qbridge.commands.results import Result, as_json
from qbridge.commands.whole_file import WholeFile
from qbridge.findings.arguments import checked
from qbridge.findings.finding import io_as_finding
from qbridge.write import staging
from qbridge.write.destination import leftovers


@dataclass(frozen=True, slots=True, repr=False)
class Cleaning(Result):
    """What `clean` removed at a destination; `bytes` is the size of its files."""

    destination: str
    removed: tuple[str, ...]
    bytes: int

    @property
    def line(self) -> str:
        """How much was removed."""
        return f"{len(self.removed)} paths removed, {self.bytes} bytes"

    def as_dict(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        return as_json(self, "clean")


@checked
def clean(dst: PathLike) -> Cleaning:
    """Remove what interrupted runs have left beside `dst` or in it; a finished checkpoint stays as it is.

    QBridgeError: QB031 where another process writes it, or where something there is not of qbridge's making.
    """
    out = Path(dst)
    with io_as_finding(str(dst)):
        stage = WholeFile(out).stage
        sizes = {path: _size(path) for path in (*leftovers(out), *leftovers(stage), stage) if path.exists()}
        removed = [*staging.clean(out), *staging.clean(stage)]
        if stage.is_dir():
            shutil.rmtree(stage)
            removed.append(stage)
    return Cleaning(str(out), tuple(map(str, removed)), sum(sizes.get(path, 0) for path in removed))


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else (path,)
    return sum(file.lstat().st_size for file in files if not file.is_dir())
