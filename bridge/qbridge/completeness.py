"""Which tensors an engine needs and a checkpoint lacks, and which it has that no engine expects; by names alone.

What a decoder needs is in `qbridge.sharding` and `qbridge.decoder`; how its blocks are called, the checkpoint says
itself. An architecture that is in no table is not judged.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from qbridge.decoder import INDEXERS, MLPS, MOST, architecture, attention, biased, ends, is_tied, norms, shared_block
from qbridge.ir import Model
from qbridge.sharding import LEFT_ALONE, Family, expert_count, family, text_config
from qbridge.topology import (
    EMBEDDINGS,
    FUSED,
    HEADS,
    canonical_module,
    dense_linears,
    is_head,
    is_kv_scale,
    is_router,
    module_of,
    natural,
)

_LAYER = re.compile(r"((?:.*\.)?(?:layers|h))\.(\d{1,9})\.(.+)")
_EXPERT = re.compile(r"((?:.*\.)?experts)\.(\d{1,9})\.(\w+)")
_PACKED = re.compile(r"(gate_up_proj|down_proj)(_\w+)?(\[\d+\])?")  # or the slices that mxfp4 reads of them
_GROUPED = (frozenset({"gate_proj", "up_proj", "down_proj"}), frozenset({"w1", "w2", "w3"}))
# Buffers that old tools store and no engine reads, and what not every layer has.
_OPTIONAL = frozenset({"rotary_emb", "indexer"})


@dataclass(slots=True)
class _Layer:
    """The modules of one layer by their names below it, experts apart by block and number."""

    modules: set[str] = field(default_factory=set)
    experts: dict[str, dict[int, set[str]]] = field(default_factory=dict)
    packed: dict[str, set[str]] = field(default_factory=dict)

    @property
    def leaves(self) -> set[str]:
        """The last names of modules outside of experts."""
        return {name.rpartition(".")[2] for name in self.modules if "expert" not in name}

    @property
    def linear_attention(self) -> bool:
        """Whether its attention is another."""
        return any(name.startswith("linear_attn") for name in self.modules)

    @property
    def sparse(self) -> bool:
        """Whether it has experts, or what chooses them."""
        return bool(self.experts or self.packed) or any(is_router(name) for name in self.modules)


@dataclass(slots=True)
class _Tree:
    """The decoder of a checkpoint: the name before its layers' numbers, and the layers by number."""

    prefix: str
    layers: dict[int, _Layer]
    modules: set[str]
    names: frozenset[str]

    @property
    def base(self) -> str:
        """What the embedding and the last norm stand under."""
        parent = self.prefix.rpartition(".")[0]
        return f"{parent}." if parent else ""


def _tree(names: Iterable[str], record: Family) -> _Tree:
    """The tensors' modules, taken apart; the decoder is where most linears of the architecture are."""
    split = {module_of(name) for name in names if not is_kv_scale(name)}
    modules = {canonical_module(module) for module, leaf in split if leaf != "bias"}
    found: dict[str, dict[int, _Layer]] = defaultdict(lambda: defaultdict(_Layer))
    votes: Counter[str] = Counter()
    for module in modules:
        match = _LAYER.fullmatch(module)
        if match is None or not LEFT_ALONE.isdisjoint(module.split(".")):
            continue
        prefix, layer, rest = match[1], found[match[1]][int(match[2])], match[3]
        votes[prefix] += rest.rpartition(".")[2] in record.columns
        expert = _EXPERT.fullmatch(rest)
        if expert:
            layer.experts.setdefault(expert[1], {}).setdefault(int(expert[2]), set()).add(expert[3])
        else:
            layer.modules.add(rest)
    prefix = votes.most_common(1)[0][0] if votes else "model.layers"
    for module, leaf in split:
        match = _LAYER.fullmatch(module)
        if match and match[1] == prefix and match[3].endswith("experts") and _PACKED.fullmatch(leaf):
            found[prefix][int(match[2])].packed.setdefault(match[3], set()).add(leaf)
    dotted = (f"{canonical_module(module)}.{leaf}" for module, leaf in split if leaf == "bias")
    return _Tree(prefix, dict(found[prefix]), modules, frozenset(dotted))


def missing(names: Iterable[str], config: Mapping[str, Any]) -> list[str]:
    """Modules and biases that the architecture's layers need, of stored tensors' `names`; none if it is unknown."""
    record, count = family(config), text_config(config).get("num_hidden_layers")
    if record is None or type(count) is not int:
        return []
    tree = _tree(names, record)
    if not tree.layers:
        return [f"{tree.prefix}.0"]
    usual = _usual(tree, count)
    found = []
    for number in range(min(count, MOST)):
        layer = tree.layers.get(number, _Layer())
        lost = {*_layer(layer, tree, record, config), *usual[layer.linear_attention, layer.sparse] - layer.modules}
        lost |= _biases(layer, tree, record, config, number)
        found += [f"{tree.prefix}.{number}.{name}" for name in sorted(lost)]
    found += [f"{tree.prefix}.{MOST}"] if count > MOST else []
    found += [f"{tree.base}{name}" for name in ends(config) if f"{tree.base}{name}" not in tree.modules]
    heads = any(is_head(name) and not _LAYER.fullmatch(name) for name in tree.modules)
    return found if heads or is_tied(config) else [*found, "lm_head"]


