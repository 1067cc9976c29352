"""Words and names of decoders: sizes in a text model's config, and which modules are a decoder's own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# Parts of a name that say the module is of no decoder: towers, what joins them to the decoder, and blocks for
# speculative decoding. Names of transformers 5.24.0 (models/*/modeling_*.py) and of remote code (MiniCPM-V and -o:
# vpm, apm, tts, resampler; InternVL: mlp1; Kimi: mm_projector; Qwen's Omni: talker, token2wav, code2wav).
LEFT_ALONE = frozenset(
    {"visual", "vision_tower", "vision_model", "vision_encoder", "audio_tower", "mtp", "mtp_layers"}
) | {
    *("vpm", "apm", "tts", "resampler", "multi_modal_projector", "mm_projector", "mlp1", "connector", "aligner"),
    *("embed_vision", "embed_audio", "audio_model", "audio_encoder", "talker", "token2wav", "code2wav", "vit"),
}

DRAFT_BLOCKS = frozenset({"mtp", "mtp_layers"})  # those of them that hold layers for multi-token prediction
TOWERS = LEFT_ALONE - DRAFT_BLOCKS

LAYERS = r"layers|h|transformer\.blocks"  # what decoders call the list of their layers
LAYER_NUMBER = re.compile(rf"(?:^|\.)(?:{LAYERS})\.(\d+)\.")
EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
SHARED_COUNTS = ("n_shared_experts", "moe_num_shared_experts", "num_shared_experts")
FIRST_SPARSE = ("first_k_dense_replace", "moe_layer_start_index", "num_dense_layers")  # layers before it are dense
MOST = 10_000  # layers, and experts of one, that are counted up to whatever config.json says: no model has more
MLPS = frozenset({"gate_proj", "up_proj", "down_proj", "gate_up_proj", "w1", "w2", "w3"}) | frozenset(
    {"c_fc", "c_proj", "fc1", "fc2", "dense_h_to_4h", "dense_4h_to_h", "fc_in", "fc_out", "c_fc_0", "c_fc_1"}
    | {"input_linear", "output_linear"}
)
INDEXERS = frozenset({"wq_b", "wk", "weights_proj"})
QUERIES = frozenset({"q_proj", "q_a_proj", "q_b_proj"})  # of latent attention: the first alone, or the others

# Parameters of a layer that are no weight or bias of a module.
PARAMETERS = frozenset({"A_log", "D", "dt_bias", "e_score_correction_bias", "sinks"}) | frozenset(
    {"alpha_p", "alpha_n", "expert_bias", "attention_sink_bias", "cross_attn_attn_gate", "cross_attn_mlp_gate"}
    | {"layer_scalar"}
)


def size_of(text: Mapping[str, Any], key: str) -> int:
    """A size that the config gives, 0 if it does not, or one that no model has."""
    value = text.get(key)
    return value if type(value) is int and 0 < value < 2**31 else 0


def heads_of(text: Mapping[str, Any]) -> tuple[int, int]:
    """(heads, kv heads), zeros if unknown.

    Falcon: transformers 5.24.0, models/falcon/modeling_falcon.py. ChatGLM: vllm 0.33.0, models/chatglm.py.
    """
    heads = size_of(text, "num_attention_heads")
    if text.get("multi_query") and not text.get("new_decoder_architecture"):
        return heads, 1
    if text.get("multi_query_attention"):
        return heads, size_of(text, "multi_query_group_num") or heads
    return heads, size_of(text, "num_key_value_heads") or size_of(text, "num_kv_heads") or heads


def is_decoder_module(module: str, text: Mapping[str, Any]) -> bool:
    """Whether the module is in a layer of the decoder; layers after the last are for multi-token prediction."""
    match, layers = LAYER_NUMBER.search(module), size_of(text, "num_hidden_layers")
    if match is None or not LEFT_ALONE.isdisjoint(module.split(".")):
        return False
    return not layers or (len(match[1]) < 10 and int(match[1]) < layers)


def is_draft_module(module: str, text: Mapping[str, Any]) -> bool:
    """Whether the module is in a layer for multi-token prediction: under mtp, or numbered after the decoder's."""
    parts = module.split(".")
    if not TOWERS.isdisjoint(parts):
        return False
    return not DRAFT_BLOCKS.isdisjoint(parts) or (
        LAYER_NUMBER.search(module) is not None and not is_decoder_module(module, text)
    )


def positive(text: Mapping[str, Any], key: str) -> int:
    """A number that the config gives, however large, 0 if it does not."""
    value = text.get(key)
    return value if type(value) is int and value > 0 else 0
