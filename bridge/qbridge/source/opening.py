"""A checkpoint as it is opened: config, index and headers checked, tensors to be read on demand. Never writes."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from qbridge.findings.finding import Findings, error
from qbridge.source.addresses import far_storage
from qbridge.source.folder import Folder
from qbridge.source.foreign import (
    ADAPTER,
    CONFIG,
    base_of,
    component_of_diffusers,
    foreign_names,
    no_checkpoint,
    not_ended,
    pointers,
)
from qbridge.source.gguf_files import GgufStorage, config_inside, gguf_model, gguf_path, open_gguf
from qbridge.source.reader import Source
from qbridge.source.safetensors import HeaderError, prefetch_headers, read_header
from qbridge.source.storage import File, Range, Storage
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
    leads_out,
    pickle_names,
    plain,
    shard_names,
)

MANIFEST = "qbridge.json"
RESIDUE = "qbridge.residue"
_SMALL = 1 << 16  # bytes of a file that is fetched with the config where each read waits for a server


def storage_of(path: str | os.PathLike[str] | Storage) -> Storage:
    """Where the files of a checkpoint lie: a folder, or an address where the path is a text that has or means one.

    QBridgeError: QB001 with what it is if it is no checkpoint, QB061 for an address that is not read, QB062 and QB063
    where a server does not give it.
    """
    if isinstance(path, Storage):
        return path
    far = far_storage(path) if isinstance(path, str) else None
    if far is not None:
        if not far.has(CONFIG):
            far.close()
            raise error("QB001", far.url, (f"there is no {CONFIG}",))
        return far
    if gguf_path(Path(path)):
        return GgufStorage(Path(path))
    folder = Folder(path)
    if not folder.has(CONFIG):
        fact, fix = no_checkpoint(Path(path))
        raise error("QB001", folder.url, (fact,), fix=fix)
    return folder


def open_source(storage: Storage, findings: Findings) -> Source:
    """Open a checkpoint; raises QBridgeError with everything that is wrong with config, index and headers."""
    if storage.is_far:
        storage.prefetch(_documents(storage))
    first = gguf_model(storage)
    config = {} if first and not storage.has(CONFIG) else _config(storage, findings)
    if first:
        return _open_gguf(storage, first, config or {}, findings)
    named, index = followed_index(storage, findings)
    findings.stop_on_errors()
    stale = index if index and is_stale(storage, index) else None
    index = None if stale else index
    names = shard_names(storage, index, findings)
    if not names:
        findings.stop_on_errors()
        return _open_pickled(storage, config or {}, findings)
    found = [name for name in names if _is_inside(storage, name, findings)]
    shards = {name: File(storage, name) for name in found}
    if pointing := pointers(shards.values()):
        raise error("QB045", pointing)
    stamps = {file: file.stamp for file in shards.values()}
    prefetch_headers(storage, shards, index or {})
    tensors = _headers(shards, findings)
    if said := foreign_names(tensors or ()):
        raise error("QB101", names, said[:1], fix=said[1])
    unstored: tuple[str, ...] = ()
    if index is not None and tensors is not None and (found == names or findings.allows("QB003")):
        held = {name: file for name, file in index.items() if plain(file) in shards}
        unstored = tuple(sorted(name for name in held.keys() - tensors.keys() if name.endswith(HEAD)))
        _check_index(shards, {n: file for n, file in held.items() if n not in unstored}, tensors, findings)
    if stale and tensors:
        findings.add("QB040", named, _stale(stale, tensors, names[0]))
    for file, more in drafts_outside(storage, names, config or {}, tensors or {}).items():
        findings.add("QB044", file.name, (f"{len(more)} tensors, such as {next(iter(more))}",))
        shards[file.name], stamps[file] = file, file.stamp
        tensors = {**(tensors or {}), **more}
    sides = _side_files(storage, {*names, *shards, named}, findings)
    if pointing := pointers(File(storage, name) for name in sides):
        findings.add("QB045", pointing)
    findings.stop_on_errors()
    return Source(storage, config or {}, tensors or {}, list(shards), sides, stamps=stamps, unstored=unstored)


def _documents(storage: Storage) -> Iterator[Range]:
    """The files that are looked at before any tensor is: config, index, and what is small."""
    for name in storage.names():
        whole = name in (CONFIG, INDEX, MANIFEST)
        if whole or (storage.size(name) <= _SMALL and not _is_weights(name)):
            yield Range(name, 0, storage.size(name))


def _config(storage: Storage, findings: Findings) -> dict[str, Any] | None:
    """config.json, None with a finding if it cannot be read; QBridgeError where it is of no language model."""
    if pointing := pointers([File(storage, CONFIG)]):
        raise error("QB045", pointing)
    config = json_object(storage, CONFIG, findings)
    if said := component_of_diffusers(config or {}):
        raise error("QB001", storage.url, said[:1], fix=said[1])
    return config


def _stale(index: Mapping[str, str], tensors: Mapping[str, StoredTensor], single: str) -> tuple[str, ...]:
    """What an index of other files says that a single file has or lacks, by modules: quantizing renames tensors."""
    held = {name.rpartition(".")[0] for name in tensors}
    lost = sorted({name.rpartition(".")[0] for name in index} - held)
    absent = f"none of the {len(set(index.values()))} files that it names is there"
    if lost:
        return (absent, f"{single} is read; it lacks {len(lost)} modules that the index names, such as {lost[0]}")
    return (absent, f"{single} is read; it is complete by itself: it has every module that the index names")


def _open_pickled(storage: Storage, config: dict[str, Any], findings: Findings) -> Source:
    """The source of pickled weights, which the user has allowed."""
    from qbridge.source.pickles import read_pickles

    names = [name for name in pickle_names(storage) if _is_inside(storage, name, findings)]
    findings.add("QB007", names)
    check_pickles(storage, names, findings)
    tensors, memory = read_pickles([File(storage, name) for name in names], findings)
    sides = _side_files(storage, names, findings)
    findings.stop_on_errors()
    return Source(storage, config, tensors, names, sides, memory)


def _open_gguf(storage: Storage, first: str, config: dict[str, Any], findings: Findings) -> Source:
    """The source of a model that lies in GGUF files, without what its own tensors repeat of the config."""
    opened = open_gguf(storage, first, findings)
    if isinstance(storage, GgufStorage) and not storage.has_original:
        config = config_inside(opened.metadata) or config
    names = [file.name for file in opened.files]
    if pointing := pointers(opened.files):
        raise error("QB045", pointing)
    sides = _side_files(storage, names, findings)
    findings.stop_on_errors()
    stamps = {file: file.stamp for file in opened.files}
    return Source(storage, config, opened.tensors, names, sides, stamps=stamps, metadata=opened.metadata)


def _is_inside(storage: Storage, name: str, findings: Findings) -> bool:
    """Whether the shard is a file of the place, or of the blobs of the Hugging Face cache it belongs to."""
    if leads_out(name) or "\0" in name:
        findings.add("QB006", name, final=True)
        return False
    try:
        there = storage.has(name)
    except OSError:  # a name that no file can have
        there = False
    if not there:
        findings.add("QB003", name, not_ended(storage))
        return False
    return not storage.strays(name) or _may_stray(name, findings)


def _may_stray(name: str, findings: Findings) -> bool:
    """Whether a link that leads out of the place may be followed, which is said in any case."""
    findings.add("QB006", name, ("it is a link out of the folder",))
    return findings.allows("QB006")


def _headers(shards: Mapping[str, File], findings: Findings) -> dict[str, StoredTensor] | None:
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
            findings.add("QB005", twice, (f"it is in {found[twice].file.name} and in {name}",))
        found.update(header)
    return found if sound else None


def _check_index(
    shards: Mapping[str, File], index: Mapping[str, str], tensors: Mapping[str, StoredTensor], findings: Findings
) -> None:
    places = {name: shards[plain(name)] for name in set(index.values())}
    # a tensor's file is one of the objects in `shards`: comparing 100 000 by value would take a while
    moved = sorted(n for n, tensor in tensors.items() if n in index and places[index[n]] is not tensor.file)
    for names, fact in (
        (sorted(index.keys() - tensors.keys()), "the index names it, no shard holds it"),
        (sorted(tensors.keys() - index.keys()), "a shard holds it, the index does not name it"),
        (moved, "it is in another shard than the index says"),
    ):
        if names:
            findings.add("QB005", names, (fact,))


def _side_files(storage: Storage, read: Collection[str], findings: Findings) -> list[str]:
    """Every file to carry over that is not `read`, those in folders included."""
    ours = {CONFIG, INDEX, MANIFEST, RESIDUE, *read}
    found, behind = [], []
    for name in storage.names():
        if name in ours:
            continue
        if name.endswith("/"):
            behind.append(name.removesuffix("/"))
        elif not storage.has(name):
            findings.add("QB006", name, ("it is a link to nothing",), final=True)
        elif storage.strays(name) and not _may_stray(name, findings):
            continue
        elif _is_weights(name):
            behind.append(name)
        else:
            found.append(name)
    if ADAPTER in found:
        found.remove(ADAPTER)
        adapter = [name for name in behind if name.startswith(ADAPTER_WEIGHTS)]
        behind = [name for name in behind if name not in adapter]
        findings.add("QB351", (ADAPTER, *adapter), base_of(storage))
    if behind:
        findings.add("QB009", behind, _contents(storage, behind))
    return found


def _is_weights(name: str) -> bool:
    """Whether a file that is not read looks like weights, or like an index of some."""
    return PurePosixPath(name).suffix in WEIGHTS or name.endswith(tuple(f"{s}.index.json" for s in WEIGHTS))


def _contents(storage: Storage, names: Sequence[str], most: int = 5) -> tuple[str, ...]:
    """What is lost with safetensors files that are left behind, of the first ones."""
    facts = []
    for name in [name for name in names if name.endswith(".safetensors")][:most]:
        try:
            tensors = sorted(read_header(File(storage, name)))
        except (HeaderError, OSError):
            continue  # it holds nothing that can be named
        if tensors:
            facts.append(f"{name}: {len(tensors)} tensors, such as {tensors[0]}")
    return tuple(facts)