def _layer(layer: _Layer, tree: _Tree, record: Family, config: Mapping[str, Any]) -> Iterator[str]:
    """What one layer lacks, below it."""
    leaves = layer.leaves | {part for fused, parts in FUSED.items() if fused in layer.leaves for part in parts}
    outer, inner = norms(config, "kv_b_proj" in record.columns)
    block = _block(tree, record.columns - MLPS - INDEXERS, "self_attn")
    if not layer.linear_attention:
        needed = {*attention(record, text_config(config)), *inner}
        yield from (f"{block}.{leaf}" for leaf in needed - leaves)
    yield from (name for name in outer if name not in layer.modules)
    if layer.sparse:
        yield from _experts(layer, tree, record, config)
        return
    mlp = (record.columns | record.rows) & MLPS
    if "w1" in mlp:  # of these architectures no layer is dense
        yield _experts_block(tree)
    else:
        yield from (f"{_block(tree, mlp, 'mlp')}.{leaf}" for leaf in mlp - leaves)


def _experts(layer: _Layer, tree: _Tree, record: Family, config: Mapping[str, Any]) -> Iterator[str]:
    """The parts of routed and shared experts, and what chooses them."""
    block = next(iter(layer.packed | layer.experts), _experts_block(tree))
    parent = block.rpartition(".")[0]
    if not _routers(layer):
        yield next((name for other in tree.layers.values() for name in _routers(other)), f"{parent}.gate")
    shared = shared_block(config)
    if shared:
        wanted = (f"{parent}.{shared}.{leaf}" for leaf in _GROUPED[0])
        yield from (name for name in wanted if name not in layer.modules)
    if shared == "shared_expert" and not architecture(config).startswith("Llama4"):
        yield from {f"{parent}.shared_expert_gate"} - layer.modules
    if layer.packed:
        have = {name.split("_proj")[0] for name in layer.packed[block]}
        yield from (f"{block}.{part}_proj" for part in ("gate_up", "down") if part not in have)
        return
    held = layer.experts.get(block, {})
    parts = set().union(*held.values()) if held else set()
    leaves = next((names for names in _GROUPED if names & parts), _GROUPED[record.columns >= {"w1"}])
    if {"gate_up_proj"} <= parts:
        leaves = frozenset({"gate_up_proj", "down_proj"})
    for number in range(min(expert_count(config), MOST)):
        yield from (f"{block}.{number}.{leaf}" for leaf in leaves - held.get(number, set()))


def _routers(layer: _Layer) -> list[str]:
    return [name for name in layer.modules if is_router(name) and not name.endswith("shared_expert_gate")]


def _experts_block(tree: _Tree) -> str:
    """What the experts of other layers are called."""
    layers = tree.layers.values()
    return next((block for layer in layers for block in layer.experts | layer.packed), "mlp.experts")


def _block(tree: _Tree, leaves: frozenset[str], otherwise: str) -> str:
    """What the block is called that has such linears in some layer."""
    for layer in tree.layers.values():
        for name in layer.modules:
            parent, _, leaf = name.rpartition(".")
            if leaf in leaves and "expert" not in name:
                return parent
    return otherwise


def _biases(layer: _Layer, tree: _Tree, record: Family, config: Mapping[str, Any], number: int) -> set[str]:
    wanted = biased(record, config)
    there = (name for name in layer.modules if name.rpartition(".")[2] in wanted and "expert" not in name)
    return {f"{name}.bias" for name in there if f"{tree.prefix}.{number}.{name}.bias" not in tree.names}


def _usual(tree: _Tree, count: int) -> Mapping[tuple[bool, bool], set[str]]:
    """By kind of layer, the modules that more than half of its layers have."""
    kinds: dict[tuple[bool, bool], list[set[str]]] = defaultdict(list)
    for number, layer in tree.layers.items():
        if number < count:
            kinds[layer.linear_attention, layer.sparse].append(layer.modules)
    found: dict[tuple[bool, bool], set[str]] = defaultdict(set)
    for kind, layers in kinds.items():
        # a parameter in the attention itself (a sink, which not every layer has) makes no linear of it
        often = Counter(name for modules in layers for name in modules - {_parent(inner) for inner in modules})
        found[kind] = {
            name for name, times in often.items() if 2 * times > len(layers) and _OPTIONAL.isdisjoint(name.split("."))
        }
    return found


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def surplus(model: Model) -> list[str]:
    """Tensors and linears that engines do not expect in a known architecture.

    Tensors beside a quantized linear that are no part of it, linears of a decoder layer that the architecture has
    not, experts and layers beyond the number that config.json gives.
    """
    record, text = family(model.config), text_config(model.config)
    beside = [name for name in model.tensors if module_of(name)[0] in model.specs and module_of(name)[1] == "weight"]
    count, experts = text.get("num_hidden_layers"), expert_count(model.config)
    if record is None or type(count) is not int:
        return beside
    ahead = text.get("num_nextn_predict_layers")
    last = count + (ahead if type(ahead) is int else 0)
    known = record.columns | record.rows | record.whole | FUSED.keys() | EMBEDDINGS | HEADS
    found = []
    for module in (*model.specs, *dense_linears(model.tensors)):
        match = _LAYER.fullmatch(canonical_module(module))
        if match is None or not LEFT_ALONE.isdisjoint(module.split(".")):
            continue
        number, rest = int(match[2]), match[3]
        expert = _EXPERT.fullmatch(rest)
        beyond = number >= last or (expert is not None and experts and int(expert[2]) >= experts)
        leaf = rest.rpartition(".")[2]
        odd = leaf not in known and not is_router(rest) and not _elsewhere(rest)
        if beyond or (odd and number < count):
            found.append(module)
    return natural({*beside, *found})


def _elsewhere(rest: str) -> bool:
    """Parts of a layer that no table lists: linear attention, and experts under the names of another convention."""
    expert = _EXPERT.fullmatch(rest)
    return rest.startswith("linear_attn.") or (expert is not None and expert[3] in _GROUPED[0] | _GROUPED[1])
