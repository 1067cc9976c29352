"""A checkpoint on disk: config, index, checked headers, tensors read on demand. Never writes."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from qbridge.findings.finding import Findings, error
from qbridge.source.foreign import (
    ADAPTER,
    CONFIG,
    base_of,
    component_of_diffusers,
    foreign_names,
    no_checkpoint,
    pointers,
    unfinished_downloads,
)
from qbridge.source.reader import Source, stamp_of
from qbridge.source.safetensors import HeaderError, read_header
from qbridge.source.stored import StoredTensor
from qbridge.source.weight_files import (
    ADAPTER_WEIGHTS,
    HEAD,
    INDEX,
    WEIGHTS,
    check_pickles,
    drafts_outside,
    followed_index,
    is_stale,
    json_object,
    pickle_names,
    shard_names,
)

MANIFEST = "qbridge.json"
_ATTRIBUTES = ".gitattributes"  # says which files of a repository are Git LFS's, as in the output


def open_source(path: str | os.PathLike[str], findings: Findings) -> Source:
    """Open a folder; raises QBridgeError with everything that is wrong with config, index and headers."""
    root = Path(path)
    config = _config(root, findings)
    named, index = followed_index(root, findings)
    findings.stop_on_errors()
    stale = index if index and is_stale(root, index) else None
    index = None if stale else index
    names = shard_names(root, index, findings)
    if not names:
        findings.stop_on_errors()
        return _open_pickled(root, config or {}, findings)
    found = [name for name in names if _is_inside(root, name, findings)]
    if pointing := pointers(root, found):
        raise error("QB045", pointing)
    shards = {name: root / name for name in found}
    stamps = {file: stamp_of(file) for file in shards.values()}
    tensors = _headers(root, shards, findings)
    if said := foreign_names(tensors or ()):
        raise error("QB101", names, said[:1], fix=said[1])
    unstored: tuple[str, ...] = ()
    if index is not None and tensors is not None and (found == names or findings.allows("QB003")):
        held = {name: file for name, file in index.items() if str(Path(file)) in shards}
        unstored = tuple(sorted(name for name in held.keys() - tensors.keys() if name.endswith(HEAD)))
        _check_index(shards, {n: file for n, file in held.items() if n not in unstored}, tensors, findings)
    if stale and tensors:
        findings.add("QB040", named, _stale(stale, tensors, names[0]))
    for file, more in drafts_outside(root, names, config or {}, tensors or {}).items():
        findings.add("QB044", file.name, (f"{len(more)} tensors, such as {next(iter(more))}",))
        shards[file.name], stamps[file] = file, stamp_of(file)
        tensors = {**(tensors or {}), **more}
    sides = _side_files(root, {*names, *shards, named}, findings)
    if pointing := pointers(root, map(str, sides)):
        findings.add("QB045", pointing)
    findings.stop_on_errors()
    return Source(root, config or {}, tensors or {}, list(shards.values()), sides, stamps=stamps, unstored=unstored)


def _config(root: Path, findings: Findings) -> dict[str, Any] | None:
    """config.json, None with a finding if it cannot be read; QBridgeError where the folder is no checkpoint."""
    if not (root / CONFIG).is_file():
        fact, fix = no_checkpoint(root)
        raise error("QB001", str(root), (fact,), fix=fix)
    if pointing := pointers(root, [CONFIG]):
        raise error("QB045", pointing)
    config = json_object(root, CONFIG, findings)
    if said := component_of_diffusers(config or {}):
        raise error("QB001", str(root), said[:1], fix=said[1])
    return config


def _stale(index: Mapping[str, str], tensors: Mapping[str, StoredTensor], single: str) -> tuple[str, ...]:
    """What an index of other files says that a single file has or lacks, by modules: quantizing renames tensors."""
    held = {name.rpartition(".")[0] for name in tensors}
    lost = sorted({name.rpartition(".")[0] for name in index} - held)
    absent = f"none of the {len(set(index.values()))} files that it names is there"
    if lost:
        return (absent, f"{single} is read; it lacks {len(lost)} modules that the index names, such as {lost[0]}")
    return (absent, f"{single} is read; it is complete by itself: it has every module that the index names")


def _open_pickled(root: Path, config: dict[str, Any], findings: Findings) -> Source:
    """The source of pickled weights, which the user has allowed."""
    from qbridge.source.pickles import read_pickles

    names = [name for name in pickle_names(root) if _is_inside(root, name, findings)]
    findings.add("QB007", names)
    check_pickles(root, names, findings)
    tensors, memory = read_pickles(root, names, findings)
    sides = _side_files(root, names, findings)
    findings.stop_on_errors()
    return Source(root, config, tensors, [root / name for name in names], sides, memory)


def _is_inside(root: Path, name: str, findings: Findings) -> bool:
    """Whether the shard is a file of the folder, or of the blobs of the Hugging Face cache it belongs to."""
    plain = Path(name)
    if plain.is_absolute() or ".." in plain.parts or "\0" in name:
        findings.add("QB006", name, final=True)
        return False
    try:
        there = (root / plain).is_file()
    except OSError:  # a name that no file can have
        there = False
    if not there:
        partial = unfinished_downloads(root)
        facts = (f"{len(partial)} downloads have not ended, such as {partial[0]}",) if partial else ()
        findings.add("QB003", name, facts)
        return False
    if not _stays(root, root / plain):
        findings.add("QB006", name, ("it is a link out of the folder",))
        return findings.allows("QB006")
    return True


def _stays(root: Path, file: Path) -> bool:
    """Whether a file, its links followed, lies in the folder or in the blobs of a Hugging Face cache.

    A folder of the cache has its own blobs; `--local-dir` of huggingface_hub before 0.23 left links into the cache.
    """
    if file.parent == root and not file.is_symlink():
        return True
    home, there = root.resolve(), file.resolve()
    homes = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    return any(there.is_relative_to(place) for place in homes) or _is_blob(there)


def _is_blob(file: Path) -> bool:
    """Whether a file is one of a Hugging Face cache by its whole path: models--owner--name/blobs/<digest>."""
    digest = len(file.name) in (40, 64) and not set(file.name) - set("0123456789abcdef")
    return digest and file.parent.name == "blobs" and file.parent.parent.name.startswith("models--")


def model_name(path: str | Path) -> str:
    """The name of a model by its folder, or by its repository in a Hugging Face cache (models--owner--name)."""
    folder = Path(path).absolute()
    cached = re.fullmatch(r"models--(?:.+--)?(.+)", folder.parent.parent.name)
    return cached[1] if cached and folder.parent.name == "snapshots" else folder.name or "model"


def _headers(root: Path, shards: Mapping[str, Path], findings: Findings) -> dict[str, StoredTensor] | None:
    found: dict[str, StoredTensor] = {}
    sound = True
    for name, file in shards.items():
        try:
            header = read_header(file)
        except HeaderError as fault:
            sound = False
            for tensor, what in fault.faults:
                findings.add("QB004", f"{name}: {tensor}" if tensor else name, (what,))
            continue
        for twice in sorted(found.keys() & header.keys()):
            where = found[twice].file.relative_to(root)
            findings.add("QB005", twice, (f"it is in {where} and in {name}",))
        found.update(header)
    return found if sound else None


def _check_index(
    shards: Mapping[str, Path], index: Mapping[str, str], tensors: Mapping[str, StoredTensor], findings: Findings
) -> None:
    places = {name: shards[str(Path(name))] for name in set(index.values())}
    # a tensor's file is one of the objects in `shards`: comparing 100 000 paths by value would take a while
    moved = sorted(n for n, tensor in tensors.items() if n in index and places[index[n]] is not tensor.file)
    for names, fact in (
        (sorted(index.keys() - tensors.keys()), "the index names it, no shard holds it"),
        (sorted(tensors.keys() - index.keys()), "a shard holds it, the index does not name it"),
        (moved, "it is in another shard than the index says"),
    ):
        if names:
            findings.add("QB005", names, (fact,))


def _side_files(root: Path, read: Collection[str], findings: Findings) -> list[Path]:
    """Every file to carry over that is not `read`, folders included; other hidden ones are git's and caches'."""
    ours = {"config.json", INDEX, MANIFEST, *read}
    found, behind = [], []
    for folder, folders, files in os.walk(root, followlinks=False):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        behind += [str(Path(folder, name).relative_to(root)) for name in folders if Path(folder, name).is_symlink()]
        for name in sorted(files):
            relative = (Path(folder) / name).relative_to(root)
            if (name.startswith(".") and name != _ATTRIBUTES) or str(relative) in ours:
                continue
            if not (root / relative).is_file() or not _stays(root, root / relative):
                findings.add("QB006", str(relative), ("it is a link out of the folder, or to nothing",), final=True)
            elif relative.suffix in WEIGHTS or name.endswith(tuple(f"{s}.index.json" for s in WEIGHTS)):
                behind.append(str(relative))
            else:
                found.append(relative)
    if Path(ADAPTER) in found:
        found.remove(Path(ADAPTER))
        adapter = [name for name in behind if name.startswith(ADAPTER_WEIGHTS)]
        behind = [name for name in behind if name not in adapter]
        findings.add("QB351", (ADAPTER, *adapter), base_of(root))
    if behind:
        findings.add("QB009", behind, _contents(root, behind))
    return found


def _contents(root: Path, names: Sequence[str], most: int = 5) -> tuple[str, ...]:
    """What is lost with safetensors files that are left behind, of the first ones."""
    facts = []
    for name in [name for name in names if name.endswith(".safetensors")][:most]:
        try:
            tensors = sorted(read_header(root / name))
        except (HeaderError, OSError):
            continue  # it holds nothing that can be named
        if tensors:
            facts.append(f"{name}: {len(tensors)} tensors, such as {tensors[0]}")
    return tuple(facts)
