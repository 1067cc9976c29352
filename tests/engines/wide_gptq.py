"""A Llama in asymmetric GPTQ of any size, with random codes: wide enough that a rank's share of a row is a page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from engine import ROOT
from safetensors.numpy import save_file

GROUP = 128
LANES = 8  # codes of four bits in a word
HEAD = 128


def make(folder: Path, *, hidden: int, intermediate: int, layers: int, vocabulary: int) -> int:
    """Write the checkpoint, a shard for each layer; the bytes of its tensors."""
    folder.mkdir(parents=True)
    config = json.loads((ROOT / "fixtures/gptq/llama_v1_asym/model/config.json").read_text())
    config["quantization_config"]["group_size"] = GROUP
    heads = {"num_attention_heads": hidden // HEAD, "num_key_value_heads": hidden // HEAD, "head_dim": HEAD}
    sizes = {"hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers}
    (folder / "config.json").write_text(json.dumps(config | heads | sizes | {"vocab_size": vocabulary}))
    random = np.random.default_rng(0)
    shapes = dict.fromkeys("qkvo", (hidden, hidden))
    linears = {f"self_attn.{name}_proj": shape for name, shape in shapes.items()}
    linears |= {f"mlp.{name}_proj": (hidden, intermediate) for name in ("gate", "up")}
    linears["mlp.down_proj"] = (intermediate, hidden)
    shards = []
    for number in range(layers):
        prefix, tensors = f"model.layers.{number}.", {}
        for name, dims in linears.items():
            tensors |= linear(random, prefix + name, *dims)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{norm}.weight"] = np.ones(hidden, np.float16)
        shards.append(tensors)
    rows = random.standard_normal((2, vocabulary, hidden), np.float32)
    head = (rows[1] / hidden**0.5).astype(np.float16)
    ends = {"model.embed_tokens.weight": rows[0].astype(np.float16), "lm_head.weight": head}
    shards.append({**ends, "model.norm.weight": np.ones(hidden, np.float16)})
    places = {}
    for number, tensors in enumerate(shards):
        name = f"model-{number:05d}.safetensors"
        save_file(tensors, folder / name, {"format": "pt"})
        places |= dict.fromkeys(tensors, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return sum(tensor.nbytes for tensors in shards for tensor in tensors.values())


def linear(random: np.random.Generator, name: str, rows: int, columns: int) -> dict[str, np.ndarray]:
    """The tensors of a layer with that many input and output features; no zero-point is 16."""
    groups = rows // GROUP
    zeros = random.integers(0, 15, (groups, columns // LANES, LANES), dtype=np.uint32)
    words = sum(zeros[:, :, lane] << np.uint32(4 * lane) for lane in range(LANES))
    return {
        f"{name}.qweight": random.integers(0, 2**32, (rows // LANES, columns), dtype=np.uint32).view(np.int32),
        f"{name}.qzeros": words.view(np.int32),
        f"{name}.scales": (random.random((groups, columns)) / (10 * rows**0.5)).astype(np.float16),
        f"{name}.g_idx": (np.arange(rows) // GROUP).astype(np.int32),
    }
