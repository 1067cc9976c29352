"""Configs of every kind that spells its rope, dtype or experts in a way of its own, as transformers 4 writes them."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

_TEXT = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4}
_TEXT |= {"num_key_value_heads": 2, "vocab_size": 384, "rms_norm_eps": 1e-5, "max_position_embeddings": 4096}
_VISION = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}


def _of(model_type, /, **more):
    return {"model_type": model_type, "transformers_version": "4.57.6", **_TEXT, **more}


def _around(model_type, text, **more):
    """A multimodal config around a text model's."""
    return {"model_type": model_type, "transformers_version": "4.57.6", "text_config": text, **more}


_LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LLAMA3 |= {"original_max_position_embeddings": 1024}
_YARN = {"factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0, "original_max_position_embeddings": 1024}
_LONG = {"type": "longrope", "short_factor": [1.0] * 32, "long_factor": [1.0, 2.0] * 16}
_MROPE = {"type": "mrope", "mrope_section": [8, 12, 12]}
_GEMMA3 = {"rope_theta": 1e6, "rope_local_base_freq": 2e4, "head_dim": 64, "sliding_window_pattern": 2}
_MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 128}

# What transformers 4.57.6 and 5 both have a class for.
KINDS = {
    "llama": _of("llama", rope_theta=5e5, rope_scaling=None, torch_dtype="bfloat16"),
    "llama_without_a_word": _of("llama", torch_dtype="float16"),
    "llama_llama3": _of("llama", rope_theta=5e5, rope_scaling=_LLAMA3, dtype="bfloat16"),
    "llama_linear": _of("llama", rope_theta=2e4, rope_scaling={"type": "linear", "factor": 2.0}),
    "llama_dynamic": _of("llama", rope_theta=2e4, rope_scaling={"rope_type": "dynamic", "factor": 2.0}),
    "qwen3_yarn": _of("qwen3", rope_theta=1e6, rope_scaling={"rope_type": "yarn", **_YARN}, head_dim=64),
    "gemma3_text": _of("gemma3_text", **_GEMMA3, rope_scaling=None, torch_dtype="bfloat16"),
    "gemma3": _around(
        "gemma3",
        _of("gemma3_text", **_GEMMA3, rope_scaling={"factor": 8.0, "rope_type": "linear"}),
        vision_config={"model_type": "siglip_vision_model", **_VISION},
        torch_dtype="bfloat16",
    ),
    "gemma3n_text": _of("gemma3n_text", rope_theta=3e6, rope_local_base_freq=2e4, rope_scaling=None),
    "olmo3": _of(
        "olmo3",
        rope_theta=5e5,
        rope_scaling={"rope_type": "yarn", **_YARN, "attention_factor": 1.2},
        layer_types=["sliding_attention", "full_attention"],
    ),
    "olmo3_plain": _of("olmo3", rope_theta=5e5, layer_types=["sliding_attention", "full_attention"]),
    "modernbert": _of("modernbert", global_rope_theta=2e5, local_rope_theta=3e4),
    "phi3": _of("phi3", rope_theta=2e4, rope_scaling=_LONG, original_max_position_embeddings=2048, pad_token_id=0),
    "phi3_short": _of("phi3", rope_theta=2e4, original_max_position_embeddings=2048, pad_token_id=0),
    "qwen2_vl": _of("qwen2_vl", rope_theta=1e6, rope_scaling=_MROPE, torch_dtype="bfloat16"),
    "qwen2_5_vl": _of("qwen2_5_vl", rope_theta=1e6, rope_scaling=_MROPE, torch_dtype="bfloat16"),
    "deepseek_v3": _of("deepseek_v3", rope_theta=2e4, rope_scaling={"type": "yarn", **_YARN}, n_routed_experts=8),
    "stablelm": _of("stablelm", rope_theta=2e4, partial_rotary_factor=0.5),
    "glm4": _of("glm4", rope_theta=2e4, partial_rotary_factor=0.5, head_dim=64, pad_token_id=0),
    "gpt_neox": _of("gpt_neox", rotary_emb_base=20000, rotary_pct=0.5),
    "mixtral": _of("mixtral", rope_theta=1e6, num_local_experts=4),
    "qwen3_moe": _of("qwen3_moe", rope_theta=1e6, num_experts=4, **_MOE),
    "qwen3_vl_moe": _around(
        "qwen3_vl_moe",
        _of(
            "qwen3_vl_moe_text",
            rope_theta=5e6,
            rope_scaling={"mrope_interleaved": True, "mrope_section": [8, 12, 12], "rope_type": "default"},
            num_experts=4,
            **_MOE,
            dtype="bfloat16",
        ),
        vision_config={"depth": 1, "hidden_size": 64, "model_type": "qwen3_vl_moe"},
    ),
    "llava": _around(
        "llava",
        _of("llama", rope_theta=5e5, torch_dtype="bfloat16"),
        vision_config={"model_type": "clip_vision_model", **_VISION, "torch_dtype": "float32"},
        torch_dtype="float16",
    ),
    "pixtral": _around(
        "llava",
        _of("mistral", rope_theta=1e9, head_dim=64),
        vision_config={"model_type": "pixtral", **_VISION, "rope_theta": 2e4},
    ),
    "llama4_text": _of("llama4_text", rope_theta=5e5, rope_scaling=_LLAMA3, num_local_experts=4),
    "gpt_oss": _of("gpt_oss", rope_theta=15e4, rope_scaling={"rope_type": "yarn", **_YARN, "truncate": False}),
}
# What transformers 4.57.6 has no class for, in either way to write it.
NEW_KINDS = {
    "mimo_v2_flash": _of(
        "mimo_v2_flash", rope_theta=5000000, swa_rope_theta=10000, partial_rotary_factor=0.334, n_routed_experts=8
    ),
    "qwen3_5": _around(
        "qwen3_5",
        _of(
            "qwen3_5_text",
            rope_parameters={
                "mrope_interleaved": True,
                "mrope_section": [11, 11, 10],
                "rope_type": "default",
                "rope_theta": 10000000,
                "partial_rotary_factor": 0.25,
            },
            dtype="bfloat16",
        ),
    ),
}


def as_transformers_5_writes(config):
    """The same config as the installed transformers, a version of 5, saves it."""
    from transformers import AutoConfig

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.json"
        file.write_text(json.dumps(config))
        AutoConfig.from_pretrained(folder).save_pretrained(folder)
        return json.loads(file.read_text())
