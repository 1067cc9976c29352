"""Keys of config.json that mlx_lm asks for, or takes otherwise than transformers where they are absent.

Source: mlx-lm 0.32.2, models/*.py (the fields of ModelArgs), held against transformers 5.24.0 by
tests/engines/test_mlx.py.
"""

from __future__ import annotations

from collections.abc import Mapping

_ROPE = ("rope_theta",)
# Keys without a default that a config.json by transformers may lack, as written for it.
REQUIRED: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("dots1", "ernie4_5_moe", "granite", "olmo3"), _ROPE),
    **dict.fromkeys(("gemma", "gemma2", "glm", "qwen3", "seed_oss"), ("head_dim",)),
    **dict.fromkeys(("ernie4_5", "helium"), ("head_dim", *_ROPE)),
    "glm4": ("head_dim", "partial_rotary_factor", *_ROPE),
    "stablelm": ("partial_rotary_factor", *_ROPE),
    "glm4_moe": ("head_dim", *_ROPE, "rope_scaling", "partial_rotary_factor"),
    "lfm2": ("block_dim",),
    "minimax_m2": ("shared_intermediate_size", *_ROPE, "rotary_dim"),
    "qwen3_moe": ("num_experts", "head_dim", *_ROPE),
}
# It ties heads where config.json does not say, and transformers does not.
UNTIED = frozenset(
    ("glm", "granite", "jamba", "llama", "ministral3", "mistral", "olmo2", "olmoe", "qwen2", "seed_oss")
)
# It asks for head_dim, which transformers takes to be hidden_size / num_attention_heads.
HEAD_DIMS = frozenset({"glm4_moe", "qwen3_moe"})
# It reads the size of the vocabulary beside text_config, 262208 where it is not there (models/gemma3.py).
LIFTED: Mapping[str, tuple[str, ...]] = {"gemma3": ("vocab_size",)}
# It counts by full_attention_interval, 4 where that is not there, which layers have linear attention.
INTERVALS = frozenset({"qwen3_5_moe_text", "qwen3_5_text"})
# Model types whose layers for multi-token prediction it leaves out by the number 61 alone.
KEEPS_DRAFTS = frozenset({"deepseek_v3", "kimi_k2"})
