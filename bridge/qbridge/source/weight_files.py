"""Which files of a folder hold its weights, by the index or by their names, and which of them are absent."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from qbridge.findings.finding import Findings
from qbridge.source.json_text import load_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
PICKLE_INDEX = "pytorch_model.bin.index.json"
WEIGHTS = (".safetensors", ".gguf", ".onnx", ".h5", ".msgpack", ".npz", *PICKLES)
NAMED = 100  # absent shards that are named one by one

# DeepSeek writes 00001-of-000163, Kimi 1-of-61, and some count from 0.
_NUMBERED = re.compile(r"(.*?)(\d{1,9})-of-(\d{1,9})(\.\w+)")


def json_object(root: Path, name: str, findings: Findings) -> dict[str, Any] | None:
    """A JSON file's object; None with a finding (QB002) if it is no such thing."""
    try:
        value = load_json(root / name)
    except ValueError as fault:
        findings.add("QB002", name, (str(fault),))
        return None
    if not isinstance(value, dict):
        findings.add("QB002", name, ("it is not a JSON object",))
        return None
    return value


def weight_map(root: Path, findings: Findings, name: str = INDEX) -> dict[str, str] | None:
    """Tensor name to shard name, as an index says; None with a finding (QB002) if it is no such thing."""
    index = json_object(root, name, findings)
    if index is None:
        return None
    weights = index.get("weight_map")
    if not isinstance(weights, dict) or not all(isinstance(file, str) for file in weights.values()):
        findings.add("QB002", name, ("weight_map is not an object of file names",))
        return None
    return weights


def shard_names(root: Path, index: Mapping[str, str] | None, findings: Findings) -> list[str]:
    """The shards an engine would load: the index's, else model.safetensors, else the only one there is.

    Findings: QB003 where the numbers in their names say that others are absent, QB005 for several without an index,
    QB007 and QB008 where there is no safetensors file.
    """
    if index is not None:
        if not index:
            findings.add("QB008", INDEX, ("its weight_map is empty",))
        names = sorted({str(Path(name)) for name in set(index.values())})
        check_numbers(names, findings)
        return names
    names = sorted(file.name for file in root.glob("*.safetensors"))
    if SINGLE in names:
        return [SINGLE]
    check_numbers(names, findings)
    if len(names) > 1:
        findings.add("QB005", names, (f"{len(names)} safetensors files and no {INDEX}",))
        return []
    if names:
        return names
    pickled = pickle_names(root)
    if not pickled:
        others = tuple(f"{file}: weights of a kind that is not read" for file in sorted(weight_files(root)))
        findings.add("QB008", str(root), others)
    elif not findings.allows("QB007"):
        findings.add("QB007", pickled)
    return []


def is_stale(root: Path, index: Mapping[str, str]) -> bool:
    """Whether an index names files that are all absent, plainly named, beside a model.safetensors."""
    names = {Path(name) for name in set(index.values())}
    if not (root / SINGLE).is_file() or any(name.is_absolute() or ".." in name.parts for name in names):
        return False
    try:
        return not any((root / name).exists() or (root / name).is_symlink() for name in names)
    except (OSError, ValueError):  # a name that no file can have
        return False


def pickle_names(root: Path) -> list[str]:
    """The pickled files that engines would load as weights, else every file that may be one."""
    names = sorted(file.name for file in root.iterdir() if file.suffix in PICKLES)
    return [name for name in names if name.startswith("pytorch_model")] or names


def check_pickles(root: Path, names: Iterable[str], findings: Findings) -> None:
    """QB003 for pickled shards that their index or the numbers in their names speak of, and that are absent."""
    known = set(names)
    index = weight_map(root, findings, PICKLE_INDEX) if (root / PICKLE_INDEX).is_file() else None
    if absent := sorted(set((index or {}).values()) - known):
        findings.add("QB003", absent, (f"{PICKLE_INDEX} names them",))
    check_numbers(sorted(known.union((index or {}).values())), findings)


def check_numbers(names: Iterable[str], findings: Findings) -> None:
    """QB003 where a name says `-of-N` and shards of the N are not among the names, or names differ in N."""
    checkpoints: dict[tuple[str, str], dict[int, dict[int, str]]] = defaultdict(lambda: defaultdict(dict))
    for name in names:
        match = _NUMBERED.fullmatch(name)
        plain = not Path(name).is_absolute() and ".." not in Path(name).parts
        if match and plain and int(match[3]):
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


def weight_files(root: Path) -> list[str]:
    """Every file below a folder that looks like weights, dangling links included, hidden ones left out."""
    found = []
    for folder, folders, files in os.walk(root, followlinks=False):
        folders[:] = [name for name in folders if not name.startswith(".")]
        relative = (str(Path(folder, name).relative_to(root)) for name in files if not name.startswith("."))
        found += [name for name in relative if name.endswith(WEIGHTS)]
    return found
