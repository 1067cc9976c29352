"""The numbers of classes with experts as llama.cpp is told them, and what it does without being told.

Sources: llama.cpp b10359, conversion/qwen.py, llama.py, gpt_oss.py and deepseek.py (set_gguf_parameters), src/models
(openai-moe.cpp, deepseek2.cpp: load_arch_hparams).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qbridge.architecture.config import rope
from qbridge.architecture.gguf_rope import Number, rope_numbers
from qbridge.architecture.rope import FULL, SLIDING

_SOFTMAX, _SIGMOID = 1, 2  # gguf, constants.py (ExpertGatingFuncType)
_GATING: Mapping[str, int] = {"softmax": _SOFTMAX, "sigmoid": _SIGMOID}
_SWIGLU_LIMIT = 7.0  # of gpt-oss, a number of the code in llama.cpp


def size(config: Mapping[str, Any], key: str) -> int:
    """A positive whole number of a config; ValueError for anything else."""
    value = config.get(key)
    if type(value) is not int or value < 1:
        raise ValueError(f"{key} is {value!r}")
    return value


def qwen3_moe_numbers(config: Mapping[str, Any], head: int) -> dict[str, Number]:
    """Of Qwen3-MoE, whose layers all have experts and normalise their weights in llama.cpp."""
    if config.get("decoder_sparse_step", 1) != 1 or config.get("mlp_only_layers"):
        raise ValueError("layers without experts among those with")
    if config.get("norm_topk_prob") is False:
        raise ValueError("norm_topk_prob is false, llama.cpp normalises the weights of experts")
    inner = {"expert_feed_forward_length": size(config, "moe_intermediate_size")}
    return {**rope_numbers(config, head), **_counts(config, "num_experts"), **inner}


def mixtral_numbers(config: Mapping[str, Any], head: int) -> dict[str, Number]:
    """Of Mixtral, whose experts have the size of the feed-forward layer."""
    return {**rope_numbers(config, head), **_counts(config, "num_local_experts")}


def gpt_oss_numbers(config: Mapping[str, Any], head: int) -> dict[str, Number]:
    """Of gpt-oss, whose even layers have a window in llama.cpp, which cuts ropes at whole dims, `truncate` or not."""
    kinds = [FULL if layer % 2 else SLIDING for layer in range(size(config, "num_hidden_layers"))]
    if config.get("layer_types", kinds) != kinds:
        raise ValueError("layers with a window are not each first of two, as llama.cpp has them")
    if config.get("swiglu_limit", _SWIGLU_LIMIT) != _SWIGLU_LIMIT:
        raise ValueError(f"swiglu_limit is {config['swiglu_limit']}, llama.cpp computes with {_SWIGLU_LIMIT}")
    return {
        **rope_numbers(config, head, more=("truncate",)),
        **_counts(config, "num_local_experts"),
        "attention.sliding_window": size(config, "sliding_window"),
        "expert_feed_forward_length": size(config, "intermediate_size"),
    }


def deepseek_numbers(config: Mapping[str, Any], head: int) -> dict[str, Number]:
    """Of latent attention, which llama.cpp computes with one head of keys and values, and of its experts."""
    rank, rotated = size(config, "kv_lora_rank"), size(config, "qk_rope_head_dim")
    found: dict[str, Number] = {
        **rope_numbers(config, rotated, more=("mscale", "mscale_all_dim")),
        **_yarn_scale(config),
        "attention.head_count_kv": 1,
        "attention.kv_lora_rank": rank,
        "attention.key_length": rank + rotated,
        "attention.value_length": rank,
        "attention.key_length_mla": size(config, "qk_nope_head_dim") + rotated,
        "attention.value_length_mla": size(config, "v_head_dim"),
        "rope.dimension_count": rotated,
        **_deepseek_experts(config),
    }
    if config.get("q_lora_rank") is not None:
        found["attention.q_lora_rank"] = size(config, "q_lora_rank")
    if config.get("rope_interleave") is False:
        raise ValueError("rope_interleave is false, llama.cpp rotates neighbours")
    return found


def _yarn_scale(config: Mapping[str, Any]) -> dict[str, Number]:
    """What scores are multiplied by for a longer context: one number in llama.cpp, two in config.json."""
    _, scaling, _ = rope(config)
    whole, one = ((scaling or {}).get(key) for key in ("mscale_all_dim", "mscale"))
    if whole is None and one is None:
        return {}
    if whole is None or whole != one:
        raise ValueError(f"mscale is {one} and mscale_all_dim {whole}, which llama.cpp has as one number")
    return {"rope.scaling.yarn_log_multiplier": 0.1 * float(whole)}


def _deepseek_experts(config: Mapping[str, Any]) -> dict[str, Number]:
    """Experts behind leading layers without; ValueError for a choice of experts that llama.cpp computes otherwise."""
    second = config.get("architectures") == ["DeepseekV2ForCausalLM"]  # its experts are chosen in another way
    gating = config.get("scoring_func", "softmax" if second else "sigmoid")
    if gating not in _GATING:
        raise ValueError(f"scoring_func is {gating!r}")
    groups = config.get("n_group") or 1
    if second and groups > 1:
        raise ValueError(f"experts of {groups} groups by their greatest, llama.cpp adds the two greatest of each")
    if config.get("moe_layer_freq", 1) != 1:
        raise ValueError("layers without experts among those with")
    found: dict[str, Number] = {
        **_counts(config, "n_routed_experts"),
        "expert_feed_forward_length": size(config, "moe_intermediate_size"),
        "expert_shared_count": int(config.get("n_shared_experts") or 0),
        "expert_group_count": int(groups),
        "expert_group_used_count": int(config.get("topk_group") or 1),
        "expert_gating_func": _GATING[gating],
        "expert_weights_scale": float(config.get("routed_scaling_factor", 1.0)),
        "leading_dense_block_count": int(config.get("first_k_dense_replace") or 0),
    }
    return {**found, "expert_weights_norm": True} if config.get("norm_topk_prob", not second) else found


def _counts(config: Mapping[str, Any], key: str) -> dict[str, Number]:
    return {"expert_count": size(config, key), "expert_used_count": size(config, "num_experts_per_tok")}
