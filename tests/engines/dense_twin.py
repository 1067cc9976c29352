"""The dense twin of a quantized checkpoint: the same model with the weights that its codes stand for.

An engine that serves both shows whether its kernels compute what `dequantize` says, and serves the twin of a
checkpoint that it has no kernel for.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

import qbridge
from qbridge.ir.values import dequantize

TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.jinja")


def write(source: Path, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write the dense twin of `source`, a checkpoint in safetensors, to `folder`: everything in `dtype`."""
    name = str(dtype).removeprefix("torch.")
    with qbridge.open(source) as opened:
        weights = {
            f"{name}.weight": torch.from_numpy(dequantize(opened.layer(name))).float() for name in opened.specs
        }
        slots = opened.model.slots.items()
        dense = {layer["bias"].tensor: f"{name}.bias" for name, layer in slots if "bias" in layer}
        dense |= {info.stored: name for name, info in opened.model.tensors.items()}
        for shard in opened.source.shards:
            with safe_open(opened.source.file(shard).path, "pt") as file:
                weights |= {dense[name]: file.get_tensor(name) for name in dense.keys() & set(file.keys())}
        config = {**opened.model.config, "dtype": name, "torch_dtype": name}  # transformers 5 and 4 read one each
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in sorted(weights.items())}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    for file in (file for pattern in TOKENIZER_FILES for file in sorted(source.glob(pattern))):
        shutil.copyfile(file, folder / file.name)
