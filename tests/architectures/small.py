"""Small models of transformers' own classes: the config, and every tensor that their save writes, by name and shape.

Shapes come from the class on torch's meta device and from transformers' own way back to the names on disk, so that
nothing is allocated; values are drawn by a tensor's name, so that they are the same whatever else is made.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import warnings
import zlib
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers.core_model_loading import revert_weight_conversion

# Rows of keys and values are whole blocks of 128; vLLM's kernels of latent attention know real models' dims alone
# (vllm 0.33.0, v1/attention/backends/mla/prefill/flash_attn.py and flashattn_mla.py).
HIDDEN, WIDE, VOCAB, HEAD = 256, 512, 384, 64
SIZES = {
    **{"hidden_size": HIDDEN, "intermediate_size": WIDE, "ffn_hidden_size": WIDE, "intermediate_size_mlp": WIDE},
    **{"moe_intermediate_size": 128, "shared_expert_intermediate_size": 128, "vocab_size": VOCAB, "head_dim": HEAD},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2, "max_position_embeddings": 256},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "n_shared_experts": 1, "moe_num_shared_experts": 1},
    **{"q_lora_rank": 256, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128},
    **{
        "num_experts": 4,
        "num_local_experts": 4,
        "n_routed_experts": 4,
        "moe_num_experts": 4,
        "num_experts_per_tok": 2,
    },
    **{"n_group": 1, "topk_group": 1, "index_head_dim": 128, "index_n_heads": 2, "index_topk": 16},
    **{
        "linear_key_head_dim": HEAD,
        "linear_value_head_dim": HEAD,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
    },
    **{"moe_shared_expert_intermediate_size": 128, "num_shared_experts": 1, "partial_rotary_factor": 1.0},
    **{"vocab_size_per_layer_input": VOCAB, "hidden_size_per_layer_input": 32, "share_expert_dim": 128},
}
TOWER = {
    **{"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "depth": 2},
    **{
        "num_heads": 4,
        "num_key_value_heads": 4,
        "embed_dim": 64,
        "out_hidden_size": HIDDEN,
        "image_size": 28,
        "patch_size": 14,
        "d_model": 64,
    },
    **{
        "encoder_layers": 2,
        "encoder_attention_heads": 4,
        "encoder_ffn_dim": 128,
        "num_global_layers": 1,
        "head_dim": 16,
    },
    **{"vision_output_dim": 128, "projection_dim": 64, "output_dim": HIDDEN, "deepstack_visual_indexes": [0]},
    **{"fullatt_block_indexes": [1], "num_mel_bins": 16, "max_source_positions": 32, "position_embedding_size": 16},
    **{"num_position_embeddings": 16, "intermediate_layers_indices": [0], "projector_input_dim": 64},
    **{"projector_output_dim": HIDDEN},
}
HYBRID = ["linear_attention", "full_attention"] * 2
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 64, "mamba_d_state": 16, "mamba_n_groups": 1, "mamba_d_ssm": 512}
# What classes want otherwise.
OTHER = {
    "BloomForCausalLM": {"n_head": 4, "n_layer": 2},
    "DeepseekV4ForCausalLM": {
        "num_hash_layers": 0,
        "o_groups": 2,
        "o_lora_rank": 128,
        "head_dim": 128,
        "mlp_layer_types": ["moe"] * 2,
    },
    "FalconForCausalLM": {"num_kv_heads": 1, "ffn_hidden_size": 4 * HIDDEN},
    "FalconH1ForCausalLM": MAMBA,
    "GPTJForCausalLM": {"n_embd": HIDDEN, "n_head": 4, "n_layer": 2, "rotary_dim": 16},
    "Gemma4ForCausalLM": {"enable_moe_block": True, "top_k_experts": 2, "global_head_dim": HEAD},
    "Gemma4ForConditionalGeneration": {"per_layer_config": None, "global_head_dim": HEAD, "num_experts": None},
    "Gemma3nForCausalLM": {
        "num_kv_shared_layers": 0,
        "laurel_rank": 32,
        "intermediate_size": [WIDE, WIDE],
        "activation_sparsity_pattern": [0.95, 0.0],
    },
    "GraniteMoeHybridForCausalLM": {**MAMBA, "shared_intermediate_size": 128, "layer_types": HYBRID[:2]},
    "GraniteMoeSharedForCausalLM": {"shared_intermediate_size": 128},
    "JambaForCausalLM": {
        **{"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
        **{"mamba_dt_rank": 16, "num_hidden_layers": 4},
    },
    "Lfm2ForCausalLM": {"layer_types": ["conv", "full_attention"], "block_multiple_of": 128},
    "Lfm2MoeForCausalLM": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "Lfm2VlForConditionalGeneration": {"layer_types": ["conv", "full_attention"], "block_multiple_of": 128},
    "Llama4ForCausalLM": {"interleave_moe_layer_step": 2},
    "Llama4ForConditionalGeneration": {"interleave_moe_layer_step": 2},
    "LongcatFlashForCausalLM": {
        **{
            "num_layers": 2,
            "num_hidden_layers": 4,
            "expert_ffn_hidden_size": 128,
            "zero_expert_num": 2,
            "moe_topk": 2,
        },
    },
    "MllamaForConditionalGeneration": {"cross_attention_layers": [1]},
    "MptForCausalLM": {"d_model": HIDDEN, "n_heads": 4, "n_layers": 2},
    "NemotronHForCausalLM": {
        "layers_block_type": ["linear_attention", "full_attention", "mlp", "moe"],
        **{"num_hidden_layers": 4, "mamba_num_heads": 8, "mamba_head_dim": 64, "n_groups": 1, "ssm_state_size": 16},
    },
    "OPTForCausalLM": {"word_embed_proj_dim": HIDDEN, "ffn_dim": WIDE},
    "PhiMoEForCausalLM": {"attention_bias": True, "lm_head_bias": True},
    "PhimoeForCausalLM": {"attention_bias": True, "lm_head_bias": True},
    "WhisperForConditionalGeneration": {
        **{"d_model": HIDDEN, "decoder_layers": 2, "encoder_layers": 2, "decoder_attention_heads": 4},
        **{"encoder_attention_heads": 4, "decoder_ffn_dim": WIDE, "encoder_ffn_dim": WIDE, "num_mel_bins": 16},
        **{"max_source_positions": 256, "max_target_positions": 256},
    },
}
# What they want otherwise outside of the text model, by the part of the config ("" is the whole). Repositories have
# no head of SigLIP, and vllm 0.33.0, model_executor/models/siglip.py builds the one that config.json does not deny.
HEADLESS = {"vision_use_head": False}
PARTS = {
    "Cohere2VisionForConditionalGeneration": {"vision_config": HEADLESS},
    "Gemma3ForConditionalGeneration": {"vision_config": HEADLESS},
    "Kimi_K25ForConditionalGeneration": {"": {"projection_hidden_size": 64}},
    "Lfm2VlForConditionalGeneration": {"vision_config": HEADLESS},
    "PaliGemmaForConditionalGeneration": {
        "": {"projection_dim": HIDDEN},
        "vision_config": {**HEADLESS, "projection_dim": HIDDEN},
    },
}
# Sparse where config.json says so by layer: the first layer dense, the second with experts.
BY_LAYER = {
    "first_k_dense_replace": 1,
    "mlp_only_layers": [0],
    "moe_layers": [1],
    "mlp_layer_types": ["dense", "sparse"],
}
# transformers 5.24.0 gives the decoder of Kimi-K2.5 the name of its tower's blocks.
SPEECH = ("talker.", "token2wav.")  # of Qwen2.5-Omni: as large as the rest, and never quantized
DECODER_OF_KIMI = ("language_model.model.blocks.", "language_model.model.layers.")


def names_there(classes):
    """Those of some classes that transformers has."""
    return [name for name in classes if hasattr(transformers, name)]


def draw(name, shape, scale=0.05):
    """Numbers of a tensor, float32, by its name alone; gains of norms are about one."""
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    noise = generator.standard_normal(shape, dtype=np.float32) * np.float32(scale)
    gain = len(shape) == 1 and name.endswith("weight")
    return np.asarray(noise + np.float32(gain))


def configure(config, sizes):
    known = config.to_dict()
    for key, value in sizes.items():
        if key in known:
            setattr(config, key, value)
    kinds, count = known.get("layer_types"), getattr(config, "num_hidden_layers", None)
    if isinstance(kinds, list) and isinstance(count, int) and len(kinds) > count:
        with contextlib.suppress(AttributeError):  # some classes make them of something else
            config.layer_types = kinds[:count]


def configure_parts(architecture, config, text, towers):
    """Give what is no text model small sizes, towers only with `towers`, and what the class wants otherwise."""
    holders = [config, getattr(config, "thinker_config", None)]
    for holder in filter(None, holders):
        for key, tower in vars(holder).items():
            if hasattr(tower, "to_dict") and tower is not text and key not in ("text_config", "thinker_config"):
                configure(tower, TOWER if towers else {"num_hidden_layers": 2, "depth": 2, "encoder_layers": 2})
    for part, values in PARTS.get(architecture, {}).items():
        for key, value in values.items():
            setattr(getattr(config, part) if part else config, key, value)


def small_config(architecture, towers=True):
    """A config of the class with small sizes; `towers` makes those of towers small too."""
    config = getattr(transformers, architecture).config_class()
    if (
        architecture == "Gemma4ForConditionalGeneration"
    ):  # its class makes no tower by default, and every repository has
        config.vision_config = transformers.Gemma4VisionConfig()
    text, other = config.get_text_config(), OTHER.get(architecture, {})
    configure(text, SIZES)
    kinds = text.to_dict().get("layer_types")
    if isinstance(kinds, list) and "layer_types" not in other:
        found = sorted(set(kinds))
        with contextlib.suppress(AttributeError):  # some classes make them of something else
            text.layer_types = [found[number % len(found)] for number in range(2)]
    for key, value in other.items():
        setattr(text, key, value)
    for key, value in BY_LAYER.items():
        if getattr(text, key, None) is not None and key not in other:
            setattr(text, key, value)
    configure_parts(architecture, config, text, towers)
    config.architectures = [architecture]
    return config


def shapes(architecture):
    """Of what transformers saves of the small model, tied heads left out: (shape and dtype by name, config.json, the
    last names of lookup tables).
    """
    try:
        return _shapes(architecture, small_config(architecture))
    except Exception:  # a tower whose sizes hang together in a way of its own
        return _shapes(architecture, small_config(architecture, towers=False))


def _shapes(architecture, config):
    usual = torch.get_default_dtype()
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        torch.set_default_dtype(torch.bfloat16)  # what a class wants in float32 stays so
        try:
            model = getattr(transformers, architecture)(config)
        finally:
            torch.set_default_dtype(usual)
        tied = set(getattr(model, "all_tied_weights_keys", None) or ())
        kept = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
        stored = revert_weight_conversion(model, kept)
    tables, linears = (
        {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, kind)}
        for kind in (torch.nn.Embedding, torch.nn.Linear)
    )
    found = {name.replace(*DECODER_OF_KIMI): (tuple(t.shape), t.dtype) for name, t in stored.items()}
    found = {name: kind for name, kind in found.items() if not name.startswith(SPEECH)}
    config.dtype = "bfloat16"
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config.save_pretrained(folder)
        return found, json.loads((Path(folder) / "config.json").read_text()), tables - linears
