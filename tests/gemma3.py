"""A small Gemma 3 of text, in compressed-tensors with int4 weights in groups of 32, made from random numbers."""

from __future__ import annotations

import json
import shutil

import torch
from safetensors.torch import save_file

from support import ROOT

HIDDEN, INNER, LAYERS, HEADS, HEAD, TOKENS = 128, 256, 6, 2, 64, 256
NORMS = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
LINEARS = {
    **{"self_attn.q_proj": (HEADS * HEAD, HIDDEN), "self_attn.k_proj": (HEAD, HIDDEN)},
    **{"self_attn.v_proj": (HEAD, HIDDEN), "self_attn.o_proj": (HIDDEN, HEADS * HEAD)},
    **{"mlp.gate_proj": (INNER, HIDDEN), "mlp.up_proj": (INNER, HIDDEN), "mlp.down_proj": (HIDDEN, INNER)},
}
CONFIG = {
    **{"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "hidden_activation": "gelu_pytorch_tanh"},
    **{"hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS, "head_dim": HEAD},
    **{"num_attention_heads": HEADS, "num_key_value_heads": 1, "query_pre_attn_scalar": HEAD, "rms_norm_eps": 1e-6},
    **{"max_position_embeddings": 256, "vocab_size": TOKENS, "rope_theta": 1e6, "rope_local_base_freq": 1e4},
    **{"sliding_window": 16, "layer_types": ["sliding_attention"] * 5 + ["full_attention"]},
    **{"bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": True, "torch_dtype": "bfloat16"},
    "quantization_config": {
        **{"quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"]},
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {
                    **{"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32},
                    "dynamic": False,
                },
            }
        },
    },
}


def packed(codes):
    """int32 words of eight codes, offset by 8, the first one lowest."""
    words = ((codes + 8).reshape(len(codes), -1, 8) << (4 * torch.arange(8))).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def make(folder, **changes):
    """The checkpoint, with a byte-level tokenizer; `changes` are those of config.json."""
    folder.mkdir()
    random = torch.Generator().manual_seed(0)
    normal = lambda *size: torch.randn(*size, generator=random)  # noqa: E731
    tensors = {"model.embed_tokens.weight": 0.3 * normal(TOKENS, HIDDEN), "model.norm.weight": 0.2 * normal(HIDDEN)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        tensors |= {f"{prefix}{name}.weight": 0.2 * normal(HIDDEN) for name in NORMS}
        tensors |= {f"{prefix}self_attn.{name}_norm.weight": 0.2 * normal(HEAD) for name in "qk"}
        for name, (rows, columns) in LINEARS.items():
            scales = torch.rand(rows, columns // 32, generator=random) * 0.02 + 0.01
            if name == "self_attn.o_proj" and layer == 0:
                scales[3, 0] *= 32  # one block that matters
            codes = torch.randint(-8, 8, (rows, columns), generator=random)
            tensors |= {f"{prefix}{name}.weight_packed": packed(codes), f"{prefix}{name}.weight_scale": scales}
            tensors[f"{prefix}{name}.weight_shape"] = torch.tensor([rows, columns])
    halves = {name: value.bfloat16() if value.is_floating_point() else value for name, value in tensors.items()}
    save_file(halves, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    shutil.copy(ROOT / "fixtures/compressed_tensors/qwen2_w4a16_tied/model/tokenizer.json", folder)
    return folder
