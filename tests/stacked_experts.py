"""Checkpoints of Llama 4 and its like whose quantized experts share tensors, in every layout that is read."""

from __future__ import annotations

import json

import torch
from safetensors.torch import save_file

from support import SINGLE

EXPERTS, HIDDEN, INNER = 3, 256, 128
GATE_UP, DOWN = "gate_up_proj", "down_proj"
F8 = torch.float8_e4m3fn
CHANNELS = {
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
    "ignore": ["lm_head", "re:.*self_attn.*", "re:.*router", "re:.*shared_expert"],
}
BLOCKS = {
    "quant_method": "fp8",
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "weight_block_size": [128, 128],
    "modules_to_not_convert": ["lm_head", "self_attn", "router", "shared_expert"],
}
INTS = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True, "dynamic": False}
W8A8 = {**CHANNELS, "format": "int-quantized"}
W8A8["config_groups"] = {
    "group_0": {
        "targets": ["Linear"],
        "weights": INTS,
        "input_activations": {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True},
    }
}


def weights_only(bits, symmetric, size):
    """A block of packed integers in groups; None for scales of channels."""
    grouped = {"strategy": "group", "group_size": size} if size else {"strategy": "channel"}
    scheme = {**INTS, **grouped, "num_bits": bits, "symmetric": symmetric}
    group = {"targets": ["Linear"], "weights": scheme, "input_activations": None}
    return {**CHANNELS, "format": "pack-quantized", "config_groups": {"group_0": group}}


