"""Which linears SGLang builds quantized: its lists, matched as each of its methods matches them.

Text models are built under the names that they have on disk, q, k, v and gate, up as qkv_proj and gate_up_proj; a
class that has no `packed_modules_mapping` looks for the latter alone in the lists of compressed-tensors and
w8a8_int8.
Sources: sglang 0.5.23, srt/layers/quantization: utils.py (is_layer_skipped, get_dynamic_override), awq/awq.py,
gptq/gptq.py, auto_round.py, compressed_tensors/utils.py and compressed_tensors.py; srt/model_loader/loader.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qbridge.architecture.architecture import Architecture
from qbridge.architecture.names import is_head, is_router
from qbridge.architecture.quantization_block import Block
from qbridge.formats.patterns import matches
from qbridge.formats.rules import Problem
from qbridge.ir.model import Model
from qbridge.targets.derivation import (
    Answer,
    Built,
    Derivation,
    Kind,
    deviations,
    seen,
    stored_linears,
    strings,
    unseen,
)
from qbridge.targets.fusion import Groups
from qbridge.targets.sglang.fusion import SGLANG, words

ENGINE = "SGLang 0.5.23"
PLACES = ("quantization_config", "compression_config")
_ROUTERS = re.compile(r"(?:^|\.)(?:gate|router|shared_expert_gate)$")
# What every class builds from the block; of others (mixers, indexers) it was not read.
_KNOWN = words("qkv_proj o_proj gate_up_proj down_proj experts fused_qkv_a_proj_with_mqa q_b_proj kv_b_proj lm_head")
# Classes that say which linears they build as one (packed_modules_mapping in srt/models), of those in the tables.
_PACKED = words("""
    BaichuanForCausalLM Cohere2MoeForCausalLM DeciLMForCausalLM DeepseekV2ForCausalLM DeepseekV3ForCausalLM
    DeepseekV32ForCausalLM Ernie4_5_MoeForCausalLM Exaone4ForCausalLM Gemma2ForCausalLM Gemma3ForCausalLM
    GemmaForCausalLM Glm4MoeLiteForCausalLM HunYuanDenseV1ForCausalLM Llama4ForCausalLM LongcatFlashForCausalLM
    MiniMaxM2ForCausalLM NemotronHForCausalLM PhiForCausalLM Qwen3MoeForCausalLM Qwen3NextForCausalLM
    Qwen3_5ForCausalLM Qwen3_5MoeForCausalLM
""")


@dataclass(frozen=True, slots=True)
class _Asked:
    """A block with what is built, and the groups through which lists see the parts of a linear."""

    block: Mapping[str, Any]
    packed: Groups
    built: tuple[Built, ...]

    def parts(self, name: str, groups: Groups) -> list[str]:
        """The parts of a linear that is built as one, by their full names; nothing for any other."""
        parent, _, leaf = name.rpartition(".")
        return [f"{parent}.{part}" for part in groups.get(leaf, ())]

    def names(self) -> list[str]:
        """All names that a list may be asked about."""
        every = (name for unit in self.built for name in (unit.name, *unit.quantized, *unit.plain, *_experts(unit)))
        return list(
            dict.fromkeys((*every, *(part for unit in self.built for part in self.parts(unit.name, self.packed))))
        )


Method = Callable[[_Asked], tuple[str, Callable[[Built], Answer]]]
_DIFFERENT = "the parts of a linear that it builds as one are not listed alike"


def _experts(unit: Built) -> list[str]:
    """The linears of a layer's first expert, by which a method judges all."""
    return (
        [f"{unit.name}.0.{leaf}" for leaf in ("gate_proj", "up_proj", "down_proj")] if unit.kind == "experts" else []
    )


def _alike(answers: Iterable[bool]) -> Answer:
    found = set(answers)
    return _DIFFERENT if len(found) > 1 else found.pop()


def _not(answer: Answer) -> Answer:
    return answer if isinstance(answer, str) or answer is None else not answer


def _expressions(entries: Iterable[str], names: list[str]) -> Callable[[str, str], bool]:
    """Whether an entry after `re:` matches a name from its start."""
    found = matches((entry[3:] for entry in entries if entry.startswith("re:")), names)
    return lambda entry, name: name in found.of(entry[3:])


