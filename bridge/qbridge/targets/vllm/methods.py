"""How each of vLLM's methods matches its lists with the names of what is built.

Source: vllm 0.33.0, model_executor/layers/quantization: fp8.py, auto_gptq.py, auto_awq.py, modelopt.py, inc/,
compressed_tensors/, quark/, and utils/quant_utils.py, utils/gptq_utils.py, utils/config_utils.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from qbridge.formats.patterns import Matches, matches
from qbridge.targets.derivation import Answer, Built, Kind, strings
from qbridge.targets.vllm.names import Names

_DIFFERENT = "the parts of a linear that it builds as one are not listed alike"


@dataclass(frozen=True, slots=True)
class Question:
    """What a method is asked: the block, vLLM's names of a class, and the stored names of the model."""

    block: Mapping[str, Any]
    names: Names
    quantized: tuple[str, ...]
    modules: tuple[str, ...]  # of all tensors, as stored
    built: tuple[Built, ...]

    def shards(self, name: str) -> list[str]:
        """The parts through which lists see something that is built as one, by vLLM's names; itself otherwise."""
        leaf = name.rpartition(".")[2]
        return [name.replace(leaf, part) for part in self.names.parts_of(name)]

    def listed(self, *keys: str) -> list[str]:
        """The entries of the first list under one of some keys that has any, renamed."""
        found = next((entries for key in keys if (entries := strings(self.block.get(key)))), [])
        return [self.names.renamed(entry, entry=True) for entry in found]


Method = Callable[[Question], tuple[str, Callable[[Built], Answer]]]


def _alike(answers: Iterable[bool]) -> Answer:
    """One answer for the parts of a linear; what vLLM says where they differ."""
    found = set(answers)
    return _DIFFERENT if len(found) > 1 else found.pop()


def _skipped(asked: Question, name: str, match: Callable[[str], bool]) -> Answer:
    """is_layer_skipped: the name of what is built as one first, then each of its parts."""
    return True if match(name) else _alike(map(match, asked.shards(name) or [name]))


def _quantized(skipped: Answer) -> Answer:
    return skipped if isinstance(skipped, str) or skipped is None else not skipped


def _fp8(asked: Question) -> tuple[str, Callable[[Built], Answer]]:
    entries = asked.listed("ignored_layers", "modules_to_not_convert")
    exact = frozenset(entries)
    experts = [entry for entry in entries if "experts" in entry]

    def answer(unit: Built) -> Answer:
        if unit.kind == "head":
            return False
        if asked.shards(unit.name):
            return _quantized(_skipped(asked, unit.name, exact.__contains__))
        if "experts" in unit.name:
            return not any(unit.name in entry for entry in experts)
        return unit.name not in exact

    return "it matches modules_to_not_convert by whole names", answer


def _gptq(asked: Question) -> tuple[str, Callable[[Built], Answer]]:
    given = asked.listed("modules_in_block_to_quantize")
    entries = given or [asked.names.renamed(name, entry=True) for name in asked.quantized]
    part_of = _contained(entries)
    dynamic = asked.block.get("dynamic")
    rules = list(dynamic) if isinstance(dynamic, dict) else []
    found = matches([_pattern(rule) for rule in rules], [unit.name for unit in asked.built])

    def left_out(name: str) -> bool:
        first = next((rule for rule in rules if name in found.of(_pattern(rule))), "")
        return first.startswith("-:")

    def answer(unit: Built) -> Answer:
        if left_out(unit.name) or (unit.kind == "head" and not asked.block.get("lm_head")):
            return False
        if unit.kind == "experts" or not entries:
            return True
        parts = asked.shards(unit.name) or [unit.name]
        return _alike(map(part_of, parts))

    return "it matches modules_in_block_to_quantize as parts of its names, and dynamic from their start", answer


def _contained(entries: Iterable[str]) -> Callable[[str], bool]:
    """Whether a name has one of some entries in it, wherever that is: long lists are of whole names, and quick."""
    texts = frozenset(entries)
    lengths = sorted({len(text) for text in texts})
    search = len(texts) > sum(lengths)  # every part of a name of a length that some entry has is looked up

    def within(name: str) -> bool:
        if name in texts:
            return True
        if not search:
            return any(text in name for text in texts)
        return any(name[at : at + size] in texts for size in lengths for at in range(len(name) - size + 1))

    return within


def _pattern(rule: str) -> str:
    return rule[2:] if rule[:2] in ("-:", "+:") else rule


def _awq(asked: Question) -> tuple[str, Callable[[Built], Answer]]:
    entries = asked.listed("modules_to_not_convert")
    if not entries:  # it makes the list itself of all modules that hold floats alone
        coded = frozenset(asked.quantized)
        others = (name for name in asked.modules if name not in coded)
        entries = [asked.names.renamed(name, entry=True) for name in others]

    part = _contained(entries)

    def answer(unit: Built) -> Answer:
        if unit.kind == "head" and not asked.block.get("lm_head"):
            return False
        if unit.kind == "experts":
            return not part(unit.name)
        return _quantized(_skipped(asked, unit.name, part))

    return "it matches modules_to_not_convert as parts of its names", answer


