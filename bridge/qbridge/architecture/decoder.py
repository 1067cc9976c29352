"""What config.json says of a decoder: attention, MLPs, experts, norms, heads, and which modules are its own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from qbridge.architecture.classes import CLASSES, UNKNOWN, ModelClass
from qbridge.architecture.config import NESTED
from qbridge.architecture.families import QK_NORMS, SIZES, TEXT_MODELS, ZERO_AT_ZERO, Family, TextModel

# Parts of a name that say the module is of no decoder: towers and blocks for speculative decoding.
LEFT_ALONE = frozenset({"visual", "vision_tower", "vision_model", "audio_tower", "mtp"})

LAYER_NUMBER = re.compile(r"(?:^|\.)(?:layers|h)\.(\d+)\.")
_EXPERT = re.compile(r"\.experts\.\d+(?=\.|$)")
EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def family(config: Mapping[str, Any]) -> Family | None:
    """How the linears of config.json's first architecture are split, None if the architecture is unknown.

    Its `gated` holds for the activation that this config names, too.
    """
    if architecture(config) not in CLASSES:
        return None
    record = row_of(config).split
    text = text_config(config)
    acts = text.get("hidden_act"), text.get("hidden_activation")
    gated = record.gated and all(act is None or str(act) in ZERO_AT_ZERO for act in acts)
    return record if gated == record.gated else replace(record, gated=gated)


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The text model's own config, the sizes that it leaves out filled in if it is nested."""
    for key in NESTED:
        text = config.get(key)
        if isinstance(text, dict):
            defaults = TEXT_MODELS.get(str(text.get("model_type")), TextModel()).sizes
            return {**{name: size for name, size in zip(SIZES, defaults, strict=False) if size}, **text}
    return config


def size_of(text: Mapping[str, Any], key: str) -> int:
    """A size that the config gives, 0 if it does not, or one that no model has."""
    value = text.get(key)
    return value if type(value) is int and 0 < value < 2**31 else 0


def head_counts(config: Mapping[str, Any]) -> tuple[int, int]:
    """(heads, kv heads) of attention, zeros if unknown."""
    return heads_of(text_config(config))


def expert_count(config: Mapping[str, Any]) -> int:
    """How many routed experts a sparse layer has, 0 for a dense model."""
    text = text_config(config)
    return next((size_of(text, key) for key in EXPERT_COUNTS if size_of(text, key)), 0)


def routed(config: Mapping[str, Any]) -> tuple[int, int]:
    """(experts that a token goes through, experts there are); (1, 1) if config.json does not say."""
    text = text_config(config)
    experts = expert_count(config)
    chosen = size_of(text, "num_experts_per_tok") or size_of(text, "moe_k")
    return (chosen, experts) if 0 < chosen <= experts else (1, 1)


def heads_of(text: Mapping[str, Any]) -> tuple[int, int]:
    """(heads, kv heads), zeros if unknown. Falcon: transformers 5.24.0, models/falcon/modeling_falcon.py."""
    heads = size_of(text, "num_attention_heads")
    if text.get("multi_query") and not text.get("new_decoder_architecture"):
        return heads, 1
    return heads, size_of(text, "num_key_value_heads") or size_of(text, "num_kv_heads") or heads


def is_decoder_module(module: str, text: Mapping[str, Any]) -> bool:
    """Whether the module is in a layer of the decoder; layers after the last are for multi-token prediction."""
    match, layers = LAYER_NUMBER.search(module), size_of(text, "num_hidden_layers")
    if match is None or not LEFT_ALONE.isdisjoint(module.split(".")):
        return False
    return not layers or (len(match[1]) < 10 and int(match[1]) < layers)


def place(module: str) -> str:
    """What all experts of a block have in common: the name without their number, which splits none otherwise."""
    return _EXPERT.sub(".experts", module)


MOST = 10_000  # layers, and experts of one, that are counted up to whatever config.json says: no model has more
MLPS = frozenset({"gate_proj", "up_proj", "down_proj", "gate_up_proj", "w1", "w2", "w3"}) | frozenset(
    {"c_fc", "c_proj", "fc1", "fc2", "dense_h_to_4h", "dense_4h_to_h"}
)
INDEXERS = frozenset({"wq_b", "wk", "weights_proj"})
QUERIES = frozenset({"q_proj", "q_a_proj", "q_b_proj"})  # of latent attention: the first alone, or the others

# Parameters of a layer that are no weight or bias of a module.
PARAMETERS = frozenset({"A_log", "D", "dt_bias", "e_score_correction_bias", "sinks"})
# Linear attention of Qwen3-Next and Qwen3.5: each must be there under one of these names, or split like that.
LINEAR_ATTENTION: tuple[tuple[frozenset[str], ...], ...] = (
    (frozenset({"in_proj_qkvz"}), frozenset({"in_proj_qkv", "in_proj_z"})),
    (frozenset({"in_proj_ba"}), frozenset({"in_proj_b", "in_proj_a"})),
    *((frozenset({name}),) for name in ("A_log", "conv1d", "dt_bias", "norm", "out_proj")),
)


def architecture(config: Mapping[str, Any]) -> str:
    """The first model class that config.json names, or an empty string."""
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else ""