NVFP4 = {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16}
NVFP4["ignore"] = ["lm_head", "*self_attn*", "*router", "*shared_expert*"]
FP8 = {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": NVFP4["ignore"]}


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def byte(*shape, seed=0):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def plain(block):
    """A Llama 4 of one layer, all but its routed experts."""
    layer = "model.layers.0"
    wide = {"q_proj": HIDDEN, "k_proj": HIDDEN // 2, "v_proj": HIDDEN // 2, "o_proj": HIDDEN}
    found = {f"{layer}.self_attn.{name}.weight": random(rows, HIDDEN) for name, rows in wide.items()}
    shared = {"gate_proj": (INNER, HIDDEN), "up_proj": (INNER, HIDDEN), "down_proj": (HIDDEN, INNER)}
    found |= {
        f"{block.removesuffix('.experts')}.shared_expert.{name}.weight": random(*s) for name, s in shared.items()
    }
    found |= {f"{block.removesuffix('.experts')}.router.weight": random(EXPERTS, HIDDEN)}
    found |= {f"{layer}.{name}.weight": random(HIDDEN) for name in ("input_layernorm", "post_attention_layernorm")}
    found |= {"model.norm.weight": random(HIDDEN)}
    found |= {f"{name}.weight": random(64, HIDDEN) for name in ("model.embed_tokens", "lm_head")}
    return {name: tensor.bfloat16() for name, tensor in found.items()}


def config(block, architecture="Llama4ForCausalLM", kind="llama4_text"):
    return {
        "architectures": [architecture],
        "model_type": kind,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "intermediate_size_mlp": INNER,
        "moe_intermediate_size": INNER,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": 1,
        "vocab_size": 64,
        "dtype": "bfloat16",
        "rope_theta": 10000.0,
        "quantization_config": block,
    }


def checkpoint(path, stacks, block, place="model.layers.0.feed_forward.experts", **fields):
    path.mkdir()
    tensors = plain(place) | {f"{place}.{name}": tensor for name, tensor in stacks.items()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path / SINGLE, {"format": "pt"})
    (path / "config.json").write_text(json.dumps(config(block, **fields)))
    return path


def turned(columns, *shape):
    """[E, out, in] as it lies, by columns or by rows."""
    return (shape[0], shape[2], shape[1]) if columns else shape


def channels(columns, scale="_scale"):
    """float8 with a scale for each output feature."""
    sizes = {GATE_UP: (EXPERTS, 2 * INNER, HIDDEN), DOWN: (EXPERTS, HIDDEN, INNER)}
    found = {name: random(*turned(columns, *size)).to(F8) for name, size in sizes.items()}
    shapes = {f"{name}{scale}": turned(columns, *size[:2], 1) for name, size in sizes.items()}
    return found | {name: random(*shape, seed=1).abs().bfloat16() + 0.01 for name, shape in shapes.items()}


def nvfp4(columns):
    sizes = {GATE_UP: (EXPERTS, 2 * INNER, HIDDEN), DOWN: (EXPERTS, HIDDEN, INNER)}
    found = {name: byte(*turned(columns, *size[:2], size[2] // 2)) for name, size in sizes.items()}
    for name, size in sizes.items():
        found[f"{name}_weight_scale"] = random(*turned(columns, *size[:2], size[2] // 16)).abs().to(F8)
        found[f"{name}_weight_scale_2"] = torch.tensor(0.25)
        found[f"{name}_input_scale"] = torch.tensor(0.5)
    return found


def one_scale(shape):
    """float8 with one scale for all experts, or for each."""
    found = {name: part for name, part in channels(True).items() if "scale" not in name}
    scales = torch.arange(1, 1 + EXPERTS).float() if shape else torch.tensor(0.5)
    for name in (GATE_UP, DOWN):
        found |= {f"{name}_weight_scale": scales.reshape(shape).clone(), f"{name}_input_scale": torch.tensor(0.5)}
    return found


def by_blocks(names=("gate_proj", "up_proj", "down_proj")):
    """Each linear's experts in a tensor of their own."""
    sizes = {"gate_proj": (INNER, HIDDEN), "up_proj": (INNER, HIDDEN), "down_proj": (HIDDEN, INNER)}
    found = {}
    for seed, name in enumerate(names):
        rows, columns = sizes[name]
        found[f"{name}.weight"] = random(EXPERTS, rows, columns, seed=seed).to(F8)
        found[f"{name}.weight_scale_inv"] = random(EXPERTS, rows // 128, columns // 128, seed=seed).abs() + 0.01
    return found


def streamed(values, bits):
    """[..., N] codes below 2**bits as [..., N bits / 32] words, the first in the lowest bits."""
    taken = (values[..., None] >> torch.arange(bits)) & 1
    words = taken.flatten(-2).unflatten(-1, (-1, 32)).long() << torch.arange(32)
    return words.sum(-1).to(torch.int32)


def integers(bits, size, zeros=False, columns=False, names=("_packed", "_scale", "_zero_point", "_shape"), shape=3):
    """(stacks, [E, out, in] codes less zero-points of each) of packed integers, whose codes are unsigned."""
    seed, half, stacks, codes = 0, 2 ** (bits - 1), {}, {}
    for name, (count, rows, inputs) in {
        GATE_UP: (EXPERTS, 2 * INNER, HIDDEN),
        DOWN: (EXPERTS, HIDDEN, INNER),
    }.items():
        drawn = torch.Generator().manual_seed(seed := seed + 1)
        groups = inputs // size if size else 1
        code = torch.randint(0, 2**bits, (count, rows, inputs), generator=drawn)
        zero = torch.randint(1, 2**bits, (count, rows, groups), generator=drawn) if zeros else torch.tensor(half)
        scale = (random(count, rows, groups, seed=seed).abs() + 0.01).bfloat16()
        packed, words = streamed(code, bits), streamed(zero.mT, bits).mT if zeros else None
        stacks[f"{name}{names[0]}"] = packed.mT if columns else packed
        stacks[f"{name}{names[1]}"] = scale.mT if columns else scale
        if zeros:
            stacks[f"{name}{names[2]}"] = words.mT if columns else words
        if shape:
            one = [rows, inputs]
            stacks[f"{name}{names[3]}"] = torch.tensor({2: one, 3: [count, *one]}.get(shape, [one] * count))
        each = code - (zero.repeat_interleave(inputs // groups, 2) if zeros else half)
        codes[name] = each.double() * scale.double().repeat_interleave(inputs // groups, 2)
    return stacks, codes


AS_MODULES = (".weight_packed", ".weight_scale", ".weight_zero_point", ".weight_shape")
INTEGERS = {
    "int4 in groups": ((4, 32), {}),
    "int4 in groups, a shape for each": ((4, 32), {"shape": 1}),
    "int4 in groups, one shape": ((4, 32), {"shape": 2}),
    "int4 by columns": ((4, 32), {"columns": True, "shape": 0}),
    "int4 as modules": ((4, 32), {"names": AS_MODULES}),
    "int4 with zero-points as modules": ((4, 32), {"zeros": True, "names": AS_MODULES}),
    "int4 with zero-points": ((4, 32), {"zeros": True}),
    "int4 with zero-points by columns": ((4, 32), {"zeros": True, "columns": True, "shape": 0}),
    "int8 of channels": ((8, None), {}),
    "int3 in groups": ((3, 64), {}),
}


def eight_bits(columns):
    """int8 with a scale for each output feature, inputs quantized as well."""
    found = channels(columns)
    return {
        name: part.float().round().to(torch.int8) if "scale" not in name else part for name, part in found.items()
    }


CASES = {
    **{
        name: (integers(*kind, **more)[0], weights_only(kind[0], not more.get("zeros"), kind[1]))
        for name, (kind, more) in INTEGERS.items()
    },
    "int8 by columns": (eight_bits(True), W8A8),
    "int8 by rows": (eight_bits(False), W8A8),
    "channels by columns": (channels(True), CHANNELS),
    "channels by rows": (channels(False), CHANNELS),
    "channels, longer names": (channels(True, "_weight_scale"), CHANNELS),
    "nvfp4 by columns": (nvfp4(True), NVFP4),
    "nvfp4 by rows": (nvfp4(False), NVFP4),
    "one scale for all": (one_scale(()), FP8),
    "one scale for each": (one_scale((EXPERTS,)), FP8),
    "one scale for each, three axes": (one_scale((EXPERTS, 1, 1)), FP8),
    "blocks, each linear apart": (by_blocks(), BLOCKS),
}
