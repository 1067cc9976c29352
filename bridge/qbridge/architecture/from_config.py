"""A model from config.json alone: the linears of its architecture at the dims and in the scheme that it names.

Dims: transformers 5.24.0, models/*/modeling_*.py; tests/architecture/test_assumed.py holds them
against the module trees.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from qbridge.architecture.architecture import Architecture
from qbridge.architecture.decoder import INDEXERS, MOST
from qbridge.architecture.names import is_classifier
from qbridge.architecture.odd_sizes import odd_sizes
from qbridge.architecture.quantization_block import NO_BLOCK, QUANTIZATION_KEYS, find_block
from qbridge.findings.finding import error
from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.ir.scheme import MAX_SIZE, Granularity, WeightScheme
from qbridge.source.foreign import CONFIG
from qbridge.source.storage import File, Storage, load_json

_SIZES = ("_size", "_dim", "_rank", "_heads", "_layers", "_experts", "_replace")


def config_alone(storage: Storage, side_files: Iterable[str] = ()) -> Mapping[str, Any]:
    """config.json of a place that has no weights; its block is the first of some side files where it has none."""
    config = load_json(File(storage, CONFIG))
    config = config if isinstance(config, dict) else {}
    for name in side_files if find_block(config) is None else ():
        if storage.has(name):
            return {**config, QUANTIZATION_KEYS[0]: load_json(File(storage, name))}
    return config


def assumed_linears(storage: Storage) -> tuple[Mapping[str, Any], dict[str, tuple[int, int]]]:
    """(config.json, (out_features, in_features) by linear) of a place without weights, without the head.

    Raises QBridgeError (QB262).
    """
    config = config_alone(storage)
    return config, dims_by_config(config, storage.url)


def dims_by_config(config: Mapping[str, Any], where: str = CONFIG) -> dict[str, tuple[int, int]]:
    """(out_features, in_features) by linear, without the head; QBridgeError (QB262) where that says too little."""
    architecture = Architecture.of(config)
    if not architecture.known:
        raise error("QB262", where, ("its architecture is not in qbridge's table",))
    if not (architecture.row.assumed and architecture.row.judged):
        raise error("QB262", where, ("the sizes of its linears are not in config.json",))
    try:
        _check_sizes(architecture.text)
        return dict(linears(architecture))
    except (KeyError, TypeError, ZeroDivisionError) as fault:
        raise error("QB262", where, (f"it does not say {fault}",)) from fault
    except ValueError as fault:
        raise error("QB262", where, (str(fault),)) from fault


def assumed_head(config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """(out_features, in_features) of the head, by its name; nothing where the class has none, or ties it."""
    architecture = Architecture.of(config)
    name, text = architecture.row.head, architecture.text
    sizes = text.get("vocab_size"), text.get("hidden_size")
    if (
        not name
        or is_classifier(name)
        or architecture.tied
        or not all(type(size) is int and 0 < size <= MAX_SIZE for size in sizes)
    ):
        return {}
    return {name: (text["vocab_size"], text["hidden_size"])}


def assumed_model(storage: Storage) -> Model:
    """The model of a place without weights, by bits and group size of its config.json; QBridgeError (QB262)."""
    block = (find_block(config_alone(storage)) or NO_BLOCK).raw
    config, dims = assumed_linears(storage)
    weight = _scheme(block)
    if weight is None:
        raise error("QB262", storage.url, ("it does not say bits and group size",))
    try:
        specs = {name: Spec(name, *shape, weight, DType.F16) for name, shape in dims.items()}
    except ValueError as fault:  # sizes that are sound one by one, and multiply to dims that no linear has
        raise error("QB262", storage.url, (str(fault),)) from fault
    return Model(_format(block), config, specs, {}, {})


def _check_sizes(text: Mapping[str, Any]) -> None:
    """ValueError for a size that no model has, before it is counted up to."""
    if odd := odd_sizes(text):
        raise ValueError("; ".join(odd))
    for key, value in text.items():
        if not key.endswith(_SIZES) or value is None:
            continue
        limit = MOST if key.endswith(("_layers", "_experts")) else MAX_SIZE
        by_layer = isinstance(value, list) and not key.endswith("_replace")
        if not by_layer and not isinstance(value, bool) and (type(value) is not int or not 0 <= value <= limit):
            raise ValueError(f"{key} is {str(value)[:80]}")


def _format(block: Mapping[str, Any]) -> str:
    unnamed = "compressed-tensors" if "config_groups" in block else ""  # which alone of all may name no method
    method = str(block.get("quant_method", unnamed)).lower().replace("_", "-")
    return {"intel/auto-round": "auto-round"}.get(method, method)


def _scheme(block: Mapping[str, Any]) -> WeightScheme | None:
    """Bits, group size and symmetry, in the keys of GPTQ, AWQ or compressed-tensors; None for floats."""
    groups = block.get("config_groups")
    if isinstance(groups, dict) and groups:
        first = next(iter(groups.values()))
        weights = first.get("weights") if isinstance(first, dict) else None
        block = weights if isinstance(weights, dict) else {}
    if block.get("type", "int") != "int":
        return None  # FP8 and FP4 have more to say than bits and group size
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


def linears(architecture: Architecture) -> Iterator[tuple[str, tuple[int, int]]]:
    """(name, (out_features, in_features)) of every linear of the decoder's layers, linear attention left out."""
    text, row, attention = architecture.text, architecture.row, _attention(architecture)
    for layer in range(text["num_hidden_layers"]):
        prefix = f"{row.layers}.{layer}"
        if architecture.has_attention(layer):
            yield from ((f"{prefix}.{row.attention}.{leaf}", shape) for leaf, shape in attention.items())
        for name in _mlps(architecture, layer) if architecture.has_mlp(layer) else ():
            size = _intermediate(f"{prefix}.{name}", architecture)
            block = f"{prefix}.{name}".removesuffix(".")
            yield from ((f"{block}.{leaf}", shape) for leaf, shape in _mlp(size, architecture))


