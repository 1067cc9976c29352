"""The quantization block of fp8 and fbgemm_fp8: what its keys mean.

Sources: transformers 5.17.0, utils/quantization_config.py; vllm 0.33.0, model_executor/layers/quantization/fp8.py
(from_config); lmdeploy 0.18.0, pytorch/config.py.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qbridge.architecture.quantization_block import Block, find_block
from qbridge.findings.finding import Findings
from qbridge.ir.scheme import MAX_SIZE

METHOD, FBGEMM = "fp8", "fbgemm_fp8"
METHODS = (METHOD, FBGEMM)
LISTS = ("modules_to_not_convert", "ignored_layers")
_LIMIT = 1200.0  # transformers' default of activation_scale_ub
_KEYS = frozenset(
    {
        "quant_method",
        "activation_scheme",
        "weight_block_size",
        "fmt",
        "scale_fmt",
        "activation_scale_ub",
        "kv_cache_scheme",
        "modules_to_convert",
        "dequantize",
        "store_dtype",
        "expert_dtype",
        "moe_quant_algo",
        *LISTS,
    }
)
# What says of NVFP4 experts again what `moe_quant_algo` says, as ModelOpt's own blocks do.
_OF_NVFP4 = frozenset(
    {"config_groups", "group_size", "ignore", "kv_cache_quant_algo", "producer", "quant_algo", "quantized_layers"}
)
_OURS = frozenset({"weight_block_size", "activation_scheme"})
_OTHERS = frozenset({"config_groups", "quant_algo", "bits"})  # of blocks of other methods
_FORMS = ("e4m3", "e5m2", "float8_e4m3fn", "float8_e5m2", None)


@dataclass(frozen=True, slots=True)
class Said:
    """A block as checked data; `limit` is FBGEMM's, `skipped` what is listed as not quantized."""

    key: str
    block: tuple[int, int] | None = None
    static: bool = False
    power_of_two: bool = False
    limit: float | None = None
    skipped: tuple[str, ...] = ()

    def lists(self, module: str) -> bool:
        """Whether an entry is the module, a part of the model that it lies in, or the end of its name."""
        return any(
            module == entry or module.startswith(f"{entry}.") or module.endswith(f".{entry}")
            for entry in self.skipped
        )


def float8_block(config: Mapping[str, Any]) -> Block | None:
    """The quantization block, if it names one of the methods, or none and has keys that this method alone has."""
    block = find_block(config)
    if block is None:
        return None
    keys = not block.method and not _OTHERS & block.raw.keys() and _OURS & block.raw.keys()
    return block if keys or block.method in METHODS else None


def parse(block: Block, findings: Findings) -> Said | None:
    """The block as checked data; None with findings (QB013, QB101) where it makes no sense or is not read."""
    key, raw = block.key, block.raw
    unknown = sorted(raw.keys() - _KEYS - (_OF_NVFP4 if raw.get("moe_quant_algo") else frozenset()))
    if unknown:
        findings.add("QB103", [f"{key}.{name}" for name in unknown])
    faults = [(name, fault) for name, fault in _faults(raw) if fault]
    for name, fault in faults:
        findings.add("QB013", f"{key}.{name}", (fault,))
    if faults:
        return None
    for name, fault in _not_read(raw):
        findings.add("QB101", f"{key}.{name}", (fault,))
        return None
    skipped = tuple(entry for name in LISTS for entry in raw.get(name) or ())
    if block.method == FBGEMM:
        limit = raw.get("activation_scale_ub")
        return Said(key, limit=_LIMIT if limit is None else float(limit), skipped=skipped)
    size = raw.get("weight_block_size")
    return Said(
        key,
        block=(size[0], size[1]) if size else None,
        static=str(raw.get("activation_scheme", "dynamic")).lower() == "static",
        power_of_two=raw.get("scale_fmt") == "ue8m0",
        skipped=skipped,
    )


def _faults(raw: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(key, what is wrong with its value or an empty string)."""
    size, scheme = raw.get("weight_block_size"), str(raw.get("activation_scheme", "dynamic")).lower()
    pair = isinstance(size, list) and len(size) == 2 and all(type(x) is int and 0 < x <= MAX_SIZE for x in size)
    limit = raw.get("activation_scale_ub", _LIMIT)
    number = limit is None or (type(limit) in (int, float) and 0 < limit <= sys.float_info.max)
    strings = {
        name: raw.get(name) is None or (isinstance(raw[name], list) and all(isinstance(x, str) for x in raw[name]))
        for name in LISTS
    }
    return [
        ("weight_block_size", "" if size is None or pair else f"{size!r} is no pair of sizes"),
        ("activation_scheme", "" if scheme in ("dynamic", "static") else f"{scheme!r} is neither dynamic nor static"),
        ("activation_scale_ub", "" if number else f"{limit!r} is no positive number"),
        *((name, "" if good else "it is not a list of strings") for name, good in strings.items()),
    ]


def _not_read(raw: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(key, why a sound block of these values is not read)."""
    found = []
    if raw.get("fmt") not in _FORMS:
        found.append(("fmt", f"{raw['fmt']!r} is none of e4m3, e5m2 (e4m3fnuz has other values)"))
    if raw.get("scale_fmt") not in (None, "float", "ue8m0"):
        found.append(("scale_fmt", f"{raw['scale_fmt']!r} is neither float nor ue8m0"))
    if raw.get("weight_block_size") and str(raw.get("activation_scheme", "dynamic")).lower() == "static":
        found.append(("activation_scheme", "static scales of inputs with weights in blocks, which no engine serves"))
    return found