def row_of(config: Mapping[str, Any]) -> ModelClass:
    """What is known of the class that config.json names; a row that says nothing if it is unknown."""
    return CLASSES.get(architecture(config), UNKNOWN)


def attention(record: Family, text: Mapping[str, Any]) -> frozenset[str]:
    """The last names of the linears of an attention block."""
    found = (record.columns | record.rows | record.whole) - MLPS - INDEXERS
    if "kv_b_proj" in found:
        found -= {"q_proj"} if text.get("q_lora_rank") else QUERIES - {"q_proj"}
    return found


def norms(config: Mapping[str, Any], latent: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The last names of a layer's norms: those of every layer, and those inside of attention."""
    named = row_of(config).norms
    inner = tuple(name for name in named if name in QK_NORMS)
    if latent:
        inner += ("kv_a_layernorm", *(("q_a_layernorm",) if text_config(config).get("q_lora_rank") else ()))
    return tuple(name for name in named if name not in QK_NORMS), inner


def ends(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The last names of what stands before and after the layers."""
    return row_of(config).ends


def is_tied(config: Mapping[str, Any]) -> bool:
    """Whether lm_head is the embedding, by config.json, the text model's own config or the architecture's default."""
    text, key = text_config(config), "tie_word_embeddings"
    return bool(config.get(key, text.get(key, row_of(config).tied)))


def biased(record: Family, config: Mapping[str, Any]) -> frozenset[str]:
    """The last names of linears and norms that have a bias."""
    text, row = text_config(config), row_of(config)
    found, (key, names) = row.biased, row.biased_if
    if text.get(key, True):
        found |= names
    if "kv_b_proj" in record.columns:  # its attention_bias is about other linears
        return found
    model_type = TEXT_MODELS.get(str(text.get("model_type")), TextModel())
    always = model_type.qkv_bias and text.get("qkv_bias", True)
    if always or text.get("attention_bias"):
        found |= record.columns & {"q_proj", "k_proj", "v_proj"}
    return found


def parameters(config: Mapping[str, Any], sparse: bool) -> frozenset[str]:
    """The last names of a layer's parameters of its own, besides those of linear attention."""
    row = row_of(config)
    corrected = row.corrected and sparse and text_config(config).get("topk_method", "noaux_tc") == "noaux_tc"
    return row.parameters | ({"e_score_correction_bias"} if corrected else frozenset())


def indexer(record: Family, config: Mapping[str, Any], layer: int) -> frozenset[str]:
    """The last names of what a layer chooses keys by; layers of GLM share one, as config.json says."""
    kinds = text_config(config).get("indexer_types")
    if not record.whole >= INDEXERS:
        return frozenset()
    full = row_of(config).indexers
    if isinstance(kinds, list):
        full = layer < len(kinds) and kinds[layer] == "full"
    return INDEXERS | {"k_norm"} if full else frozenset()


def draft_layers(config: Mapping[str, Any]) -> int:
    """How many layers for multi-token prediction config.json speaks of."""
    text = text_config(config)
    keys = ("num_nextn_predict_layers", "mtp_num_hidden_layers")
    return next((_positive(text, key) for key in keys if _positive(text, key)), 0)


def shared_block(config: Mapping[str, Any]) -> str:
    """The name of the shared expert's module, or an empty string if a sparse layer has none."""
    text = text_config(config)
    if row_of(config).shared_expert:
        return "shared_expert"
    if any(_positive(text, key) for key in ("n_shared_experts", "moe_num_shared_experts")):
        return "shared_experts"
    return "shared_expert" if _positive(text, "shared_expert_intermediate_size") else ""


def is_sparse(config: Mapping[str, Any], layer: int) -> bool:
    """Whether a layer has experts, by the keys of transformers 4.57.6 and 5.24.0."""
    text = text_config(config)
    kinds, chosen = text.get("mlp_layer_types"), text.get("moe_layers")
    if isinstance(kinds, list) and layer < len(kinds):
        return bool(kinds[layer] == "sparse")
    if isinstance(chosen, list) and chosen:
        return layer in chosen
    every = ("decoder_sparse_step", "interleave_moe_layer_step", "moe_layer_interval")
    return (
        expert_count(config) > 0
        and layer not in (text.get("mlp_only_layers") or ())
        and all((layer + 1) % (_positive(text, key) or 1) == 0 for key in every)
        and layer % (_positive(text, "moe_layer_freq") or 1) == 0
        and layer >= _positive(text, "first_k_dense_replace") + _positive(text, "moe_layer_start_index")
        and layer <= (_positive(text, "moe_layer_end_index") or layer)
    )


def has_attention(text: Mapping[str, Any], layer: int) -> bool:
    """Whether a layer has softmax attention: hybrid models say which, or that every n-th has."""
    kinds = text.get("layer_types")
    if isinstance(kinds, list) and layer < len(kinds):
        return bool(kinds[layer] != "linear_attention")
    return (layer + 1) % (_positive(text, "full_attention_interval") or 1) == 0


def _positive(text: Mapping[str, Any], key: str) -> int:
    value = text.get(key)
    return value if type(value) is int and value > 0 else 0
