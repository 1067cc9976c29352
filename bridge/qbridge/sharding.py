"""How tensor parallelism splits the linears of a decoder, from config.json and names alone.

Which leaf is split along which dim: transformers 5.24.0, base_model_tp_plan in models/*/configuration_*.py, and where
there is none the module trees in models/*/modeling_*.py; tests/make_sharding.py reads both, tests/test_sharding.py
holds this table against them. Names are those on disk (transformers 5.24.0, conversion_mapping.py): experts one by
one, also where transformers packs them. How heads and sizes are split: vLLM 0.33.0, model_executor/layers/linear.py
(QKVParallelLinear, MergedColumnParallelLinear, RowParallelLinear) and distributed/utils.py (divide).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from qbridge.hf_config import NESTED
from qbridge.topology import canonical_module, is_embedding, is_head, is_router


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


@dataclass(frozen=True, slots=True)
class Rank:
    """What one rank holds of one linear; with a `fault` there is no such split, and the dims are the whole ones."""

    out_features: int
    in_features: int
    axis: str
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Block:
    """The modules of one gated MLP; gate and up are the same module where the checkpoint has them fused."""

    name: str
    gate: str
    up: str
    down: str


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
# Parts of a name that say the module is of no decoder: towers and blocks for speculative decoding.
LEFT_ALONE = frozenset({"visual", "vision_tower", "vision_model", "audio_tower", "mtp"})

_LAYER = re.compile(r"(?:^|\.)(?:layers|h)\.(\d+)\.")
# How many times the query heads and the kv heads are in a linear that is split by heads.
_BY_HEADS: Mapping[str, tuple[int, int]] = {
    **dict.fromkeys(("q_proj", "q_b_proj", "kv_b_proj", "o_proj", "dense"), (1, 0)),
    **dict.fromkeys(("k_proj", "v_proj"), (0, 1)),
    **dict.fromkeys(("qkv_proj", "query_key_value"), (1, 2)),
}
_EXPERT = re.compile(r"\.experts\.\d+(?=\.|$)")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_GATED = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"), ("gate_up_proj", "gate_up_proj", "down_proj"))


def family(config: Mapping[str, Any]) -> Family | None:
    """How the linears of config.json's first architecture are split, None if the architecture is unknown.

    Its `gated` holds for the activation that this config names, too.
    """
    names = config.get("architectures")
    record = FAMILIES.get(str(names[0])) if isinstance(names, list) and names else None
    if record is None:
        return None
    text = text_config(config)
    acts = text.get("hidden_act"), text.get("hidden_activation")
    gated = record.gated and all(act is None or str(act) in ZERO_AT_ZERO for act in acts)
    return record if gated == record.gated else replace(record, gated=gated)


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The text model's own config, the sizes that it leaves out filled in if it is nested."""
    for key in NESTED:
        text = config.get(key)
        if isinstance(text, dict):
            defaults = DEFAULTS.get(str(text.get("model_type")), ())
            return {**{name: size for name, size in zip(SIZES, defaults, strict=False) if size}, **text}
    return config


def _size(text: Mapping[str, Any], key: str) -> int:
    """A size that the config gives, 0 if it does not, or one that no model has."""
    value = text.get(key)
    return value if type(value) is int and 0 < value < 2**31 else 0


def head_counts(config: Mapping[str, Any]) -> tuple[int, int]:
    """(heads, kv heads) of attention, zeros if unknown."""
    return _heads(text_config(config))


def expert_count(config: Mapping[str, Any]) -> int:
    """How many routed experts a sparse layer has, 0 for a dense model."""
    text = text_config(config)
    return next((_size(text, key) for key in _EXPERTS if _size(text, key)), 0)


def routed(config: Mapping[str, Any]) -> tuple[int, int]:
    """(experts that a token goes through, experts there are); (1, 1) if config.json does not say."""
    text = text_config(config)
    experts = expert_count(config)
    chosen = _size(text, "num_experts_per_tok") or _size(text, "moe_k")
    return (chosen, experts) if 0 < chosen <= experts else (1, 1)


def _heads(text: Mapping[str, Any]) -> tuple[int, int]:
    """(heads, kv heads), zeros if unknown. Falcon: transformers 5.24.0, models/falcon/modeling_falcon.py."""
    heads = _size(text, "num_attention_heads")
    if text.get("multi_query") and not text.get("new_decoder_architecture"):
        return heads, 1
    return heads, _size(text, "num_key_value_heads") or _size(text, "num_kv_heads") or heads


def _decoder_module(module: str, text: Mapping[str, Any]) -> bool:
    """Whether the module is in a layer of the decoder; layers after the last are for multi-token prediction."""
    match, layers = _LAYER.search(module), _size(text, "num_hidden_layers")
    if match is None or not LEFT_ALONE.isdisjoint(module.split(".")):
        return False
    return not layers or (len(match[1]) < 10 and int(match[1]) < layers)


def place(module: str) -> str:
    """What all experts of a block have in common: the name without their number, which splits none otherwise."""
    return _EXPERT.sub(".experts", module)


