"""Load a checkpoint with the PyTorch engine of LMDeploy 0.18.0, on the CPU and rank by rank.

    lmdeploy_018.py CKPT [--tp N] [--json F] [--out effective.safetensors]

Report:

    lmdeploy, tp    version of LMDeploy; tensor-parallel size
    error           null, or LMDeploy's refusal to parse the config or to build the model
    model_dtype     "float16": what LMDeploy computes in
    quant_config    its QuantizationConfig as parsed: quant_method, quant_dtype, bits, group_size, ...
    rope            {inv_freq: [head_dim / 2], scaling_factor}: of the model's rotary embedding
    ranks           one object per rank that could be built:
        rank
        missing     [parameter]: not filled, at least in part; LMDeploy would run with random memory
        unexpected  [{tensor, error}]: tensors that LMDeploy raises at
        misshapen   [{tensor, parameter, given, expected, error}]: tensors that do not fit
        lossy_casts [{tensor, parameter, given, stored}]: values changed by a silent cast
        unquantized [module]: linears of the decoder layers that LMDeploy built for 16-bit weights
        misfed      [{norm, reader}]: the norm hands out int8 codes and scales, which its reader does not take;
                    LMDeploy loads such a model and fails in the forward pass, or computes nonsense

--out: float32 weights under checkpoint names, put together from all ranks: of smooth_quant linears and experts
weight * scale, of awq linears what dequantize_gemm makes of scales widened to float32, of fp8 linears what their own
get_unquantized_weight gives, or weight * weight_scale (all [N, K]), and their input_scale [1]; biases, norms,
embeddings. Nothing is written if LMDeploy refused. In models with LMDeploy's own embedding (Qwen3, Qwen3-MoE) the
row of pad_token_id is zero, as LMDeploy makes it. With more ranks than key heads, k and v hold a copy per rank.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import reporting

reporting.use_offline_cpu()

import torch  # noqa: E402
from lmdeploy_loading import (  # noqa: E402
    PACKED,
    Piece,
    Sharding,
    inert_operator,
    join,
    linear_pieces,
    rotary_embedding,
    unfilled_parameters,
)

# Who reads the output of a norm, by names within its parent; q_norm and k_norm feed the rotary embedding.
READERS = {
    "input_layernorm": ["self_attn.qkv_proj"],
    "post_attention_layernorm": ["mlp.gate_up_proj", "mlp.gate", "block_sparse_moe.gate"],
    "q_norm": ["apply_rotary_pos_emb"],
    "k_norm": ["apply_rotary_pos_emb"],
}


def stub_cuda() -> None:
    """Answer the questions to a CUDA device; leave out attention, whose operator exists for CUDA only."""
    from lmdeploy.pytorch import config
    from lmdeploy.pytorch.backends.attention import PagedAttentionBuildSpec
    from lmdeploy.pytorch.backends.cuda.op_backend import CudaOpsBackend

    build_op = CudaOpsBackend.build_op

    def build_op_on_cpu(spec: Any, **options: Any) -> Any:
        return inert_operator() if isinstance(spec, PagedAttentionBuildSpec) else build_op(spec, **options)

    CudaOpsBackend.build_op = build_op_on_cpu
    config.is_bf16_supported = lambda *args: True
    torch.cuda.get_device_capability = lambda *args: (9, 0)


def build(path: str, tp: int, rank: int, report: reporting.Report) -> torch.nn.Module:
    """The model of one rank, its parameters uninitialised."""
    from lmdeploy.pytorch.config import DistConfig, ModelConfig
    from lmdeploy.pytorch.distributed import DistContext, DistGroup, get_dist_manager
    from lmdeploy.pytorch.model_inputs import BuildModelContext
    from lmdeploy.pytorch.models.patch import build_patched_model

    dist = DistConfig(tp=tp)
    config = ModelConfig.from_pretrained(path, dist_config=dist)
    report["model_dtype"] = str(config.dtype).removeprefix("torch.")
    report["quant_config"] = {key: _plain(value) for key, value in vars(config.quant_config).items()}
    group = DistGroup(rank=rank)
    context = DistContext(
        rank=rank,
        dist_config=dist,
        tp_group=group,
        attn_tp_group=group,
        mlp_tp_group=group,
        moe_tp_group=group,
    )
    # Not left again: the weight loaders ask for the rank as well.
    get_dist_manager().set_context(context)
    options = BuildModelContext(quant_config=config.quant_config, tie_word_embeddings=config.tie_word_embeddings)
    return build_patched_model(config, device=torch.device("cpu"), build_model_ctx=options)


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, (bool, int, float, str, list)) else str(value)


class Watch:
    """Replaces load_weight in the model's module, notes what goes wrong, and calls the real one."""

    def __init__(self, model: torch.nn.Module, findings: dict[str, Any]) -> None:
        from lmdeploy.pytorch.weight_loader.model_weight_loader import load_weight

        self.load_weight = load_weight
        self.names = {id(parameter): name for name, parameter in model.named_parameters()}
        self.findings = findings
        self.tensor = ""

    def __call__(self, parameter: torch.nn.Parameter, weight: torch.Tensor, **options: Any) -> None:
        where = {"tensor": self.tensor, "parameter": self.names[id(parameter)]}
        stored = weight.to(parameter.dtype)
        if not torch.allclose(stored.double(), weight.double(), rtol=0, atol=0, equal_nan=True):
            dtypes = {"given": str(weight.dtype), "stored": str(parameter.dtype)}
            self.findings["lossy_casts"].append({**where, **dtypes})
        try:
            self.load_weight(parameter, weight, **options)
        except (AssertionError, RuntimeError) as error:
            shapes = {"given": list(weight.shape), "expected": list(parameter.shape)}
            self.findings["misshapen"].append({**where, **shapes, "error": reporting.describe(error)})


