"""torch at the edge: arrays of the IR as torch tensors."""

from __future__ import annotations

import numpy as np
import torch

from qbridge.ir.dtypes import Array, DType

_TORCH = {
    DType.BOOL: torch.bool,
    DType.U8: torch.uint8,
    DType.I8: torch.int8,
    DType.F8_E5M2: torch.float8_e5m2,
    DType.F8_E4M3: torch.float8_e4m3fn,
    DType.I16: torch.int16,
    DType.U16: torch.uint16,
    DType.F16: torch.float16,
    DType.BF16: torch.bfloat16,
    DType.I32: torch.int32,
    DType.U32: torch.uint32,
    DType.F32: torch.float32,
    DType.I64: torch.int64,
    DType.U64: torch.uint64,
    DType.F64: torch.float64,
}


def dtype_of(kind: torch.dtype) -> DType:
    """The tag of a torch dtype; ValueError for one that safetensors has no name for."""
    for dtype, known in _TORCH.items():
        if known is kind:
            return dtype
    raise ValueError(f"{kind} has no safetensors name")


def kind_of(dtype: DType) -> torch.dtype:
    """The torch dtype of a tag; ValueError for one that this torch lacks."""
    kind = _TORCH.get(dtype) or getattr(torch, "float8_e8m0fnu", None)
    if kind is None:
        raise ValueError(f"torch {torch.__version__} has no {dtype}")
    return kind


def to_torch(array: Array, dtype: DType, shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor over the array's memory; ValueError for a dtype that this torch lacks."""
    kind = kind_of(dtype)
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return torch.from_numpy(flat).view(kind).reshape(shape)
