"""A GPU that is not there, for vLLM: platform, compiled operators, torch.cuda and Triton as vLLM asks for them.

Loaded by path in vLLM's own Python by prover.py beside it.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Callable
from typing import Any

EXTENSIONS = ("_C", "_moe_C", "_C_cache_ops", "_C_custom_ar", "_qutlass_C", "_C_utils")
# Questions to the compiled kernels, by the compute capability.
QUESTIONS = [
    "cutlass_scaled_mm_supports_fp8",
    "cutlass_scaled_mm_supports_block_fp8",
    "cutlass_scaled_mm_supports_fp4",
    "cutlass_group_gemm_supported",
    "cutlass_sparse_scaled_mm_supported",
    "mxfp4_experts_quant_supported",
]


def _declare_operators(torch: Any) -> list[Any]:
    """Declare an operator of vLLM's extensions when it is first looked up, and answer questions with yes.

    Modules look operators up when they are imported or built; a body is needed by what runs alone. The libraries
    that are given must stay alive.
    """
    libraries = {name: torch.library.Library(name, "FRAGMENT") for name in EXTENSIONS}
    for name in QUESTIONS:
        if not hasattr(torch.ops._C, name):
            libraries["_C"].define(f"{name}(int capability) -> bool")
            libraries["_C"].impl(name, lambda capability: True, "CompositeExplicitAutograd")
    namespace = type(torch.ops._C)
    look_up, declared = namespace.__getattr__, set()

    def declaring(operators: Any, name: str) -> Any:
        try:
            return look_up(operators, name)
        except AttributeError:
            if operators.name not in libraries or name.startswith("__") or (operators.name, name) in declared:
                raise
            declared.add((operators.name, name))
            for overload in ("", ".out"):
                libraries[operators.name].define(f"{name}{overload}() -> ()")
            return look_up(operators, name)

    namespace.__getattr__ = declaring
    return list(libraries.values())


class _Inert:
    """Stands in for a stream or an event; takes any arguments."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass


def _on_the_cpu(make: Callable[..., Any]) -> Callable[..., Any]:
    """What makes a tensor, on the CPU where one on a GPU is asked for: buffers of kernels, made at import."""

    def making(*args: Any, device: Any = None, **more: Any) -> Any:
        return make(*args, device="cpu" if str(device).startswith("cuda") else device, **more)

    return making


class _TritonConfig:
    """What vLLM's modules ask of triton.Config while they are imported."""

    def __init__(self, kwargs: Any = None, num_warps: int = 4, num_stages: int = 2, **more: Any) -> None:
        self.kwargs, self.num_warps, self.num_stages = dict(kwargs or {}), num_warps, num_stages


def _platform(gpu: int) -> Any:
    """vLLM's platform for CUDA with the answers of a device that is not there."""
    from vllm.platforms.cuda import CudaPlatformBase
    from vllm.platforms.interface import DeviceCapability

    answers = {
        "get_device_capability": DeviceCapability(*divmod(gpu, 10)),
        "get_device_name": "NVIDIA H100 80GB HBM3" if gpu == 90 else "no device",
        "get_device_uuid": "no device",
        "get_device_total_memory": 80 << 30,
        "is_fully_connected": True,
        "num_compute_units": 132,
        "device_count": 64,  # a rank on each
        "get_device_communicator_cls": "vllm.distributed.device_communicators.base_device_communicator."
        "DeviceCommunicatorBase",
    }

    def answering(value: Any) -> Any:
        return classmethod(lambda cls, *args, **kwargs: value)

    methods: dict[str, Any] = {name: answering(value) for name, value in answers.items()}
    methods["import_kernels"] = classmethod(lambda cls: None)
    methods["device_type"] = "cpu"  # where buffers are allocated
    return type("StubbedCuda", (CudaPlatformBase,), methods)()


def join(torch: Any, size: int, rank: int) -> None:
    """Become a rank of a group whose other ranks are not there: collectives give back what they are given."""
    import torch.testing._internal.distributed.fake_pg as absent
    from vllm.distributed.device_communicators.shm_broadcast import MessageQueue

    group = torch.distributed.new_group
    torch.distributed.new_group = lambda ranks=None, backend=None, **more: group(ranks, backend="fake", **more)
    torch.distributed.init_process_group("fake", store=absent.FakeStore(), rank=rank, world_size=size)
    MessageQueue.create_from_process_group = staticmethod(lambda *args, **more: None)


def stand_in(gpu: int, packages: Any) -> list[Any]:
    """Put everything in place, before anything of vLLM is imported; what must stay alive.

    `gpu` is the compute capability times ten, `packages` is absent_packages.py.
    """
    absent = [name for name in ("torchvision",) if importlib.util.find_spec(name) is None]
    sys.meta_path.insert(0, packages.AbsentPackages([*absent, "vllm.vllm_flash_attn"]))
    for name in ("_C", "_moe_C", "_C_stable_libtorch", "_moe_C_stable_libtorch"):
        sys.modules[f"vllm.{name}"] = types.ModuleType(f"vllm.{name}")
    import torch

    torch.set_num_threads(1)
    operators = _declare_operators(torch)
    torch.empty = _on_the_cpu(torch.empty)
    torch.cuda.current_device = lambda: "cpu"
    torch.cuda.current_stream = _Inert
    torch.cuda.Stream = torch.cuda.Event = _Inert
    torch.accelerator.current_device_index = lambda: "cpu"
    torch.accelerator.current_accelerator = lambda *args, **kwargs: torch.device("cpu")
    import vllm
    import vllm.platforms

    vllm.platforms.current_platform = _platform(gpu)
    import vllm.vllm_flash_attn.flash_attn_interface as attention

    attention.is_fa_version_supported = lambda version, *args: True
    attention.fa_version_unsupported_reason = lambda version, *args: None
    from vllm.triton_utils import triton

    triton.Config = _TritonConfig
    from vllm.model_executor.layers import sparse_attn_indexer
    from vllm.model_executor.models import registry

    sparse_attn_indexer.has_deep_gemm = lambda *args: True
    registry._run_in_subprocess = lambda function: function()
    return operators
