"""Which tensors an engine needs and a checkpoint lacks, and which it has that no engine expects; by names alone.

What a decoder needs, `Architecture` says; how its blocks are called, the checkpoint says itself. An architecture that
is in no table is not judged.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field

from qbridge.architecture.architecture import Architecture
from qbridge.architecture.decoder import INDEXERS, LAYERS, LEFT_ALONE, MLPS, MOST, PARAMETERS
from qbridge.architecture.families import ADAPTED
from qbridge.architecture.model_class import ModelClass
from qbridge.architecture.names import (
    EMBEDDINGS,
    FUSED,
    HEADS,
    canonical_module,
    canonical_tensor,
    dense_linears,
    is_head,
    is_kv_scale,
    is_router,
    module_of,
    natural,
)
from qbridge.architecture.numbered import doubtful, one_by_one, tower_blocks
from qbridge.findings.finding import Findings
from qbridge.ir.model import Model

_NUMBER = re.compile(r"\.\d+(?=\.)")
_LAYER = re.compile(rf"((?:.*\.)?(?:{LAYERS}))\.(\d{{1,9}})\.(.+)")
_EXPERT = re.compile(r"((?:.*\.)?experts)\.(\d{1,9})\.(\w+)")
_KV_ENDS = ("_scale", "_zero_point")  # told apart before anything slower looks at a name
_PACKED = re.compile(r"(gate_up_proj|down_proj)(_\w+)?(\[\d+\])?")  # or the slices that mxfp4 reads of them
_GROUPED = (frozenset({"gate_proj", "up_proj", "down_proj"}), frozenset({"w1", "w2", "w3"}))
# Buffers that old tools store and no engine reads, and what not every layer has.
_OPTIONAL = frozenset({"rotary_emb", "indexer", "attention_sink_bias"})


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
    blocks: dict[Hashable, str] = field(default_factory=dict)  # what is asked for each layer and is the same for all

    def once(self, question: Hashable, answer: Callable[[], str]) -> str:
        """The answer to a question about all layers, looked for once: there may be many layers."""
        if question not in self.blocks:
            self.blocks[question] = answer()
        return self.blocks[question]

    @property
    def everything(self) -> frozenset[str]:
        """Modules, and biases and parameters of their own by their full names."""
        return self.names | self.modules

    @property
    def base(self) -> str:
        """What the embedding and the last norm stand under."""
        return _base(self.prefix)


def _base(prefix: str) -> str:
    parent = prefix.rpartition(".")[0]
    return f"{parent}." if parent else ""


def _likelihood(prefix: str, votes: Mapping[str, int], modules: Collection[str]) -> tuple[int, bool, int, str]:
    """How likely it is the decoder's: by its linears, by what stands beside it, and then the shorter name."""
    return votes[prefix], any(f"{_base(prefix)}{name}" in modules for name in EMBEDDINGS), -len(prefix), prefix


def _tree(names: Iterable[str], columns: Collection[str], usual: str = "") -> _Tree:
    """The tensors' modules, taken apart; the decoder has its `usual` name, or most linears of `columns`."""
    split = {module_of(name) for name in names if not (name.endswith(_KV_ENDS) and is_kv_scale(name))}
    modules = {canonical_module(module) for module, leaf in split if leaf != "bias" and leaf not in PARAMETERS}
    modules |= {f"{canonical_module(module)}.{leaf}" for module, leaf in split if leaf in PARAMETERS}
    found: dict[str, dict[int, _Layer]] = defaultdict(lambda: defaultdict(_Layer))
    votes: Counter[str] = Counter()
    for module in modules:
        match = _LAYER.fullmatch(module)
        if match is None or not LEFT_ALONE.isdisjoint(module.split(".")):
            continue
        prefix, layer, rest = match[1], found[match[1]][int(match[2])], match[3]
        votes[prefix] += rest.rpartition(".")[2] in columns
        expert = _EXPERT.fullmatch(rest)
        if expert:
            layer.experts.setdefault(expert[1], {}).setdefault(int(expert[2]), set()).add(expert[3])
        else:
            layer.modules.add(rest)
    prefix = max(votes, key=lambda name: _likelihood(name, votes, modules)) if votes else "model.layers"
    prefix = usual if usual in votes else prefix
    for module, leaf in split:
        match = _LAYER.fullmatch(module) if module.endswith("experts") else None
        if match and match[1] == prefix and _PACKED.fullmatch(leaf):
            found[prefix][int(match[2])].packed.setdefault(match[3], set()).add(leaf)
    dotted = (f"{canonical_module(module)}.{leaf}" for module, leaf in split if leaf == "bias")
    return _Tree(prefix, dict(found[prefix]), modules, frozenset(dotted))


