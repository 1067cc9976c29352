"""What a path is that is no checkpoint, in a sentence, and the way out: (fact, fix)."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from qbridge.findings.hints import word_of_command
from qbridge.source.addresses import HUB, may_be_repository
from qbridge.source.folder import SCANNED, Folder, entries
from qbridge.source.storage import File, Storage, load_json

CONFIG = "config.json"
ADAPTER = "adapter_config.json"
_POINTER = b"version https://git-lfs.github.com/spec/"  # git-lfs, docs/spec.md: the first line of every pointer
_POINTER_SIZE = 1024  # bytes that a pointer has at most, by the same page
_PART = re.compile(r"\.(.+)\.qbridge-part")
# mistral_common and vllm 0.33.0, model_executor/models/mistral.py (mistral_mapping)
_MISTRAL_NAME = re.compile(r"layers\.\d+\.(attention\.w[qkvo]|feed_forward\.w[123])\..+")

Said = tuple[str, str]


def stage_name(name: str, what: str) -> str:
    """What is called `what` (part, journal, old, trash) of a checkpoint that is being written under `name`."""
    return f".{name}.qbridge-{what}"


def no_checkpoint(path: Path) -> Said:
    """What a path is that has no config.json, and what to do; the fix is empty where the catalogue's fits."""
    if path.is_file():
        return _file(path)
    if not path.is_dir():
        return _nothing(path)
    names = entries(path)
    for kind in (_stage, _adapter, _pipeline, _cache, _others):
        if said := kind(path, names):
            return said
    if partial := Folder(path).unfinished():
        return f"there is no {CONFIG}, but a download that has not ended: {partial[0]}", _AGAIN
    if parts := _below(path, names):
        return f"there is no {CONFIG}, but in {len(parts)} folders below", f"Name one: {_listed(path, parts)}."
    return f"there is no {CONFIG}", ""


def _stage(path: Path, names: Collection[str]) -> Said | None:
    whole = path.resolve()
    if match := _PART.fullmatch(whole.name):
        return "it is what an unfinished conversion left", _unfinished(whole.parent / match[1])
    if stage_name(whole.name, "part") in names:
        return "an unfinished conversion is all that it holds", _unfinished(path)
    return None


def _adapter(path: Path, names: Collection[str]) -> Said | None:
    return _an_adapter(File(Folder(path), ADAPTER)) if ADAPTER in names else None


def _an_adapter(file: File) -> Said:
    """An adapter by its config, which names the model that it is for."""
    return f"it holds an adapter{_base(file)} and not the model", _ADAPTER


def base_of(storage: Storage) -> tuple[str, ...]:
    """The model that an adapter's config names, as a fact, if it names one."""
    base = _base(File(storage, ADAPTER))
    return (f"an adapter{base}",) if base else ()


def _base(file: File) -> str:
    """Whose adapter it is, as far as its config says."""
    name = _value(file, "base_model_name_or_path")
    return f" of {name}" if name else ""


def _pipeline(path: Path, names: Collection[str]) -> Said | None:
    if "model_index.json" not in names:
        return None
    pipeline, parts = _value(File(Folder(path), "model_index.json"), "_class_name"), _below(path, names)
    there = f"Name the folder of a language model in it: {_listed(path, parts)}." if parts else _DIFFUSERS
    return f"it is a pipeline of diffusers ({pipeline or 'of no class'}), not one model", there


def _cache(path: Path, names: Collection[str]) -> Said | None:
    if "snapshots" in names and ("refs" in names or "blobs" in names):
        return "it is the root of one model in a Hugging Face cache", _snapshot(path)
    models = sorted(name for name in names if name.startswith("models--"))
    if models:
        return f"it is a Hugging Face cache, of {len(models)} or more models", _snapshot(path / models[0])
    return None


def _others(path: Path, names: Collection[str]) -> Said | None:
    if "params.json" in names or any(name.startswith("consolidated") for name in names):
        return f"there is no {CONFIG}, but files of Mistral's own format (or Meta's), which is not read", _MISTRAL
    return _gguf(names)


def _gguf(names: Collection[str]) -> Said | None:
    there = min((name for name in names if name.endswith(".gguf")), default="")
    fact = f"it holds GGUF files (llama.cpp), such as {there}"
    return (fact, _GGUF) if there else None


