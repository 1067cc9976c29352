"""A model from config.json alone: the linears of its architecture at the dims and in the scheme that it names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qbridge.dtypes import DType
from qbridge.findings import error
from qbridge.headers import load_json
from qbridge.hf_config import NESTED, QUANTIZATION_KEYS
from qbridge.ir import MAX_SIZE, Granularity, Model, Spec, WeightScheme
from qbridge.sharding import family

# Llama's linears, which most architectures have; experts are named alike.
_COMMON = (frozenset({"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"}), frozenset({"o_proj", "down_proj"}))
_MOST_LAYERS = 10_000


def assumed_model(path: Path) -> Model:
    """The model of a folder that has config.json and no weights; QBridgeError (QB262) if that says too little."""
    config = load_json(path / "config.json")
    known = family(config) if isinstance(config, dict) else None
    if not isinstance(config, dict) or known is None:
        raise error("QB262", str(path), ("its architecture is not in qbridge's table",))
    if not known.gated or (known.columns, known.rows) != _COMMON:
        raise error("QB262", str(path), ("its linears have other names than Llama's",))
    block: Mapping[str, Any] = next(
        (config[key] for key in QUANTIZATION_KEYS if isinstance(config.get(key), dict)), {}
    )
    weight = _scheme(block)
    if weight is None:
        raise error("QB262", str(path), ("it does not say bits and group size",))
    try:
        dims = dict(_linears(_text(config)))
        specs = {name: Spec(name, *shape, weight, DType.F16) for name, shape in dims.items()}
    except KeyError as fault:
        raise error("QB262", str(path), (f"it does not say {fault}",)) from fault
    except ValueError as fault:
        raise error("QB262", str(path), (str(fault),)) from fault
    return Model(_format(block), config, specs, {}, {})


def _text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return next((config[key] for key in NESTED if isinstance(config.get(key), dict)), config)


def _format(block: Mapping[str, Any]) -> str:
    method = str(block.get("quant_method", "compressed-tensors")).lower().replace("_", "-")
    return {"intel/auto-round": "auto-round"}.get(method, method)


def _scheme(block: Mapping[str, Any]) -> WeightScheme | None:
    """Bits, group size and symmetry, in the keys of GPTQ, AWQ or compressed-tensors."""
    groups = block.get("config_groups")
    if isinstance(groups, dict) and groups:
        first = next(iter(groups.values()))
        block = first.get("weights") or {} if isinstance(first, dict) else {}
    bits = next((block[key] for key in ("bits", "w_bit", "wbits", "num_bits") if key in block), None)
    size = next((block[key] for key in ("group_size", "q_group_size") if block.get(key) is not None), -1)
    symmetric = block.get("sym", block.get("symmetric", not block.get("zero_point", False)))
    if type(bits) is not int or type(size) is not int:
        return None
    grouped = Granularity.GROUP if size > 0 else Granularity.CHANNEL
    try:
        return WeightScheme(bits, grouped, bool(symmetric), group_size=size if size > 0 else None)
    except ValueError:
        return None


def _dim(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """A size that config.json gives; KeyError if it does not and there is no default, ValueError if it is none."""
    value = config.get(key)
    if value is None and default is not None:
        return default
    if type(value) is not int or not 0 <= value <= MAX_SIZE:
        raise KeyError(key) if value is None else ValueError(f"{key} is {str(value)[:80]}")
    return value


def _linears(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, int]]]:
    """(name, (out_features, in_features)) of every linear of a decoder of the common kind."""
    hidden, heads = _dim(config, "hidden_size"), _dim(config, "num_attention_heads")
    head = _dim(config, "head_dim", 0) or hidden // max(heads, 1)
    kv = (_dim(config, "num_key_value_heads", 0) or heads) * head
    layers = _dim(config, "num_hidden_layers")
    if layers > _MOST_LAYERS:
        raise ValueError(f"num_hidden_layers is {layers}")
    attention = {"q_proj": (heads * head, hidden), "k_proj": (kv, hidden), "v_proj": (kv, hidden)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        for leaf, shape in {**attention, "o_proj": (hidden, heads * head)}.items():
            yield f"{prefix}.self_attn.{leaf}", shape
        for block, size in _mlps(config, layer):
            for leaf in ("gate_proj", "up_proj"):
                yield f"{prefix}.{block}.{leaf}", (size, hidden)
            yield f"{prefix}.{block}.down_proj", (hidden, size)


def _mlps(config: Mapping[str, Any], layer: int) -> Iterator[tuple[str, int]]:
    """(module, intermediate size) of a layer's MLPs: one expert stands for all."""
    experts, listed = _dim(config, "moe_intermediate_size", 0), config.get("mlp_only_layers")
    dense = layer < _dim(config, "first_k_dense_replace", 0) or (isinstance(listed, list) and layer in listed)
    if not experts or dense:
        yield "mlp", _dim(config, "intermediate_size")
        return
    yield "mlp.experts.0", experts
    shared, copies = _dim(config, "shared_expert_intermediate_size", 0), _dim(config, "n_shared_experts", 0)
    if shared:
        yield "mlp.shared_expert", shared
    elif copies:
        yield "mlp.shared_experts", experts * copies
