"""What stands in for a CUDA device and for compiled kernels, so that SGLang's GPU classes load on a CPU.

Loaded by path in SGLang's own Python by prover.py beside it. Packages of kernels are there by name only
(absent_packages.py of the folder above).
"""

from __future__ import annotations

import concurrent.futures
import importlib.util
import sys
import types
from collections.abc import Callable
from typing import Any

# What SGLang imports and nothing here calls, where it is not installed.
PACKAGES = tuple(
    """
    IPython anthropic av blobfile cutlass decord deep_ep deep_gemm deepseek_recipe distro flash_attn flash_mla
    flashinfer grpc humming kernels librosa llguidance mistral_common nvshmem openai_harmony py_spy quack
    sgl_deep_gemm sgl_flash_mla sgl_kernel smg_grpc_servicer soundfile tilelang timm tml_renderers
    torch_memory_saver torchaudio torchcodec torchvision uvloop watchfiles
    """.split()  # noqa: SIM905 - one line for each name is no easier to read
)
KERNELS = "sglang.kernels.ops"  # SGLang's own, which are compiled when they are imported
REPLACED = (".scalar_type",)  # whose absence SGLang mends itself
VERSION = "99.0"
MEMORY = 80 << 30  # bytes of the device that is not there


def _device(gpu: int) -> types.SimpleNamespace:
    """What torch says of a CUDA device of a compute capability."""
    major, minor = divmod(gpu, 10)
    return types.SimpleNamespace(
        major=major,
        minor=minor,
        name="no device",
        total_memory=MEMORY,
        multi_processor_count=132,
        warp_size=32,
        shared_memory_per_multiprocessor=233472,
        regs_per_multiprocessor=65536,
    )


def _answering(value: Any) -> Callable[..., Any]:
    return lambda *args, **options: value


def _stub_cuda(torch: Any, gpu: int, packages: Any) -> None:
    """Let torch speak of CUDA devices; what is made for one is made on the CPU."""
    from torch.overrides import TorchFunctionMode

    answers = {
        "is_available": True,
        "device_count": 64,  # a rank on each
        "current_device": 0,
        "mem_get_info": (MEMORY, MEMORY),
        "get_device_properties": _device(gpu),
        "get_device_name": "no device",
        "get_device_capability": divmod(gpu, 10),
        "set_device": None,
        "synchronize": None,
        "empty_cache": None,
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, _answering(answer))
    torch.cuda.Stream = torch.cuda.Event = packages.Nothing
    torch.version.cuda = "12.8"

    def on_cpu(value: Any) -> Any:
        kind = value.type if isinstance(value, torch.device) else value
        return torch.device("cpu") if isinstance(kind, str) and kind.startswith("cuda") else value

    class OnCpu(TorchFunctionMode):  # type: ignore[misc]
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            given = {name: on_cpu(value) for name, value in (kwargs or {}).items()}
            return function(*map(on_cpu, args), **given)

    OnCpu().__enter__()
    infer = torch.library.infer_schema

    def infer_schema(function: Any, *args: Any, **options: Any) -> Any:
        return "() -> ()" if packages.is_absent(function) else infer(function, *args, **options)

    torch.library.infer_schema = infer_schema


class _Serial(concurrent.futures.Executor):
    """Runs what is submitted at once, in this thread: dispatch modes of torch see no other."""

    def __init__(self, *args: Any, **options: Any) -> None:
        pass

    def submit(self, function: Any, /, *args: Any, **options: Any) -> Any:
        """A future that is done."""
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        try:
            future.set_result(function(*args, **options))
        except Exception as error:
            future.set_exception(error)
        return future


def stand_in(gpu: int, packages: Any) -> Any:
    """Put everything in place, before anything of SGLang is imported; torch. `packages` is absent_packages.py."""
    # transformers must find out for itself that torchvision is not there
    from transformers import AutoConfig, AutoImageProcessor, AutoProcessor, AutoTokenizer  # noqa: F401

    absent = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    sys.meta_path.insert(0, packages.AbsentPackages([*absent, KERNELS], VERSION, REPLACED))
    import torch

    torch.set_num_threads(1)
    concurrent.futures.ThreadPoolExecutor = _Serial  # type: ignore[assignment, misc]
    _stub_cuda(torch, gpu, packages)
    return torch
