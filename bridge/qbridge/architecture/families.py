"""What rows of `classes` have in common: how linears are split, norms, and text models by model_type."""

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


QKV = frozenset({"q_proj", "k_proj", "v_proj"})
DENSE = Family(QKV | {"gate_proj", "up_proj"}, frozenset({"o_proj", "down_proj"}))
MIXTRAL = Family(QKV | {"w1", "w3"}, frozenset({"o_proj", "w2"}))
GLM = Family(QKV | {"gate_up_proj"}, DENSE.rows)
PHI3 = Family(frozenset({"qkv_proj", "gate_up_proj"}), DENSE.rows)
# Multi-head latent attention: the down projections are small and every rank has them.
MLA = Family(
    frozenset({"q_proj", "q_b_proj", "kv_b_proj", "gate_proj", "up_proj"}),
    DENSE.rows,
    whole=frozenset({"q_a_proj", "kv_a_proj_with_mqa"}),
)
DSA = replace(MLA, columns=MLA.columns - {"q_proj"}, whole=MLA.whole | {"wq_b", "wk", "weights_proj"})
# GPT-OSS computes act(gate) * (up + 1) on clamped values, though its hidden_act says silu.
GPT_OSS = replace(DENSE, gated=False)
STARCODER2 = Family(QKV | {"c_fc"}, frozenset({"o_proj", "c_proj"}), gated=False)
NEMOTRON = Family(QKV | {"up_proj"}, DENSE.rows, gated=False)
PHI = Family(QKV | {"fc1"}, frozenset({"dense", "fc2"}), gated=False)
FALCON = Family(frozenset({"query_key_value", "dense_h_to_4h"}), frozenset({"dense", "dense_4h_to_h"}), gated=False)

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


@dataclass(frozen=True, slots=True)
class TextModel:
    """What a model_type of a text model means, whatever the class that it is part of.

    `sizes` are those that its config means where it is nested and leaves them out, in the order of `SIZES`, 0 if
    there is none: configs of Gemma 3 on the hub say nothing of heads. `qkv_bias`: q, k and v have a bias whatever
    config.json says.
    """

    sizes: tuple[int, ...] = ()
    qkv_bias: bool = False


# Defaults of transformers 5.24.0 (models/*/configuration_*.py), by model_type.
TEXT_MODELS: Mapping[str, TextModel] = {
    "gemma3_text": TextModel((26, 8, 4, 9216, 0, 0, 0, 0)),
    "glm4v": TextModel(qkv_bias=True),
    "glm4v_moe_text": TextModel((46, 96, 8, 10944, 0, 1408, 0, 1)),
    "glm4v_text": TextModel((40, 32, 2, 13696, 0, 0, 0, 0), qkv_bias=True),
    "llama": TextModel((32, 32, 0, 11008, 0, 0, 0, 0)),
    "llama4_text": TextModel((48, 40, 8, 8192, 16384, 0, 0, 0)),
    "mistral": TextModel((32, 32, 8, 14336, 0, 0, 0, 0)),
    "qwen2": TextModel((32, 32, 32, 22016, 0, 0, 0, 0), qkv_bias=True),
    "qwen2_5_vl": TextModel(qkv_bias=True),
    "qwen2_5_vl_text": TextModel((80, 64, 8, 29568, 0, 0, 0, 0), qkv_bias=True),
    "qwen2_moe": TextModel(qkv_bias=True),
    "qwen2_vl": TextModel(qkv_bias=True),
    "qwen2_vl_text": TextModel((80, 64, 8, 29568, 0, 0, 0, 0), qkv_bias=True),
    "qwen3_5_moe_text": TextModel((40, 16, 2, 0, 0, 512, 512, 0)),
    "qwen3_5_text": TextModel((32, 16, 4, 12288, 0, 0, 0, 0)),
    "qwen3_vl_moe_text": TextModel((24, 16, 16, 5632, 0, 1408, 0, 0)),
    "qwen3_vl_text": TextModel((32, 32, 32, 22016, 0, 0, 0, 0)),
}

# Activations with act(0) = 0 (transformers 5.24.0, activations.py).
ZERO_AT_ZERO = frozenset(
    {"silu", "swish", "gelu", "gelu_new", "gelu_fast", "gelu_python", "gelu_pytorch_tanh", "quick_gelu"}
    | {"gelu_accurate", "relu", "relu2", "relu6"}
)

TWO_NORMS = ("input_layernorm", "post_attention_layernorm")
NORMS_AFTER = ("post_attention_layernorm", "post_feedforward_layernorm")
SANDWICH_NORMS = (*TWO_NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm")
GLM4_NORMS = (*TWO_NORMS, "post_self_attn_layernorm", "post_mlp_layernorm")
QK_NORMS = ("q_norm", "k_norm")
ONE_NORM = ("input_layernorm",)
QWEN3_NORMS = (*TWO_NORMS, *QK_NORMS)