def rank(module: str, out_features: int, in_features: int, config: Mapping[str, Any], tp: int) -> Rank | None:
    """What each of `tp` ranks holds of a linear; kv heads that are fewer than ranks are repeated.

    None if the architecture, the leaf or the number of heads is unknown, and for vision towers and blocks for
    multi-token prediction: such a linear is judged as if there were no tensor parallelism. Routed experts are split
    within each expert (no expert parallelism). Embeddings and heads count as whole, for engines pad the vocabulary
    (vLLM 0.33.0, model_executor/layers/vocab_parallel_embedding.py: to a multiple of 64).
    """
    record, text = family(config), text_config(config)
    leaf = canonical_module(module).rpartition(".")[2]
    whole = Rank(out_features, in_features, "whole")
    if record is None or not LEFT_ALONE.isdisjoint(module.split(".")):
        return None
    if not _decoder_module(module, text):
        return whole if not _LAYER.search(module) and (is_embedding(module) or is_head(module)) else None
    if leaf in record.whole or is_router(module):
        return whole
    axis = "column" if leaf in record.columns else "row"
    if axis == "row" and leaf not in record.rows:
        return None
    size = out_features if axis == "column" else in_features
    share = _share(leaf, size, _heads(text), tp)
    if share is None:
        return None
    if isinstance(share, str):
        return Rank(out_features, in_features, axis, share)
    return Rank(share, in_features, axis) if axis == "column" else Rank(out_features, share, axis)


def _share(leaf: str, size: int, heads: tuple[int, int], tp: int) -> int | str | None:
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
    parts = 2 if leaf == "gate_up_proj" else 1
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


def mlp_blocks(modules: Iterable[str]) -> list[Block]:
    """The gated MLPs of decoder layers that are there whole, in the modules' order.

    Dense MLPs, each routed expert and shared experts. A layer of multi-token prediction that is numbered like the
    decoder's (DeepSeek) is among them; `intermediate_key` has none for it.
    """
    known = dict.fromkeys(modules)
    found: dict[str, Block] = {}
    for module in known:
        name, _, leaf = module.rpartition(".")
        for gate, up, down in _GATED:
            if leaf == gate and f"{name}.{up}" in known and f"{name}.{down}" in known and _decoder_module(module, {}):
                found.setdefault(name, Block(name, module, f"{name}.{up}", f"{name}.{down}"))
    return list(found.values())


def intermediate_key(block_name: str, config: Mapping[str, Any]) -> str | None:
    """The key of config.json that holds the size of a block of `mlp_blocks`, in the text config if that is nested.

    None if the architecture is unknown, for vision towers and for multi-token prediction. A key may be shared by
    blocks: shared experts of DeepSeek are `intermediate_copies` times as wide as one routed expert.
    """
    text = text_config(config)
    if family(config) is None or not _decoder_module(block_name, text):
        return None
    return _intermediate_key(block_name, text)


def _intermediate_key(block_name: str, text: Mapping[str, Any]) -> str | None:
    parent, _, last = block_name.rpartition(".")
    keys = ["intermediate_size_mlp", "intermediate_size", "ffn_hidden_size"]
    if last in ("shared_expert", "shared_experts") or parent.endswith("experts"):
        keys = ["moe_intermediate_size", "intermediate_size"]
        if last == "shared_expert":
            keys.insert(0, "shared_expert_intermediate_size")
    return next((key for key in keys if _size(text, key)), None)


def intermediate_copies(block_name: str, config: Mapping[str, Any]) -> int:
    """How many times its `intermediate_key` a block is wide: the number of shared experts that are one module."""
    text = text_config(config)
    if block_name.rpartition(".")[2] != "shared_experts":
        return 1
    return _size(text, "n_shared_experts") or _size(text, "moe_num_shared_experts") or 1


def head_faults(config: Mapping[str, Any], tp: int) -> list[str]:
    """Why the model cannot be split over `tp` ranks at all, whatever its quantization; empty if it is unknown.

    The vocabulary is none of the reasons, for engines pad it (`rank`).
    """
    record, text = family(config), text_config(config)
    if record is None:
        return []
    query, kv = _heads(text)
    faults = [_query_fault(query, tp)]
    if query and "kv_b_proj" not in record.columns:  # latent attention has no kv heads to split
        faults.append(_kv_fault(kv, tp))
    sparse = any(_size(text, key) for key in _EXPERTS)
    blocks = ["experts.0", "shared_expert", "shared_experts"] if sparse else []
    if not sparse or _has_dense_layers(text):
        blocks.append("mlp")
    for key in dict.fromkeys(_intermediate_key(block, text) for block in blocks):
        if key and text[key] % tp:
            faults.append(f"{key} {text[key]} is not divisible by {tp}")
    return [fault for fault in faults if fault]


def _has_dense_layers(text: Mapping[str, Any]) -> bool:
    """Whether a model with experts has layers without, by the keys of transformers 4.57.6 and 5.24.0."""
    kinds = text.get("mlp_layer_types")
    return (
        (isinstance(kinds, list) and "dense" in kinds)
        or bool(text.get("mlp_only_layers"))
        or any(_size(text, key) for key in ("first_k_dense_replace", "moe_layer_start_index"))
        or any(_size(text, key) > 1 for key in ("decoder_sparse_step", "interleave_moe_layer_step"))
    )