def decoder_of(architecture: Architecture, names: Iterable[str]) -> str:
    """The name before the numbers of the decoder's layers in a checkpoint with tensors of these names."""
    return _tree(names, architecture.split.columns, _usual_name(architecture)).prefix


def judge(model: Model, names: Iterable[str], findings: Findings, side: str = "") -> None:
    """What an engine needs and would not find, and what it would find and not know, by stored tensors' `names`.

    `side` says which of two checkpoints it is. Findings: QB263 for what is missing, QB264 for what is too much, QB266
    where no table says what is needed, QB267 for what may be missing, QB041 for an adapter that is not merged.
    """
    names, about = one_by_one(model, names), (side,) if side else ()
    architecture = Architecture.of_model(model)
    if unmerged := _unmerged(names, architecture):
        findings.add("QB041", unmerged, (*about, *_kinds(unmerged)))
    judged = architecture.judged
    tree = _tree(names, architecture.split.columns if judged else (), _usual_name(architecture))
    lost = _half_scaled(names) if model.kv_cache else []
    if not judged:
        findings.add("QB266", architecture.name or "config.json", about)
        doubt = doubtful(tree.everything, architecture, None)
    else:
        towers = tower_blocks(tree.everything, model.config)
        lost += [*_missing(tree, architecture), *(name for name in towers if not name.endswith(".bias"))]
        biases = [name for name in towers if name.endswith(".bias")]
        doubt = [*biases, *doubtful(tree.everything, architecture, tree.prefix)]
    if lost:
        findings.add("QB263", lost, (*about, *_kinds(lost)))
    if doubt:
        findings.add("QB267", doubt, (*about, *_kinds(doubt)))
    if extra := surplus(model, tree.prefix if judged else ""):
        findings.add("QB264", extra, (*about, *_kinds(extra)))


def _unmerged(names: Iterable[str], architecture: Architecture) -> list[str]:
    """Modules that lie under an adapter's names, in an architecture that is not published so."""
    if architecture.name in ADAPTED:
        return []
    parts = (name.split(".") for name in names)
    return natural({".".join(part[: part.index("base_layer")]) for part in parts if "base_layer" in part})


def _half_scaled(names: Iterable[str]) -> list[str]:
    """Scales and zero-points of the kv cache whose other half is there: of keys without values, or the reverse."""
    stored = {canonical_tensor(name) for name in names if is_kv_scale(name)}
    parts = (name.rpartition(".") for name in stored)
    others = (f"{block}.{'v' if leaf.startswith('k_') else 'k'}{leaf[1:]}" for block, _, leaf in parts)
    return natural(set(others) - stored)


def _kinds(names: Sequence[str], most: int = 5) -> tuple[str, ...]:
    """How many there are of each name, numbers aside."""
    counts = Counter(_NUMBER.sub(".*", name) for name in names)
    told = [f"{name}: {count}" for name, count in counts.most_common(most)]
    return (*told, *([f"and {len(counts) - most} names more"] if len(counts) > most else ()))


def missing(names: Iterable[str], architecture: Architecture) -> list[str]:
    """Modules and biases that the architecture's layers need, of stored tensors' `names`; none if it is unknown."""
    if not architecture.judged:
        return []
    return _missing(_tree(names, architecture.split.columns, _usual_name(architecture)), architecture)


def _usual_name(architecture: Architecture) -> str:
    """The decoder's name where there is an encoder beside it, whose layers may be more."""
    return architecture.row.layers if architecture.row.encoder else ""


def _missing(tree: _Tree, architecture: Architecture) -> list[str]:
    count = architecture.layers or 0
    if not tree.layers:
        return [f"{tree.prefix}.0"]
    usual = _usual(tree, count, architecture)
    found = []
    for number in range(min(count, MOST)):
        layer = tree.layers.get(number, _Layer())
        kind = _kind(layer, number, architecture)
        lost = {*_layer(layer, kind, tree, architecture), *usual[kind] - layer.modules}
        lost |= {f"self_attn.indexer.{leaf}" for leaf in architecture.indexer(number)} - layer.modules
        path = f"{tree.prefix}.{number}"
        whole = {f"{path}.{name}" for name in layer.modules}
        lost |= {name.removeprefix(f"{path}.") for name in _biases(whole, tree, architecture)}
        found += [f"{tree.prefix}.{number}.{name}" for name in sorted(lost)]
    found += [f"{tree.prefix}.{MOST}"] if count > MOST else []
    found += [f"{tree.base}{name}" for name in architecture.ends if f"{tree.base}{name}" not in tree.modules]
    head = architecture.row.head
    last = {f"{tree.base}{name}" for name in architecture.ends} | {head}
    found += sorted(_biases(last & tree.modules, tree, architecture))
    heads = any(
        is_head(name) and not _LAYER.fullmatch(name) and LEFT_ALONE.isdisjoint(name.split("."))
        for name in tree.modules
    )
    return found if heads or architecture.tied or not head else [*found, head]


