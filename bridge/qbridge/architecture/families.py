"""What rows of `classes` have in common: how linears are split, norms, and text models by model_type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Family:
    """Linears of architectures that are split alike, by their last names.

    `columns` are split along out_features, `rows` along in_features, `whole` is held by every rank. `gated`: the MLP
    is act(gate) * up with act(0) = 0, so that a channel whose gate and up are zero adds nothing, under names that
    padding knows. `merged` hold gate and up, one after the other.
    """

    columns: frozenset[str]
    rows: frozenset[str]
    gated: bool = True
    whole: frozenset[str] = frozenset()
    merged: frozenset[str] = frozenset({"gate_up_proj"})


@dataclass(frozen=True, slots=True)
class Mixer:
    """A block that some layers have in place of softmax attention, or all of them `beside` it.

    `parts` are the names below it, each there in one of several ways; of its linears `columns` are split along
    out_features and `rows` along in_features, the others in ways that depend on the ranks.
    """

    name: str
    parts: tuple[tuple[frozenset[str], ...], ...]
    columns: frozenset[str] = frozenset()
    rows: frozenset[str] = frozenset()
    beside: bool = False


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
BAILING = Family(frozenset({"query_key_value", "gate_proj", "up_proj"}), frozenset({"dense", "down_proj"}))
LFM2 = Family(QKV | {"w1", "w3"}, frozenset({"out_proj", "w2"}))
INTERNLM2 = Family(frozenset({"wqkv", "w1", "w3"}), frozenset({"wo", "w2"}))
BAICHUAN = Family(frozenset({"W_pack", "gate_proj", "up_proj"}), DENSE.rows)
EXAONE = Family(QKV | {"c_fc_0", "c_fc_1"}, frozenset({"out_proj", "c_proj"}), gated=False)
MPT = Family(frozenset({"Wqkv", "up_proj"}), frozenset({"out_proj", "down_proj"}), gated=False)
OPT = Family(QKV | {"fc1"}, frozenset({"out_proj", "fc2"}), gated=False)
GPTJ = Family(QKV | {"fc_in"}, frozenset({"out_proj", "fc_out"}), gated=False)
GRANITE_MOE = Family(
    QKV | {"input_linear"}, frozenset({"o_proj", "output_linear"}), gated=False, merged=frozenset({"input_linear"})
)
CHATGLM = replace(FALCON, merged=frozenset({"dense_h_to_4h"}))
# Attention of its own kind: of its linears, the names on the hub; of shared experts, those of transformers too.
DEEPSEEK_V4 = Family(
    frozenset({"gate_proj", "up_proj", "w1", "w3", "wq_b", "wo_a"}),
    frozenset({"down_proj", "w2", "wo_b"}),
    whole=frozenset({"wq_a", "wkv", "wgate", "weights_proj"}),
)
QWEN = Family(frozenset({"c_attn", "w1", "w2"}), frozenset({"c_proj"}), gated=False)


def _each(*names: str) -> tuple[tuple[frozenset[str], ...], ...]:
    """Parts that have one name each."""
    return tuple((frozenset({name}),) for name in names)


# Of Qwen3-Next and Qwen3.5. vllm 0.33.0, model_executor/layers/mamba/gdn: how ranks share it is not modelled.
LINEAR_ATTENTION = Mixer(
    "linear_attn",
    (
        (frozenset({"in_proj_qkvz"}), frozenset({"in_proj_qkv", "in_proj_z"})),
        (frozenset({"in_proj_ba"}), frozenset({"in_proj_b", "in_proj_a"})),
        *_each("A_log", "conv1d", "dt_bias", "norm", "out_proj"),
    ),
)
# Ranks have whole groups of in_proj's heads, and copies of them where there are more ranks than groups: not modelled.
# vllm 0.33.0, model_executor/layers/mamba/mamba_mixer2.py, mamba_mixer.py and short_conv.py.
MAMBA2 = Mixer(
    "mamba", _each("in_proj", "conv1d", "A_log", "D", "dt_bias", "norm", "out_proj"), rows=frozenset({"out_proj"})
)
MAMBA2_BESIDE = replace(MAMBA2, parts=_each("in_proj", "conv1d", "A_log", "D", "dt_bias", "out_proj"), beside=True)
MAMBA2_ALONE = replace(MAMBA2, name="mixer")
MAMBA1 = Mixer(
    "mamba",
    _each("in_proj", "conv1d", "x_proj", "dt_proj", "A_log", "D", "out_proj")
    + _each("dt_layernorm", "b_layernorm", "c_layernorm"),
    columns=frozenset({"in_proj", "dt_proj"}),
    rows=frozenset({"x_proj", "out_proj"}),
)
SHORT_CONV = Mixer("conv", _each("in_proj", "conv", "out_proj"), frozenset({"in_proj"}), frozenset({"out_proj"}))
CROSS_ATTENTION = Mixer("cross_attn", _each("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm"))

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
    "cohere2": TextModel((40, 64, 0, 22528, 0, 0, 0, 0)),
    "deepseek_v3": TextModel((61, 128, 128, 18432, 0, 2048, 0, 1)),
    "exaone4": TextModel((32, 32, 32, 16384, 0, 0, 0, 0)),
    "gemma": TextModel((28, 16, 16, 24576, 0, 0, 0, 0)),
    "gemma3_text": TextModel((26, 8, 4, 9216, 0, 0, 0, 0)),
    "gemma3n_text": TextModel((35, 8, 2, 16384, 0, 0, 0, 0)),
    "gemma4_text": TextModel((30, 8, 4, 9216, 0, 0, 0, 0)),
    "glm4v": TextModel(qkv_bias=True),
    "glm4v_moe_text": TextModel((46, 96, 8, 10944, 0, 1408, 0, 1)),
    "glm4v_text": TextModel((40, 32, 2, 13696, 0, 0, 0, 0), qkv_bias=True),
    "glm_ocr_text": TextModel((16, 16, 8, 4096, 0, 0, 0, 0)),
    "lfm2": TextModel((32, 32, 8, 12288, 0, 0, 0, 0)),
    "llama": TextModel((32, 32, 0, 11008, 0, 0, 0, 0)),
    "llama4_text": TextModel((48, 40, 8, 8192, 16384, 0, 0, 0)),
    "mistral": TextModel((32, 32, 8, 14336, 0, 0, 0, 0)),
    "mllama_text_model": TextModel((40, 32, 8, 14336, 0, 0, 0, 0)),
    "qwen2": TextModel((32, 32, 32, 22016, 0, 0, 0, 0), qkv_bias=True),
    "qwen2_5_omni_text": TextModel((28, 28, 4, 18944, 0, 0, 0, 0), qkv_bias=True),
    "qwen2_5_vl": TextModel(qkv_bias=True),
    "qwen2_5_vl_text": TextModel((80, 64, 8, 29568, 0, 0, 0, 0), qkv_bias=True),
    "qwen2_moe": TextModel(qkv_bias=True),
    "qwen2_vl": TextModel(qkv_bias=True),
    "qwen2_vl_text": TextModel((80, 64, 8, 29568, 0, 0, 0, 0), qkv_bias=True),
    "qwen3": TextModel((32, 32, 32, 22016, 0, 0, 0, 0)),
    "qwen3_5_moe_text": TextModel((40, 16, 2, 0, 0, 512, 512, 0)),
    "qwen3_5_text": TextModel((32, 16, 4, 12288, 0, 0, 0, 0)),
    "qwen3_omni_moe_text": TextModel((28, 28, 4, 18944, 0, 768, 0, 0)),
    "qwen3_vl_moe_text": TextModel((24, 16, 16, 5632, 0, 1408, 0, 0)),
    "qwen3_vl_text": TextModel((32, 32, 32, 22016, 0, 0, 0, 0)),
    "step3p5": TextModel((45, 64, 8, 11264, 0, 1280, 0, 0)),
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
HUNYUAN_NORMS = (*TWO_NORMS, "query_layernorm", "key_layernorm")
LFM2_NORMS = ("operator_norm", "ffn_norm", "q_layernorm", "k_layernorm")
# Norms of queries and keys, which are inside of attention.
INNER_NORMS = frozenset({*QK_NORMS, "query_layernorm", "key_layernorm", "q_layernorm", "k_layernorm"})
ONE_NORM = ("input_layernorm",)
QWEN3_NORMS = (*TWO_NORMS, *QK_NORMS)

# A multimodal model whose text model is of any class, which its own config names.
CONTAINERS = frozenset({"InternVLChatModel"})
# Published with adapters that are not merged, which engines know (vllm 0.33.0, model_executor/models/phi4mm.py).
ADAPTED = frozenset({"Phi4MMForCausalLM", "Phi4MultimodalForCausalLM"})
