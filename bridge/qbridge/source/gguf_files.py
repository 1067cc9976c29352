"""The files of one model in GGUF: a single file, or splits that are numbered in their names and in their metadata."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qbridge.findings.finding import Findings
from qbridge.source.folder import Folder, entries
from qbridge.source.gguf import GgufHeader, is_gguf, read_gguf
from qbridge.source.safetensors import HeaderError
from qbridge.source.storage import File, Storage
from qbridge.source.stored import StoredTensor

SUFFIX = ".gguf"
NUMBER, COUNT, TENSORS = "split.no", "split.count", "split.tensors.count"  # llama.cpp b10359, src/llama-arch.cpp
_PROJECTOR = "mmproj"
_SIDE_FILES = (".json", ".jinja", "tokenizer.model", "merges.txt")
_SPLIT = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")  # src/llama.cpp (llama_split_path)


@dataclass(frozen=True, slots=True, eq=False)
class Gguf:
    """One model: the metadata of its first file, every tensor by name, and its files in order."""

    version: int
    metadata: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]
    files: Sequence[File]


def gguf_path(path: Path) -> bool:
    """Whether a path is a GGUF file of this machine, by its name or by how it begins."""
    try:
        return path.is_file() and (path.suffix == SUFFIX or is_gguf(File(Folder(path.parent), path.name)))
    except OSError:
        return False


def split_name(stem: str, number: int, count: int) -> str:
    """The name of a split, of which the first has the number 0."""
    return f"{stem}-{number + 1:05}-of-{count:05}{SUFFIX}"


def model_names(storage: Storage) -> list[str]:
    """The GGUF files of a place that begin a model: no split but the first."""
    names = [name for name in storage.names() if "/" not in name and name.endswith(SUFFIX)]
    return sorted(name for name in names if (match := _SPLIT.fullmatch(name)) is None or int(match[2]) == 1)


def gguf_model(storage: Storage) -> str:
    """The first file of the one model in GGUF that a place holds; empty if it holds other weights, or several.

    Projectors of images (mmproj-*) are no model by themselves.
    """
    if isinstance(storage, GgufStorage):
        return storage.first
    if any(name.endswith(".safetensors") for name in storage.names() if "/" not in name):
        return ""
    names = [name for name in model_names(storage) if not name.startswith(_PROJECTOR)]
    return names[0] if len(names) == 1 else ""


def open_gguf(storage: Storage, name: str, findings: Findings) -> Gguf:
    """The model that one of its files belongs to; QBridgeError where it is not whole or not sound.

    QB003 for splits that are absent, QB005 for splits that contradict each other, QB049 for a header that does not
    describe its file.
    """
    names = _splits(name)
    if absent := [each for each in names if not storage.has(each)]:
        findings.add(
            "QB003", absent, (f"{len(absent)} of {len(names)} splits, by the numbers in their names",), final=True
        )
        findings.stop_on_errors()
    headers: list[GgufHeader] = []
    for each in names:
        try:
            headers.append(read_gguf(File(storage, each)))
        except HeaderError as fault:
            for tensor, what in fault.faults:
                findings.add("QB049", f"{each}: {tensor}" if tensor else each, (what,))
    findings.stop_on_errors()
    tensors: dict[str, StoredTensor] = {}
    for each, header in zip(names, headers, strict=True):
        for twice in sorted(tensors.keys() & header.tensors.keys()):
            findings.add("QB005", twice, (f"it is in {tensors[twice].file.name} and in {each}",))
        tensors.update(header.tensors)
    for each, fact in _contradictions(names, headers, len(tensors)):
        findings.add("QB005", each, (fact,))
    findings.stop_on_errors()
    return Gguf(headers[0].version, headers[0].metadata, tensors, [File(storage, each) for each in names])


def _splits(name: str) -> list[str]:
    """All files of the model that a file belongs to, by its name."""
    match = _SPLIT.fullmatch(name)
    if match is None or not 1 <= int(match[2]) <= int(match[3]):
        return [name]
    return [split_name(match[1], number, int(match[3])) for number in range(int(match[3]))]


def _contradictions(names: Sequence[str], headers: Sequence[GgufHeader], tensors: int) -> list[tuple[str, str]]:
    """(file, what) where the metadata of splits say something else than their names and contents."""
    found = []
    for place, (name, header) in enumerate(zip(names, headers, strict=True)):
        count, number = header.metadata.get(COUNT, 1), header.metadata.get(NUMBER, 0)
        if count not in (len(names), 0 if len(names) == 1 else None):
            found.append((name, f"{COUNT} is {count}, by the names there are {len(names)}"))
        elif len(names) > 1 and number != place:
            found.append((name, f"{NUMBER} is {number}, by its name it is {place}"))
    wanted = headers[0].metadata.get(TENSORS, tensors)
    if len(names) > 1 and wanted != tensors:
        found.append((names[0], f"{TENSORS} is {wanted}, the splits hold {tensors}"))
    return found


class GgufStorage(Folder):
    """The files of one GGUF model, and what lies beside them that is no weights."""

    def __init__(self, path: Path) -> None:
        """By the path of one of its files."""
        super().__init__(path.parent)
        self._path = path

    def __getstate__(self) -> dict[str, Any]:
        """As a folder, with the path."""
        return {**super().__getstate__(), "path": self._path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """The same files, with none open."""
        GgufStorage.__init__(self, state["path"])
        self.limit(state["open_files"])

    def __eq__(self, other: object) -> bool:
        """Whether it is the model of the same file, as a copy in another process is."""
        return isinstance(other, GgufStorage) and self._path == other._path

    def __hash__(self) -> int:
        """That of its path."""
        return hash(self._path)

    @property
    def url(self) -> str:
        """The path of the file that was named."""
        return str(self._path)

    @property
    def identity(self) -> str:
        """That path without links."""
        return str(self._path.resolve())

    @property
    def first(self) -> str:
        """The name of the file that was named."""
        return self._path.name

    def names(self) -> Sequence[str]:
        """Its splits, as far as they are there, and the files beside them that no other model is in."""
        splits = [name for name in _splits(self.first) if self.has(name)]
        beside = entries(super().path())
        return [*splits, *sorted(name for name in beside if not name.startswith(".") and self._is_side_file(name))]

    def path(self, name: str = "") -> Path:
        """The file that was named, or one beside it."""
        return super().path(name) if name else self._path

    def has(self, name: str) -> bool:
        """Whether it is one of these files."""
        return (name in _splits(self.first) or self._is_side_file(name)) and super().has(name)

    def _is_side_file(self, name: str) -> bool:
        return name.endswith(_SIDE_FILES) and super().has(name)

    def unfinished(self) -> Sequence[str]:
        """None: downloads beside it are of no concern."""
        return ()
