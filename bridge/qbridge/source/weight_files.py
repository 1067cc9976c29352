"""Which files of a folder hold its weights, by the index or by their names, and which of them are absent."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

from qbridge.findings.finding import Findings
from qbridge.source.foreign import no_weights
from qbridge.source.safetensors import HeaderError, read_header
from qbridge.source.storage import File, Storage, load_json
from qbridge.source.stored import StoredTensor

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
HEAD = "lm_head.weight"
ADAPTER_WEIGHTS = "adapter_model"  # PEFT's files, which are no part of the model
_ORIGINAL = "consolidated"  # Mistral's and Meta's own files beside those of transformers
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
PICKLE_INDEX = "pytorch_model.bin.index.json"
WEIGHTS = (".safetensors", ".gguf", ".onnx", ".h5", ".msgpack", ".npz", *PICKLES)
NAMED = 100  # absent shards that are named one by one

# DeepSeek writes 00001-of-000163, Kimi 1-of-61, and some count from 0.
_RANK = re.compile(r".*-rank-\d+-part-\d+\.safetensors")  # vllm 0.33.0, model_loader/sharded_state_loader.py
_NUMBERED = re.compile(r"(.*?)(\d{1,9})-of-(\d{1,9})(\.\w+)")


def json_object(storage: Storage, name: str, findings: Findings) -> dict[str, Any] | None:
    """A JSON file's object; None with a finding (QB002) if it is no such thing."""
    try:
        value = load_json(File(storage, name))
    except ValueError as fault:
        findings.add("QB002", name, (str(fault),))
        return None
    if not isinstance(value, dict):
        findings.add("QB002", name, ("it is not a JSON object",))
        return None
    return value


def weight_map(storage: Storage, findings: Findings, name: str = INDEX) -> dict[str, str] | None:
    """Tensor name to shard name, as an index says; None with a finding (QB002) if it is no such thing."""
    index = json_object(storage, name, findings)
    if index is None:
        return None
    weights = index.get("weight_map")
    if not isinstance(weights, dict) or not all(isinstance(file, str) for file in weights.values()):
        findings.add("QB002", name, ("weight_map is not an object of file names",))
        return None
    return weights


def shard_names(storage: Storage, index: Mapping[str, str] | None, findings: Findings) -> list[str]:
    """The shards an engine would load: the index's, else model.safetensors, else the only one there is.

    Findings: QB003 where the numbers in their names say that others are absent, QB005 for several without an index,
    QB007 and QB008 where there is no safetensors file.
    """
    if index is not None:
        if not index:
            findings.add("QB008", INDEX, ("its weight_map is empty",))
        names = sorted(map(plain, set(index.values())))
        check_numbers(names, findings)
        return names
    there = _beside(storage, ".safetensors")
    if SINGLE in there:
        return [SINGLE]
    names = [name for name in there if not name.startswith(ADAPTER_WEIGHTS)]
    if any(_RANK.fullmatch(name) for name in names):
        fact = "the shares of tensor-parallel ranks, of linears that an engine has fused already (sharded state)"
        findings.add("QB101", names, (fact,), ("convert the checkpoint that the engine was given",))
        return []
    if there and not names:
        findings.add("QB008", there, ("an adapter, without the model that it is for",))
        return []
    check_numbers(names, findings)
    if len(names) > 1:
        findings.add("QB005", names, (f"{len(names)} safetensors files and no {INDEX}",))
        return []
    if names:
        return names
    pickled = pickle_names(storage)
    if not pickled:
        others = tuple(f"{file}: weights of a kind that is not read" for file in sorted(weight_files(storage)))
        fact, fix = no_weights(storage) or ("", "")
        findings.add("QB008", storage.url, (fact,) if fact else others, fix=fix)
    elif not findings.allows("QB007"):
        findings.add("QB007", pickled)
    return []


def followed_index(storage: Storage, findings: Findings) -> tuple[str, dict[str, str] | None]:
    """(name, weight map) of the index that is followed: model.safetensors.index.json, or one of another base name.

    AutoGPTQ calls it after its shards (gptq_model-4bit-32g.safetensors.index.json), others after a variant. It counts
    only where no model.safetensors lies beside it, which every engine prefers, and where none of the files is there
    that model.safetensors.index.json names. Of several, the first whose files are all there. An empty name and None
    where there is none; QB002 for one that is no index.
    """
    first = weight_map(storage, findings) if storage.has(INDEX) else None
    if storage.has(INDEX) and (first is None or not _are_absent(storage, first)):
        return INDEX, first
    if SINGLE in storage.names():
        return (INDEX, first) if first is not None else ("", None)
    others = [name for name in _beside(storage, INDEX.removeprefix("model")) if name != INDEX]
    others.sort(key=lambda name: name.startswith((_ORIGINAL, ADAPTER_WEIGHTS)))
    maps = {name: weight_map(storage, Findings(), name) or {} for name in others}
    whole = [name for name in others if _are_there(storage, maps[name])]
    if first is not None:
        return (whole[0], maps[whole[0]]) if whole else (INDEX, first)
    name = next(iter((*whole, *others)), "")
    return name, weight_map(storage, findings, name) if name else None


def _are_there(storage: Storage, index: Mapping[str, str]) -> bool:
    """Whether every file that an index names lies in the folder; False too for an empty one."""
    try:
        return bool(index) and all(map(storage.has, set(index.values())))
    except (OSError, ValueError):  # a name that no file can have
        return False


