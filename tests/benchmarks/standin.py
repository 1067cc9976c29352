"""Write a stand-in of a big checkpoint: real shapes and config, sparse files where the codes would be.

python tests/benchmarks/standin.py DST --model qwen2-72b-gptq [--format gptq|awq|compressed-tensors]
    [--group-size 128]

What a reader looks at is there: headers, g_idx, zero-points, biases, weight_shape; scales too with --scales. Codes,
norms and embeddings are holes, which read as zeros and take no disk. Dims are those of the models' config.json on the
Hub; the issue's Qwen2-72B has 29568 intermediate features, the official GPTQ release is padded to 29696.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Data = Callable[[], Iterable[np.ndarray]] | None  # in blocks, so that no tensor is held; None is a hole
Tensor = tuple[str, str, tuple[int, ...], Data]  # name, dtype, shape
SIZES = {"U8": 1, "I8": 1, "F8_E4M3": 1, "F16": 2, "I32": 4, "F32": 4, "I64": 8}
FORMATS = ("gptq", "awq", "compressed-tensors")
COMMON = {"hidden_act": "silu", "torch_dtype": "float16", "rms_norm_eps": 1e-6, "tie_word_embeddings": False}
QWEN2 = {**COMMON, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "rope_theta": 1e6}
MODELS: Mapping[str, dict[str, Any]] = {
    "qwen2-72b-gptq": {
        **QWEN2,
        "hidden_size": 8192,
        "intermediate_size": 29568,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "max_position_embeddings": 32768,
        "vocab_size": 152064,
    },
    "qwen2.5-0.5b": {
        **QWEN2,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "qwen3-235b-a22b": {
        **COMMON,
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "moe_intermediate_size": 1536,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "norm_topk_prob": True,
        "num_hidden_layers": 94,
        "num_attention_heads": 64,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "max_position_embeddings": 40960,
        "rope_theta": 1e6,
        "vocab_size": 151936,
    },
    "deepseek-v2-lite": {
        **COMMON,
        "architectures": ["DeepseekV2ForCausalLM"],
        "model_type": "deepseek_v2",
        "hidden_size": 2048,
        "intermediate_size": 10944,
        "moe_intermediate_size": 1408,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "num_experts_per_tok": 6,
        "first_k_dense_replace": 1,
        "moe_layer_freq": 1,
        "norm_topk_prob": False,
        "routed_scaling_factor": 1.0,
        "topk_method": "greedy",
        "scoring_func": "softmax",
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "kv_lora_rank": 512,
        "q_lora_rank": None,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "max_position_embeddings": 163840,
        "rope_theta": 10000,
        "vocab_size": 102400,
    },
    # The released checkpoint is MXFP4, its experts in one tensor; this is what int4 of them would be.
    "gpt-oss-120b": {
        **COMMON,
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "num_local_experts": 128,
        "num_experts_per_tok": 4,
        "num_hidden_layers": 36,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "attention_bias": True,
        "max_position_embeddings": 131072,
        "rope_theta": 150000,
        "sliding_window": 128,
        "swiglu_limit": 7.0,
        "vocab_size": 201088,
    },
}


def linears(config: Mapping[str, Any], layer: int) -> Iterator[tuple[str, int, int, bool]]:
    """(module, out_features, in_features, whether it has a bias) of the quantized linears of a layer."""
    hidden, heads, kind = config["hidden_size"], config["num_attention_heads"], config["model_type"]
    head = config.get("head_dim", hidden // heads)
    kv, biased = config["num_key_value_heads"] * head, kind in ("qwen2", "gpt_oss")
    if "kv_lora_rank" in config:
        rank, nope, rope = (config[k] for k in ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim"))
        head = config["v_head_dim"]
        yield "self_attn.q_proj", heads * (nope + rope), hidden, False
        yield "self_attn.kv_a_proj_with_mqa", rank + rope, hidden, False
        yield "self_attn.kv_b_proj", heads * (nope + head), rank, False
    else:
        for leaf, rows in (("q_proj", heads * head), ("k_proj", kv), ("v_proj", kv)):
            yield f"self_attn.{leaf}", rows, hidden, biased
    yield "self_attn.o_proj", hidden, heads * head, kind == "gpt_oss"
    for block, size in mlps(config, layer):
        yield f"{block}.gate_proj", size, hidden, kind == "gpt_oss"
        yield f"{block}.up_proj", size, hidden, kind == "gpt_oss"
        yield f"{block}.down_proj", hidden, size, kind == "gpt_oss"


def experts_of(config: Mapping[str, Any]) -> int:
    """The number of routed experts, 0 for a dense model."""
    return next((config[k] for k in ("num_experts", "n_routed_experts", "num_local_experts") if k in config), 0)


def mlps(config: Mapping[str, Any], layer: int) -> Iterator[tuple[str, int]]:
    """(module, intermediate size) of every MLP of a layer."""
    if not experts_of(config) or layer < config.get("first_k_dense_replace", 0):
        yield "mlp", config["intermediate_size"]
        return
    size = config.get("moe_intermediate_size", config["intermediate_size"])
    for expert in range(experts_of(config)):
        yield f"mlp.experts.{expert}", size
    if config.get("n_shared_experts"):
        yield "mlp.shared_experts", size * config["n_shared_experts"]


def words(fill: int, shape: tuple[int, ...]) -> Data:
    """32-bit words that are all the same."""
    return lambda: [np.full(shape, fill, np.uint32)]


def ones(shape: tuple[int, ...]) -> Data:
    """Scales and biases of one."""
    return lambda: [np.ones(shape, np.float16)]


def trivial_groups(columns: int, group: int) -> Data:
    """The g_idx of groups in their own order."""
    return lambda: [(np.arange(columns) // group).astype(np.int32)]


def dims(rows: int, columns: int) -> Data:
    """The weight_shape of compressed-tensors."""
    return lambda: [np.array([rows, columns], np.int64)]


def stored(kind: str, module: str, rows: int, columns: int, group: int, scales: bool) -> Iterator[Tensor]:
    """The 4-bit tensors of one linear; -1 is one group."""
    group = columns if group < 0 else group
    groups = -(-columns // group)
    if kind == "gptq":
        packed, zeros = (columns // 8, rows), (groups, rows // 8)
        yield f"{module}.qweight", "I32", packed, None
        yield f"{module}.qzeros", "I32", zeros, words(0x77777777, zeros)
        yield f"{module}.g_idx", "I32", (columns,), trivial_groups(columns, group)
        yield f"{module}.scales", "F16", (groups, rows), ones((groups, rows)) if scales else None
    elif kind == "awq":
        zeros = (groups, rows // 8)
        yield f"{module}.qweight", "I32", (columns, rows // 8), None
        yield f"{module}.qzeros", "I32", zeros, words(0x77777777, zeros)
        yield f"{module}.scales", "F16", (groups, rows), ones((groups, rows)) if scales else None
    else:
        yield f"{module}.weight_packed", "I32", (rows, columns // 8), None
        yield f"{module}.weight_shape", "I64", (2,), dims(rows, columns)
        yield f"{module}.weight_scale", "F16", (rows, groups), ones((rows, groups)) if scales else None


def norms(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """(module, width) of the norms of a layer."""
    for name in ("input_layernorm", "post_attention_layernorm"):
        yield name, config["hidden_size"]
    if config["model_type"] == "qwen3_moe":
        yield from ((f"self_attn.{name}", config["head_dim"]) for name in ("q_norm", "k_norm"))
    if "kv_lora_rank" in config:
        yield "self_attn.kv_a_layernorm", config["kv_lora_rank"]


def tensors(config: Mapping[str, Any], kind: str, group: int, scales: bool = False) -> Iterator[Tensor]:
    """Every tensor of the checkpoint, layer by layer."""
    hidden, vocab, experts = config["hidden_size"], config["vocab_size"], experts_of(config)
    yield "model.embed_tokens.weight", "F16", (vocab, hidden), None
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        modules = list(linears(config, layer))
        for name, rows, columns, biased in modules:
            yield from stored(kind, f"{prefix}.{name}", rows, columns, group, scales)
            if biased:
                yield f"{prefix}.{name}.bias", "F16", (rows,), ones((rows,))
        if any(".experts." in name for name, *_ in modules):
            yield (
                f"{prefix}.mlp.{'router' if 'swiglu_limit' in config else 'gate'}.weight",
                "F16",
                (experts, hidden),
                None,
            )
        if config["model_type"] == "gpt_oss":
            yield f"{prefix}.mlp.router.bias", "F16", (experts,), None
            yield f"{prefix}.self_attn.sinks", "F16", (config["num_attention_heads"],), None
        for norm, width in norms(config):
            yield f"{prefix}.{norm}.weight", "F16", (width,), None
    yield "model.norm.weight", "F16", (hidden,), None
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", "F16", (vocab, hidden), None


def quantization(kind: str, group: int) -> dict[str, Any]:
    """The block of config.json."""
    if kind == "gptq":
        block = {"quant_method": "gptq", "bits": 4, "group_size": group, "sym": True}
        return {**block, "desc_act": False, "checkpoint_format": "gptq"}
    if kind == "awq":
        return {"quant_method": "awq", "version": "gemm", "bits": 4, "group_size": group, "zero_point": True}
    weights: dict[str, Any] = {"num_bits": 4, "type": "int", "symmetric": True}
    weights |= {"strategy": "channel"} if group < 0 else {"strategy": "group", "group_size": group}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ["lm_head", r"re:.*\.mlp\.(gate|router)$"],
    }


def nbytes(tensor: Tensor) -> int:
    """What a tensor takes in its file."""
    return int(np.prod(tensor[2])) * SIZES[tensor[1]]


def write_shard(path: Path, shard: list[Tensor]) -> None:
    """A safetensors file in the order of `save_file`, but its holes last: what is written fills whole blocks."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end, data = 0, []
    for tensor in sorted(shard, key=lambda tensor: (tensor[3] is None, -SIZES[tensor[1]], tensor[0])):
        name, dtype, shape, make = tensor
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + nbytes(tensor)]}
        end += nbytes(tensor)
        data += [make] if make else []
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for make in data:
            for block in make():
                file.write(block)
        file.flush()
        os.ftruncate(file.fileno(), 8 + len(text) + end)


def write_folder(dst: Path, config: Mapping[str, Any], tensors: Iterable[Tensor], shard_bytes: float) -> int:
    """Write shards, index and config.json; the bytes that the tensors claim."""
    dst.mkdir(parents=True)
    shards: list[list[Tensor]] = [[]]
    size = 0
    for tensor in tensors:
        if size and size + nbytes(tensor) > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += nbytes(tensor)
    names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        write_shard(dst / name, shard)
    weight_map = {tensor[0]: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    total = sum(nbytes(tensor) for shard in shards for tensor in shard)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (dst / "model.safetensors.index.json").write_text(json.dumps(index))
    (dst / "config.json").write_text(json.dumps(config, indent=1))
    return total


def said(dst: Path, total: int) -> str:
    """A line on what was written."""
    files = list(dst.iterdir())
    used = sum(file.stat().st_blocks * 512 for file in files)
    return f"{dst}: {total / 1e9:.2f} GB of tensors in {len(files) - 2} shards, {used / 1e9:.2f} GB on disk"


def write(dst: Path, config: Mapping[str, Any], kind: str, group: int, scales: bool, shard_bytes: float) -> int:
    """Write the folder of a stand-in; the bytes that its tensors claim."""
    quantized = {**config, "quantization_config": quantization(kind, group)}
    return write_folder(dst, quantized, tensors(config, kind, group, scales), shard_bytes)


def main() -> None:
    """Write the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dst", type=Path)
    parser.add_argument("--model", choices=MODELS, required=True)
    parser.add_argument("--format", choices=FORMATS, default="gptq")
    parser.add_argument("--group-size", type=int, default=128, help="-1: a scale per channel")
    parser.add_argument("--layers", type=int, help="fewer than the model has")
    parser.add_argument("--scales", action="store_true", help="write the scales too, 1.1 GB of them for a 72B")
    parser.add_argument("--shard-gigabytes", type=float, default=5.0)
    args = parser.parse_args()
    config = {**MODELS[args.model]}
    if args.layers:
        config["num_hidden_layers"] = args.layers
    total = write(args.dst, config, args.format, args.group_size, args.scales, args.shard_gigabytes * 1e9)
    print(said(args.dst, total))


if __name__ == "__main__":
    main()
