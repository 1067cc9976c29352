"""Load a float8 checkpoint in vLLM's CPU build and generate from it, on a CPU that its kernels refuse.

    vllm_fp8.py CKPT [--kernel vllm|reference] [--dtype bfloat16] [--json F]

Config, schemes, weight loaders, fusing and what is done after loading are vLLM's. The matrix product is, with

- `vllm`, that of vLLM's own kernels for blocks (its inputs stay bfloat16) and for one scale per tensor. They ask for
  AMX tiles before they start, and then multiply through oneDNN, which needs AVX-512 with bfloat16: that question is
  answered with yes here. Scales per channel have a kernel that asks for nothing.
- `reference`, weight * scale in float32, inputs not quantized: any scales, on any machine.

The report is that of `vllm_cpu.py`.
"""

from __future__ import annotations

from typing import Any

import reporting
import vllm_cpu


class ReferenceKernel:
    """Stands for any float8 kernel: [N, K] codes with scales per block, or [K, N] per tensor or channel."""

    def __init__(self, *args: Any, **options: Any) -> None:
        """Take whatever a kernel is told."""

    def input_quant_key(self) -> None:
        """Inputs come as they are."""

    def process_weights_after_loading(self, layer: Any) -> None:
        """Leave the weights as they are."""

    def apply_weights(self, layer: Any, x: Any, bias: Any = None) -> Any:
        """x W^T + bias in float32, in the dtype of x."""
        import torch

        bias = None if bias is None else bias.float()
        return torch.nn.functional.linear(x.float(), weight_of(layer), bias).to(x.dtype)


def weight_of(layer: Any) -> Any:
    """float32 [N, K]."""
    weight, scale = layer.weight.float(), getattr(layer, "weight_scale_inv", None)
    scale = layer.weight_scale if scale is None else scale
    if getattr(layer, "weight_block_size", None) is None:
        return weight.t() * scale.reshape(-1, 1)
    rows, columns = layer.weight_block_size
    spread = scale.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
    return weight * spread[: weight.shape[0], : weight.shape[1]]


def replace_kernels() -> None:
    """Where vLLM chooses a kernel, and where it rounds to float8 with an operator that a CPU lacks."""
    import torch
    from vllm import _custom_ops
    from vllm.model_executor.layers.quantization import fp8, modelopt
    from vllm.model_executor.layers.quantization.compressed_tensors.schemes import compressed_tensors_w8a8_fp8

    for module in (fp8, modelopt, compressed_tensors_w8a8_fp8):
        module.init_fp8_linear_kernel = ReferenceKernel

    def scaled_fp8_quant(values: Any, scale: Any, *args: Any, **options: Any) -> tuple[Any, Any]:
        largest = torch.finfo(torch.float8_e4m3fn).max
        return (values.float() / scale).clamp(-largest, largest).to(torch.float8_e4m3fn), scale

    _custom_ops.scaled_fp8_quant = scaled_fp8_quant
    compressed_tensors_w8a8_fp8.CompressedTensorsW8A8Fp8.get_min_capability = classmethod(lambda cls: 0)


def admit_kernels() -> None:
    """Let vLLM choose its kernels of bfloat16 times float8, which it reserves for CPUs with AMX tiles."""
    import torch
    from vllm.model_executor.kernels.linear.scaled_mm import cpu

    if not torch.cpu._is_avx512_bf16_supported():
        raise SystemExit("vLLM's float8 kernels need AVX-512 with bfloat16")
    for kernel in (cpu.CPUFp8BlockScaledMMKernel, cpu.CPUFp8PerTensorScaledMMLinearKernel):
        kernel.is_supported = classmethod(lambda cls, compute_capability=None: (True, None))


def main() -> None:
    parser = reporting.parser(__doc__)
    parser.add_argument("--kernel", default="reference", choices=("vllm", "reference"))
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16"))
    args = parser.parse_args()
    vllm_cpu.set_environment(1)
    import vllm

    {"vllm": admit_kernels, "reference": replace_kernels}[args.kernel]()
    ids = vllm_cpu.prompt(args.checkpoint)
    report: reporting.Report = {"vllm": vllm.__version__, "dtype": args.dtype, "prompt": ids}
    with reporting.refusal_recorded(report):
        report |= vllm_cpu.generate(args.checkpoint, 1, args.dtype, ids)
    reporting.write(report, args.json)


if __name__ == "__main__":
    main()