def _kind(layer: _Layer, number: int, architecture: Architecture) -> tuple[str, bool]:
    """What a layer has in place of attention, or the one block that it has; and whether it has experts."""
    sparse = layer.sparse or not architecture.row.expert_block.isdisjoint(layer.modules)
    if architecture.row.one_block:
        return architecture.kind(number), sparse or architecture.kind(number) == "moe"
    mixer = architecture.mixer(layer.modules)
    return mixer.name if mixer else "", sparse


def _layer(layer: _Layer, kind: tuple[str, bool], tree: _Tree, architecture: Architecture) -> Iterator[str]:
    """What one layer lacks, below it."""
    leaves = layer.leaves | {part for fused, parts in FUSED.items() if fused in layer.leaves for part in parts}
    (alone, sparse), row, one_block = kind, architecture.row, architecture.row.one_block
    outer, inner = architecture.norms
    block = _block(tree, architecture.split.columns - MLPS - INDEXERS, row.attention)
    mixer = architecture.mixer(layer.modules)
    for one in row.mixers:
        if one.beside or (alone == "linear_attention" if one_block else one is mixer):
            inside = f"{one.name}."
            names = {name.removeprefix(inside) for name in layer.modules if name.startswith(inside)}
            yield from (f"{one.name}.{name}" for ways in one.parts for name in _least(ways, names))
    if alone in ("full_attention", "") if one_block else mixer is None or mixer.beside:
        needed = {*architecture.attention, *inner}
        yield from (f"{block}.{leaf}" for leaf in needed - leaves)
    yield from (name for name in (*outer, *row.modules) if name not in layer.modules)
    for leaf in architecture.parameters(sparse) - leaves:
        yield f"{f'{row.mlp}.gate' if leaf == 'e_score_correction_bias' else block}.{leaf}"
    if one_block and alone not in ("mlp", "moe"):
        return
    yield from _feed_forward(layer, sparse, tree, architecture)


def _feed_forward(layer: _Layer, sparse: bool, tree: _Tree, architecture: Architecture) -> Iterator[str]:
    """What lacks of a layer's MLP, or of its experts."""
    row, mlp = architecture.row, architecture.mlp
    if sparse and row.expert_block:
        yield from row.expert_block - layer.modules
        if not architecture.text.get("shared_intermediate_size"):
            return
    elif sparse:
        yield from _experts(layer, tree, architecture)
        return
    elif row.sparse:
        yield _experts_block(tree, architecture)
        return
    others = row.modules | row.expert_block  # what has names of an MLP's linears and is none
    block = _block(tree, mlp, row.mlp, others)
    leaves = _Layer(layer.modules - others).leaves
    leaves |= {part for fused, parts in FUSED.items() if fused in leaves for part in parts}
    yield from (f"{block}.{leaf}".removeprefix(".") for leaf in mlp - leaves)


def _least(ways: Sequence[frozenset[str]], names: Set[str]) -> frozenset[str]:
    """What lacks of the way of several that is there most of all."""
    return min(ways, key=lambda way: (len(way - names), -len(way & names))) - names


def _experts(layer: _Layer, tree: _Tree, architecture: Architecture) -> Iterator[str]:
    """The parts of routed and shared experts, and what chooses them."""
    block = next(iter(layer.packed | layer.experts), _experts_block(tree, architecture))
    parent = block.rpartition(".")[0]
    if not _routers(layer):
        every = (name for other in tree.layers.values() for name in _routers(other))
        yield tree.once("router", lambda: next(every, "")) or f"{parent}.gate"
    shared = architecture.shared_block
    if shared:
        merged = architecture.mlp & architecture.split.merged
        wanted = (f"{parent}.{shared}.{leaf}" for leaf in (_GROUPED[0] if merged else architecture.mlp))
        yield from (name for name in wanted if name not in layer.modules)
    if shared == "shared_expert" and not architecture.row.shared_expert:
        yield from {f"{parent}.shared_expert_gate"} - layer.modules
    if layer.packed:
        packed = {name.partition("[")[0] for name in layer.packed[block]}
        have = {name.split("_proj")[0] for name in packed if not name.endswith("_bias")}
        yield from (f"{block}.{part}_proj" for part in ("gate_up", "down") if part not in have)
        if architecture.fused_experts and architecture.fused_experts.biased:
            wanted_biases = {"gate_up_proj_bias", "down_proj_bias"}
            yield from (f"{block}.{name}" for name in wanted_biases - packed)
        return
    held = layer.experts.get(block, {})
    parts = set().union(*held.values()) if held else set()
    leaves = next((names for names in _GROUPED if names & parts), _GROUPED[architecture.split.columns >= {"w1"}])
    if {"gate_up_proj"} <= parts:
        leaves = frozenset({"gate_up_proj", "down_proj"})
    elif architecture.mlp < leaves:  # an MLP without a gate
        leaves = architecture.mlp
    for number in range(min(architecture.experts, MOST)):
        yield from (f"{block}.{number}.{leaf}" for leaf in leaves - held.get(number, set()))


