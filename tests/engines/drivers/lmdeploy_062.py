"""Load a checkpoint with the PyTorch engine of LMDeploy 0.6.2, on the CPU and rank by rank.

    lmdeploy_062.py CKPT [--tp N] [--json F] [--out effective.safetensors]

Report:

    lmdeploy, tp    version of LMDeploy; tensor-parallel size
    error           null, or what LMDeploy raises while it parses the config, builds the model or loads
    model_dtype     "float16": what LMDeploy computes in
    rope            {inv_freq: [head_dim / 2], scaling_factor}: of the model's rotary embedding
    ranks           [{rank, linears, missing}] of the ranks that load:
        linears     {class of linear layer: count}: W8A8Linear where the quantization is understood
        missing     [parameter]: not filled, at least in part; LMDeploy would run with random memory

--out: float32 weights under checkpoint names, put together from all ranks: of AwqLinear what dequantize_gemm makes of
scales widened to float32, of W8A8Linear weight * scale (all [N, K]). Nothing is written if LMDeploy refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import reporting

reporting.use_offline_cpu()

import torch  # noqa: E402
from lmdeploy_loading import (  # noqa: E402
    PACKED,
    Piece,
    inert_operator,
    join,
    linear_pieces,
    rotary_embedding,
    unfilled_parameters,
)

# These operators hold no weights and exist for CUDA only, or import what needs CUDA.
CUDA_OPERATORS = ("Attention", "ApplyRotaryEmb", "SiluAndMul")


class InertBuilder:
    """Builds nothing; stands in for the builder of a CUDA operator."""

    @staticmethod
    def build(*args: Any, **options: Any) -> Any:
        return inert_operator()


def stub_cuda() -> None:
    """Leave out the CUDA operators without weights; AWQ's, which is another package's, is that of the CPU."""
    from lmdeploy.pytorch.backends.cuda.op_backend import CudaOpsBackend
    from lmdeploy.pytorch.backends.default.awq_modules import DefaultLinearW4A16Builder

    get_builder = CudaOpsBackend.get_layer_impl_builder

    def get_builder_on_cpu(kind: Any) -> Any:
        if kind.name == "LinearW4A16":
            return DefaultLinearW4A16Builder
        return InertBuilder if kind.name in CUDA_OPERATORS else get_builder(kind)

    CudaOpsBackend.get_layer_impl_builder = get_builder_on_cpu
    torch.cuda.get_device_capability = lambda *args: (7, 5)


def effective_pieces(model: torch.nn.Module) -> Iterator[tuple[str, Piece]]:
    """(checkpoint name, this rank's piece) of every linear."""
    for name, module in model.named_modules():
        if hasattr(module, "colwise"):
            yield from linear_pieces(name, module, PACKED, _dequantized(module))


def _dequantized(linear: Any) -> torch.Tensor:
    """float32 [N, K]: what the kernel multiplies with."""
    if hasattr(linear, "qweight"):
        from lmdeploy.pytorch.backends.default.awq_modules import dequantize_gemm

        packed = (linear.qweight.data, linear.qzeros.data, linear.scales.data.float())
        return dequantize_gemm(*packed, linear.w_bit, linear.group_size).T
    weight = linear.weight.data.float()
    return weight * linear.scale.data if hasattr(linear, "scale") else weight


def load_rank(path: str, tp: int, rank: int, report: reporting.Report) -> dict[str, Piece]:
    """Build and load one rank, append what was seen to the report, return its pieces."""
    from lmdeploy.pytorch.config import ModelConfig
    from lmdeploy.pytorch.distributed import DistContext, get_dist_manager
    from lmdeploy.pytorch.models.patch import build_patched_model
    from lmdeploy.pytorch.weight_loader.model_weight_loader import ModelWeightLoader

    config = ModelConfig.from_pretrained(path)
    report["model_dtype"] = str(config.dtype).removeprefix("torch.")
    get_dist_manager().set_context(DistContext(rank=rank, world_size=tp))
    model = build_patched_model(config, device=torch.device("cpu"))
    report["rope"] = rotary_embedding(model)
    linears = Counter(type(m).__name__ for m in model.modules() if type(m).__name__.endswith("Linear"))
    missing = unfilled_parameters(model, lambda: ModelWeightLoader(path).load_model_weights(model))
    if config.hf_config.tie_word_embeddings:  # LMDeploy points lm_head at the embedding after loading
        missing = [name for name in missing if name != "lm_head.weight"]
    report["ranks"].append({"rank": rank, "linears": dict(linears), "missing": missing})
    return dict(effective_pieces(model))


def main() -> None:
    parser = reporting.parser(__doc__)
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    import lmdeploy

    stub_cuda()
    report: reporting.Report = {"lmdeploy": lmdeploy.__version__, "tp": args.tp, "ranks": []}
    pieces = []
    with reporting.refusal_recorded(report), torch.inference_mode():
        pieces = [load_rank(args.checkpoint, args.tp, rank, report) for rank in range(args.tp)]
    if args.out and report["error"] is None:
        reporting.save_float32(join(pieces), args.out)
    reporting.write(report, args.json)


if __name__ == "__main__":
    main()
