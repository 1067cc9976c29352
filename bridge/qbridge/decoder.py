"""What the layers of a decoder consist of besides how they are split: attention, MLPs, experts, norms.

Sources: transformers 5.24.0, models/*/modeling_*.py (module trees) and models/*/configuration_*.py (which layers are
sparse or of linear attention); tests/test_completeness.py and tests/test_assumed.py hold the tables against them.
What is not modelled: linear attention (linear_attn.*), the indexers of sparse attention, vision towers, blocks for
multi-token prediction.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qbridge.sharding import Family, expert_count, text_config

MOST = 10_000  # layers, and experts of one, that are counted up to whatever config.json says: no model has more
MLPS = frozenset({"gate_proj", "up_proj", "down_proj", "gate_up_proj", "w1", "w2", "w3"}) | frozenset(
    {"c_fc", "c_proj", "fc1", "fc2", "dense_h_to_4h", "dense_4h_to_h"}
)
INDEXERS = frozenset({"wq_b", "wk", "weights_proj"})
QUERIES = frozenset({"q_proj", "q_a_proj", "q_b_proj"})  # of latent attention: the first alone, or the others

_TWO = ("input_layernorm", "post_attention_layernorm")
_AFTER = ("post_attention_layernorm", "post_feedforward_layernorm")
_SANDWICH = (*_TWO, "pre_feedforward_layernorm", "post_feedforward_layernorm")
_GLM4 = (*_TWO, "post_self_attn_layernorm", "post_mlp_layernorm")
_QK = ("q_norm", "k_norm")
# Norms with weights of a layer, where they are others than _TWO; those of latent attention are added to them. Falcon
# and StableLM have them as their config says, which is not modelled.
NORMS: Mapping[str, tuple[str, ...]] = {
    "Cohere2ForCausalLM": ("input_layernorm",),
    "CohereForCausalLM": ("input_layernorm",),
    "Exaone4ForCausalLM": (*_AFTER, *_QK),
    "FalconForCausalLM": (),
    "Gemma2ForCausalLM": _SANDWICH,
    "Gemma3ForCausalLM": (*_SANDWICH, *_QK),
    "Gemma3ForConditionalGeneration": (*_SANDWICH, *_QK),
    "Glm4ForCausalLM": _GLM4,
    "Glm4vForConditionalGeneration": _GLM4,
    "MiniMaxM2ForCausalLM": (*_TWO, *_QK),
    "Olmo2ForCausalLM": (*_AFTER, *_QK),
    "Olmo3ForCausalLM": (*_AFTER, *_QK),
    "OlmoForCausalLM": (),
    "OlmoeForCausalLM": (*_TWO, *_QK),
    "PhiForCausalLM": ("input_layernorm",),
    **dict.fromkeys(
        (
            "Qwen3ForCausalLM",
            "Qwen3MoeForCausalLM",
            "Qwen3NextForCausalLM",
            "Qwen3VLForConditionalGeneration",
            "Qwen3VLMoeForConditionalGeneration",
            "Qwen3_5ForCausalLM",
            "Qwen3_5ForConditionalGeneration",
            "Qwen3_5MoeForCausalLM",
            "Qwen3_5MoeForConditionalGeneration",
        ),
        (*_TWO, *_QK),
    ),
    "StableLmForCausalLM": ("input_layernorm",),
}
# The embedding and the last norm, where they have other names than Llama's.
ENDS: Mapping[str, tuple[str, ...]] = {
    "FalconForCausalLM": ("word_embeddings", "ln_f"),
    "OlmoForCausalLM": ("embed_tokens",),
    "PhiForCausalLM": ("embed_tokens", "final_layernorm"),
}
# lm_head is the embedding unless config.json says otherwise.
TIED = frozenset(
    {
        "Cohere2ForCausalLM",
        "CohereForCausalLM",
        "Ernie4_5ForCausalLM",
        "Ernie4_5_MoeForCausalLM",
        "FalconForCausalLM",
        "Gemma2ForCausalLM",
        "Gemma3ForCausalLM",
        "Gemma3ForConditionalGeneration",
        "GemmaForCausalLM",
        "InternVLForConditionalGeneration",
        "Mistral3ForConditionalGeneration",
        "SmolLM3ForCausalLM",
        "Starcoder2ForCausalLM",
    }
)
# q, k and v have a bias whatever config.json says, by model_type of the text model.
BIASED = frozenset({"qwen2", "qwen2_moe", "qwen2_vl", "qwen2_vl_text", "qwen2_5_vl", "qwen2_5_vl_text"}) | frozenset(
    {"glm4v", "glm4v_text"}
)


# What has a bias whatever config.json says, by last names (a layer's, the last norm, the head).
_NORMS_BIASED = frozenset(_TWO)
ALWAYS_BIASED: Mapping[str, frozenset[str]] = {
    "FalconForCausalLM": frozenset({"input_layernorm", "ln_attn", "ln_mlp", "ln_f"}),
    "GptOssForCausalLM": frozenset({"router"}),
    "NemotronForCausalLM": _NORMS_BIASED | {"norm"},
    "PhiForCausalLM": frozenset({"q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2", "input_layernorm"})
    | {"final_layernorm", "lm_head"},
    "PhimoeForCausalLM": _NORMS_BIASED | {"norm"},
    "Starcoder2ForCausalLM": _NORMS_BIASED | {"norm"},
}
# Parameters of a layer that are no weight or bias of a module.
PARAMETERS = frozenset({"A_log", "D", "dt_bias", "e_score_correction_bias", "sinks"})
# Routers that correct the scores by which they choose; DeepSeek's only if topk_method says so, or nothing.
CORRECTED = frozenset(
    {
        "DeepseekV32ForCausalLM",
        "DeepseekV3ForCausalLM",
        "Glm4MoeForCausalLM",
        "Glm4MoeLiteForCausalLM",
        "Glm4vMoeForConditionalGeneration",
        "GlmMoeDsaForCausalLM",
    }
)
# Linear attention of Qwen3-Next and Qwen3.5: each must be there under one of these names, or split like that.
LINEAR_ATTENTION: tuple[tuple[frozenset[str], ...], ...] = (
    (frozenset({"in_proj_qkvz"}), frozenset({"in_proj_qkv", "in_proj_z"})),
    (frozenset({"in_proj_ba"}), frozenset({"in_proj_b", "in_proj_a"})),
    *((frozenset({name}),) for name in ("A_log", "conv1d", "dt_bias", "norm", "out_proj")),
)
# Published with adapters that are not merged, which engines know (vllm 0.33.0, model_executor/models/phi4mm.py).
ADAPTED = frozenset({"Phi4MMForCausalLM", "Phi4MultimodalForCausalLM"})


def architecture(config: Mapping[str, Any]) -> str:
    """The first model class that config.json names, or an empty string."""
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else ""


def attention(record: Family, text: Mapping[str, Any]) -> frozenset[str]:
    """The last names of the linears of an attention block."""
    found = (record.columns | record.rows | record.whole) - MLPS - INDEXERS
    if "kv_b_proj" in found:
        found -= {"q_proj"} if text.get("q_lora_rank") else QUERIES - {"q_proj"}
    return found


def norms(config: Mapping[str, Any], latent: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The last names of a layer's norms: those of every layer, and those inside of attention."""
    named = NORMS.get(architecture(config), _TWO)
    inner = tuple(name for name in named if name in _QK)
    if latent:
        inner += ("kv_a_layernorm", *(("q_a_layernorm",) if text_config(config).get("q_lora_rank") else ()))
    return tuple(name for name in named if name not in _QK), inner


