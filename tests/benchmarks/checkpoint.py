"""Write a big checkpoint of any format: random codes, a 7B Llama's real shapes.

    python tests/benchmarks/checkpoint.py DST --format gptq [--gigabytes 2] [--shard-gigabytes 1] [--sparse]
    python tests/benchmarks/checkpoint.py DST --format gptq --tensor-gigabytes 2 --sparse

--tensor-gigabytes gives one layer instead, wide enough that the packed weight of each MLP linear has about that size.
With --sparse the codes and the embeddings are holes, which read as zeros and take no disk. Nothing is held in memory
but blocks of tensors.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from linears import FORMATS, GROUP, Maker
from standin import Tensor, nbytes, said, write_folder


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
