"""clean: remove what interrupted conversions have left at a destination."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qbridge.commands.checkpoint import PathLike
from qbridge.commands.file_output import WholeFile
from qbridge.commands.results import Result, as_json
from qbridge.findings.arguments import checked
from qbridge.findings.finding import error, io_as_finding
from qbridge.write import staging
from qbridge.write.destination import leftovers
from qbridge.write.parts import left_by_parts
from qbridge.write.remote_stores import remote_store
from qbridge.write.stores import FolderStore, Store


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
    far = remote_store(dst) if isinstance(dst, str) else None
    if far is not None:
        return _clean_far(far)
    out = Path(dst)
    with io_as_finding(str(dst)):
        stage, parts = WholeFile(out).stage, _left_by_parts(FolderStore(out))
        left = (*leftovers(out), *leftovers(stage), stage, *(out / name for name in parts))
        sizes = {path: _size(path) for path in left if path.exists()}
        removed = [*staging.clean(out), *staging.clean(stage), *(out / name for name in parts)]
        FolderStore(out).remove(parts)
        if stage.is_dir():
            shutil.rmtree(stage)
            removed.append(stage)
    return Cleaning(str(out), tuple(map(str, removed)), sum(sizes.get(path, 0) for path in removed))


def _clean_far(store: Store) -> Cleaning:
    """Remove what was begun where a server is: files without a checkpoint, and uploads that have not ended."""
    left = _left_by_parts(store)
    size = sum(store.size(name) or 0 for name in left)
    uploads = store.abort_uploads()
    store.remove(left)
    return Cleaning(store.url, (*left, *(f"{name} (an upload that had not ended)" for name in uploads)), size)


def _left_by_parts(store: Store) -> list[str]:
    """What parts have left at a place; QBridgeError (QB031) while one is being made."""
    left = left_by_parts(store)
    if left and store.is_worked_on():
        raise error("QB031", store.url, ("a part of it is being made",), fix="Wait until that has ended.")
    return left


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else (path,)
    return sum(file.lstat().st_size for file in files if not file.is_dir())