def _are_absent(storage: Storage, index: Mapping[str, str]) -> bool:
    """Whether none of the files that an index names is in the folder, all plainly named; False for an empty one."""
    names = set(map(plain, set(index.values())))
    if not names or any(map(leads_out, names)):
        return False
    try:
        return names.isdisjoint(storage.names()) and not any(map(storage.has, names))
    except (OSError, ValueError):  # a name that no file can have
        return False


def drafts_outside(
    storage: Storage, names: Collection[str], config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]
) -> dict[File, dict[str, StoredTensor]]:
    """Files beside the shards that hold layers for multi-token prediction alone, none of them in a shard."""
    found = {}
    for name in _beside(storage, ".safetensors"):
        if name in names or storage.strays(name) or name.startswith((ADAPTER_WEIGHTS, _ORIGINAL)):
            continue
        file = File(storage, name)
        try:
            header = read_header(file)
        except (HeaderError, OSError):
            continue  # what it holds cannot be named
        if header and tensors and tensors.keys().isdisjoint(header) and all(is_draft(n, config) for n in header):
            found[file] = header
    return found


def is_draft(tensor: str, config: Mapping[str, Any]) -> bool:
    """Whether a tensor is of a layer for multi-token prediction: called mtp, or numbered after the last layer."""
    parts = tensor.split(".")
    if any(part == "mtp" or part.startswith("mtp_") for part in parts):
        return True
    texts = [config, *(value for value in config.values() if isinstance(value, dict))]
    counts = [text["num_hidden_layers"] for text in texts if type(text.get("num_hidden_layers")) is int]
    after = [parts[place + 1] for place, part in enumerate(parts[:-1]) if part == "layers"]
    return bool(counts and after) and after[0].isdecimal() and len(after[0]) < 10 and int(after[0]) >= max(counts)


def is_stale(storage: Storage, index: Mapping[str, str]) -> bool:
    """Whether an index names files that are all absent, plainly named, beside a file that is the whole model.

    That is model.safetensors, or the only file of another name if it has every module that the index names.
    """
    return _are_absent(storage, index) and (storage.has(SINGLE) or _is_whole(storage, index))


def _is_whole(storage: Storage, index: Mapping[str, str]) -> bool:
    """Whether the only safetensors file has every module that an index names, but for a head."""
    names = [name for name in _beside(storage, ".safetensors") if not name.startswith(ADAPTER_WEIGHTS)]
    if len(names) != 1 or not storage.has(names[0]):
        return False
    try:
        held = {name.rpartition(".")[0] for name in read_header(File(storage, names[0]))}
    except (HeaderError, OSError):
        return False
    return held >= {name.rpartition(".")[0] for name in index if not name.endswith(HEAD)}


def pickle_names(storage: Storage) -> list[str]:
    """The pickled files that engines would load as weights, else every file that may be one."""
    names = _beside(storage, *PICKLES)
    return [name for name in names if name.startswith("pytorch_model")] or names


def check_pickles(storage: Storage, names: Iterable[str], findings: Findings) -> None:
    """QB003 for pickled shards that their index or the numbers in their names speak of, and that are absent."""
    known = set(names)
    index = weight_map(storage, findings, PICKLE_INDEX) if storage.has(PICKLE_INDEX) else None
    if absent := sorted(set((index or {}).values()) - known):
        findings.add("QB003", absent, (f"{PICKLE_INDEX} names them",))
    check_numbers(sorted(known.union((index or {}).values())), findings)


def check_numbers(names: Iterable[str], findings: Findings) -> None:
    """QB003 where a name says `-of-N` and shards of the N are not among the names, or names differ in N."""
    checkpoints: dict[tuple[str, str], dict[int, dict[int, str]]] = defaultdict(lambda: defaultdict(dict))
    for name in names:
        match = _NUMBERED.fullmatch(name)
        inside = not leads_out(name)
        if match and inside and int(match[3]):
            checkpoints[match[1], match[4]][int(match[3])][int(match[2])] = name
    for counts in checkpoints.values():
        if len(counts) > 1:
            every = sorted(name for shards in counts.values() for name in shards.values())
            said = " and ".join(f"of {count}" for count in sorted(counts))
            findings.add(
                "QB003", every, (f"their names say {said}: some belong to another checkpoint, or are absent",)
            )
            continue
        for count, shards in counts.items():
            first = 0 if 0 in shards else 1
            lost = count - sum(first <= number < first + count for number in shards)
            if lost:
                absent = (number for number in range(first, first + count) if number not in shards)
                where = [_numbered(next(iter(shards.values())), number) for number in islice(absent, NAMED)]
                findings.add("QB003", where, (f"{lost} of {count} shards, by the numbers in the others' names",))


def _numbered(name: str, number: int) -> str:
    """The name of another shard of the same checkpoint."""
    match = _NUMBERED.fullmatch(name)
    return name if match is None else f"{match[1]}{number:0{len(match[2])}}-of-{match[3]}{match[4]}"


def weight_files(storage: Storage) -> list[str]:
    """Every file that looks like weights, dangling links included, hidden ones left out."""
    return [name for name in storage.names() if name.endswith(WEIGHTS)]


def _beside(storage: Storage, *endings: str) -> list[str]:
    """The files beside config.json whose names end so, in order."""
    return sorted(name for name in storage.names() if "/" not in name and name.endswith(endings))


def plain(name: str) -> str:
    """A name as an index may spell it ("./a//b"), without what changes nothing."""
    return str(PurePosixPath(name))


def leads_out(name: str) -> bool:
    """Whether a name is absolute or goes up, so that it may lead out of the place."""
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts
