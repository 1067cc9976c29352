"""Write a big checkpoint: random codes, a 7B Llama's real shapes, W8A8 by llm-compressor or AWQ by AutoAWQ.

python benchmarks/checkpoint.py DST [--format w8a8|awq] [--gigabytes 2] [--shard-gigabytes 1]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

HIDDEN, INTERMEDIATE, VOCAB = 4096, 11008, 32000
LINEARS = {
    **{f"self_attn.{name}_proj": (HIDDEN, HIDDEN) for name in "qkvo"},
    "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
    "mlp.up_proj": (INTERMEDIATE, HIDDEN),
    "mlp.down_proj": (HIDDEN, INTERMEDIATE),
}
W8A8 = {
    "targets": ["Linear"],
    "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"},
    "input_activations": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True},
}


def w8a8(module: str, shape: tuple[int, int], random: np.random.Generator):
    """The tensors of one linear: int8 codes, a scale per channel."""
    yield f"{module}.weight", random.integers(-128, 127, shape, np.int8, endpoint=True)
    yield f"{module}.weight_scale", random.uniform(1e-3, 1e-2, (shape[0], 1)).astype(np.float16)


def awq(module: str, shape: tuple[int, int], random: np.random.Generator):
    """The tensors of one linear: 4-bit codes and zero-points in words of eight, groups of 128."""
    rows, columns = shape

    def words(count: int) -> np.ndarray:
        return random.integers(0, 2**32, (count, rows // 8), np.uint32).view(np.int32)

    yield f"{module}.qweight", words(columns)
    yield f"{module}.qzeros", words(columns // 128)
    yield f"{module}.scales", random.uniform(1e-3, 1e-2, (columns // 128, rows)).astype(np.float16)


FORMATS = {
    "w8a8": (
        w8a8,
        1.0,
        {
            "quant_method": "compressed-tensors",
            "format": "int-quantized",
            "quantization_status": "compressed",
            "config_groups": {"group_0": W8A8},
            "ignore": ["lm_head"],
        },
    ),
    "awq": (
        awq,
        0.52,
        {"quant_method": "awq", "version": "gemm", "bits": 4, "group_size": 128, "zero_point": True},
    ),
}


def tensors(kind: str, layers: int, random: np.random.Generator):
    """(name, array) of every tensor, layer by layer."""
    yield "model.embed_tokens.weight", np.full((VOCAB, HIDDEN), 0.01, np.float16)
    for layer in range(layers):
        for name, shape in LINEARS.items():
            yield from FORMATS[kind][0](f"model.layers.{layer}.{name}", shape, random)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"model.layers.{layer}.{norm}.weight", np.ones(HIDDEN, np.float16)
    yield "model.norm.weight", np.ones(HIDDEN, np.float16)
    yield "lm_head.weight", np.full((VOCAB, HIDDEN), 0.01, np.float16)


def config(kind: str, layers: int) -> dict:
    """config.json as transformers 4 spells it."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": layers,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": VOCAB,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "torch_dtype": "float16",
        "tie_word_embeddings": False,
        "quantization_config": FORMATS[kind][2],
    }


def main() -> None:
    """Write the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dst", type=Path)
    parser.add_argument("--format", choices=FORMATS, default="w8a8")
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--shard-gigabytes", type=float, default=1.0)
    args = parser.parse_args()
    per_layer = sum(n * k + 2 * n for n, k in LINEARS.values()) * FORMATS[args.format][1]
    layers = max(1, round((args.gigabytes * 1e9 - 4 * VOCAB * HIDDEN) / per_layer))
    args.dst.mkdir(parents=True)
    shards: list[dict[str, np.ndarray]] = [{}]
    for name, array in tensors(args.format, layers, np.random.default_rng(0)):
        if sum(a.nbytes for a in shards[-1].values()) + array.nbytes > args.shard_gigabytes * 1e9:
            shards.append({})
        shards[-1][name] = array
    names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        save_file(shard, args.dst / name, metadata={"format": "pt"})
    weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    total = sum(array.nbytes for shard in shards for array in shard.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (args.dst / "model.safetensors.index.json").write_text(json.dumps(index))
    (args.dst / "config.json").write_text(json.dumps(config(args.format, layers), indent=1))
    print(f"{args.dst}: {layers} layers, {total / 1e9:.2f} GB in {len(shards)} shards")


if __name__ == "__main__":
    main()
