"""What is known of model classes, a row each: how their linears are split, norms, ties, biases, sizes left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Family:
    """Linears of architectures that are split alike, by their last names.

    `columns` are split along out_features, `rows` along in_features, `whole` is held by every rank. `gated`: the MLP
    is act(gate) * up with act(0) = 0, so that a channel whose gate and up are zero adds nothing.
    """

    columns: frozenset[str]
    rows: frozenset[str]
    gated: bool = True
    whole: frozenset[str] = frozenset()


_QKV = frozenset({"q_proj", "k_proj", "v_proj"})
_DENSE = Family(_QKV | {"gate_proj", "up_proj"}, frozenset({"o_proj", "down_proj"}))
_MIXTRAL = Family(_QKV | {"w1", "w3"}, frozenset({"o_proj", "w2"}))
_GLM = Family(_QKV | {"gate_up_proj"}, _DENSE.rows)
_PHI3 = Family(frozenset({"qkv_proj", "gate_up_proj"}), _DENSE.rows)
# Multi-head latent attention: the down projections are small and every rank has them.
_MLA = Family(
    frozenset({"q_proj", "q_b_proj", "kv_b_proj", "gate_proj", "up_proj"}),
    _DENSE.rows,
    whole=frozenset({"q_a_proj", "kv_a_proj_with_mqa"}),
)
_DSA = replace(_MLA, columns=_MLA.columns - {"q_proj"}, whole=_MLA.whole | {"wq_b", "wk", "weights_proj"})
# GPT-OSS computes act(gate) * (up + 1) on clamped values, though its hidden_act says silu.
_GPT_OSS = replace(_DENSE, gated=False)
_STARCODER2 = Family(_QKV | {"c_fc"}, frozenset({"o_proj", "c_proj"}), gated=False)
_NEMOTRON = Family(_QKV | {"up_proj"}, _DENSE.rows, gated=False)
_PHI = Family(_QKV | {"fc1"}, frozenset({"dense", "fc2"}), gated=False)
_FALCON = Family(frozenset({"query_key_value", "dense_h_to_4h"}), frozenset({"dense", "dense_4h_to_h"}), gated=False)

# transformers 5.24.0 has no tp plan for FalconForCausalLM, GptOssForCausalLM, Qwen3VLForConditionalGeneration and
# StableLmForCausalLM, none for the attention of DeepseekV3ForCausalLM and PhimoeForCausalLM, and none for q_a_proj
# and the indexers (wq_b, wk, weights_proj): those are from the module trees, split as vLLM 0.33.0 splits them
# (model_executor/models/deepseek_v2.py and others). Linear attention (linear_attn.*) is left out.
FAMILIES: Mapping[str, Family] = {
    "Cohere2ForCausalLM": _DENSE,
    "CohereForCausalLM": _DENSE,
    "DeepseekV2ForCausalLM": _MLA,
    "DeepseekV32ForCausalLM": _DSA,
    "DeepseekV3ForCausalLM": _MLA,
    "Ernie4_5ForCausalLM": _DENSE,
    "Ernie4_5_MoeForCausalLM": _DENSE,
    "Exaone4ForCausalLM": _DENSE,
    "FalconForCausalLM": _FALCON,
    "Gemma2ForCausalLM": _DENSE,
    "Gemma3ForCausalLM": _DENSE,
    "Gemma3ForConditionalGeneration": _DENSE,
    "GemmaForCausalLM": _DENSE,
    "Glm4ForCausalLM": _GLM,
    "Glm4MoeForCausalLM": _DENSE,
    "Glm4MoeLiteForCausalLM": _MLA,
    "Glm4vForConditionalGeneration": _GLM,
    "Glm4vMoeForConditionalGeneration": _DENSE,
    "GlmForCausalLM": _GLM,
    "GlmMoeDsaForCausalLM": _DSA,
    "GptOssForCausalLM": _GPT_OSS,
    "GraniteForCausalLM": _DENSE,
    "InternVLForConditionalGeneration": _DENSE,
    "Llama4ForCausalLM": _DENSE,
    "Llama4ForConditionalGeneration": _DENSE,
    "LlamaForCausalLM": _DENSE,
    "LlavaForConditionalGeneration": _DENSE,
    "LlavaNextForConditionalGeneration": _DENSE,
    "MiniMaxM2ForCausalLM": _MIXTRAL,
    "Ministral3ForCausalLM": _DENSE,
    "MinistralForCausalLM": _DENSE,
    "Mistral3ForConditionalGeneration": _DENSE,
    "MistralForCausalLM": _DENSE,
    "MixtralForCausalLM": _MIXTRAL,
    "NemotronForCausalLM": _NEMOTRON,
    "Olmo2ForCausalLM": _DENSE,
    "Olmo3ForCausalLM": _DENSE,
    "OlmoForCausalLM": _DENSE,
    "OlmoeForCausalLM": _DENSE,
    "Phi3ForCausalLM": _PHI3,
    "PhiForCausalLM": _PHI,
    "PhimoeForCausalLM": _MIXTRAL,
    "Qwen2ForCausalLM": _DENSE,
    "Qwen2MoeForCausalLM": _DENSE,
    "Qwen2VLForConditionalGeneration": _DENSE,
    "Qwen2_5_VLForConditionalGeneration": _DENSE,
    "Qwen3ForCausalLM": _DENSE,
    "Qwen3MoeForCausalLM": _DENSE,
    "Qwen3NextForCausalLM": _DENSE,
    "Qwen3VLForConditionalGeneration": _DENSE,
    "Qwen3VLMoeForConditionalGeneration": _DENSE,
    "Qwen3_5ForCausalLM": _DENSE,
    "Qwen3_5ForConditionalGeneration": _DENSE,
    "Qwen3_5MoeForCausalLM": _DENSE,
    "Qwen3_5MoeForConditionalGeneration": _DENSE,
    "SeedOssForCausalLM": _DENSE,
    "SmolLM3ForCausalLM": _DENSE,
    "Starcoder2ForCausalLM": _STARCODER2,
    "StableLmForCausalLM": _DENSE,
}

SIZES = (
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "intermediate_size_mlp",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
    "n_shared_experts",
)
# What a nested text config means by a size that it leaves out, in the order of SIZES, 0 if there is none: those of
# Gemma 3 on the hub say nothing of heads. Defaults of transformers 5.24.0 (models/*/configuration_*.py), by
# model_type.
DEFAULTS: Mapping[str, tuple[int, ...]] = {
    "gemma3_text": (26, 8, 4, 9216, 0, 0, 0, 0),
    "glm4v_moe_text": (46, 96, 8, 10944, 0, 1408, 0, 1),
    "glm4v_text": (40, 32, 2, 13696, 0, 0, 0, 0),
    "llama": (32, 32, 0, 11008, 0, 0, 0, 0),
    "llama4_text": (48, 40, 8, 8192, 16384, 0, 0, 0),
    "mistral": (32, 32, 8, 14336, 0, 0, 0, 0),
    "qwen2": (32, 32, 32, 22016, 0, 0, 0, 0),
    "qwen2_5_vl_text": (80, 64, 8, 29568, 0, 0, 0, 0),
    "qwen2_vl_text": (80, 64, 8, 29568, 0, 0, 0, 0),
    "qwen3_5_moe_text": (40, 16, 2, 0, 0, 512, 512, 0),
    "qwen3_5_text": (32, 16, 4, 12288, 0, 0, 0, 0),
    "qwen3_vl_moe_text": (24, 16, 16, 5632, 0, 1408, 0, 0),
    "qwen3_vl_text": (32, 32, 32, 22016, 0, 0, 0, 0),
}

# Activations with act(0) = 0 (transformers 5.24.0, activations.py).
ZERO_AT_ZERO = frozenset(
    {"silu", "swish", "gelu", "gelu_new", "gelu_fast", "gelu_python", "gelu_pytorch_tanh", "quick_gelu"}
    | {"gelu_accurate", "relu", "relu2", "relu6"}
)

TWO_NORMS = ("input_layernorm", "post_attention_layernorm")
_AFTER = ("post_attention_layernorm", "post_feedforward_layernorm")
_SANDWICH = (*TWO_NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm")
_GLM4 = (*TWO_NORMS, "post_self_attn_layernorm", "post_mlp_layernorm")
QK_NORMS = ("q_norm", "k_norm")
# Norms with weights of a layer, where they are others than TWO_NORMS; those of latent attention are added to them.
# Falcon and StableLM have them as their config says, which is not modelled.
NORMS: Mapping[str, tuple[str, ...]] = {
    "Cohere2ForCausalLM": ("input_layernorm",),
    "CohereForCausalLM": ("input_layernorm",),
    "Exaone4ForCausalLM": (*_AFTER, *QK_NORMS),
    "FalconForCausalLM": (),
    "Gemma2ForCausalLM": _SANDWICH,
    "Gemma3ForCausalLM": (*_SANDWICH, *QK_NORMS),
    "Gemma3ForConditionalGeneration": (*_SANDWICH, *QK_NORMS),
    "Glm4ForCausalLM": _GLM4,
    "Glm4vForConditionalGeneration": _GLM4,
    "MiniMaxM2ForCausalLM": (*TWO_NORMS, *QK_NORMS),
    "Olmo2ForCausalLM": (*_AFTER, *QK_NORMS),
    "Olmo3ForCausalLM": (*_AFTER, *QK_NORMS),
    "OlmoForCausalLM": (),
    "OlmoeForCausalLM": (*TWO_NORMS, *QK_NORMS),
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
        (*TWO_NORMS, *QK_NORMS),
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
