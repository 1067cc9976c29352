"""Two checkpoints of which one was grafted or renamed, made comparable: what qbridge.json records is proved apart."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import replace

from qbridge.architecture.config import DRAFTS, with_draft_layers
from qbridge.architecture.experts import Experts, unquantized_experts
from qbridge.architecture.prefixes import renamed
from qbridge.commands.checkpoint import Checkpoint
from qbridge.commands.unquantized import with_layers_of
from qbridge.findings.finding import Findings, QBridgeError
from qbridge.ir.model import Model
from qbridge.plan import experts, manifest
from qbridge.plan.graft import differing, digest, recorded, without
from qbridge.plan.renaming import Renaming, rename
from qbridge.plan.resizing import as_resized
from qbridge.source.opening import open_source, storage_of
from qbridge.source.reader import Source


def align(left: Checkpoint, right: Checkpoint) -> tuple[Checkpoint, Checkpoint]:
    """Both under the names of the one whose manifest records a renaming, if the other has the former names.

    A linear that is quantized in one of them is a layer of the other, too.
    """
    left, right = _like(left, right), _like(right, left)
    return with_layers_of(left, right.model), with_layers_of(right, left.model)


def _like(side: Checkpoint, other: Checkpoint) -> Checkpoint:
    """A checkpoint under the names that the other was given, if it has more names in common then."""
    origin = (manifest.load(other.source) or {}).get("source")
    try:
        pairs = Renaming.from_dict(origin["prefixes"]).pairs if isinstance(origin, Mapping) else ()
    except manifest.MALFORMED:
        return side
    mine, theirs = _names(side), _names(other)
    if not pairs or len(mine & theirs) >= len({renamed(name, pairs) for name in mine} & theirs):
        return side
    wanted = tuple(pair for pair in pairs if any(renamed(name, (pair,)) != name for name in side.source.tensors))
    model, _ = rename(side.source, side.model, wanted, Findings())
    return replace(side, model=model)


def one_by_one(left: Checkpoint, right: Checkpoint, resized: Collection[str]) -> tuple[Checkpoint, Checkpoint]:
    """Both with those unquantized experts as layers that lie otherwise in one than in the other, or are `resized`."""
    there = [unquantized_experts(side.model) for side in (left, right)]
    unlike = [block for block in there[0].keys() & there[1].keys() if there[0][block].lies != there[1][block].lies]
    first, second = (
        replace(side, model=_as_layers(side, [own[block] for block in unlike], resized))
        for side, own in zip((left, right), there, strict=True)
    )
    return first, second


def _as_layers(side: Checkpoint, blocks: Sequence[Experts], resized: Collection[str]) -> Model:
    return as_resized(side.source, experts.as_layers(side.source, side.model, blocks), resized)


def _names(side: Checkpoint) -> set[str]:
    return {*side.model.specs, *side.model.tensors}


def without_grafts(
    left: Checkpoint, right: Checkpoint, original: str, findings: Findings
) -> tuple[Checkpoint, Checkpoint, int]:
    """Both without what was grafted into one of them, and how many tensors that were: each is held to the original.

    Findings: QB503 for one that differs, QB502 for one that the original lacks, QB328 where there is no original to
    compare with: then their digests are compared.
    """
    sides, count = [left, right], 0
    for number, (side, other) in enumerate(((left, right), (right, left))):
        path, digests = recorded(manifest.load(side.source))
        names = {info.stored: name for name, info in side.model.tensors.items()}
        apart = [name for name in digests if names.get(name, "") in side.model.tensors.keys() - _names(other)]
        if not apart:
            continue
        _prove(side.source, {name: digests[name] for name in apart}, original or path, bool(original), findings)
        config, key = with_draft_layers(other.model.config, side.model.config)
        if key.rpartition(".")[2] in DRAFTS:
            sides[1 - number] = replace(other, model=replace(other.model, config=config))
        sides[number] = replace(side, model=without(side.model, apart))
        count += len(apart)
    return sides[0], sides[1], count


def _prove(source: Source, digests: Mapping[str, str], path: str, asked: bool, findings: Findings) -> None:
    """Compare grafted tensors with the original at a path, or with their digests where it cannot be read."""
    try:
        with closing(open_source(storage_of(path), Findings(findings.allow))) as other:
            for name in digests:
                if name not in other.tensors:
                    findings.add("QB502", name, (f"it is grafted, and {path} has none",))
                elif fact := differing(source, name, other, name):
                    findings.add("QB503", name, (f"grafted from {path}: {fact}",))
    except (QBridgeError, OSError) as fault:
        if asked:
            raise
        for name, wanted in digests.items():
            if digest(source, name) != wanted:
                findings.add("QB503", name, ("it is grafted, and no longer what it was",))
        findings.add("QB328", path, (str(fault).splitlines()[0],))