_CLASSES: Mapping[Kind, str] = {"experts": "RoutedExperts", "head": "ParallelLMHead", "linear": "ParallelLinear"}


def _compressed_tensors(asked: Question) -> tuple[str, Callable[[Built], Answer]]:
    groups = asked.block.get("config_groups")
    lists = [group.get("targets") for group in groups.values()] if isinstance(groups, dict) else []
    targets = [_as_path(asked, target) for targets in lists for target in strings(targets)]
    ignore = [_as_path(asked, entry) for entry in strings(asked.block.get("ignore"))]
    found = _expressions(asked, (*targets, *ignore))
    if "Linear" in targets:
        targets.append("RoutedExperts")
    left, wanted = _Entries.of(found, ignore), _Entries.of(found, targets)
    classes = {kind: wanted.hit_class(kind) for kind in _CLASSES.values()}

    def one(name: str, kind: str) -> bool:
        return not left.hit(name) and (wanted.hit(name) or classes[kind])

    def answer(unit: Built) -> Answer:
        kind = _CLASSES[unit.kind]
        if unit.kind == "experts":
            return _alike(one(name, kind) for name in _projections(unit))
        shards = asked.shards(unit.name)
        ignored = [left.hit(shard) for shard in shards]
        if left.hit(unit.name) or (ignored and all(ignored)):
            return False
        if any(ignored):
            return "Found different quantization schemes for the shards of a linear"
        parts = all(wanted.hit(shard) for shard in shards) if shards else False
        return wanted.hit(unit.name) or parts or classes[kind]

    return "it matches ignore and targets by whole names, by re: from their start, and classes", answer


def _as_path(asked: Question, entry: str) -> str:
    return asked.names.renamed(entry, entry=True) if "." in entry and not entry.startswith("re:") else entry


def _projections(unit: Built) -> list[str]:
    """The first expert's linears, in whose names the lists are asked about all experts."""
    leaves = {name.rpartition(".")[2] for name in (*unit.quantized, *unit.plain)}
    mixtral = "w1" in leaves
    gated = "gate_proj" in leaves or "up_proj" not in leaves
    named = (
        ("w1", "w3", "w2")
        if mixtral
        else ("gate_proj", "up_proj", "down_proj")
        if gated
        else ("up_proj", "down_proj")
    )
    return [f"{unit.name}.0.{leaf}" for leaf in named]


def _expressions(asked: Question, entries: Iterable[str]) -> Matches:
    names = {name: None for unit in asked.built for name in (unit.name, *asked.shards(unit.name))}
    experts = {name: None for unit in asked.built if unit.kind == "experts" for name in _projections(unit)}
    return matches(
        (entry[3:] for entry in entries if entry.startswith("re:")), (*names, *experts, *_CLASSES.values())
    )


@dataclass(frozen=True, slots=True)
class _Entries:
    """The entries of a list that is matched by whole names and expressions: thousands of names, few expressions."""

    names: frozenset[str]
    expressions: tuple[str, ...]
    found: Matches

    @classmethod
    def of(cls, found: Matches, entries: Iterable[str]) -> _Entries:
        """Entries whose expressions were matched already."""
        every = tuple(entries)
        expressions = tuple(entry[3:] for entry in every if entry.startswith("re:"))
        return cls(frozenset(entry for entry in every if not entry.startswith("re:")), expressions, found)

    def hit(self, name: str) -> bool:
        """Whether an entry is a name, or an expression that matches it."""
        return name in self.names or any(name in self.found.of(expression) for expression in self.expressions)

    def hit_class(self, kind: str) -> bool:
        """The last resort of a target: a part of the name of vLLM's own class, whatever its case."""
        return any(name.lower() in kind.lower() for name in self.names) or self.hit(kind)


def _quark(asked: Question) -> tuple[str, Callable[[Built], Answer]]:
    entries = asked.listed("exclude")
    names = (name for unit in asked.built for name in (unit.name, *asked.shards(unit.name)))
    left = _Entries.of(
        matches((entry[3:] for entry in entries if entry.startswith("re:")), dict.fromkeys(names)), entries
    )
    plain = [entry for entry in entries if not entry.startswith("re:")]

    def answer(unit: Built) -> Answer:
        if unit.kind == "head":
            return False
        if unit.kind == "experts":
            return not (left.hit(unit.name) or any(entry.startswith(f"{unit.name}.") for entry in plain))
        return _quantized(_skipped(asked, unit.name, left.hit))

    return "it matches exclude by whole names and re:", answer


