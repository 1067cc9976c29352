"""Ask vLLM's own code which kernel a weight-only linear would get on CUDA devices, without one.

    vllm_kernels.py CELLS.json [--json F]

CELLS.json is a list of linears as one rank sees them: the fields of `qbridge.targets.vllm.kernels.Linear`, and

    capability    of the device: 80 for 8.0
    humming       whether the package humming is installed

Real: the format's config and linear method (get_quant_method, create_weights), the check of the dtype, the order of
the kernels, choose_mp_linear_kernel and every kernel's can_implement. Stubbed: the device, which is vLLM's own CUDA
platform with another capability; the extension that this platform imports; the presence of humming; the rank, which
is the first of one. Weights are on the device "meta". Nothing is loaded or computed. Report:

    vllm      version
    cells     [one per cell], in order:
        kernel     name of the class that serves the linear, AutoAWQLinearMethod if no kernel was asked; or null
        error      null, or vLLM's refusal
        refused    [[kernel, why], ...]: those before it, or all of them, in vLLM's order
        groups     rows of scales that the rank gets; null if refused
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from unittest.mock import patch

import reporting

reporting.use_offline_cpu()
os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"

import torch  # noqa: E402

Cell = dict[str, Any]
NAME = "model.layers.0.mlp.down_proj"


def cuda_platform(capability: int) -> Any:
    """vLLM's platform for CUDA, on a device that says it has some capability."""
    sys.modules.setdefault("vllm._C_stable_libtorch", ModuleType("vllm._C_stable_libtorch"))
    from vllm.platforms.cuda import CudaPlatformBase
    from vllm.platforms.interface import DeviceCapability

    class Device(CudaPlatformBase):
        @classmethod
        def get_device_capability(cls, device_id: int = 0) -> DeviceCapability:
            return DeviceCapability(*divmod(capability, 10))

        @classmethod
        def get_device_name(cls, device_id: int = 0) -> str:
            return "stubbed"

    return Device()


@contextmanager
def device(capability: int, humming: bool) -> Iterator[Any]:
    """Every module of vLLM sees that device; each has a reference of its own."""
    import vllm.platforms
    from vllm.model_executor.kernels.linear.mixed_precision import humming as kernel

    platform, real = cuda_platform(capability), vllm.platforms.current_platform
    modules = [module for name, module in sys.modules.items() if name.partition(".")[0] == "vllm"]
    holders = [module for module in modules if vars(module).get("current_platform") is real]
    for module in holders:
        module.current_platform = platform
    try:
        with patch.object(kernel, "has_humming", lambda: humming):
            yield platform
    finally:
        for module in holders:
            module.current_platform = real


def layer(cell: Cell) -> Any:
    """A linear that knows its sizes and nothing else."""
    from vllm.model_executor.layers.linear import LinearBase

    dtype = getattr(torch, cell["dtype"])
    made = LinearBase(cell["in_features_whole"], cell["out_features"], params_dtype=dtype, disable_tp=True)
    made.input_size_per_partition = cell["in_features"]
    made.output_size_per_partition = cell["out_features"]
    made.output_partition_sizes = [cell["out_features"]]
    return made


def method(cell: Cell, linear: Any) -> Any:
    """What the config of the cell's format gives to a linear."""
    from vllm.model_executor.layers.quantization.auto_awq import AutoAWQConfig
    from vllm.model_executor.layers.quantization.auto_gptq import AutoGPTQConfig
    from vllm.model_executor.layers.quantization.compressed_tensors.schemes import CompressedTensorsWNA16

    bits, group, symmetric = cell["bits"], cell["group_size"], cell["symmetric"]
    if cell["format"] == "compressed-tensors":
        strategy = "channel" if group == -1 else "group"
        return CompressedTensorsWNA16(strategy, bits, None if group == -1 else group, symmetric, NAME)
    if cell["format"] == "awq":
        config: Any = AutoAWQConfig(bits, group, not symmetric, False)
    else:
        config = AutoGPTQConfig(bits, group, False, symmetric, False, {}, {}, [NAME])
    return config.get_quant_method(linear, NAME)


def answer(cell: Cell) -> dict[str, Any]:
    """What vLLM makes of one linear."""
    from vllm.model_executor.kernels import linear as kernels
    from vllm.model_executor.layers.quantization import auto_awq, auto_gptq
    from vllm.model_executor.layers.quantization.compressed_tensors.schemes import compressed_tensors_wNa16

    asked: list[Any] = []

    def choose(config: Any) -> Any:
        asked.append(config)
        return kernels.choose_mp_linear_kernel(config)

    said: dict[str, Any] = {"kernel": None, "groups": None}
    with device(cell["capability"], cell["humming"]) as platform, torch.device("meta"):
        with reporting.refusal_recorded(said):
            dtype = getattr(torch, cell["dtype"])
            platform.check_if_supports_dtype(dtype)
            linear = layer(cell)
            serves = method(cell, linear)
            with (
                patch.object(auto_gptq, "choose_mp_linear_kernel", choose),
                patch.object(auto_awq, "choose_mp_linear_kernel", choose),
                patch.object(compressed_tensors_wNa16, "choose_mp_linear_kernel", choose),
            ):
                serves.create_weights(
                    layer=linear,
                    input_size_per_partition=cell["in_features"],
                    output_partition_sizes=[cell["out_features"]],
                    input_size=cell["in_features_whole"],
                    output_size=cell["out_features"],
                    params_dtype=dtype,
                    weight_loader=lambda *_: None,
                )
            scales = linear.scales if hasattr(linear, "scales") else linear.weight_scale.t()
            said |= {"kernel": type(getattr(serves, "kernel", serves)).__name__, "groups": scales.shape[0]}
        said["refused"] = [refusal for config in asked for refusal in refusals(config, cell["capability"])]
    return said


def refusals(config: Any, capability: int) -> list[list[str]]:
    """The kernels that do not take a linear, up to the first that does, with their reasons."""
    from vllm.model_executor.kernels import linear as kernels

    listed = kernels._POSSIBLE_KERNELS[kernels.current_platform._enum]
    order = kernels._resolve_backend_kernels(
        listed, "mixed-precision", quantization="mixed_precision", compute_capability=capability
    )
    found: list[list[str]] = []
    for kernel in order:
        taken, why = False, f"requires capability {kernel.get_min_capability()}"
        if kernel.get_min_capability() <= capability:
            taken, why = kernel.can_implement(config)
        if taken:
            break
        found.append([kernel.__name__, why])
    return found


def main() -> None:
    parser = reporting.parser(__doc__)
    args = parser.parse_args()
    with open(args.checkpoint) as file:
        cells = json.load(file)
    import vllm
    import vllm.model_executor.parameter as parameter

    with (
        patch.object(parameter, "get_tensor_model_parallel_rank", lambda: 0),
        patch.object(parameter, "get_tensor_model_parallel_world_size", lambda: 1),
    ):
        said = [answer(cell) for cell in cells]
    reporting.write({"vllm": vllm.__version__, "cells": said}, args.json)


if __name__ == "__main__":
    main()
