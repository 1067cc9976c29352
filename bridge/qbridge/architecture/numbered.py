"""What numbered blocks lack that most of their like have, whatever the architecture; by names alone.

The layers of a decoder or of a tower are built alike, so that an engine has a module wherever most of them have one.
Blocks of more kinds (dense and sparse, two kinds of attention) are compared with those of their kind.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from qbridge.architecture.architecture import Architecture
from qbridge.architecture.decoder import DRAFT_BLOCKS, MOST, TOWERS
from qbridge.architecture.names import module_of
from qbridge.ir.model import Model

Blocks = Mapping[int, frozenset[str]]  # by number, the names below a block

_BLOCK = re.compile(r"(.+?)\.(\d{1,9})\.(.+)")
_EXPERT = re.compile(r"(?<=experts\.)\d+(?=\.)")
VISION = frozenset({"visual", "vision_tower", "vision_model", "vpm"})
LISTS = frozenset({"blocks", "h", "layer", "layers", "resblocks"})  # of which no number may be left out
_KINDS = 64  # more kinds of blocks than any model has are not compared with each other
_SPARSE = "experts."  # stands for having experts, among first names, which have no dot


def blocks(names: Iterable[str]) -> dict[str, Blocks]:
    """The numbered blocks by the name before their numbers; experts count as one."""
    found: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for name in names:
        match = _BLOCK.fullmatch(name)
        if match:
            found[match[1]][int(match[2])].add(_EXPERT.sub("*", match[3]))
    return {
        prefix: {number: frozenset(below) for number, below in members.items()} for prefix, members in found.items()
    }


def lacking(prefix: str, members: Blocks, count: int = 0) -> Iterator[str]:
    """Names that blocks lack and most of their like have; whole blocks below `count`, or below the last one."""
    kinds: dict[frozenset[str], list[frozenset[str]]] = defaultdict(list)
    for below in members.values():
        kinds[_kind(below)].append(below)
    usual = {kind: _usual(like) for kind, like in kinds.items()}
    alike = {kind: _alike(kind, kinds) for kind in kinds}
    last = max(count, *(number + 1 for number in members)) if _is_list(prefix) else 0
    for number in range(min(last, MOST)):
        if number not in members:
            yield f"{prefix}.{number}"
    for number, below in sorted(members.items()):
        kind = _kind(below)
        yield from (f"{prefix}.{number}.{name}" for name in sorted(usual[alike[kind]] - below))


def _alike(kind: frozenset[str], kinds: Mapping[frozenset[str], Collection[object]]) -> frozenset[str]:
    """The kind that blocks of a kind are of, which may lack whole parts of what far more of them have."""
    if len(kinds) > _KINDS:
        return kind
    others = [other for other in kinds if kind - {_SPARSE} < other - {_SPARSE}]
    like = max(others, key=lambda other: (len(kinds[other]), sorted(other)), default=kind)
    return like if len(kinds[like]) > 2 * len(kinds[kind]) else kind


def _kind(below: frozenset[str]) -> frozenset[str]:
    """The blocks' first names below it, with whether there are experts."""
    return frozenset({name.partition(".")[0] for name in below} | {_SPARSE for name in below if "experts." in name})


def _usual(like: list[frozenset[str]]) -> frozenset[str]:
    times = Counter(name for below in like for name in below)
    return frozenset(name for name, count in times.items() if 2 * count > len(like))


def tower_blocks(names: Iterable[str], config: Mapping[str, Any]) -> list[str]:
    """Modules and biases that blocks of vision and audio towers lack, of an architecture whose towers are known."""
    found = blocks(name for name in names if not TOWERS.isdisjoint(name.split(".")))
    seen = [prefix for prefix in found if not VISION.isdisjoint(prefix.split(".")) and _is_list(prefix)]
    largest = max(seen, key=lambda prefix: (len(found[prefix]), prefix), default="")
    return [
        name
        for prefix, members in found.items()
        for name in lacking(prefix, members, _vision_layers(config) if prefix == largest else 0)
    ]


def doubtful(names: Collection[str], architecture: Architecture, decoder: str | None) -> list[str]:
    """What may be missing: all blocks' where the architecture is unknown, else parts that an engine may do without.

    `decoder` is the name before the layers' numbers of a known architecture.
    """
    if decoder is None:
        found = blocks(names)
        lists = [prefix for prefix in found if _is_list(prefix) and TOWERS.isdisjoint(prefix.split("."))]
        largest = max(lists, key=lambda prefix: (sum(map(len, found[prefix].values())), prefix), default="")
        layers = architecture.layers or 0
        return [
            name
            for prefix, members in found.items()
            for name in lacking(prefix, members, layers if prefix == largest else 0)
        ]
    biases = blocks(name for name in names if name.endswith(".bias") and name.startswith(f"{decoder}."))
    lost = [name for prefix, members in biases.items() for name in lacking(prefix, members)]
    modules = set(names)
    lost = [name for name in lost if name.removesuffix(".bias") in modules]
    return [*lost, *_drafts(modules, architecture, decoder), *_towers(modules, architecture.config)]


def _drafts(names: Collection[str], architecture: Architecture, decoder: str) -> Iterator[str]:
    """Layers for multi-token prediction: after the last one of the decoder, or under mtp."""
    count, last = architecture.draft_layers, architecture.layers
    if not count or any(not DRAFT_BLOCKS.isdisjoint(name.split(".")) for name in names):
        return
    if "mtp_num_hidden_layers" in architecture.text or last is None:
        yield "mtp"
        return
    depth = decoder.count(".") + 1
    there = {name.split(".", depth + 1)[depth] for name in names if name.startswith(f"{decoder}.")}
    yield from (f"{decoder}.{number}" for number in range(last, last + min(count, MOST)) if str(number) not in there)


def _towers(names: Collection[str], config: Mapping[str, Any]) -> Iterator[str]:
    if isinstance(config.get("vision_config"), dict) and not any(not VISION.isdisjoint(n.split(".")) for n in names):
        yield "vision_tower"


def _vision_layers(config: Mapping[str, Any]) -> int:
    """How many blocks the vision tower must have; those after the one whose output is taken may be left out."""
    vision, taken = config.get("vision_config"), config.get("vision_feature_layer")
    if not isinstance(vision, dict):
        return 0
    count = vision.get("depth", vision.get("num_hidden_layers"))
    if type(count) is not int:
        return 0
    return max(0, count + taken + 1) if type(taken) is int and taken < 0 else count


def _is_list(prefix: str) -> bool:
    """Whether blocks of this name are numbered without a gap."""
    return prefix.rpartition(".")[2] in LISTS


def one_by_one(model: Model, names: Iterable[str]) -> list[str]:
    """The names, single experts in place of the slices of a tensor that one linear of all of them has.

    A tensor that is made of shares stands in their place.
    """
    found = dict.fromkeys(names)
    for linear in model.rearranged.values():
        if not linear.write.codec.exclusive:
            found.pop(linear.read.tensor, None)
            found[linear.write.whole] = None
    for layer, slots in model.slots.items():
        whole = slots["code"].slice
        if whole and not module_of(whole.tensor)[0].endswith("experts"):
            for slot in slots.values():
                found.pop(slot.tensor, None)
            found[f"{layer}.weight"] = None
    return list(found)
