"""Checkpoints of quantized attention and unquantized experts, fused or one by one."""

from __future__ import annotations

import json
from itertools import product

import torch
from safetensors.torch import load_file, save_file

from support import SINGLE

EXPERTS, HIDDEN, INNER = 3, 128, 64
LEAVES, OTHERS = ("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2")
LAYER = "model.layers.0"
BLOCK = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "quantization_status": "compressed",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "dynamic": False},
            "input_activations": {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True},
        }
    },
    "ignore": ["lm_head", "re:.*(mlp|moe|feed_forward).*"],
}
# (class, model type, block of experts, how its fused tensors lie, whether single experts are w1, w3 and w2)
CLASSES = {
    "qwen3_moe": ("Qwen3MoeForCausalLM", "qwen3_moe", "mlp.experts", "rows", False),
    "mixtral": ("MixtralForCausalLM", "mixtral", "block_sparse_moe.experts", "rows", True),
    "llama4": ("Llama4ForCausalLM", "llama4_text", "feed_forward.experts", "columns", False),
    "step": ("Step3p5ForCausalLM", "step3p5", "moe.experts", "apart", False),
}


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def one_by_one(block, other=False):
    """The linears of single experts."""
    sizes = dict(zip(LEAVES, ((INNER, HIDDEN), (INNER, HIDDEN), (HIDDEN, INNER)), strict=True))
    called = dict(zip(LEAVES, OTHERS if other else LEAVES, strict=True))
    return {
        f"{LAYER}.{block}.{expert}.{called[leaf]}.weight": random(*sizes[leaf], seed=seed)
        for seed, (expert, leaf) in enumerate(product(range(EXPERTS), LEAVES))
    }


def fused(block, lies):
    """The same in the tensors that a class has."""
    found, place = one_by_one(block), f"{LAYER}.{block}"
    gate, up, down = (torch.stack([found[f"{place}.{n}.{leaf}.weight"] for n in range(EXPERTS)]) for leaf in LEAVES)
    if lies == "apart":
        parent = place.removesuffix(".experts")
        return {f"{parent}.{leaf}.weight": part for leaf, part in zip(LEAVES, (gate, up, down), strict=True)}
    both = torch.cat((gate, up), 1)
    turned = (both.mT, down.mT) if lies == "columns" else (both, down)
    return {f"{place}.{name}": part for name, part in zip(("gate_up_proj", "down_proj"), turned, strict=True)}


def checkpoint(path, name, experts):
    """A layer of float8 attention and the given experts."""
    architecture, kind, block, _, _ = CLASSES[name]
    parent = block.removesuffix(".experts")
    sizes = {"q_proj": HIDDEN, "k_proj": HIDDEN // 2, "v_proj": HIDDEN // 2}
    tensors = dict(experts)
    for seed, (leaf, rows) in enumerate({**sizes, "o_proj": HIDDEN}.items()):
        tensors[f"{LAYER}.self_attn.{leaf}.weight"] = random(rows, HIDDEN, seed=seed).to(torch.float8_e4m3fn)
        tensors[f"{LAYER}.self_attn.{leaf}.weight_scale"] = random(rows, 1).abs() + 0.01
    router = "router" if name == "llama4" else "gate"
    tensors[f"{LAYER}.{parent}.{router}.weight"] = random(EXPERTS, HIDDEN)
    tensors |= {f"{LAYER}.{n}.weight": random(HIDDEN) for n in ("input_layernorm", "post_attention_layernorm")}
    if name in ("qwen3_moe", "step"):
        tensors |= {f"{LAYER}.self_attn.{n}_norm.weight": random(HIDDEN // 4) for n in "qk"}
    if name == "llama4":
        shapes = zip(LEAVES, ((INNER, HIDDEN), (INNER, HIDDEN), (HIDDEN, INNER)), strict=True)
        tensors |= {f"{LAYER}.{parent}.shared_expert.{leaf}.weight": random(*shape) for leaf, shape in shapes}
    tensors |= {"model.norm.weight": random(HIDDEN), "model.embed_tokens.weight": random(64, HIDDEN)}
    tensors["lm_head.weight"] = random(64, HIDDEN)
    config = {
        **{"architectures": [architecture], "model_type": kind, "hidden_size": HIDDEN, "intermediate_size": INNER},
        **{"moe_intermediate_size": INNER, "intermediate_size_mlp": INNER, "num_hidden_layers": 1},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": HIDDEN // 4, "vocab_size": 64},
        **{"num_local_experts": EXPERTS, "num_experts": EXPERTS, "num_experts_per_tok": 1, "dtype": "bfloat16"},
        **{"decoder_sparse_step": 1, "rope_theta": 10000.0, "quantization_config": BLOCK},
    }
    path.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path / SINGLE, {"format": "pt"})
    (path / "config.json").write_text(json.dumps(config))
    return path


def held(path):
    """The tensors of experts of a checkpoint."""
    return {n: t for n, t in load_file(path / SINGLE).items() if t.dim() == 3 or ".experts." in n}


def both_ways(name):
    """Experts of a class in either arrangement."""
    _, _, block, lies, other = CLASSES[name]
    return {"fused": fused(block, lies), "separate": one_by_one(block, other)}
