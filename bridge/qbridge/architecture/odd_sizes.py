"""Sizes of config.json that no model can have: 0, negative, null where every class needs a number, true, text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

# Sizes that no model is without, those that a class derives where they are null, and those that may differ by layer.
_ESSENTIAL = ("hidden_size", "vocab_size", "num_hidden_layers", "num_attention_heads")
_DERIVED = ("head_dim", "num_key_value_heads", "intermediate_size")
_BY_LAYER = frozenset({"num_attention_heads", "num_key_value_heads", "intermediate_size"})
# Sizes that are null or 0 in models without experts, or without latent attention.
_COUNTS = (
    *("num_experts", "num_local_experts", "n_routed_experts", "n_shared_experts", "num_experts_per_tok"),
    *("moe_intermediate_size", "shared_expert_intermediate_size", "first_k_dense_replace"),
    *("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"),
)
_NO_MLP_SIZE = "block_configs"  # Nemotron-NAS gives the size of each layer's MLP there, and null for the model's
_LONGEST = 40  # characters of a value that are shown


def odd_sizes(text: Mapping[str, Any]) -> tuple[str, ...]:
    """What is wrong with the sizes that a text model's config gives, by key; nothing where they can be."""
    return tuple(f"{key} is {repr(text[key])[:_LONGEST]}" for key in _odd(text))


def _odd(text: Mapping[str, Any]) -> Iterator[str]:
    for key in (*_ESSENTIAL, *_DERIVED, *_COUNTS):
        if key not in text or (key == "intermediate_size" and _NO_MLP_SIZE in text):
            continue
        value = text[key]
        if value is None:
            if key in _ESSENTIAL or key == "intermediate_size":
                yield key
        elif isinstance(value, list) and key in _BY_LAYER:
            if not value or not all(each is None or _is_size(each, 0) for each in value):
                yield key
        elif not _is_size(value, 0 if key in _COUNTS else 1):
            yield key


def _is_size(value: object, least: int) -> bool:
    return type(value) is int and value >= least
