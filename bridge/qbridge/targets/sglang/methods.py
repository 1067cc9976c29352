"""Which linears SGLang's methods quantize by their lists, matched as each matches them.

Sources: sglang 0.5.23, srt/layers/quantization: utils.py (is_layer_skipped, get_dynamic_override), awq/awq.py,
gptq/gptq.py, auto_round.py, modelopt_quant.py, compressed_tensors/utils.py and compressed_tensors.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from qbridge.formats.patterns import matches
from qbridge.targets.derivation import Answer, Built, strings
from qbridge.targets.sglang.fusion import SGLANG
from qbridge.targets.sglang.names import Names


@dataclass(frozen=True, slots=True)
class Asked:
    """A block with what is built, and how its class calls that and sees lists."""

    block: Mapping[str, Any]
    names_of: Names
    built: tuple[Built, ...]

    def parts(self, name: str, groups: Mapping[str, tuple[str, ...]]) -> list[str]:
        """The parts of a linear that is built as one, by their full names; nothing for any other."""
        parent, _, leaf = name.rpartition(".")
        return [f"{parent}.{part}" for part in groups.get(leaf, ())]

    def names(self) -> list[str]:
        """All names that a list may be asked about."""
        every = (name for unit in self.built for name in (unit.name, *unit.quantized, *unit.plain, *_experts(unit)))
        return list(
            dict.fromkeys(
                (*every, *(part for unit in self.built for part in self.parts(unit.name, self.names_of.packed)))
            )
        )


Method = Callable[[Asked], tuple[str, Callable[[Built], Answer]]]
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


def _compressed_tensors(asked: Asked) -> tuple[str, Callable[[Built], Answer]]:
    groups = asked.block.get("config_groups")
    groups = groups if isinstance(groups, dict) else {}
    targets = [target for group in groups.values() for target in strings(group.get("targets"))]
    targets, ignore = map(asked.names_of.entries, (targets, strings(asked.block.get("ignore"))))
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
        parts = asked.parts(unit.name, asked.names_of.packed)
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


def _w8a8(asked: Asked) -> tuple[str, Callable[[Built], Answer]]:
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
        parts = asked.parts(unit.name, asked.names_of.packed) if unit.name not in ignore else []
        return _not(_alike(map(listed, parts or [unit.name])))

    return "it matches ignore by whole names, their ends and re:", answer


def _on_path(entry: str, name: str) -> bool:
    """Whether an entry is a part of a name, cut at its dots."""
    return f".{entry.rstrip('.')}." in f".{name.rstrip('.')}."


def _fp8(asked: Asked) -> tuple[str, Callable[[Built], Answer]]:
    lists = (strings(asked.block.get(key)) for key in ("ignored_layers", "modules_to_not_convert"))
    entries = next((found for found in lists if found), [])
    bare = [entry.removeprefix("model.") for entry in entries]
    entries = asked.names_of.entries(form for name in bare for form in (name, f"model.{name}"))

    def answer(unit: Built) -> Answer:
        if unit.kind == "head":
            return False
        parts = asked.parts(unit.name, SGLANG.groups) or [unit.name]
        skipped = _alike(any(_on_path(entry, part) for entry in entries) for part in parts)
        within = unit.kind == "experts" and any(unit.name in entry for entry in entries if "experts" in entry)
        return _not(True if within else skipped)

    return "it matches modules_to_not_convert as whole parts of its names", answer


def _awq(asked: Asked) -> tuple[str, Callable[[Built], Answer]]:
    entries = strings(asked.block.get("modules_to_not_convert"))

    def answer(unit: Built) -> Answer:
        if unit.kind == "head" and not asked.block.get("lm_head"):
            return False
        return not any(entry in unit.name for entry in entries)

    return "it matches modules_to_not_convert as parts of its names", answer


def _gptq(asked: Asked) -> tuple[str, Callable[[Built], Answer]]:
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


def _modelopt(asked: Asked) -> tuple[str, Callable[[Built], Answer]]:
    """Lists of patterns with `*`, of whole names or of one of their parts."""
    keys = ("ignore", "exclude_modules", "modules_to_not_convert")
    listed = asked.names_of.entries(next((found for key in keys if (found := strings(asked.block.get(key)))), []))
    forms = [form for entry in listed for form in (entry, entry.removeprefix("language_model."))]
    globs = [re.compile(re.escape(form).replace(r"\*", ".*")) for form in dict.fromkeys(forms)]
    latent = {form.rpartition(".")[2] for form in forms} & {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj"}

    def excluded(name: str) -> bool:
        names = (name, name.removeprefix("language_model."))
        hit = any(glob.fullmatch(text) for glob in globs for one in names for text in (one, *one.split(".")))
        return hit or any(part in name.rpartition(".")[2] for part in latent)

    def answer(unit: Built) -> Answer:
        if excluded(unit.name):
            return False
        if unit.kind == "experts":
            return True
        parts = asked.parts(unit.name, asked.names_of.packed or SGLANG.groups) or [unit.name]
        return _not(_alike(any(_on_path(form, part) for form in forms) for part in parts))

    return "it matches its list by whole names and by parts of them, with *", answer


def _auto_round(asked: Asked) -> tuple[str, Callable[[Built], Answer]]:
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
    **dict.fromkeys(("modelopt", "modelopt_fp8", "modelopt_fp4"), _modelopt),
}