def _compressed_tensors(asked: _Asked) -> tuple[str, Callable[[Built], Answer]]:
    groups = asked.block.get("config_groups")
    groups = groups if isinstance(groups, dict) else {}
    targets = [target for group in groups.values() for target in strings(group.get("targets"))]
    ignore = strings(asked.block.get("ignore"))
    hit = _expressions((*targets, *ignore), asked.names())
    whole = "Linear" in targets

    def listed(name: str, entries: Iterable[str]) -> bool:
        return any(
            hit(entry, name) if entry.startswith("re:") else name == entry or name.endswith(f".{entry}")
            for entry in entries
        )

    def targeted(name: str) -> bool:
        return any(hit(entry, name) if entry.startswith("re:") else name == entry for entry in targets)

    def answer(unit: Built) -> Answer:
        if unit.kind == "head":
            return not listed(unit.name, ignore) and listed(unit.name, targets)
        asked_names = _experts(unit) or [unit.name]
        parts = asked.parts(unit.name, asked.packed)
        if parts and unit.name not in ignore:
            skipped = _alike(listed(part, ignore) for part in parts)
        else:
            skipped = _alike(listed(name, ignore) for name in asked_names)
        if skipped is not False:
            return _not(skipped)
        if whole or all(map(targeted, asked_names)) or (parts and all(map(targeted, parts))):
            return True
        return "Unable to find matching target in the compressed-tensors config"

    return "it matches ignore by whole names, their ends and re:, targets by names and classes", answer


def _w8a8(asked: _Asked) -> tuple[str, Callable[[Built], Answer]]:
    ignore = strings(asked.block.get("ignore"))
    hit = _expressions(ignore, asked.names())

    def listed(name: str) -> bool:
        return any(
            hit(entry, name) if entry.startswith("re:") else name == entry or name.endswith(f".{entry}")
            for entry in ignore
        )

    def answer(unit: Built) -> Answer:
        if unit.kind == "head":
            return False
        parts = asked.parts(unit.name, asked.packed) if unit.name not in ignore else []
        return _not(_alike(map(listed, parts or [unit.name])))

    return "it matches ignore by whole names, their ends and re:", answer


def _on_path(entry: str, name: str) -> bool:
    """Whether an entry is a part of a name, cut at its dots."""
    return f".{entry.rstrip('.')}." in f".{name.rstrip('.')}."


def _fp8(asked: _Asked) -> tuple[str, Callable[[Built], Answer]]:
    lists = (strings(asked.block.get(key)) for key in ("ignored_layers", "modules_to_not_convert"))
    entries = next((found for found in lists if found), [])
    bare = [entry.removeprefix("model.") for entry in entries]
    entries = [form for name in bare for form in (name, f"model.{name}")]

    def answer(unit: Built) -> Answer:
        if unit.kind == "head":
            return False
        parts = asked.parts(unit.name, SGLANG.groups) or [unit.name]
        skipped = _alike(any(_on_path(entry, part) for entry in entries) for part in parts)
        within = unit.kind == "experts" and any(unit.name in entry for entry in entries if "experts" in entry)
        return _not(True if within else skipped)

    return "it matches modules_to_not_convert as whole parts of its names", answer


def _awq(asked: _Asked) -> tuple[str, Callable[[Built], Answer]]:
    entries = strings(asked.block.get("modules_to_not_convert"))

    def answer(unit: Built) -> Answer:
        if unit.kind == "head" and not asked.block.get("lm_head"):
            return False
        return not any(entry in unit.name for entry in entries)

    return "it matches modules_to_not_convert as parts of its names", answer


def _gptq(asked: _Asked) -> tuple[str, Callable[[Built], Answer]]:
    dynamic = asked.block.get("dynamic")
    rules = list(dynamic) if isinstance(dynamic, dict) else []
    found = matches([_bare(rule) for rule in rules], asked.names())

    def answer(unit: Built) -> Answer:
        first = next((rule for rule in rules if unit.name in found.of(_bare(rule))), "")
        if first.startswith("-:") and unit.kind != "experts":
            return False
        return unit.kind != "head" or bool(asked.block.get("lm_head"))

    return "it reads dynamic alone, from the start of its names, and no list of modules", answer


def _bare(rule: str) -> str:
    return rule[2:] if rule[:2] in ("-:", "+:") else rule


