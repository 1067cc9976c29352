"""ModelOpt's algorithms: the scheme that each stands for, and what config.json alone says by them.

Source: nvidia-modelopt 0.47.0, torch/export/quant_utils.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qbridge.architecture.quantization_block import find_block
from qbridge.formats.assumed import Assumed
from qbridge.ir.dtypes import DType
from qbridge.ir.scheme import ActivationScheme, Granularity, WeightScheme
from qbridge_formats._shared.scope import Scope
from qbridge_formats.modelopt.config import Excluded

_TENSOR, _CHANNEL, _GROUP = Granularity.TENSOR, Granularity.CHANNEL, Granularity.GROUP
_NV4 = WeightScheme(4, _GROUP, type="e2m1", group_size=16, global_scale="multiply")
TOKENS = ActivationScheme(8, Granularity.TOKEN, dynamic=True, type="e4m3fn")
ALGOS: Mapping[str, tuple[WeightScheme, ActivationScheme | None]] = {
    "FP8": (
        WeightScheme(8, _TENSOR, type="e4m3fn"),
        ActivationScheme(8, _TENSOR, dynamic=False, type="e4m3fn"),
    ),
    "FP8_PER_CHANNEL_PER_TOKEN": (WeightScheme(8, _CHANNEL, type="e4m3fn"), TOKENS),
    "FP8_PB_WO": (WeightScheme(8, Granularity.BLOCK, type="e4m3fn", block=(128, 128)), None),
    "MXFP8": (
        WeightScheme(8, _GROUP, type="e4m3fn", group_size=32),
        ActivationScheme(8, _GROUP, dynamic=True, type="e4m3fn", group_size=32),
    ),
    "NVFP4": (
        _NV4,
        ActivationScheme(4, _GROUP, dynamic=True, type="e2m1", group_size=16, global_scale="multiply"),
    ),
    "W4A16_NVFP4": (_NV4, None),
}


def stored_scale(weight: WeightScheme) -> DType:
    """The dtype of an algorithm's weight_scale."""
    if weight.type == "e2m1":
        return DType.F8_E4M3
    return DType.F8_E8M0 if weight.granularity is _GROUP else DType.F32


def assumed(config: Mapping[str, Any], names: Sequence[str]) -> dict[str, Assumed] | None:
    """From config.json alone: the algorithm that it names for the model, or for each layer."""
    block = find_block(config)
    old = None if block is None else block.raw.get("quantization")
    raw = old if isinstance(old, dict) else {} if block is None else block.raw
    if block is None or not (block.method.startswith("modelopt") or "quant_algo" in raw):
        return None
    layers, entries = raw.get("quantized_layers"), raw.get("ignore", raw.get("exclude_modules"))
    by_layer = layers if isinstance(layers, dict) else None
    listed = [entry for entry in entries if isinstance(entry, str)] if isinstance(entries, list) else []
    left_out, found = Excluded(listed, names, Scope.of(block.key, names)), {}
    tails = {_tail(key): entry for key, entry in (by_layer or {}).items()}
    for name in names:
        parent = f"{name.partition('.experts.')[0]}.experts"
        entry = raw if by_layer is None else tails.get(_tail(name)) or tails.get(_tail(parent))
        algo = str(entry.get("quant_algo", "")).upper() if isinstance(entry, dict) else ""
        algo = {"FP8_BLOCK_SCALES": "FP8_PB_WO"}.get(algo, algo)
        if algo in ALGOS and not left_out.loosely(name):
            weight, activation = ALGOS[algo]
            found[name] = Assumed(weight, activation, stored_scale(weight))
    return found


def _tail(name: str) -> str:
    """A name from its layers on: what a multimodal model has before them, config.json does not say."""
    return name.partition("layers.")[2] or name
