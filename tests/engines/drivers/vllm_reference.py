"""Pack codes and scales with vLLM's own reference functions, on the CPU.

    vllm_reference.py IN.safetensors OUT.safetensors --bits 4|8 --group G [--json F]

Runs in the environment vllm. IN holds, for one linear (N = out_features, K = in_features, b = bits, P = 32 / b):

    codes     int32 [K, N]      unsigned: 0 to 2^b - 1
    scales    float16 [G, N]    G = K / group, or 1 for group -1
    zeros     int32 [G, N]      optional, unsigned, as they are

OUT holds what the functions in brackets make of them; those that refuse leave no tensor:

    marlin_B        int32 [K / 16, 16 N / P]    (marlin_weights, get_weight_perm)
    marlin_s        float16 [G, N]              (marlin_permute_scales)
    gptq_qweight    int32 [K / P, N]            (gptq_pack)
    gptq_qzeros     int32 [G, N / P]            (pack_cols) of the zeros as they are: gptq_v2, not minus 1
    awq_qweight     int32 [K, N / P]            (awq_pack)
    awq_qzeros      int32 [G, N / P]            (awq_pack)

Report:

    vllm, bits, group    version; as asked for
    error                null, or why IN cannot be read or its tensors do not fit
    tensors              {name: shape} of OUT
    refused              {name: {type, message}}: what the function raises
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import reporting

reporting.use_offline_cpu()

import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

Tensors = dict[str, torch.Tensor]


def checked(tensors: Tensors, bits: int, group: int) -> Tensors:
    """The tensors, unless one has another shape, type or range than the functions take for granted."""
    columns, rows = tensors["codes"].shape
    groups = 1 if group == -1 else columns // group
    wanted = {"codes": (torch.int32, columns), "scales": (torch.float16, groups), "zeros": (torch.int32, groups)}
    for name, tensor in tensors.items():
        dtype, length = wanted[name]
        if tensor.dtype != dtype or tuple(tensor.shape) != (length, rows):
            raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, not {dtype} {(length, rows)}")
        if name != "scales" and not 0 <= int(tensor.min()) <= int(tensor.max()) < 1 << bits:
            raise ValueError(f"{name} are not unsigned numbers of {bits} bits")
    return tensors


def recipes(tensors: Tensors, bits: int, group: int) -> dict[str, Callable[[], torch.Tensor]]:
    """How to make each tensor of OUT."""
    from vllm.model_executor.layers.quantization.utils import marlin_utils, marlin_utils_test, quant_utils

    codes, scales, zeros = tensors["codes"], tensors["scales"], tensors.get("zeros")
    columns, rows = codes.shape
    made: dict[str, Callable[[], torch.Tensor]] = {
        "marlin_B": lambda: marlin_utils_test.marlin_weights(
            codes, columns, rows, bits, marlin_utils_test.get_weight_perm(bits)
        ),
        "marlin_s": lambda: marlin_utils.marlin_permute_scales(scales, columns, rows, group),
        "gptq_qweight": lambda: quant_utils.gptq_pack(codes, bits, columns, rows),
        "awq_qweight": lambda: quant_utils.awq_pack(codes, bits, columns, rows),
    }
    if zeros is not None:
        made["gptq_qzeros"] = lambda: quant_utils.pack_cols(zeros, bits, len(zeros), rows)
        made["awq_qzeros"] = lambda: quant_utils.awq_pack(zeros, bits, len(zeros), rows)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="IN.safetensors", help="codes, scales and maybe zeros")
    parser.add_argument("target", type=Path, metavar="OUT.safetensors", help="file for the packed tensors")
    parser.add_argument("--bits", type=int, choices=(4, 8), required=True)
    parser.add_argument("--group", type=int, required=True, help="columns that share a scale; -1: all of them")
    parser.add_argument("--json", type=Path, metavar="F", help="file for the report; default: standard output")
    args = parser.parse_args()
    import vllm

    report: reporting.Report = {"vllm": vllm.__version__, "bits": args.bits, "group": args.group}
    made: Tensors = {}
    refused = {}
    with reporting.refusal_recorded(report):
        tensors = checked(load_file(args.source), args.bits, args.group)
        for name, recipe in recipes(tensors, args.bits, args.group).items():
            try:
                made[name] = recipe().contiguous()
            except Exception as error:
                refused[name] = reporting.describe(error)
        save_file(made, args.target)
    report |= {"tensors": {name: list(tensor.shape) for name, tensor in made.items()}, "refused": refused}
    reporting.write(report, args.json)


if __name__ == "__main__":
    main()