def _auto_round(asked: _Asked) -> tuple[str, Callable[[Built], Answer]]:
    extra = asked.block.get("extra_config")
    own = {key: value for key, value in extra.items() if isinstance(value, dict)} if isinstance(extra, dict) else {}
    found = matches([rf"(?:{key})$" for key in own], asked.names())

    def answer(unit: Built) -> Answer:
        key = unit.name if unit.name in own else next((k for k in own if unit.name in found.of(rf"(?:{k})$")), None)
        if key is None:
            return unit.kind != "head"
        bits = own[key].get("bits", asked.block.get("bits"))
        return bits < 16 if type(bits) is int else None

    return "it matches extra_config by whole names, and by regexes", answer


METHODS: Mapping[str, Method] = {
    "auto-round": _auto_round,
    "compressed-tensors": _compressed_tensors,
    "w8a8_int8": _w8a8,
    "fp8": _fp8,
    "blockwise_int8": _fp8,
    "awq": _awq,
    "gptq": _gptq,
}
# The methods under which each format lies that has one of them.
_OF_FORMAT: Mapping[str, tuple[str, ...]] = {
    "awq": ("awq",),
    "gptq": ("gptq",),
    "auto-round": ("auto-round",),
    "compressed-tensors": ("compressed-tensors",),
}


def derive(config: Mapping[str, Any], model: Model) -> Iterator[tuple[str, Problem]]:
    """Where SGLang would build something else of a config.json than what the tensors are."""
    yield from unseen(config, PLACES, ENGINE)
    block = seen(config, PLACES)
    if block is None:
        if model.slots and model.format != "modelopt":  # whose file beside config.json it reads
            fact = f"there is none: {ENGINE} takes the model for an unquantized one"
            yield "QB284", Problem((fact,), where=("quantization_config",))
        return
    yield from _method(block, model)
    method, architecture = METHODS.get(block.method), Architecture.of_model(model)
    if method is None or not model.slots:
        return
    packed = SGLANG.of(architecture.name) if architecture.name in _PACKED else {}
    asked = _Asked(block.raw, packed, tuple(_built(model, architecture)))
    how, answer = method(asked)

    def of_known(unit: Built) -> Answer:
        said = answer(unit)
        known = unit.name.rpartition(".")[2] in _KNOWN and _is_text(unit, architecture)
        listed = said is False and not unit.quantized  # unquantized whatever the class does
        return said if known or listed or isinstance(said, str) else None

    yield from deviations(asked.built, of_known, ENGINE, f"{how} (sglang 0.5.23, srt/layers/quantization)")


def _method(block: Block, model: Model) -> Iterator[tuple[str, Problem]]:
    """A format under the name of another's method, which SGLang believes."""
    methods = _OF_FORMAT.get(model.format)
    if block.method and methods and block.method not in methods:
        fact = f"{block.method!r}: the tensors are those of {model.format}, and {ENGINE} goes by the method"
        yield "QB284", Problem((fact,), where=(f"{block.key}.quant_method",))


def _built(model: Model, architecture: Architecture) -> Iterator[Built]:
    """What is built of all linears; routers are built unquantized."""
    quantized, plain = stored_linears(model)
    groups = SGLANG.of(architecture.name)
    merged = {part: name for name, parts in groups.items() for part in parts}
    units: dict[tuple[str, Kind], tuple[list[str], list[str]]] = {}
    for side, names in enumerate((quantized, plain)):
        for name in names:
            if is_router(name) or _ROUTERS.search(name):
                continue
            parent, _, leaf = name.rpartition(".")
            kind: Kind = "head" if is_head(name) else "linear"
            unit = f"{parent}.{merged[leaf]}" if leaf in merged else name
            if ".experts." in name:
                unit, kind = f"{name.partition('.experts.')[0]}.experts", "experts"
            units.setdefault((unit, kind), ([], []))[side].append(name)
    for (unit, kind), (codes, floats) in units.items():
        yield Built(unit, kind, tuple(codes), tuple(floats))


def _is_text(unit: Built, architecture: Architecture) -> bool:
    """Whether it is in the decoder, or its head: towers were not read."""
    return unit.kind == "head" or all(map(architecture.is_decoder, (*unit.quantized, *unit.plain)))


DERIVATION = Derivation(derive, ("QB280", "QB281", "QB282", "QB283", "QB284", "QB285"))