def ends(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The last names of what stands before and after the layers."""
    return ENDS.get(architecture(config), ("embed_tokens", "norm"))


def is_tied(config: Mapping[str, Any]) -> bool:
    """Whether lm_head is the embedding, by config.json, the text model's own config or the architecture's default."""
    text, key = text_config(config), "tie_word_embeddings"
    return bool(config.get(key, text.get(key, architecture(config) in TIED)))


def biased(record: Family, config: Mapping[str, Any]) -> frozenset[str]:
    """The last names of linears and norms that have a bias."""
    text, name = text_config(config), architecture(config)
    found = ALWAYS_BIASED.get(name, frozenset())
    if name == "Starcoder2ForCausalLM" and text.get("use_bias", True):
        found |= record.columns | record.rows
    if name == "GptOssForCausalLM" and text.get("attention_bias", True):
        found |= {"q_proj", "k_proj", "v_proj", "o_proj"}
    if "kv_b_proj" in record.columns:  # its attention_bias is about other linears
        return found
    always = str(text.get("model_type")) in BIASED and text.get("qkv_bias", True)
    if always or text.get("attention_bias"):
        found |= record.columns & {"q_proj", "k_proj", "v_proj"}
    return found


def parameters(config: Mapping[str, Any], sparse: bool) -> frozenset[str]:
    """The last names of a layer's parameters of its own, besides those of linear attention."""
    text, name = text_config(config), architecture(config)
    if name == "GptOssForCausalLM":
        return frozenset({"sinks"})
    corrected = name in CORRECTED and text.get("topk_method", "noaux_tc") == "noaux_tc"
    return frozenset({"e_score_correction_bias"}) if corrected and sparse else frozenset()


def indexer(record: Family, config: Mapping[str, Any], layer: int) -> frozenset[str]:
    """The last names of what a layer chooses keys by; layers of GLM share one, as config.json says."""
    kinds = text_config(config).get("indexer_types")
    if not record.whole >= INDEXERS:
        return frozenset()
    if isinstance(kinds, list):
        full = layer < len(kinds) and kinds[layer] == "full"
    else:
        full = architecture(config) == "DeepseekV32ForCausalLM"
    return INDEXERS | {"k_norm"} if full else frozenset()


def draft_layers(config: Mapping[str, Any]) -> int:
    """How many layers for multi-token prediction config.json speaks of."""
    text = text_config(config)
    keys = ("num_nextn_predict_layers", "mtp_num_hidden_layers")
    return next((_positive(text, key) for key in keys if _positive(text, key)), 0)


def shared_block(config: Mapping[str, Any]) -> str:
    """The name of the shared expert's module, or an empty string if a sparse layer has none."""
    text = text_config(config)
    if architecture(config).startswith("Llama4"):
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