def load(model: torch.nn.Module, path: str) -> dict[str, Any]:
    """Feed every tensor of the checkpoint, one by one so that each finding has its tensor's name."""
    from lmdeploy.pytorch.weight_loader.model_weight_loader import ModelWeightLoader

    findings: dict[str, Any] = {"unexpected": [], "misshapen": [], "lossy_casts": []}
    watch = Watch(model, findings)
    sys.modules[type(model).__module__].load_weight = watch
    loader = ModelWeightLoader(path)
    for shard in sorted(loader._shard_paths):
        tensors = loader._rename_weights_iterator(loader._get_weights_iterator(shard), model)
        for watch.tensor, tensor in tensors:
            try:
                model.load_weights([(watch.tensor, tensor)])
            except KeyError as error:
                finding = {"tensor": watch.tensor, "error": reporting.describe(error)}
                findings["unexpected"].append(finding)
    return findings


def unquantized_linears(model: torch.nn.Module) -> list[str]:
    """Names of the linears in decoder layers that were built without quantization."""
    from lmdeploy.pytorch.nn.linear.base import LinearBase

    linears = {name: module for name, module in model.named_modules() if isinstance(module, LinearBase)}
    return [name for name, module in linears.items() if ".layers." in name and not is_quantized(module)]


def is_quantized(module: torch.nn.Module) -> bool:
    """Whether LMDeploy built a linear for smooth_quant, awq or fp8."""
    return any(hasattr(module, name) for name in ("scale", "qweight", "weight_scale_inv", "weight_scale"))


def misfed_readers(model: torch.nn.Module) -> list[dict[str, str]]:
    """Norms fused with quantization whose output goes to something other than a quantized linear."""
    from lmdeploy.pytorch.backends.qmodules import RMSNormW8A8Impl

    modules = dict(model.named_modules())
    norms = [name for name, m in modules.items() if isinstance(getattr(m, "impl", None), RMSNormW8A8Impl)]
    found = []
    for norm in norms:
        parent, _, leaf = norm.rpartition(".")
        readers = [f"{parent}.{reader}" for reader in READERS[leaf] if f"{parent}.{reader}" in modules]
        found += [{"norm": norm, "reader": reader} for reader in readers if not hasattr(modules[reader], "scale")]
    return found


def effective_pieces(model: torch.nn.Module) -> Iterator[tuple[str, Piece]]:
    """(checkpoint name, this rank's piece) of everything that holds values."""
    from lmdeploy.pytorch.nn.linear.base import LinearBase
    from lmdeploy.pytorch.nn.moe.default import LinearWeights

    for name, module in model.named_modules():
        if isinstance(module, LinearBase):
            packed = getattr(model, "packed_modules_mapping", PACKED)
            yield from linear_pieces(name, module, packed, _dequantized(module))
        elif isinstance(module, LinearWeights):
            yield from _expert_pieces(name, module)
        elif not any(module.children()):
            for leaf, parameter in module.named_parameters(recurse=False):
                yield f"{name}.{leaf}", Piece(parameter.data, "whole")


def _expert_pieces(name: str, experts: Any) -> Iterator[tuple[str, Piece]]:
    """LMDeploy stacks the experts, and gate on up: [experts, N, K]."""
    parent, _, leaf = name.rpartition(".")
    original = "block_sparse_moe" in parent  # Mixtral, which LMDeploy reads under its original names
    parts = {
        "gate_up": ("w1", "w3") if original else ("gate_proj", "up_proj"),
        "down": ("w2",) if original else ("down_proj",),
    }[leaf]
    along: Sharding = "columns" if leaf == "down" else "rows"
    for index, weight in enumerate(_dequantized(experts)):
        for part, rows in zip(parts, weight.chunk(len(parts)), strict=True):
            yield f"{parent}.{index}.{part}.weight", Piece(rows, along)


def _dequantized(linear: Any) -> torch.Tensor:
    """float32 [N, K] or [experts, N, K]: what the kernel multiplies with, the scales of awq widened to float32."""
    if hasattr(linear, "qweight"):
        from lmdeploy.pytorch.backends.default.awq_modules import dequantize_gemm

        packed = (linear.qweight.data, linear.qzeros.data, linear.scales.data.float())
        return dequantize_gemm(*packed, linear.w_bit, linear.group_size).T
    if hasattr(linear, "get_unquantized_weight") and hasattr(linear, "weight_scale_inv"):
        return linear.get_unquantized_weight(torch.float32)
    if hasattr(linear, "weight_scale"):
        return linear.weight.data.float() * linear.weight_scale.data[:, None]
    weight = linear.weight.data.float()
    return weight * linear.scale.data if hasattr(linear, "scale") else weight


def load_rank(path: str, tp: int, rank: int, report: reporting.Report) -> dict[str, Piece]:
    """Load one rank, append its findings to the report, return its pieces."""
    model = build(path, tp, rank, report)
    report["rope"] = rotary_embedding(model)
    findings: list[dict[str, Any]] = []
    missing = unfilled_parameters(model, lambda: findings.append(load(model, path)))
    if model.config.tie_word_embeddings:  # LMDeploy points lm_head at the embedding after loading
        missing = [name for name in missing if name != "lm_head.weight"]
        model.lm_head.weight = model.model.embed_tokens.weight
    built = {"unquantized": unquantized_linears(model), "misfed": misfed_readers(model)}
    report["ranks"].append({"rank": rank, "missing": missing, **findings[0], **built})
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
    if args.out and pieces:
        reporting.save_float32(join(pieces), args.out)
    reporting.write(report, args.json)


if __name__ == "__main__":
    main()