def _routers(layer: _Layer) -> list[str]:
    return [name for name in layer.modules if is_router(name) and not name.endswith("shared_expert_gate")]


def _experts_block(tree: _Tree, architecture: Architecture) -> str:
    """What the experts of other layers are called."""
    every = (block for layer in tree.layers.values() for block in layer.experts | layer.packed)
    return tree.once("experts", lambda: next(every, f"{architecture.row.mlp}.experts"))


def _block(tree: _Tree, leaves: frozenset[str], otherwise: str, others: Set[str] = frozenset()) -> str:
    """What the block is called that has such linears in some layer, those of `others` left out."""
    every_name = (name for layer in tree.layers.values() for name in layer.modules - others)
    names = (name.rpartition(".") for name in every_name if "expert" not in name)
    every = (parent for parent, _, leaf in names if leaf in leaves)
    return tree.once((leaves, otherwise), lambda: next(every, otherwise))


def _biases(modules: Iterable[str], tree: _Tree, architecture: Architecture) -> set[str]:
    """Biases that the architecture has and modules that are there lack."""
    wanted = architecture.biased
    there = (name for name in modules if name.rpartition(".")[2] in wanted and ".experts." not in name)
    return {f"{name}.bias" for name in there if f"{name}.bias" not in tree.names}


def _usual(tree: _Tree, count: int, architecture: Architecture) -> Mapping[tuple[str, bool], set[str]]:
    """By kind of layer, the modules that more than half of its layers have."""
    kinds: dict[tuple[str, bool], list[set[str]]] = defaultdict(list)
    for number, layer in tree.layers.items():
        if number < count:
            kinds[_kind(layer, number, architecture)].append(layer.modules)
    found: dict[tuple[str, bool], set[str]] = defaultdict(set)
    for kind, layers in kinds.items():
        # a parameter in the attention itself (a sink, which not every layer has) makes no linear of it
        often = Counter(name for modules in layers for name in modules - {_parent(inner) for inner in modules})
        found[kind] = {
            name for name, times in often.items() if 2 * times > len(layers) and _OPTIONAL.isdisjoint(name.split("."))
        }
    return found


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def surplus(model: Model, decoder: str = "") -> list[str]:
    """Tensors and linears that engines do not expect in a known architecture.

    Tensors beside a quantized linear that are no part of it, linears of a decoder layer that the architecture has
    not, experts and layers beyond the number that config.json gives; with the `decoder`'s name before the numbers of
    its layers, linears of layers under another name too.
    """
    architecture = Architecture.of_model(model)
    beside = [name for name in model.tensors if module_of(name)[0] in model.specs and module_of(name)[1] == "weight"]
    count, experts, split = architecture.layers, architecture.experts, architecture.split
    if not architecture.known or count is None:
        return beside
    ahead = architecture.text.get("num_nextn_predict_layers")
    last = count + (ahead if type(ahead) is int else 0)
    row = architecture.row
    known = split.columns | split.rows | split.whole | row.optional | FUSED.keys() | EMBEDDINGS | HEADS
    found = []
    for module in (*model.specs, *dense_linears(model.tensors)):
        match = _LAYER.fullmatch(canonical_module(module))
        if match is None or not LEFT_ALONE.isdisjoint(module.split(".")):
            continue
        number, rest = int(match[2]), match[3]
        expert = _EXPERT.fullmatch(rest)
        beyond = number >= last or (expert is not None and experts and int(expert[2]) >= experts)
        leaf = rest.rpartition(".")[2]
        odd = leaf not in known and not is_router(rest) and not _elsewhere(rest, row)
        twice = decoder not in ("", match[1]) and match[1] != row.encoder and leaf in split.columns | split.rows
        if beyond or twice or (odd and number < count):
            found.append(module)
    return natural({*beside, *found})


def _elsewhere(rest: str, row: ModelClass) -> bool:
    """Parts of a layer that no family lists: mixers, and experts under the names of another convention."""
    expert = _EXPERT.fullmatch(rest)
    if rest in row.modules | row.expert_block or any(rest.startswith(f"{mixer.name}.") for mixer in row.mixers):
        return True
    return expert is not None and expert[3] in _GROUPED[0] | _GROUPED[1]
