"""Load a checkpoint with the TurboMind engine of LMDeploy 0.6.2, on the CPU and for all ranks at once.

    lmdeploy_turbomind_062.py CKPT [--tp N] [--json F] [--out effective.safetensors]

Real is all of LMDeploy's Python: the gates on config.json, the reader, unpacking, rotary reordering, fusion of q, k
and v, padding, packing and the split by ranks. Stubbed are the native extension, which is given what is exported, the
tokenizer and the copies to a GPU. Report:

    lmdeploy, tp    version of LMDeploy; tensor-parallel size
    error           null, or TurboMind's refusal
    model_format    "awq", "gptq" or null

--out: float32 weights under checkpoint names, out of the exported shards of all ranks: (code - zero point) * scale,
both widened to float32 first, put back in order. Llama's linears alone. Nothing is written after a refusal.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import reporting

reporting.use_offline_cpu()

import torch  # noqa: E402

Exported = dict[str, torch.Tensor]


def stub(exported: Exported) -> None:
    """No device, no native extension; what would be copied to it is in `exported`, by name."""
    native = sys.modules["_turbomind"] = types.ModuleType("_turbomind")
    native.__getattr__ = lambda name: type(name, (), {})  # what annotations name
    torch.Tensor.cuda = lambda tensor, *args, **options: tensor
    from lmdeploy.turbomind.deploy.source_model.llama import LlamaModel
    from lmdeploy.turbomind.deploy.target_model.base import BaseOutputModel

    LlamaModel.tokenizer_info = lambda self: (self.model_config["vocab_size"], 1, 2)
    BaseOutputModel.export_weight = lambda self, tensor, name: exported.__setitem__(name, tensor)


def convert(path: str, tp: int) -> Any:
    """Export a checkpoint; the model that LMDeploy makes of it."""
    from lmdeploy.messages import TurbomindEngineConfig
    from lmdeploy.turbomind.deploy.converter import get_tm_model

    config = TurbomindEngineConfig(tp=tp)
    model = get_tm_model(path, "", "", config)
    model.export()
    return model


def effective(model: Any, exported: Exported) -> Iterator[tuple[str, torch.Tensor]]:
    """(checkpoint name, weight [N, K]) of every quantized linear."""
    config, tp = model.model_config, model.tensor_para_size
    heads, kv_heads, size = config.head_num, config.kv_head_num, config.size_per_head
    sizes = [count // tp * size for count in (heads, kv_heads, kv_heads)]
    for layer in range(config.num_layer):
        linear = f"layers.{layer}.attention.{{}}"
        ranks = [rank.split(sizes, dim=1) for rank in _ranks(exported, linear.format("w_qkv"), tp)]
        q, k, v = (torch.cat(parts, 1) for parts in zip(*ranks, strict=True))
        if model.permute_qk:
            q, k = (_in_order(weight, size) for weight in (q, k))
        found = {"q_proj": q, "k_proj": k, "v_proj": v}
        found["o_proj"] = torch.cat(_ranks(exported, linear.format("wo"), tp), 0)
        for leaf, weight in found.items():
            yield f"model.layers.{layer}.self_attn.{leaf}.weight", weight.T
        linear = f"layers.{layer}.feed_forward.{{}}"
        for name, leaf, axis in (("w1", "gate_proj", 1), ("w3", "up_proj", 1), ("w2", "down_proj", 0)):
            weight = torch.cat(_ranks(exported, linear.format(name), tp), axis)
            yield f"model.layers.{layer}.mlp.{leaf}.weight", weight.T


def _ranks(exported: Exported, linear: str, tp: int) -> list[torch.Tensor]:
    """The weights [K, N] of all ranks."""
    return [_weight(*(exported[f"{linear}.{rank}.{part}"] for part in _PARTS)) for rank in range(tp)]


_PARTS = ("qweight", "scales", "zeros")


def _weight(codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor) -> torch.Tensor:
    """codes [K, N / 8], eight of 4 bits in a word, the first lowest; scales and zeros [groups, N]."""
    unpacked = torch.stack([codes >> shift & 15 for shift in range(0, 32, 4)], dim=-1).flatten(1)
    group = unpacked.shape[0] // scales.shape[0]
    widened = (part.float().repeat_interleave(group, 0) for part in (zeros, scales))
    return (unpacked - next(widened)) * next(widened)


def _in_order(weight: torch.Tensor, size: int) -> torch.Tensor:
    """The outputs [K, N] of q or k as the checkpoint has them: halves of a head one after another, not in turns."""
    heads = weight.shape[1] // size
    return weight.view(-1, heads, size // 2, 2).transpose(2, 3).reshape(weight.shape)


def main() -> None:
    parser = reporting.parser(__doc__)
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    import lmdeploy

    report: reporting.Report = {"lmdeploy": lmdeploy.__version__, "tp": args.tp}
    exported: Exported = {}
    stub(exported)
    with reporting.refusal_recorded(report), torch.inference_mode():
        model = convert(args.checkpoint, args.tp)
        report["model_format"] = model.model_config.model_format
        if args.out:
            reporting.save_float32(dict(effective(model, exported)), args.out)
    reporting.write(report, args.json)


if __name__ == "__main__":
    main()
