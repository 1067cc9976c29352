"""Write a big checkpoint of any integer format: random codes, a 7B Llama's real shapes.

    python benchmarks/checkpoint.py DST --format gptq [--gigabytes 2] [--shard-gigabytes 1] [--sparse]
    python benchmarks/checkpoint.py DST --format gptq --tensor-gigabytes 2 --sparse

--tensor-gigabytes gives one layer instead, wide enough that the packed weight of each MLP linear has about that size.
With --sparse the codes and the embeddings are holes, which read as zeros and take no disk. Nothing is held in memory
but blocks of tensors.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from standin import SIZES, Data, Tensor, dims, nbytes, said, trivial_groups, write_folder

BLOCK = 1 << 22  # elements made at a time
GROUP = 128


@dataclass(frozen=True)
class Shapes:
    """The dims of a Llama."""

    hidden: int = 4096
    intermediate: int = 11008
    heads: int = 32
    vocab: int = 32000

    def linears(self) -> Iterator[tuple[str, int, int]]:
        """(name within the layer, out_features, in_features)."""
        for leaf in "qkvo":
            yield f"self_attn.{leaf}_proj", self.hidden, self.hidden
        yield "mlp.gate_proj", self.intermediate, self.hidden
        yield "mlp.up_proj", self.intermediate, self.hidden
        yield "mlp.down_proj", self.hidden, self.intermediate


def wide(packed_bytes: float, bits: int) -> Shapes:
    """MLP linears of so many bytes; their groups straddle four GPUs as those of a 7B do (11008 = 86 * 128)."""
    hidden = 16384
    groups = round(packed_bytes * 8 / bits / hidden / GROUP)
    return Shapes(hidden, (groups // 4 * 4 + 2) * GROUP, hidden // 128, 1024)


class Maker:
    """Makes tensors; their data comes in blocks when they are written."""

    def __init__(self, sparse: bool) -> None:
        """With `sparse` codes and what is not quantized are holes."""
        self.sparse = sparse
        self.random = np.random.Generator(np.random.SFC64(0))

    def codes(self, name: str, dtype: str, *shape: int) -> Tensor:
        """Random bytes, or a hole."""
        return self.noise(name, dtype, *shape) if not self.sparse else (name, dtype, shape, None)

    def noise(self, name: str, dtype: str, *shape: int) -> Tensor:
        """Random bytes."""

        def make(count: int) -> np.ndarray:
            return np.frombuffer(self.random.bytes(count * SIZES[dtype]), np.uint8)

        return name, dtype, shape, _blocks(make, shape)

    def scales(self, name: str, dtype: str, *shape: int) -> Tensor:
        """Random scales, all positive and normal numbers."""
        kind = {"F16": np.float16, "F32": np.float32}[dtype]

        def make(count: int) -> np.ndarray:
            return (self.random.random(count, np.float32) * np.float32(0.009) + np.float32(0.001)).astype(kind)

        return name, dtype, shape, _blocks(make, shape)

    def middle(self, name: str, *shape: int) -> Tensor:
        """Zero-points of version 1 for symmetric 4-bit codes: 8, stored minus 1."""
        return name, "I32", shape, _blocks(lambda count: np.full(count, 0x77777777, np.uint32), shape)

    def dense(self, name: str, *shape: int) -> Tensor:
        """A tensor that is not quantized."""
        return name, "F16", shape, None if self.sparse else _blocks(lambda n: np.full(n, 0.01, np.float16), shape)


def _blocks(make: Callable[[int], np.ndarray], shape: tuple[int, ...]) -> Data:
    count = int(np.prod(shape))
    return lambda: (make(min(BLOCK, count - start)) for start in range(0, count, BLOCK))


def w8a8(maker: Maker, module: str, rows: int, columns: int) -> Iterator[Tensor]:
    """compressed-tensors: int8 codes, a scale per channel."""
    yield maker.codes(f"{module}.weight", "I8", rows, columns)
    yield maker.scales(f"{module}.weight_scale", "F16", rows, 1)


def smooth_quant(maker: Maker, module: str, rows: int, columns: int) -> Iterator[Tensor]:
    """LMDeploy: int8 codes, a scale per channel."""
    yield maker.codes(f"{module}.weight", "I8", rows, columns)
    yield maker.scales(f"{module}.scale", "F32", rows, 1)


def awq(maker: Maker, module: str, rows: int, columns: int) -> Iterator[Tensor]:
    """AutoAWQ's GEMM layout: codes and zero-points in words of eight output features."""
    groups = columns // GROUP
    yield maker.codes(f"{module}.qweight", "I32", columns, rows // 8)
    yield maker.noise(f"{module}.qzeros", "I32", groups, rows // 8)
    yield maker.scales(f"{module}.scales", "F16", groups, rows)


def auto_round(maker: Maker, module: str, rows: int, columns: int) -> Iterator[Tensor]:
    """GPTQ's tensors without g_idx, symmetric."""
    groups = columns // GROUP
    yield maker.codes(f"{module}.qweight", "I32", columns // 8, rows)
    yield maker.middle(f"{module}.qzeros", groups, rows // 8)
    yield maker.scales(f"{module}.scales", "F16", groups, rows)


def gptq(maker: Maker, module: str, rows: int, columns: int) -> Iterator[Tensor]:
    """Symmetric, zero-points of version 1, groups in their own order."""
    yield from auto_round(maker, module, rows, columns)
    yield f"{module}.g_idx", "I32", (columns,), trivial_groups(columns, GROUP)


def marlin(maker: Maker, module: str, rows: int, columns: int) -> Iterator[Tensor]:
    """AutoGPTQ's names; any order of random codes is random codes."""
    yield maker.codes(f"{module}.B", "I32", columns // 16, 2 * rows)
    yield maker.scales(f"{module}.s", "F16", columns // GROUP, rows)


def packed(maker: Maker, module: str, rows: int, columns: int) -> Iterator[Tensor]:
    """compressed-tensors' pack-quantized, symmetric."""
    yield maker.codes(f"{module}.weight_packed", "I32", rows, columns // 8)
    yield maker.scales(f"{module}.weight_scale", "F16", rows, columns // GROUP)
    yield f"{module}.weight_shape", "I64", (2,), dims(rows, columns)


def packed_asym(maker: Maker, module: str, rows: int, columns: int) -> Iterator[Tensor]:
    """The same with zero-points, in words of eight output features."""
    yield from packed(maker, module, rows, columns)
    yield maker.noise(f"{module}.weight_zero_point", "I32", rows // 8, columns // GROUP)


def _compressed(kind: str, weights: dict[str, Any], activations: dict[str, Any] | None = None) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    return {
        "quant_method": "compressed-tensors",
        "format": kind,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


def _integers(bits: int, strategy: str, symmetric: bool = True, **more: Any) -> dict[str, Any]:
    return {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": strategy, **more}


INT4 = {"bits": 4, "group_size": GROUP}
GPTQMODEL = {"checkpoint_format": "gptq", "pack_dtype": "int32", "meta": {"quantizer": ["gptqmodel:7.7.0"]}}
Linear = Callable[[Maker, str, int, int], Iterator[Tensor]]
FORMATS: dict[str, tuple[int, Linear, dict[str, Any]]] = {  # bits, the tensors of a linear, quantization_config
    "w8a8": (
        8,
        w8a8,
        _compressed("int-quantized", _integers(8, "channel"), _integers(8, "token", dynamic=True)),
    ),
    "compressed-tensors": (
        4,
        packed,
        _compressed("pack-quantized", _integers(4, "group", group_size=GROUP)),
    ),
    "compressed-tensors-asym": (
        4,
        packed_asym,
        _compressed("pack-quantized", _integers(4, "group", False, group_size=GROUP)),
    ),
    "awq": (4, awq, {"quant_method": "awq", "version": "gemm", **INT4, "zero_point": True}),
    "gptq": (4, gptq, {"quant_method": "gptq", **INT4, "sym": True, "desc_act": False, **GPTQMODEL}),
    "auto-round": (
        4,
        auto_round,
        {
            "quant_method": "auto-round",
            "packing_format": "auto_round:auto_gptq",
            **INT4,
            "sym": True,
            "data_type": "int",
        },
    ),
    "marlin": (
        4,
        marlin,
        {"quant_method": "gptq", **INT4, "sym": True, "desc_act": False, "is_marlin_format": True},
    ),
    "smooth-quant": (8, smooth_quant, {"quant_method": "smooth_quant", "quant_dtype": "int8"}),
}


def layer(kind: str, shapes: Shapes, maker: Maker, number: int) -> Iterator[Tensor]:
    """Every tensor of a decoder layer."""
    for name, rows, columns in shapes.linears():
        yield from FORMATS[kind][1](maker, f"model.layers.{number}.{name}", rows, columns)
    for norm in ("input_layernorm", "post_attention_layernorm"):
        yield maker.dense(f"model.layers.{number}.{norm}.weight", shapes.hidden)


def tensors(kind: str, shapes: Shapes, layers: int, maker: Maker) -> Iterator[Tensor]:
    """Every tensor, layer by layer."""
    yield maker.dense("model.embed_tokens.weight", shapes.vocab, shapes.hidden)
    for number in range(layers):
        yield from layer(kind, shapes, maker, number)
    yield maker.dense("model.norm.weight", shapes.hidden)
    yield maker.dense("lm_head.weight", shapes.vocab, shapes.hidden)


def config(kind: str, shapes: Shapes, layers: int) -> dict[str, Any]:
    """config.json as transformers 4 spells it."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": shapes.hidden,
        "intermediate_size": shapes.intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": shapes.heads,
        "num_key_value_heads": shapes.heads,
        "vocab_size": shapes.vocab,
        "max_position_embeddings": 4096,
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
    parser.add_argument("--tensor-gigabytes", type=float, help="one layer with linears of this size")
    parser.add_argument("--sparse", action="store_true")
    args = parser.parse_args()
    maker, shapes, layers = Maker(args.sparse), Shapes(), 1
    if args.tensor_gigabytes:
        shapes = wide(args.tensor_gigabytes * 1e9, FORMATS[args.format][0])
    else:
        one = sum(map(nbytes, layer(args.format, shapes, maker, 0)))
        rest = sum(map(nbytes, tensors(args.format, shapes, 0, maker)))
        layers = max(1, round((args.gigabytes * 1e9 - rest) / one))
    total = write_folder(
        args.dst,
        config(args.format, shapes, layers),
        tensors(args.format, shapes, layers, maker),
        args.shard_gigabytes * 1e9,
    )
    print(f"{said(args.dst, total)}, {layers} layers")


if __name__ == "__main__":
    main()
