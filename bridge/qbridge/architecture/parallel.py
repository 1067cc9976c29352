"""How tensor parallelism splits the linears of a decoder, from config.json and names alone.

Which leaf is split along which dim: transformers 5.24.0, base_model_tp_plan in models/*/configuration_*.py, and where
there is none the module trees in models/*/modeling_*.py; make_sharding.py and test_sharding.py in tests/architecture
hold this table against both. Names are those on disk (transformers 5.24.0, conversion_mapping.py): experts one by
one, also where transformers packs them. How heads and sizes are split: vLLM 0.33.0, model_executor/layers/linear.py
(QKVParallelLinear, MergedColumnParallelLinear, RowParallelLinear) and distributed/utils.py (divide).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qbridge.architecture.decoder import EXPERT_COUNTS, LAYER_NUMBER, LEFT_ALONE, heads_of, is_decoder_module, size_of
from qbridge.architecture.families import Family
from qbridge.architecture.mlps import intermediate_key
from qbridge.architecture.model_class import ModelClass
from qbridge.architecture.names import canonical_module, is_embedding, is_head, is_router


@dataclass(frozen=True, slots=True)
class Rank:
    """What one rank holds of one linear; with a `fault` there is no such split, and the dims are the whole ones."""

    out_features: int
    in_features: int
    axis: str
    fault: str = ""


# How many times the query heads and the kv heads are in a linear that is split by heads.
_BY_HEADS: Mapping[str, tuple[int, int]] = {
    **dict.fromkeys(("q_proj", "q_b_proj", "kv_b_proj", "o_proj", "dense", "out_proj", "wo"), (1, 0)),
    **dict.fromkeys(("k_proj", "v_proj"), (0, 1)),
    **dict.fromkeys(("qkv_proj", "query_key_value", "W_pack", "wqkv", "Wqkv", "c_attn"), (1, 2)),
}


def rank(module: str, dims: tuple[int, int], row: ModelClass, text: Mapping[str, Any], tp: int) -> Rank | None:
    """What `Architecture.rank` gives, for a known class."""
    out_features, in_features = dims
    split = row.split
    leaf = canonical_module(module).rpartition(".")[2]
    whole = Rank(out_features, in_features, "whole")
    if not LEFT_ALONE.isdisjoint(module.split(".")):
        return None
    if not is_decoder_module(module, text):
        return whole if not LAYER_NUMBER.search(module) and (is_embedding(module) or is_head(module)) else None
    if leaf in split.whole or is_router(module):
        return whole
    block = module.split(".")[-2]
    mixer = next((one for one in row.mixers if one.name == block and any({leaf} in part for part in one.parts)), None)
    columns, rows = (mixer.columns, mixer.rows) if mixer else (split.columns, split.rows)
    axis = "column" if leaf in columns else "row"
    if axis == "row" and leaf not in rows:
        return None
    size = out_features if axis == "column" else in_features
    share = _even(size, 1, tp) if mixer else _share(leaf, size, heads_of(text), tp, leaf in split.merged)
    if share is None:
        return None
    if isinstance(share, str):
        return Rank(out_features, in_features, axis, share)
    return Rank(share, in_features, axis) if axis == "column" else Rank(out_features, share, axis)


def _share(leaf: str, size: int, heads: tuple[int, int], tp: int, merged: bool) -> int | str | None:
    """One rank's part of the dim that is split, why there is none, or None if the heads are unknown."""
    if leaf in _BY_HEADS:
        (query, kv), (queries, kvs) = heads, _BY_HEADS[leaf]
        units = queries * query + kvs * kv
        if not query:
            return None
        if size % units:
            return f"{size} features are not divisible by {units} heads"
        fault = (queries and _query_fault(query, tp)) or (kvs and _kv_fault(kv, tp))
        return fault or (queries * (query // tp) + kvs * max(kv // tp, 1)) * (size // units)
    return _even(size, 2 if merged else 1, tp)


def _even(size: int, parts: int, tp: int) -> int | str:
    """One rank's part of a dim that is split evenly, as are the `parts` that it is made of, or why there is none."""
    if size % (parts * tp):
        return f"{size // parts} features are not divisible by {tp}"
    return size // tp


def _query_fault(heads: int, tp: int) -> str:
    return f"{heads} heads are not divisible by {tp}" if heads % tp else ""


def _kv_fault(heads: int, tp: int) -> str:
    """Whole kv heads per rank, or whole ranks per kv head."""
    if tp < heads:
        return f"{heads} kv heads are not divisible by {tp}" if heads % tp else ""
    return f"{tp} ranks are not divisible by {heads} kv heads" if tp % heads else ""


def fused_out(modules: Mapping[str, Rank]) -> int:
    """out_features that one rank has of the linear that engines fuse of these."""
    return sum(part.out_features for part in modules.values())


def head_faults(split: Family, text: Mapping[str, Any], tp: int) -> list[str]:
    """What `Architecture.head_faults` gives, for a known class."""
    query, kv = heads_of(text)
    faults = [_query_fault(query, tp)]
    if query and "kv_b_proj" not in split.columns:  # latent attention has no kv heads to split
        faults.append(_kv_fault(kv, tp))
    sparse = any(size_of(text, key) for key in EXPERT_COUNTS)
    blocks = ["experts.0", "shared_expert", "shared_experts"] if sparse else []
    if not sparse or _has_dense_layers(text):
        blocks.append("mlp")
    for key in dict.fromkeys(intermediate_key(block, text) for block in blocks):
        if key and text[key] % tp:
            faults.append(f"{key} {text[key]} is not divisible by {tp}")
    return [fault for fault in faults if fault]


def _has_dense_layers(text: Mapping[str, Any]) -> bool:
    """Whether a model with experts has layers without, by the keys of transformers 4.57.6 and 5.24.0."""
    kinds = text.get("mlp_layer_types")
    return (
        (isinstance(kinds, list) and "dense" in kinds)
        or bool(text.get("mlp_only_layers"))
        or any(size_of(text, key) for key in ("first_k_dense_replace", "moe_layer_start_index"))
        or any(size_of(text, key) > 1 for key in ("decoder_sparse_step", "interleave_moe_layer_step"))
    )