def _modelopt(asked: Question) -> tuple[str, Callable[[Built], Answer]]:
    old = asked.block.get("quantization")
    block = old if isinstance(old, dict) else asked.block
    given = strings(block.get("exclude_modules") if old else block.get("ignore", block.get("exclude_modules")))
    entries = []
    for entry in given:
        tree = len(entry) > 1 and entry[-1] == "*" and entry[-2] != "."
        entries += [entry[:-1], f"{entry[:-1]}.*"] if tree else [entry]
    entries = [asked.names.renamed(entry, entry=True) for entry in entries]
    mixed = block.get("quantized_layers")
    layers = _Layers.of(asked.names.renamed(name, entry=True) for name in mixed) if isinstance(mixed, dict) else None
    exact, within = frozenset(entries), _contained(entries)
    experts = [entry for entry in entries if "experts" in entry]
    wildcards = [entry for entry in entries if not set(entry).isdisjoint("*?[")]

    def excluded(name: str) -> Answer:
        skipped: Answer = name in exact
        if asked.shards(name):
            skipped = _skipped(asked, name, exact.__contains__)
        elif "experts" in name:
            skipped = any(name in entry for entry in experts)
        if skipped is not False:
            return skipped
        bare = name.removeprefix("language_model.")
        if name in exact or within(name) or within(bare):
            return True
        return any(fnmatchcase(name, entry) for entry in wildcards)

    def answer(unit: Built) -> Answer:
        out = excluded(unit.name)
        if out is not False or any(part in unit.name for part in _OLD_TOWERS):
            return out if isinstance(out, str) else False
        return True if layers is None else _in_layers(asked, unit, layers)

    return "it matches the list of modules that are left out by whole names, parts and wildcards", answer


_OLD_TOWERS = ("vision_tower", "vision_model", "vit_large_projector")


@dataclass(frozen=True, slots=True)
class _Layers:
    """The names of quantized_layers, and of all that is around them."""

    names: frozenset[str]
    around: frozenset[str]

    @classmethod
    def of(cls, names: Iterable[str]) -> _Layers:
        """Names as vLLM has them."""
        every = frozenset(names)
        return cls(every, frozenset(name[: dot.start()] for name in every for dot in re.finditer(r"\.", name)))


def _in_layers(asked: Question, unit: Built, layers: _Layers) -> bool:
    """Whether quantized_layers names a unit, a part of it, or something within it."""
    swapped = unit.name
    for a, b in (
        ("language_model.model.", "model.language_model."),
        ("model.language_model.", "language_model.model."),
    ):
        if unit.name.startswith(a):
            swapped = unit.name.replace(a, b, 1)
            break
    candidates = [unit.name, swapped, *(["lm_head"] if unit.name.endswith(".lm_head") else [])]
    parent, _, leaf = unit.name.rpartition(".")
    parts = {**_DEFAULT_PARTS, **asked.names.packed}.get(leaf, ())
    candidates += [f"{candidate.rpartition('.')[0]}.{part}" for candidate in candidates[:2] for part in parts]
    if not layers.names.isdisjoint(candidates):
        return True
    return not layers.around.isdisjoint([*candidates[:2], *([parent] if leaf == "experts" else [])])


_DEFAULT_PARTS = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


def _auto_round(asked: Question) -> tuple[str, Callable[[Built], Answer]]:
    blocks = asked.block.get("block_name_to_quantize") or asked.block.get("to_quant_block_names")
    given = blocks.split(",") if isinstance(blocks, str) else strings(blocks)
    starts = tuple(asked.names.renamed(entry, entry=True) for entry in given)
    extra = asked.block.get("extra_config")
    own = {asked.names.renamed(k, entry=True): v for k, v in extra.items()} if isinstance(extra, dict) else {}
    patterns = [key for key in own if set(key) & set(r"*+?^$()[]{}|\\")]
    found = matches(
        [f"(?:.*?)(?:{pattern})" for pattern in patterns],
        [name for unit in asked.built for name in (unit.name, *asked.shards(unit.name))],
    )
    order = {key: number for number, key in enumerate(own)}
    below = _Layers.of(own).around

    def bits(name: str) -> Any:
        ends = (name[dot.end() :] for dot in re.finditer(r"\.", name))
        suffix = min((end for end in ends if end in own), key=order.__getitem__, default=None)
        pattern = next((p for p in patterns if name in found.of(f"(?:.*?)(?:{p})")), None)
        key = name if name in own else suffix if suffix is not None else pattern
        entry = own.get(key) if key is not None else None
        return entry.get("bits") if isinstance(entry, dict) else None

    def answer(unit: Built) -> Answer:
        default = unit.name.startswith(starts) if starts else unit.kind != "head"
        experts = unit.kind == "experts" and unit.name in below
        inner = [own[key].get("bits") for key in own if key.startswith(unit.name)] if experts else []
        named = [bits(name) for name in (unit.name, *asked.shards(unit.name))]
        given = {value for value in (*inner, *named) if type(value) is int}
        if not given:
            return default
        return all(value < 16 for value in given) if len({v < 16 for v in given}) == 1 else _DIFFERENT

    return "it reads block_name_to_quantize as beginnings of its names, and extra_config by name", answer


METHODS: Mapping[str, Method] = {
    "fp8": _fp8,
    "gptq": _gptq,
    "awq": _awq,
    "compressed-tensors": _compressed_tensors,
    "modelopt": _modelopt,
    "modelopt-fp4": _modelopt,
    "modelopt-mixed": _modelopt,
    "auto-round": _auto_round,
    "quark": _quark,
}
