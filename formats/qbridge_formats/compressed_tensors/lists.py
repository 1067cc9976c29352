"""Which modules a block names: `ignore`, and the targets of its groups.

An engine that renames modules in memory maps plain names as it maps tensors, if at all, and leaves regexes alone; so
what is not quantized as a whole is a regex that holds under any prefix. A target or an entry of the source that says
the same about every tensor stays as it is. Linears that are built as one are named by their parts and as one: some
classes of SGLang look for the latter alone. Sources: compressed-tensors 0.20.0, utils/match.py; vllm 0.33.0,
model_executor/layers/quantization/compressed_tensors (utils.py, compressed_tensors.py, compressed_tensors_moe);
transformers 5.24.0, integrations/compressed_tensors.py (get_experts_scheme); lmdeploy 0.18.0, pytorch/config.py;
sglang 0.5.23, srt/layers/quantization/compressed_tensors/utils.py.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from qbridge.architecture.names import is_embedding, is_head, is_routed
from qbridge.architecture.quantization_block import Block
from qbridge.findings.finding import Findings
from qbridge.formats.patterns import matches
from qbridge.ir.model import Model
from qbridge_formats._shared.unquantized import (
    ROUTED,
    Subtree,
    Unquantized,
    endings,
    is_nested,
    of_layer,
    whole_experts,
    with_fused,
)
from qbridge_formats.compressed_tensors.config import Matcher, Parsed, is_ours, parse

_CLASS = "Linear"
_HEAD = "lm_head"


def source_block(model: Model) -> Parsed | None:
    """The block that the source had, if it was one of this format that makes sense."""
    block = Block("", model.block)
    return parse(block, Findings()) if model.origin == "compressed-tensors" and is_ours(block) else None


def ignore(model: Model, source: Parsed | None) -> list[str]:
    """What is not quantized: the source's entries, and whatever they leave open under some name in memory."""
    rest = Unquantized.of(model)
    probes = [probe for item in rest.items if isinstance(item, Subtree) for probe in item.probes]
    names = [*sorted(rest.quantized), *rest.linears, *rest.routers, *rest.heads, *probes]
    hits = _hits(source.ignore if source else (), names)
    found = dict.fromkeys(entry for entry, names_ in hits.items() if rest.quantized.isdisjoint(names_))
    covered = frozenset().union(*(hits[entry] for entry in found))
    by_regex = frozenset().union(*(hits[entry] for entry in found if entry.startswith("re:")))
    alone = [item for item in rest.items if isinstance(item, str) and item not in by_regex]
    moved = endings(alone, rest.quantized) if rest.nested else {}
    for item in rest.items:
        if isinstance(item, Subtree):
            if not covered.issuperset((*item.linears, *item.probes)):
                found[f"re:{item.pattern}"] = None
                # engines that rename the parts of layers map plain names alone
                found |= dict.fromkeys(item.linears if item.numbered else ())
        else:  # a full name may be one of stored names alone
            found |= {} if item in covered else {item: None}
            found |= {f"re:{moved[item]}": None} if item in moved else {}
    renamed = endings((name for name in rest.routers if name not in covered), rest.quantized)
    found |= dict.fromkeys(f"re:{regex}" for regex in renamed.values())
    if covered.isdisjoint(rest.heads):
        found |= dict.fromkeys(rest.heads)  # tied: no tensor of its own, and the class would claim it
    return list(dict.fromkeys((*found, *with_fused(found))))


def _hits(entries: Iterable[str], names: Sequence[str]) -> dict[str, frozenset[str]]:
    """By entry, the names that it matches; a regex from their start."""
    known, found = frozenset(names), matches((entry[3:] for entry in entries if entry.startswith("re:")), names)
    embeddings = frozenset(filter(is_embedding, names))
    classes = {"Linear": known - embeddings, "Embedding": embeddings}
    return {
        entry: found.of(entry[3:]) if entry.startswith("re:") else classes.get(entry, known.intersection([entry]))
        for entry in entries
    }


def targets(model: Model, source: Parsed | None, groups: Sequence[Sequence[str]]) -> list[list[str]]:
    """The targets of groups of modules, by their stored names; the first group is the commonest."""
    kept = _kept(source, groups) if source else None
    everything = [name for names in groups for name in names]
    found = []
    for number, names in enumerate(groups):
        if kept:
            listed = [*kept[number], *_unnamed(kept[number], names, is_nested(model))]
        elif number:
            listed = _named(names, set(everything).difference(names), is_nested(model))
        else:
            # no class of a linear: engines quantize a head, and an embedding, only where it is named
            listed = [_CLASS, *(name for name in names if is_head(name) or is_embedding(name))]
            listed += [_HEAD] if any(map(is_head, names)) and not is_nested(model) else []
        if is_nested(model):
            loose = [name for name in listed if is_head(name) or is_embedding(name)]
            listed += [
                f"re:{regex}" for regex in dict.fromkeys(endings(loose, set(everything) - set(loose)).values())
            ]
        found.append(list(dict.fromkeys(listed)))
    return found


def _unnamed(listed: Sequence[str], names: Sequence[str], nested: bool) -> list[str]:
    """Heads among names that targets hold by their class alone, or under none but their stored name."""
    # engines call any head so, and a nested one by some prefix
    other = (_HEAD, f"model.{_HEAD}", f"language_model.{_HEAD}") if nested else (_HEAD,)
    heads = [name for name in names if is_head(name)]
    if not heads:
        return []
    hits = _hits(listed, [*heads, *other])
    by_name = frozenset().union(*(hits[target] for target in listed if target != _CLASS))
    if nested:
        return [] if by_name.issuperset(other) else heads
    return [name for name in (*heads, *other) if name not in by_name]


def _named(names: Sequence[str], others: Collection[str], nested: bool) -> list[str]:
    """Names of modules; experts whose block is quantized alike by a regex, for engines build them as one.

    vLLM asks for `experts.0.` where they have no gate. transformers takes the first group for the experts' that has a
    regex with their name, so that no other regex may hold it.
    """
    blocks = whole_experts(names, others)
    inside = {name for block in blocks.values() for name in block}
    alone = [name for name in names if name not in inside]
    found = dict.fromkeys(alone)
    if nested:
        moved = endings([name for name in alone if not is_routed(name)], set(others))
        found |= dict.fromkeys(f"re:{regex.replace('experts', 'expert[s]')}" for regex in moved.values())
    if blocks:
        if not any(map(is_routed, (*alone, *others))):
            return [*with_fused(found), rf"re:(.*\.)?{ROUTED}"]
        for block, below in blocks.items():
            regex = of_layer(block, others)
            found |= dict.fromkeys([f"re:{regex}{ROUTED}"] if regex else below)
    return with_fused(found)


def _kept(source: Parsed, groups: Sequence[Sequence[str]]) -> list[list[str]] | None:
    """The source's own targets for groups of modules; None where its groups are others, or name modules alone."""
    if any(not target.startswith("re:") and "." in target for group in source.groups for target in group.targets):
        return None
    matcher = Matcher(source, [name for names in groups for name in names])
    owners: dict[str, int] = {}
    for number, names in enumerate(groups):
        for name in names:
            group = matcher.group(name)
            rivals = {rival.name for rival in matcher.rivals(name)}
            if group is None or len(rivals) > 1 or owners.setdefault(group.name, number) != number:
                return None
    return [
        [target for group in source.groups if owners.get(group.name) == number for target in group.targets]
        for number in range(len(groups))
    ]
