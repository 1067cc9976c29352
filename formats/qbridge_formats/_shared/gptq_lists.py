"""What GPTQ's config says of modules that differ: `dynamic` and `modules_in_block_to_quantize`.

`dynamic` has regexes from the start of a name, which GPTQModel holds against stored names and vLLM against its own in
memory, those of fused linears and of blocks of experts. `modules_in_block_to_quantize` has endings of names within
the layers of the text model for optimum, and parts of any name for vLLM. Sources: gptqmodel 7.7.0,
quantization/config.py; vllm 0.33.0, model_executor/layers/quantization/utils/gptq_utils.py and auto_gptq.py;
optimum 2.3.0, gptq/quantizer.py (convert_model).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from qbridge.architecture.names import fused_names
from qbridge.formats.patterns import matches
from qbridge.ir.model import Model
from qbridge_formats._shared.gptq_linear import Scheme
from qbridge_formats._shared.unquantized import Subtree, Unquantized, endings, whole_experts, with_fused

_METHOD = "gptq"
_IN_A_LAYER = re.compile(r"(.+?)\.\d+\.(.+)")
_Dynamic = dict[str, dict[str, Any]]


def dynamic(model: Model, schemes: Mapping[str, Scheme], base: Scheme) -> _Dynamic:
    """What is skipped, then what is quantized in another way than `base`; entries of the source come first."""
    rest = Unquantized.of(model)
    skipped, covered = _kept_skips(model, rest)
    for item in rest.items:
        if isinstance(item, Subtree) and not covered.issuperset((*item.linears, *item.probes)):
            skipped[f"-:{item.whole}$"] = {}
    alone = [item for item in rest.items if isinstance(item, str) and item != "lm_head" and item not in covered]
    skipped |= {f"-:{regex}": {} for regex in _regexes(with_fused(alone), rest.quantized, rest.nested).values()}
    changed, others = _kept_changes(model, schemes)
    found: _Dynamic = {**skipped, **{key: _words(scheme, _raw(model)[key]) for key, scheme in changed.items()}}
    apart: dict[Scheme, list[str]] = {}
    for name, scheme in schemes.items():
        if scheme != others.get(name, base):
            apart.setdefault(scheme, []).append(name)
    for scheme, names in apart.items():
        rivals = [name for name in schemes if schemes[name] != scheme]
        blocks = whole_experts(names, rivals)
        inside = {name for below in blocks.values() for name in below}
        listed = [name for name in names if name not in inside]
        listed += [fused for fused, parts in fused_names(schemes).items() if {*parts} <= {*listed}]
        regexes = _regexes(listed, rivals, rest.nested)
        regexes |= {block: f"{regex[:-1]}(\\..*)?$" for block, regex in _regexes(blocks, (), False).items()}
        found |= {f"+:{regex}": _words(scheme, {}) for regex in regexes.values()}
    return found


def _words(scheme: Scheme, raw: Mapping[str, Any]) -> dict[str, Any]:
    return {**raw, "bits": scheme.bits, "group_size": scheme.group_size, "sym": scheme.sym}


def _regexes(names: Iterable[str], others: Iterable[str], nested: bool) -> dict[str, str]:
    """By name a regex of it alone, under any prefix where the text model may be moved under another one."""
    names = list(names)
    moved = endings(names, set(others)) if nested else {}
    return {name: moved.get(name, re.escape(name) + "$") for name in names}


def _raw(model: Model) -> Mapping[str, Any]:
    raw = model.block.get("dynamic") if model.origin == _METHOD else None
    return (
        {str(key): value if isinstance(value, dict) else {} for key, value in raw.items()}
        if isinstance(raw, dict)
        else {}
    )


def _kept_skips(model: Model, rest: Unquantized) -> tuple[_Dynamic, frozenset[str]]:
    """The source's entries that skip nothing quantized, and what they cover."""
    skips = {key: key[2:] for key in _raw(model) if key.startswith("-:")}
    probes = [probe for item in rest.items if isinstance(item, Subtree) for probe in item.probes]
    hits = matches(skips.values(), (*with_fused(rest.quantized), *rest.linears, *probes))
    kept = {
        key: regex
        for key, regex in skips.items()
        if regex not in hits.faults and rest.quantized.isdisjoint(hits.of(regex))
    }
    return {key: {} for key in kept}, frozenset().union(*(hits.of(regex) for regex in kept.values()))


def _kept_changes(model: Model, schemes: Mapping[str, Scheme]) -> tuple[dict[str, Scheme], dict[str, Scheme]]:
    """The source's entries of which each means modules of one scheme, and the schemes that modules have by them."""
    raw = {key: key.removeprefix("+:") for key in _raw(model) if not key.startswith("-:")}
    hits, by_key, meant = matches(raw.values(), schemes), dict[str, Scheme](), dict[str, Scheme]()
    for key, regex in raw.items():
        names = [name for name in schemes if name in hits.of(regex) and name not in meant]
        found = {schemes[name] for name in names}
        if len(found) == 1:
            by_key[key] = found.pop()
            meant |= dict.fromkeys(names, by_key[key])
    return by_key, meant


def in_blocks(model: Model) -> list[list[str]]:
    """Last names of the quantized linears of layers; none where every linear of those layers is quantized.

    A list of the source that says it stays. Otherwise the last name alone stands for a linear, as vLLM may have it
    elsewhere in the layer, unless one that is not quantized has the same.
    """
    inside = [(name, *within_layer(name)) for name in model.specs]
    quantized = [(name, leaf) for name, layer, leaf in inside if layer]
    layers = {layer for _, layer, _ in inside if layer}
    dense = [name for name in Unquantized.of(model).linears if within_layer(name)[0] in layers]
    if not dense:
        return []
    own = model.block.get("modules_in_block_to_quantize") if model.origin == _METHOD else None
    if isinstance(own, list) and all(isinstance(part, list) for part in own):
        endings_ = tuple(str(leaf) for part in own for leaf in part)
        head = "lm_head" not in model.specs or "lm_head" in endings_
        if (
            head
            and all(name.endswith(endings_) for name, _ in quantized)
            and not any(name.endswith(endings_) for name in dense)
        ):
            return own
    leaves = dict.fromkeys(leaf for _, leaf in quantized)
    last = {leaf.rpartition(".")[2] for leaf in leaves}
    alone = {leaf for leaf in last if not any(leaf in name for name in dense)}
    short = dict.fromkeys(end if (end := leaf.rpartition(".")[2]) in alone else leaf for leaf in leaves)
    return [[*short, *(["lm_head"] if "lm_head" in model.specs else [])]]


def listed(raw: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """The linears that modules_in_block_to_quantize has, by endings as optimum means them; all without it."""
    own = raw.get("modules_in_block_to_quantize")
    if not isinstance(own, list) or not own:
        return list(names)
    leaves = {str(leaf) for part in own for leaf in (part if isinstance(part, list) else [part])}
    return [name for name in names if name.endswith(tuple(f".{leaf}" for leaf in leaves))]


def within_layer(name: str) -> tuple[str, str]:
    """(where its layers are, its name within one of them); empty strings for a module of none."""
    match = _IN_A_LAYER.fullmatch(name)
    return (match[1], match[2]) if match else ("", "")
