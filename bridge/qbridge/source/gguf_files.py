"""The files of one model in GGUF: a single file, or splits that are numbered in their names and in their metadata."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qbridge.findings.finding import Findings, error
from qbridge.source.folder import Folder, entries
from qbridge.source.foreign import CONFIG
from qbridge.source.gguf import GgufHeader, is_gguf, read_gguf
from qbridge.source.json_text import parse_json
from qbridge.source.safetensors import HeaderError
from qbridge.source.storage import File, Storage
from qbridge.source.stored import StoredTensor

SUFFIX = ".gguf"
NUMBER, COUNT, TENSORS = "split.no", "split.count", "split.tensors.count"  # llama.cpp b10359, src/llama-arch.cpp
CONFIG_KEY, MANIFEST_KEY = "qbridge.config", "qbridge.manifest"  # texts of JSON in a file that holds all of an output
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


def config_inside(metadata: Mapping[str, Any]) -> dict[str, Any] | None:
    """The config.json that qbridge has put into a file; None where there is none, or it is no object of JSON."""
    try:
        found = parse_json(str(metadata.get(CONFIG_KEY, "")).encode())
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def storage_with_original(path: Path, original: Path) -> GgufStorage:
    """The model of a GGUF file, or of a folder with one, with config.json and tokenizer of the folder `original`.

    QBridgeError (QB001) where the one is no GGUF model, or the other has no config.json.
    """
    if not (original / CONFIG).is_file():
        raise error("QB001", str(original), (f"there is no {CONFIG} in it",), fix="Name the folder of the original.")
    if not gguf_path(path):
        first = gguf_model(Folder(path)) if path.is_dir() else ""
        if not first:
            fact = "it is no model in GGUF, and every other has its config.json"
            raise error("QB001", str(path), (fact,), fix="Leave out --config.")
        path = path / first
    return GgufStorage(path, original)


class GgufStorage(Folder):
    """The files of one GGUF model, and what lies beside them or in the folder of its original and is no weights."""

    def __init__(self, path: Path, original: Path | None = None) -> None:
        """By the path of one of its files."""
        super().__init__(path.parent)
        self._path = path
        self._beside = path.parent if original is None else original

    def __getstate__(self) -> dict[str, Any]:
        """As a folder, with the paths."""
        return {**super().__getstate__(), "path": self._path, "beside": self._beside}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """The same files, with none open."""
        GgufStorage.__init__(self, state["path"], state["beside"])
        self.limit(state["open_files"])

    def __eq__(self, other: object) -> bool:
        """Whether it is the model of the same file, as a copy in another process is."""
        return isinstance(other, GgufStorage) and (self._path, self._beside) == (other._path, other._beside)

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
        beside = entries(self._beside)
        return [*splits, *sorted(name for name in beside if not name.startswith(".") and self._is_side_file(name))]

    def path(self, name: str = "") -> Path:
        """The file that was named, or one beside it."""
        return super().path(name) if name else self._path

    def _at(self, name: str) -> Path:
        return (self._root if name in _splits(self.first) else self._beside) / name

    def strays(self, name: str) -> bool:
        """As of the folder that it lies in."""
        folder = self._root if name in _splits(self.first) else self._beside
        return Folder(folder).strays(name)

    @property
    def has_original(self) -> bool:
        """Whether config.json and tokenizer are of another folder, as they were asked for."""
        return self._beside != self._root

    def has(self, name: str) -> bool:
        """Whether it is one of these files."""
        return (name in _splits(self.first) or self._is_side_file(name)) and super().has(name)

    def _is_side_file(self, name: str) -> bool:
        return name.endswith(_SIDE_FILES) and super().has(name)

    def unfinished(self) -> Sequence[str]:
        """None: downloads beside it are of no concern."""
        return ()
