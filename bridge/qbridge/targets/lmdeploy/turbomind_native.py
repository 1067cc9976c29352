"""What stands in for the native extension of LMDeploy 0.18.0's TurboMind; loaded by path in LMDeploy's own Python.

Its modules record the shards that they are given instead of taking them to a GPU, and its planner answers with the
limits of devices before Hopper (sm 7.0 to 8.9) and of Blackwell:

    4-bit weights       K a multiple of the group and N of 8 on every rank, float16 only
    fp8 weights         K a multiple of 128 and N of 8 on every rank, bfloat16 only
    MXFP4               K a multiple of 32 and N of 8 on every rank
    16-bit weights      no limits, float16 or bfloat16

Scales and zero points are cast to the dtype of the computation, gate and up are not interleaved. Hopper (sm 9.0) has
other limits: K and N multiples of 64. Nothing is computed.
"""

from __future__ import annotations

import contextlib
import copy
import enum
import math
import sys
import types
from typing import Any, NamedTuple

import torch

# bits of the native data types that LMDeploy's Python names
DATA_TYPES = {
    "INVALID": 0,
    "INT8": 8,
    "INT32": 32,
    "INT64": 64,
    "UINT8": 8,
    "FP16": 16,
    "FP32": 32,
    "BF16": 16,
    "FP8_E4M3": 8,
    "FP4_E2M1": 4,
    "UINT4": 4,
    "GENERIC_FLOAT": 0,
}
_enumerate: Any = enum.Enum
DataType: Any = _enumerate("DataType", [f"TYPE_{name}" for name in DATA_TYPES])
ActivationType: Any = _enumerate("ActivationType", ["kSilu", "kSiluGptOss"])
NormType: Any = _enumerate("NormType", ["LAYER_NORM", "RMS_NORM"])


class Config:
    """Any of the native config structs: fields as they are set."""

    data_type = None
    tp_rank = 0
    is_expert = False

    def __init__(self, **fields: Any) -> None:
        """Fields as they are given."""
        self.rope = types.SimpleNamespace()
        vars(self).update(fields)

    def clone(self) -> Config:
        """A copy, as Builder makes one per rank."""
        return copy.deepcopy(self)


class DataFormat(NamedTuple):
    """How a weight is stored; blocks are (along K, along N)."""

    weight_dtype: Any
    blocks: list[int]
    scales_dtype: Any
    zeros_dtype: Any


class Planner:
    """The native Gemm, which knows the kernels of a device."""

    def data_types(self, stored: DataFormat) -> list[Any]:
        """What the kernels for such weights compute in."""
        if stored.weight_dtype == DataType.TYPE_UINT4:
            return [DataType.TYPE_FP16]
        if stored.weight_dtype == DataType.TYPE_FP8_E4M3:
            return [DataType.TYPE_BF16]
        return [DataType.TYPE_FP16, DataType.TYPE_BF16]

    def get_weight_plan(self, query: Any) -> types.SimpleNamespace:
        """Limits of a weight on one rank: ((least K, least N), (K, N are multiples of)); how scales are stored."""
        stored = query.weight_format
        floats = stored.scales_dtype == DataType.TYPE_GENERIC_FLOAT
        blocked = floats or stored.weight_dtype == DataType.TYPE_FP4_E2M1
        parameters = query.data_type if floats else DataType.TYPE_INVALID
        return types.SimpleNamespace(
            family="the kernel",
            shape_constraints=((1, 1), (stored.blocks[0], 8) if blocked else (1, 1)),
            bridge=(1, 1, parameters, parameters),
            gate_up=lambda activation, size: 0,
        )


class Slot:
    """A parameter of a native module; keeps the bytes that it is given."""

    def __init__(self) -> None:
        """Empty."""
        self.tensor = torch.empty(0)
        self.type = DataType.TYPE_INVALID
        self.byte_size = 0

    def alloc(self, shape: list[int], data_type: Any) -> Slot:
        """Fix shape and type."""
        self.type = data_type
        self.byte_size = math.prod(shape) * DATA_TYPES[data_type.name.removeprefix("TYPE_")] // 8
        return self

    def copy_from(self, shard: torch.Tensor) -> None:
        """What goes to the GPU."""
        self.tensor = shard.clone()


class Module:
    """A native module on one rank: config, parameters and children by name."""

    def __init__(self, config: Config | None = None) -> None:
        """With no parameters."""
        self.config = config
        self.slots: dict[str, Slot] = {}
        self.children: dict[str, Module] = {}

    def param(self, name: str) -> Slot:
        """The parameter of that name."""
        return self.slots.setdefault(name, Slot())

    def set_plan(self, plan: object) -> None:
        """The planner's choice, of no interest here."""

    def add_child_raw(self, name: object, child: Module) -> None:
        """Attach a submodule."""
        self.children[str(name)] = child

    def at(self, path: str) -> Module | None:
        """The descendant at a dotted path."""
        found: Module | None = self
        for name in path.split("."):
            found = found.children.get(name) if found else None
        return found


class Communicator:
    """The native TurboMind object: a context and a root module per rank; tensor parallelism only."""

    def __init__(self, config: Any) -> None:
        """With a root for every device."""
        self.roots = [Module() for _ in config.devices]

    @staticmethod
    def create(model_dir: str, engine_config: Config) -> Communicator:
        """As LMDeploy calls it."""
        return Communicator(engine_config)

    def context(self, rank: int) -> contextlib.AbstractContextManager[None]:
        """Selects a GPU."""
        return contextlib.nullcontext()

    def root(self, rank: int) -> Module:
        """Where the model of a rank is attached."""
        return self.roots[rank]

    def gemm(self, rank: int) -> Planner:
        """The planner of a GPU."""
        return Planner()

    def create_context(self, rank: int) -> None:
        """Nothing to create."""

    create_root = create_context

    def attn_tp_rank(self, rank: int) -> int:
        """One group for everything."""
        return rank

    mlp_tp_rank = model_tp_rank = attn_tp_rank

    def ep_rank(self, rank: int) -> int:
        """No expert parallelism."""
        return 0


def stub_native(tp: int) -> None:
    """Put the stub in place of the native extension; call it before anything of LMDeploy is imported."""
    native: Any = types.ModuleType("lmdeploy.turbomind._turbomind")
    native.DataType, native.ActivationType, native.DataFormat = DataType, ActivationType, DataFormat
    native.NormType = NormType
    native.Gemm, native.TurboMind, native.create_module = Planner, Communicator, Module

    def struct(name: str) -> type[Config]:
        if name.startswith("__"):
            raise AttributeError(name)
        return Config

    native.__getattr__ = struct
    sys.modules[native.__name__] = native
    torch.Tensor.cuda = lambda self, *args, **options: self
    torch.cuda.device = lambda *args: contextlib.nullcontext()
    torch.cuda.device_count = lambda: tp
