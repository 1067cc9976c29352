"""Load a checkpoint with the TurboMind engine of LMDeploy 0.6.2, on the CPU and for all ranks at once.

    lmdeploy_turbomind_062.py CKPT [--tp N] [--json F] [--out effective.safetensors]

Real is the Python that gives the engine its weights: the choice of the engine, the gates on config.json, the reader,
unpacking, rotary reordering, fusion of q, k and v, padding of the MLP, packing and the shards of each rank. Left out
are the native extension, which would take each shard, the tokenizer, and the copies to a GPU. Nothing is computed.
Report:

    lmdeploy, tp    version of LMDeploy; tensor-parallel size
    backend         "turbomind" or "pytorch": the engine that LMDeploy picks for the checkpoint if it is not told
    error           null, or what LMDeploy raises; without one, also:
    model_format    "awq", "gptq" or null
    group_size      of the weights, as it reads them
    inter_size      of the MLP, padding included
    shards          number of tensors for all ranks
    unread          [tensor]: of the layers, never asked for

--out: float32 weights of the linears under checkpoint names, out of the shards of all ranks: (code - zero) * scale,
both widened to float32 first, joined, put back in order, and without padding. It knows the dense Llama and Qwen2.
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

Shards = dict[str, torch.Tensor]


class Tokenizer:
    """Stands in for the checkpoint's, of which TurboMind wants three numbers."""

    def __init__(self, path: str) -> None:
        self.vocab_size, self.bos_token_id, self.eos_token_id = 0, 1, 2


class Watched(dict[str, torch.Tensor]):
    """The tensors of a layer, and which of them were asked for."""

    asked: set[str]

    def __getitem__(self, name: str) -> torch.Tensor:
        self.asked.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.asked.add(name)
        return super().get(name, default)


def stub_native() -> None:
    """Leave out what needs CUDA: the extension and the copies."""
    sys.modules["_turbomind"] = types.ModuleType("_turbomind")
    sys.modules["_turbomind"].TensorMap = dict
    torch.Tensor.cuda = lambda tensor, *args, **options: tensor
    torch.cuda.is_bf16_supported = lambda *args, **options: True
    torch.cuda.empty_cache = lambda: None


def load(path: str, tp: int, report: reporting.Report) -> tuple[Any, Shards]:
    """(the model's sizes, the shards of all ranks by TurboMind's names)."""
    from lmdeploy.messages import TurbomindEngineConfig
    from lmdeploy.turbomind.deploy import converter
    from lmdeploy.turbomind.deploy.source_model import llama
    from lmdeploy.turbomind.deploy.target_model.base import BaseOutputModel

    shards: Shards = {}
    stored: set[str] = set()
    asked: set[str] = set()
    llama.Tokenizer = Tokenizer
    create = llama.LlamaReader.__init__

    def create_watched(reader: Any, new_params: dict[str, torch.Tensor], *args: Any, **options: Any) -> None:
        create(reader, new_params, *args, **options)
        reader.params = Watched(reader.params)
        reader.params.asked = asked
        stored.update(reader.params)

    llama.LlamaReader.__init__ = create_watched
    BaseOutputModel.export_weight = lambda self, param, name: shards.update({name: param.clone()})
    model = converter.get_tm_model(path, "model", "base", TurbomindEngineConfig(tp=tp))
    model.export()
    config = model.model_config
    report["model_format"], report["group_size"] = config.model_format, config.group_size
    report["inter_size"], report["shards"] = config.inter_size, len(shards)
    report["unread"] = sorted(name for name in stored - asked if ".layers." in name)
    return config, shards


def effective_weights(config: Any, shards: Shards, inner: int, tp: int) -> Iterator[tuple[str, torch.Tensor]]:
    """(checkpoint name, float32 [N, K]) of every linear of the layers."""
    head = config.size_per_head
    sizes = [heads // tp * head for heads in (config.head_num, config.kv_head_num, config.kv_head_num)]
    for layer in range(config.num_layer):
        place, name = f"layers.{layer}", f"model.layers.{layer}"
        fused = [
            linear(shards, f"{place}.attention.w_qkv.{rank}", config.group_size).split(sizes, 1) for rank in range(tp)
        ]
        for at, leaf in enumerate(("q_proj", "k_proj", "v_proj")):
            rows = torch.cat([parts[at] for parts in fused], 1).T
            yield f"{name}.self_attn.{leaf}", rows if leaf == "v_proj" else halves(rows, head)
        for part, leaf, along in (
            ("attention.wo", "self_attn.o_proj", 0),
            ("feed_forward.w1", "mlp.gate_proj", 1),
            ("feed_forward.w3", "mlp.up_proj", 1),
            ("feed_forward.w2", "mlp.down_proj", 0),
        ):
            whole = torch.cat(
                [linear(shards, f"{place}.{part}.{rank}", config.group_size) for rank in range(tp)], along
            )
            if part.startswith("feed_forward"):
                whole = cropped(whole, inner, along)
            yield f"{name}.{leaf}", whole.T


def linear(shards: Shards, name: str, group: int) -> torch.Tensor:
    """What a kernel multiplies with: float32 [K, N]."""
    packed = shards[f"{name}.qweight"]
    codes = torch.stack([packed >> shift & 15 for shift in range(0, 32, 4)], -1).flatten(-2).float()
    scales, zeros = (shards[f"{name}.{kind}"].float().repeat_interleave(group, 0) for kind in ("scales", "zeros"))
    return (codes - zeros) * scales


def cropped(whole: torch.Tensor, inner: int, along: int) -> torch.Tensor:
    """Without what TurboMind added, which must be zero."""
    if whole.narrow(along, inner, whole.shape[along] - inner).any():
        raise ValueError("a weight of the padding is not zero")
    return whole.narrow(along, 0, inner)


def halves(rows: torch.Tensor, head: int) -> torch.Tensor:
    """Put rotary pairs, which are neighbours in TurboMind, half a head apart again."""
    return rows.unflatten(0, (-1, head // 2, 2)).transpose(1, 2).flatten(0, 2)


def main() -> None:
    parser = reporting.parser(__doc__)
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    stub_native()
    import lmdeploy
    from lmdeploy.archs import autoget_backend, get_model_arch

    report: reporting.Report = {"lmdeploy": lmdeploy.__version__, "tp": args.tp}
    loaded = None
    with reporting.refusal_recorded(report), torch.inference_mode():
        report["backend"] = autoget_backend(args.checkpoint)
        loaded = load(args.checkpoint, args.tp, report)
    if loaded is not None and args.out:
        inner = get_model_arch(args.checkpoint)[1].intermediate_size
        weights = effective_weights(*loaded, inner, args.tp)
        reporting.save_float32({f"{name}.weight": tensor for name, tensor in weights}, args.out)
    reporting.write(report, args.json)


if __name__ == "__main__":
    main()
