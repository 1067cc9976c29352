"""Small checkpoints of every class of the table, in every format that fits, and the values of their codes.

python tests/architectures/make.py OUT [NAME ...]     OUT/NAME/model and OUT/NAME/ref.safetensors; all without NAME
python tests/architectures/make.py --list             names, classes and formats
python tests/architectures/make.py OUT NAME --leave EXPRESSION    modules in which it is found are not quantized

ref.safetensors holds, by module, what a dense checkpoint must hold: the exact values, rounded once to the model's
dtype; of experts that dense checkpoints have fused by the tensor's name. The same call writes the same bytes.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

import blocks
import hub
import packers
import processors
import small
from qbridge.architecture.classes import CLASSES
from qbridge.architecture.families import CONTAINERS

LAYER = re.compile(r"(?:^|\.)(?:layers|h|transformer\.blocks|mtp_layers)\.\d+\.")
TOWERS = frozenset({"visual", "vision_tower", "vision_model", "vision_encoder", "audio_tower", "vpm", "apm"})
# Routers, and linears that tools leave as they are.
LEFT = frozenset(
    {"gate", "router", "wg", "classifier", "layer", "proj", "shared_expert_gate", "weights_proj", "eh_proj"}
)
# Linears that engines fuse, whose scales of the whole tensor are one.
FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("w1", "w3"), ("q_a_proj", "kv_a_proj_with_mqa"))
FUSED += (("in_proj_qkv", "in_proj_z"), ("c_fc_0", "c_fc_1"))
UNMADE = frozenset({"Gemma3nForConditionalGeneration", "Qwen3OmniMoeForConditionalGeneration"})
ALIASES = frozenset({"BaiChuanForCausalLM", "BailingMoeV2ForCausalLM", "ChatGLMForConditionalGeneration"})
# Classes whose experts tools leave in the tensors that they share, and what the names of other parts end in.
STACKED = frozenset({"Llama4ForCausalLM", "Llama4ForConditionalGeneration"})
ENDINGS = {"fp8-dynamic": "_scale", "modelopt-fp8": "_{}", "modelopt-nvfp4": "_{}"}
NOTHING = "(?!)"  # an expression that is found nowhere
TORCH = {"torch.bfloat16": "BF16", "torch.float32": "F32", "torch.float16": "F16", "torch.int64": "I64"}


@dataclass(frozen=True)
class Format:
    """How a format packs a linear and what it writes into config.json; `whole` packers take the tensor's maximum."""

    pack: object
    block: object
    dtype: str = "bfloat16"
    whole: bool = False


FORMATS = {
    "w4a16": Format(packers.compressed_int4, blocks.w4a16),
    "fp8-dynamic": Format(packers.fp8_channel, blocks.fp8_dynamic),
    "w8a8": Format(packers.int8_channel, blocks.w8a8),
    "nvfp4": Format(packers.nvfp4_compressed, blocks.nvfp4, whole=True),
    "fp8": Format(packers.fp8_block, blocks.fp8),
    "gptq": Format(packers.gptq, blocks.gptq, "float16"),
    "awq": Format(packers.awq, blocks.awq, "float16"),
    "auto-round": Format(packers.auto_round, blocks.auto_round, "float16"),
    "modelopt-fp8": Format(packers.fp8_tensor, blocks.modelopt_fp8, whole=True),
    "modelopt-nvfp4": Format(packers.nvfp4_modelopt, blocks.modelopt_nvfp4, whole=True),
    "mxfp4": Format(packers.mxfp4, blocks.mxfp4),
}


@dataclass(frozen=True)
class Case:
    """One checkpoint: its name, model class, format, and what writes it into a folder."""

    name: str
    architecture: str
    format: str
    build: object


def cases():
    """Every case, in the order of the table and of `FORMATS`."""
    made = (set(small.names_there(CLASSES)) | hub.REMOTE.keys()) - UNMADE - ALIASES
    names = [name for name in (*CLASSES, *sorted(CONTAINERS)) if name in made]
    for architecture in names:
        for kind in FORMATS:
            packed = architecture == "GptOssForCausalLM"
            if packed == (kind == "mxfp4"):
                short = architecture.replace("ForConditionalGeneration", "_cg").replace("ForCausalLM", "")
                name = f"{short}-{kind}"
                yield Case(name, architecture, kind, partial(build, architecture, kind))


def is_quantized(module, shape):
    """Whether tools quantize a linear: in a layer of the decoder, in whole groups, no router."""
    parts = module.split(".")
    return (
        len(shape) == 2
        and bool(LAYER.search(f"{module}."))
        and TOWERS.isdisjoint(parts)
        and "compressor" not in parts
        and parts[-1] not in LEFT
        and not re.search(r"norm|embed|head", parts[-1])
        and shape[1] % 128 == 0
        and shape[0] % 16 == 0
    )


def build(architecture, kind, out, leave=NOTHING):
    """Write OUT/model and OUT/ref.safetensors; modules in which the expression `leave` is found are not quantized."""
    layout = FORMATS[kind]
    tensors, config, tables = hub.checkpoint(architecture)
    modules = {
        name.removesuffix(".weight"): shape for name, (shape, _) in tensors.items() if name.endswith(".weight")
    }
    quantized = [m for m, shape in modules.items() if kind != "mxfp4" and is_quantized(m, shape)]
    quantized = [module for module in quantized if not re.search(leave, module)]
    stored, ref = {}, {}
    for name, (shape, dtype) in tensors.items():
        module = name.removesuffix(".weight")
        if kind == "mxfp4" and len(shape) == 3:
            ref[name] = experts_mxfp4(name, shape, stored)
        elif module in quantized and name.endswith(".weight"):
            weights = small.draw(name, shape)
            stacked = architecture in STACKED and kind in ENDINGS
            of_all = largest(module, modules, stacked) if layout.whole else None
            parts, ref[module] = layout.pack(weights, of_all) if layout.whole else layout.pack(weights)
            stored |= {f"{module}.{leaf}": part for leaf, part in parts.items()}
        elif len(shape) == 3 and ".moe." in name and kind == "fp8":
            ref[name] = experts_apart(module, shape, stored)
        else:
            stored[name] = plain(small.draw(name, shape), layout.dtype, TORCH[str(dtype)])
    if architecture in hub.FUSED:
        merge(stored, ref, ENDINGS.get(kind, "") if architecture in STACKED else "")
    linears = [m for m, shape in modules.items() if len(shape) == 2 and m.rpartition(".")[2] not in tables]
    dense = [module for module in linears if module not in quantized]
    if config.get("tie_word_embeddings") and not any(re.search(r"head$|embed_out$", module) for module in dense):
        dense.append("lm_head")  # tools list the head though it is the embedding
    files = layout.block(quantized, dense, config, layout.dtype)
    folder = Path(out) / "model"
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in {"config.json": config, **files, **processors.files(architecture)}.items():
        (folder / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    write(folder / "model.safetensors", stored)
    write(Path(out) / "ref.safetensors", {name: plain(values, layout.dtype) for name, values in ref.items()})


def largest(module, modules, stacked=False):
    """The largest magnitude of a linear and of those that engines fuse with it; `stacked`, of all experts."""
    if stacked and ".experts." in module:
        numbered = re.sub(r"(?<=\.experts\.)\d+", r"\\d+", module.replace("up_proj", "gate_proj"))
        firsts = [name for name in modules if re.fullmatch(numbered, name)]
        return max(largest(name, modules) for name in firsts)
    block, _, leaf = module.rpartition(".")
    mates = next((group for group in FUSED if leaf in group), (leaf,))
    there = [name for mate in mates if (name := f"{block}.{mate}" if block else mate) in modules]
    return max(float(np.abs(small.draw(f"{name}.weight", modules[name])).max()) for name in there)


def experts_mxfp4(name, shape, stored):
    """Blocks and scales of packed experts [experts, in, out], along in_features; the values in the tensor's form."""
    weights = small.draw(name, shape).transpose(0, 2, 1)
    stored[f"{name}_blocks"], stored[f"{name}_scales"], values = packers.mxfp4(np.ascontiguousarray(weights))
    return np.ascontiguousarray(values.transpose(0, 2, 1))


def experts_apart(module, shape, stored):
    """float8 in blocks of [experts, out, in]; the values."""
    packed, values = zip(*map(packers.fp8_block, small.draw(f"{module}.weight", shape)), strict=True)
    for leaf, (dtype, _) in packed[0].items():
        stored[f"{module}.{leaf}"] = (dtype, np.stack([parts[leaf][1] for parts in packed]))
    return np.stack(values)


def merge(stored, ref, ending):
    """Experts one by one become tensors of all, by columns, gate before up: values, and with `ending` the parts."""
    for module in [name for name in ref if name.endswith(".experts.0.down_proj")]:
        block = module.removesuffix(".0.down_proj")
        for fused, leaves in (("gate_up_proj", ("gate_proj", "up_proj")), ("down_proj", ("down_proj",))):
            every = [[f"{block}.{n}.{leaf}" for leaf in leaves] for n in range(4) if f"{block}.{n}.down_proj" in ref]
            parts = [name.rpartition(".")[2] for name in stored if name.startswith(f"{every[0][0]}.")]
            for leaf in parts if ending else ():
                both = [[stored.pop(f"{name}.{leaf}") for name in names] for names in every]
                name = f"{block}.{fused}" + ("" if leaf == "weight" else ending.format(leaf))
                dtype, first = both[0][0]
                joined = [np.concatenate([part for _, part in own]).T for own in both] if first.ndim else None
                stored[name] = (dtype, np.ascontiguousarray(np.stack(joined)) if joined else first)
            ref[f"{block}.{fused}"] = np.stack([np.concatenate([ref.pop(one) for one in names]).T for names in every])


def plain(values, dtype, own="BF16"):
    """Values as a tensor of the model's dtype, of its own where that is another than the model's usual one."""
    if own == "I64":
        return "I64", np.zeros(np.shape(values), np.int64)
    wanted = packers.DTYPES[dtype] if own in ("BF16", "F16") else own
    if wanted == "BF16":
        return wanted, packers.bf16(values)
    return wanted, np.asarray(values, np.float16 if wanted == "F16" else np.float32)


def write(path, tensors):
    """A safetensors file: the header, padded to 8 bytes, and the tensors by name."""
    header, data, at = {"__metadata__": {"format": "pt"}}, [], 0
    for name, (dtype, array) in sorted(tensors.items()):
        raw = np.ascontiguousarray(array).tobytes()
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [at, at + len(raw)]}
        data.append(raw)
        at += len(raw)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(data))


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--leave", metavar="EXPRESSION", default=NOTHING, help="modules that are not quantized")
    asked = parser.parse_args(arguments)
    every = {case.name: case for case in cases()}
    if asked.list or asked.out is None:
        print("\n".join(f"{case.name:44} {case.architecture:44} {case.format}" for case in every.values()))
        return 0
    if unknown := [name for name in asked.names if name not in every]:
        parser.error(f"no case is called {', '.join(unknown)}")
    for name in asked.names or every:
        every[name].build(asked.out / name, asked.leave)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