def _attention(architecture: Architecture) -> dict[str, tuple[int, int]]:
    """The linears of an attention block by their last names."""
    text = architecture.text
    hidden, (heads, kv) = text["hidden_size"], architecture.heads
    head = text.get("head_dim") or hidden // heads
    gates = 2 if architecture.row.query_gates else 1
    dims = {
        "q_proj": (gates * heads * head, hidden),
        "k_proj": (kv * head, hidden),
        "v_proj": (kv * head, hidden),
        "qkv_proj": ((heads + 2 * kv) * head, hidden),
        "o_proj": (hidden, heads * head),
        "g_proj": (heads, hidden),
    }
    dims |= dict.fromkeys(("query_key_value", "W_pack", "wqkv", "Wqkv", "c_attn"), dims["qkv_proj"])
    dims |= dict.fromkeys(("dense", "out_proj", "wo", "c_proj"), dims["o_proj"])
    if architecture.latent:
        dims |= _latent(text, heads)
    found = {leaf: dims[leaf] for leaf in sorted(architecture.attention)}
    if architecture.split.whole >= INDEXERS:
        size, count = text["index_head_dim"], text["index_n_heads"]
        found["indexer.wq_b"] = (count * size, text["q_lora_rank"])
        found |= {"indexer.wk": (size, hidden), "indexer.weights_proj": (count, hidden)}
    return found


def _latent(text: Mapping[str, Any], heads: int) -> dict[str, tuple[int, int]]:
    """Multi-head latent attention."""
    hidden, low, rope = text["hidden_size"], text["kv_lora_rank"], text["qk_rope_head_dim"]
    query, value = text["qk_nope_head_dim"] + rope, text["v_head_dim"]
    low_query = text.get("q_lora_rank") or 0
    return {
        "q_proj": (heads * query, hidden),
        "q_a_proj": (low_query, hidden),
        "q_b_proj": (heads * query, low_query),
        "kv_a_proj_with_mqa": (low + rope, hidden),
        "kv_b_proj": (heads * (text["qk_nope_head_dim"] + value), low),
        "o_proj": (hidden, heads * value),
    }


def _mlp(size: int, architecture: Architecture) -> Iterator[tuple[str, tuple[int, int]]]:
    """The linears of one MLP by their last names."""
    hidden = architecture.text["hidden_size"]
    for leaf in sorted(architecture.mlp):
        rows = 2 * size if leaf in architecture.split.merged else size
        yield leaf, (hidden, size) if leaf in architecture.split.rows else (rows, hidden)


def _mlps(architecture: Architecture, layer: int) -> Iterator[str]:
    """The names of a layer's MLPs: one dense, or every routed expert and the shared ones."""
    row, block = architecture.row, architecture.row.mlp
    if row.expert_block:  # experts are no linears there, and the MLP is beside them
        if not architecture.is_sparse(layer) or architecture.text.get("shared_intermediate_size"):
            yield block
        return
    if not architecture.is_sparse(layer):
        if row.sparse:
            raise KeyError("num_local_experts")
        yield block
        return
    yield from (f"{block}.experts.{expert}" for expert in range(architecture.experts))
    if shared := architecture.shared_block:
        yield f"{block}.{shared}"


def _intermediate(block: str, architecture: Architecture) -> int:
    key, text = architecture.intermediate_key(block), architecture.text
    if architecture.adjusts_mlp:
        return _adjusted(int(text["intermediate_size"]), text)
    if key is None and architecture.row.mlp_ratio:
        return architecture.row.mlp_ratio * int(text["hidden_size"])
    if key is None:
        raise KeyError("intermediate_size")
    return int(text[key]) * architecture.intermediate_copies(block) // architecture.row.mlp_share


def _adjusted(size: int, text: Mapping[str, Any]) -> int:
    """What LFM2 makes of its intermediate size. transformers 5.24.0, models/lfm2/modeling_lfm2.py (Lfm2MLP)."""
    size = 2 * size // 3
    factor = text.get("block_ffn_dim_multiplier", 1.0)
    if factor is None:
        return size
    multiple = int(text.get("block_multiple_of", 256))
    return multiple * -(-int(factor * size) // multiple)
