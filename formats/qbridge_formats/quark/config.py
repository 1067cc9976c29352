"""What Quark's block of config.json says: the scheme of every module, and which modules have none.

key                     meaning
global_quant_config     the entry of every linear: weight, input_tensors, output_tensors, bias
layer_quant_config      entries by name or shell wildcard, which come first
exclude                 what is not quantized: names, shell wildcards, or regexes after `re:`
export                  pack_method of codes of 4 bits, `reorder` (AWQ's order) or `order`; weight_format

Sources: amd-quark 0.13, torch/quantization/config/config.py (QConfig) and torch/export/api.py; vllm 0.33.0,
model_executor/layers/quantization/quark/quark.py (from_config, _find_matched_config).
"""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from qbridge.architecture.quantization_block import Block
from qbridge.findings.finding import Findings
from qbridge.ir.dtypes import DType
from qbridge.ir.scheme import ActivationScheme, WeightScheme
from qbridge_formats._shared.scope import Scope
from qbridge_formats.quark.schemes import UnknownScheme, inputs_of, weight_of

METHOD = "quark"
REORDERED, IN_ORDER = "reorder", "order"
_REGEX = "re:"
# Keys that hold how the tool worked, and nothing that a reader needs.
_IGNORED = frozenset(
    {"quant_method", "version", "quant_mode", "kv_cache_post_rope", "log_severity_level", "export", "exclude"}
    | {"global_quant_config", "layer_quant_config", "layer_type_quant_config", "kv_cache_quant_config"}
    | {"algo_config", "softmax_quant_spec"}
)
# Algorithms that leave something to be done while the model runs.
_ROTATIONS = ("rotation", "quarot", "spinquant")


@dataclass(frozen=True, slots=True)
class Scheme:
    """How a linear is quantized; `scale` is the dtype of scales where the scheme fixes it."""

    weight: WeightScheme
    activation: ActivationScheme | None
    scale: DType | None


@dataclass(frozen=True, slots=True)
class Said:
    """A block as checked data; `by_name` has the entries of layer_quant_config."""

    key: str
    every: Any
    by_name: Mapping[str, Any]
    exclude: tuple[str, ...]
    pack: str

    def entry(self, names: Iterable[str]) -> Any:
        """The entry of a module by its names: the first of layer_quant_config that has it, else the global one."""
        names = tuple(names)
        for pattern, entry in self.by_name.items():
            if any(name == pattern or fnmatch.fnmatchcase(name, pattern) for name in names):
                return entry
        return self.every


def said_by(block: Block, findings: Findings) -> Said | None:
    """What the block says; None with findings (QB013, QB102) where that makes no sense or is not read."""
    raw, key = block.raw, block.key
    objects = {name: raw.get(name) or {} for name in ("global_quant_config", "layer_quant_config", "export")}
    for name, value in objects.items():
        if not isinstance(value, dict):
            findings.add("QB013", f"{key}.{name}", ("it is no object",))
            return None
    every, by_name, export = objects.values()
    exclude = raw.get("exclude") or []
    if not isinstance(exclude, list) or not all(isinstance(entry, str) for entry in exclude):
        findings.add("QB013", f"{key}.exclude", ("it is no list of strings",))
        return None
    if not all(isinstance(entry, dict) for entry in by_name.values()):
        findings.add("QB013", f"{key}.layer_quant_config", ("it holds something else than objects",))
        return None
    if unknown := sorted(raw.keys() - _IGNORED):
        findings.add("QB103", [f"{key}.{name}" for name in unknown])
    if refused := [f"{key}.{name}" for name in _changing(raw, export)]:
        findings.add("QB102", refused)
        return None
    pack = export.get("pack_method", REORDERED)
    if pack not in (REORDERED, IN_ORDER):
        findings.add("QB013", f"{key}.export.pack_method", (f"it is {pack!r}",))
        return None
    return Said(key, every, by_name, tuple(exclude), pack)


def _changing(raw: Mapping[str, Any], export: Mapping[str, Any]) -> list[str]:
    """The keys that ask for more than weights and inputs."""
    found = [
        name for name in ("softmax_quant_spec", "kv_cache_quant_config", "layer_type_quant_config") if raw.get(name)
    ]
    algorithms = raw.get("algo_config") or []
    for each in algorithms if isinstance(algorithms, list) else [algorithms]:
        name = str(each.get("name", "") if isinstance(each, dict) else each).lower()
        found += ["algo_config"] if any(word in name for word in _ROTATIONS) else []
    return found + (["export.kv_cache_group"] if export.get("kv_cache_group") else [])


def scheme_of(entry: Any) -> Scheme | None:
    """The scheme of an entry, None where it has no weight; UnknownScheme for one that is not read."""
    if not isinstance(entry, dict) or entry.get("weight") is None:
        return None
    for key in ("output_tensors", "bias"):
        if entry.get(key):
            raise UnknownScheme(f"{key} are quantized")
    weight, scale = weight_of(entry["weight"])
    return Scheme(weight, inputs_of(entry.get("input_tensors")), scale)


class Excluded:
    """Which modules are not quantized, by names, wildcards or regexes."""

    def __init__(self, entries: Iterable[str], modules: Collection[str], scope: Scope) -> None:
        """Match every pattern against the modules at once."""
        entries, self._scope = list(entries), scope
        globs = [fnmatch.translate(each) for each in entries if not each.startswith(_REGEX)]
        regexes = [each.removeprefix(_REGEX) for each in entries if each.startswith(_REGEX)]
        whole, begun = scope.matches(globs, modules, whole=True), scope.matches(regexes, modules)
        self._names = frozenset(entries).union(
            *(whole.of(each) for each in globs), *(begun.of(each) for each in regexes)
        )

    def __contains__(self, module: str) -> bool:
        """Whether an entry has the module."""
        return not self._names.isdisjoint(self._scope.names(module))