def not_ended(storage: Storage) -> tuple[str, ...]:
    """That downloads into a place have not ended, as a fact, if there are such."""
    partial = storage.unfinished()
    if len(partial) == 1:
        return (f"a download has not ended: {partial[0]}",)
    return (f"{len(partial)} downloads have not ended, such as {partial[0]}",) if partial else ()


def no_weights(storage: Storage) -> Said | None:
    """What a place with config.json has in place of weights."""
    if partial := not_ended(storage):
        return partial[0], _AGAIN
    names = [name for name in storage.names() if "/" not in name]
    if said := _gguf(names):
        return said
    return _an_adapter(File(storage, ADAPTER)) if ADAPTER in names else None


def component_of_diffusers(config: Mapping[str, Any]) -> Said | None:
    """That a config is of a component of an image model; diffusers writes its version into each."""
    if "_diffusers_version" not in config:
        return None
    return f"it is a component of diffusers ({config.get('_class_name')}), not a language model", _DIFFUSERS


def foreign_names(tensors: Iterable[str]) -> Said | None:
    """That tensors have the names of Mistral's own format."""
    if any(map(_MISTRAL_NAME.fullmatch, islice(tensors, SCANNED))):
        return "the tensors have names of Mistral's own format, which is Meta's (layers.0.attention.wq)", _MISTRAL
    return None


def pointers(files: Iterable[File]) -> list[str]:
    """Those of some files that are pointers of Git LFS: what git clones where git-lfs is not installed."""
    return [file.name for file in files if _is_pointer(file)]


_ADAPTER = "Convert the model that it is for, and serve the adapter beside it; or merge the two first."
_MISTRAL = "Take the same model in the files of transformers (config.json, model-*.safetensors)."
_GGUF = "Name the file itself; of several splits the first."
_AGAIN = "Run the same download again: it goes on where it stopped."
_DIFFUSERS = "Name the folder of a language model; image models are not converted."


def _file(path: Path) -> Said:
    folder = path.parent
    if (folder / CONFIG).is_file():
        return "it is a file", f"Name the folder that it lies in: {folder}"
    return "it is a file, and no config.json lies beside it", "Name a folder with config.json and weights."


def _nothing(path: Path) -> Said:
    part = path.parent / stage_name(path.name, "part")
    if part.is_dir():
        return f"there is no such folder, but {part}, which an unfinished conversion left", _unfinished(path)
    text = str(path)
    if may_be_repository(text):
        return "there is no such folder", f"Correct the path; or, if it is a repository of the Hub: {HUB}{text}"
    return "there is no such folder", "Correct the path."


def _unfinished(dst: Path) -> str:
    name = word_of_command(str(dst))
    return f"Run the same conversion to {name} again: it goes on where it stopped. Or remove it: qbridge clean {name}"


def _value(file: File, key: str) -> str:
    try:
        value = load_json(file)
    except (OSError, ValueError):
        return ""
    named = value.get(key) if isinstance(value, dict) else None
    return named if isinstance(named, str) else ""


def _snapshot(model: Path) -> str:
    """The way to the snapshot of a model in a cache: the one that main leads to, or the first."""
    try:
        wanted = (model / "refs" / "main").read_text().strip()
    except (OSError, ValueError):
        wanted = ""
    there = _below(model / "snapshots", entries(model / "snapshots"))
    name = wanted if wanted in there else next(iter(there), "")
    return f"Name the snapshot: {model / 'snapshots' / name}" if name else "Download it: no snapshot is whole."


def _below(root: Path, names: Iterable[str]) -> list[str]:
    """Those folders that hold a config.json."""
    try:
        return sorted(name for name in names if (root / name / CONFIG).is_file())
    except OSError:
        return []


def _listed(root: Path, names: list[str], most: int = 4) -> str:
    return ", ".join(str(root / name) for name in names[:most]) + (" ..." if len(names) > most else "")


def _is_pointer(file: File) -> bool:
    try:
        return file.size <= _POINTER_SIZE and file.read(len(_POINTER)) == _POINTER
    except OSError:
        return False
