"""The config of GPTQ checkpoints: two places, many aliases, overrides by module.

Sources: gptqmodel 7.7.0, quantization/config.py; auto-gptq 0.7.1, quantization/config.py; transformers 5.23.0,
utils/quantization_config.py (GPTQConfig).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from qbridge.architecture.quantization_block import Block
from qbridge.findings.finding import Findings
from qbridge.source.reader import Source
from qbridge_formats._shared.config_block import merged_config
from qbridge_formats._shared.gptq_linear import Scheme
from qbridge_formats._shared.scope import Scope

CONFIG_FILES = ("quantize_config.json", "quant_config.json")
ALIASES = {
    "w_bit": "bits",
    "wbits": "bits",
    "q_group_size": "group_size",
    "format": "checkpoint_format",
    "version": "checkpoint_format",
    "method": "quant_method",
}
CHANGING = ("rotation", "activation")  # keys that ask for work beyond the linear itself


@dataclass(frozen=True, slots=True)
class GptqConfig:
    """The checked config; `dynamic` are the overrides with their modules."""

    scheme: Scheme
    checkpoint_format: str
    producer: str
    dynamic: tuple[tuple[bool, frozenset[str], Mapping[str, Any]], ...]
    raw: Mapping[str, Any]

    def skips(self, module: str) -> bool:
        """Whether an override (`-:`) leaves the module unquantized."""
        return any(skipped and module in modules for skipped, modules, _ in self.dynamic)

    def scheme_of(self, module: str) -> Scheme:
        """The scheme of a module that is quantized: the first override that matches and skips none wins."""
        base = self.scheme
        for skipped, modules, keys in self.dynamic:
            if module in modules and not skipped:
                return Scheme(
                    keys.get("bits", base.bits), keys.get("group_size", base.group_size), keys.get("sym", base.sym)
                )
        return base


def find_config(source: Source) -> Block:
    """The config's keys under their current names."""
    return merged_config(source, CONFIG_FILES, ALIASES)


def parse(block: Block, modules: Collection[str], findings: Findings) -> GptqConfig | None:
    """The config as checked data; None with findings (QB013, QB101, QB102) where it cannot be used."""
    raw = block.raw
    for key in CHANGING:
        if raw.get(key):
            findings.add("QB102", f"{block.key}.{key}")
    faults = [
        (key, value)
        for key, value, kind in (
            ("bits", raw.get("bits"), int),
            ("group_size", raw.get("group_size", 128), int),
            ("sym", raw.get("sym", True), bool),
            ("dynamic", raw.get("dynamic") or {}, dict),
        )
        if type(value) is not kind
    ]
    for key, value in faults:
        findings.add("QB013", f"{block.key}.{key}", (f"it is {value!r}",))
    named = raw.get("checkpoint_format", "gptq")
    if named not in ("gptq", "gptq_v2", "gptq_p"):
        findings.add("QB101", f"{block.key}.checkpoint_format", (f"GPTQ layout {named!r}",))
        return None
    if raw.get("pack_dtype", "int32") not in ("int32", "int16", "int8"):
        findings.add("QB101", f"{block.key}.pack_dtype", (f"words of {raw['pack_dtype']}",))
        return None
    dynamic = [] if faults else _dynamic(block, modules, findings)
    if faults or dynamic is None:
        return None
    scheme = Scheme(raw["bits"], raw.get("group_size", 128), raw.get("sym", True))
    meta = raw.get("meta")
    producer = str(meta.get("quantizer", "")) if isinstance(meta, dict) else ""
    return GptqConfig(scheme, named, producer, tuple(dynamic), raw)


def _dynamic(
    block: Block, modules: Collection[str], findings: Findings
) -> list[tuple[bool, frozenset[str], Mapping[str, Any]]] | None:
    """Overrides in the order in which GPTQModel tries them: those that skip a module first."""
    raw = block.raw.get("dynamic") or {}
    patterns = {key: key[2:] if key[:2] in ("-:", "+:") else key for key in raw}
    matched = Scope.of(block.key, modules).matches(patterns.values(), modules)
    for key, pattern in patterns.items():
        if pattern in matched.faults:
            findings.add("QB013", f"{block.key}.dynamic: {key!r}", (matched.faults[pattern],))
    found = [
        (key.startswith("-:"), matched.of(pattern), raw[key] if isinstance(raw[key], dict) else {})
        for key, pattern in patterns.items()
    ]
    return None if matched.faults else sorted(found, key=lambda entry: not entry[0])
