"""Load a GPTQ or AWQ checkpoint on the CPU with GPTQModel, or with transformers, which takes its modules from it.

    gptqmodel_load.py CKPT [--loader gptqmodel|transformers] [--json F] [--out dense.safetensors]

Runs in the environment gptqmodel. Report:

    gptqmodel, transformers, loader    versions; the loader that was asked for
    error           null, or what the loader or the forward pass raises
    modules         {class: number} of the quantized modules that were built
    loading         {missing, unexpected, mismatched: [name]}: transformers' own output_loading_info; for GPTQModel,
                    which checks nothing, the names and shapes of its model against those in the files
    defaulted       [name]: buffers that no tensor filled and that have a value of their own without it (g_idx: groups
                    in natural order); not among `missing`
    finite_logits   whether every logit for 16 token ids is finite
    decode_error    null, or what the dequantization for --out raises

--out: float32 `<module>.weight` [N, K] of every quantized module, by the module's own dequantization after loading,
its scales widened to float32 first.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import reporting

reporting.use_offline_cpu()
os.environ["GPTQMODEL_CPU_WORKERS"] = "2"  # on one or two cores it makes its own worker pool too small for itself

import torch  # noqa: E402

KINDS = ("missing", "unexpected", "mismatched")
DEFAULTED = (".g_idx", ".wf_unsqueeze_zero", ".wf_unsqueeze_neg_one")
Loading = dict[str, list[str]]


def load_with_gptqmodel(path: Path) -> tuple[torch.nn.Module, Loading]:
    """The model, in float16 on GPTQModel's torch kernels, and how the files fit it."""
    from gptqmodel import BACKEND, GPTQModel

    model = GPTQModel.load(str(path), backend=BACKEND.TORCH, device="cpu", dtype=torch.float16).model
    built = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    stored = stored_shapes(path)
    if model.config.tie_word_embeddings:
        built.pop("lm_head.weight", None)
    return model, {
        "missing": sorted(built.keys() - stored.keys()),
        "unexpected": sorted(stored.keys() - built.keys()),
        "mismatched": sorted(name for name in built.keys() & stored.keys() if built[name] != stored[name]),
    }


def load_with_transformers(path: Path) -> tuple[torch.nn.Module, Loading]:
    """The model in float16, and transformers' own account of the loading.

    Only the kernel is not the default, which depends on the processor and is compiled on first use.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AwqConfig, GPTQConfig

    options = {}
    block = getattr(AutoConfig.from_pretrained(path), "quantization_config", {})
    if block.get("quant_method") == "gptq":
        options["quantization_config"] = GPTQConfig(bits=block["bits"], backend="gptq_torch")
    elif block.get("quant_method") == "awq":
        options["quantization_config"] = AwqConfig(bits=block["bits"], backend="torch_awq")
    model, info = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float16, device_map="cpu", output_loading_info=True, **options
    )
    return model, {kind: sorted(map(str, info[f"{kind}_keys"])) for kind in KINDS}


def stored_shapes(path: Path) -> dict[str, list[int]]:
    """{name: shape} of every tensor in the checkpoint's safetensors files."""
    from safetensors import safe_open

    shapes = {}
    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            shapes |= {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
    return shapes


def quantized_modules(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """{name: module} of everything that holds packed weights."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "qweight")}


def dequantized(module: Any) -> torch.Tensor:
    """float32 [N, K]; the module cannot be run afterwards."""
    module.scales.data = module.scales.data.float()
    if "awq" in type(module).__name__.lower():
        from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm

        return dequantize_gemm(module.qweight, module.qzeros, module.scales, module.bits, module.group_size).T
    return type(module).dequantize_weight(module).T  # the function of the class: instances may have a compiled one


def load_and_run(path: Path, loader: str, report: reporting.Report) -> torch.nn.Module:
    """Load, compare, then one forward pass."""
    load = {"gptqmodel": load_with_gptqmodel, "transformers": load_with_transformers}[loader]
    model, loading = load(path)
    kinds = [type(module).__name__ for module in quantized_modules(model).values()]
    report["modules"] = {kind: kinds.count(kind) for kind in sorted(set(kinds))}
    report["defaulted"] = [name for name in loading["missing"] if name.endswith(DEFAULTED)]
    loading["missing"] = [name for name in loading["missing"] if not name.endswith(DEFAULTED)]
    report["loading"] = loading
    with torch.no_grad():
        logits = model(torch.arange(16)[None]).logits
    report["finite_logits"] = bool(logits.isfinite().all())
    return model


def main() -> None:
    parser = reporting.parser(__doc__)
    parser.add_argument("--loader", default="gptqmodel", choices=("gptqmodel", "transformers"))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    import gptqmodel
    import transformers

    report: reporting.Report = {
        "gptqmodel": gptqmodel.__version__,
        "transformers": transformers.__version__,
        "loader": args.loader,
    }
    model = None
    with reporting.refusal_recorded(report):
        model = load_and_run(Path(args.checkpoint), args.loader, report)
    if args.out and model is not None:
        outcome: reporting.Report = {}
        with reporting.refusal_recorded(outcome), torch.no_grad():
            weights = {f"{name}.weight": dequantized(module) for name, module in quantized_modules(model).items()}
            reporting.save_float32(weights, args.out)
        report["decode_error"] = outcome["error"]
    reporting.write(report, args.json)


if __name__ == "__main__":
    main()
