"""Schemes: how the weights and the activations of a quantized linear are quantized."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from qbridge.ir.dtypes import DType

CodeType = Literal["int", "affine", "e4m3fn", "e5m2", "e2m1", "float16", "bfloat16", "float32", "float64"]
Dialect = tuple[tuple[str, str], ...]

INTEGERS = ("int", "affine")  # codes of any width: signed ones, and ones from 0 on to which an offset is added
MAX_SIZE = 2**31 - 1  # of a dim, a group or a block: what engines index with, and products of two fit in 64 bits

GlobalScale = Literal[
    "multiply", "divide"
]  # what one more scale of the whole tensor does to the scales of its groups
GLOBAL_SCALE = DType.F32

DENSE: Mapping[str, DType] = {"float16": DType.F16, "bfloat16": DType.BF16, "float32": DType.F32}
CODE_BITS: Mapping[str, int] = {
    **{"e4m3fn": 8, "e5m2": 8, "e2m1": 4},
    **{"float16": 16, "bfloat16": 16, "float32": 32, "float64": 64},
}


class Granularity(str, Enum):
    """How many weights (or activations) share one scale."""

    TENSOR = "tensor"
    CHANNEL = "channel"
    GROUP = "group"
    BLOCK = "block"
    TOKEN = "token"  # noqa: S105 - one scale per token, activations only

    def __str__(self) -> str:
        return self.value

    __hash__ = str.__hash__  # Enum's own takes a call in Python


@dataclass(frozen=True, slots=True)
class WeightScheme:
    """How the weight of a linear is quantized; group_size counts weights along in_features.

    Where no code times one scale is the weight, the type is float64, which holds every weight exactly, and `blocks`
    names the type of blocks that the weights are computed from.
    """

    bits: int
    granularity: Granularity
    symmetric: bool = True
    type: CodeType = "int"
    group_size: int | None = None
    block: tuple[int, int] | None = None
    global_scale: GlobalScale | None = None
    blocks: str = ""

    def __post_init__(self) -> None:
        """Refuse a scheme that has no meaning (ValueError)."""
        self._check_codes()
        if (self.granularity is Granularity.GROUP) != (self.group_size is not None):
            raise ValueError("group_size goes with granularity group, and only with it")
        if (self.granularity is Granularity.BLOCK) != (self.block is not None):
            raise ValueError("block goes with granularity block, and only with it")
        if self.granularity is Granularity.TOKEN:
            raise ValueError("weights have no tokens")
        if self.block is not None and len(self.block) != 2:
            raise ValueError("a block has rows and columns")
        if self.global_scale and (self.granularity is not Granularity.GROUP or self.type in INTEGERS):
            raise ValueError("a global scale goes with float codes and scales per group")
        if self.type != "int" and not self.symmetric:
            raise ValueError("float codes have no zero-points, and no codes with offsets have")
        sizes = (*(self.block or ()), *(() if self.group_size is None else (self.group_size,)))
        if not all(1 <= size <= MAX_SIZE for size in sizes):
            raise ValueError(f"group and block sizes are 1 to {MAX_SIZE}")

    def _check_codes(self) -> None:
        if self.is_computed != bool(self.blocks):
            raise ValueError("weights of float64 are computed from blocks, and no others are")
        if self.type in INTEGERS and not 1 <= self.bits <= 8:
            raise ValueError(f"integer codes have 1 to 8 bits, not {self.bits}")
        if self.type not in INTEGERS and self.bits != CODE_BITS[self.type]:
            raise ValueError(f"{self.type} codes have {CODE_BITS[self.type]} bits, not {self.bits}")

    @property
    def is_dense(self) -> bool:
        """Whether the codes are the weights themselves, without a scale (what `dense` writes)."""
        return self.type in DENSE

    @property
    def is_computed(self) -> bool:
        """Whether there are weights alone, computed from blocks that have no code times one scale."""
        return self.type == "float64"

    def scale_shape(self, out_features: int, in_features: int) -> tuple[int, int]:
        """Shape of scale and zero: [1, 1], [out, 1], [out, groups] or [block rows, block columns]."""
        if self.granularity is Granularity.TENSOR:
            return (1, 1)
        if self.block is not None:
            return (-(-out_features // self.block[0]), -(-in_features // self.block[1]))
        return (out_features, -(-in_features // self.group_size) if self.group_size else 1)

    def __str__(self) -> str:
        if self.is_dense or self.is_computed:
            return self.blocks or self.type
        kind = f"{self.type}{self.bits}" if self.type in INTEGERS else self.type
        size = self.group_size or ("x".join(map(str, self.block)) if self.block else "")
        where = f"{self.granularity}{f' {size}' if size else ''}{' and tensor' if self.global_scale else ''}"
        if self.type == "affine":
            return f"{kind} with float offsets per {where}"
        return f"{kind} {'symmetric' if self.symmetric else 'asymmetric'} per {where}"


@dataclass(frozen=True, slots=True)
class ActivationScheme:
    """How the input of a linear is quantized while it runs.

    Two fields concern dynamic scales: inputs are clipped to `limit` before the scale is taken (FBGEMM's upper bound),
    and `power_of_two` rounds the scale up to a power of two.
    """

    bits: int
    granularity: Granularity
    dynamic: bool
    symmetric: bool = True
    type: CodeType = "int"
    group_size: int | None = None
    global_scale: GlobalScale | None = None
    limit: float | None = None
    power_of_two: bool = False

    def __post_init__(self) -> None:
        """Refuse a scheme that has no meaning (ValueError)."""
        if not 1 <= self.bits <= 16:
            raise ValueError(f"activations have 1 to 16 bits, not {self.bits}")
        if (self.granularity is Granularity.GROUP) != (self.group_size is not None):
            raise ValueError("group_size goes with granularity group, and only with it")
        if self.granularity is Granularity.TOKEN and not self.dynamic:
            raise ValueError("one scale per token is dynamic only")
        if self.global_scale and not (self.dynamic and self.granularity is Granularity.GROUP):
            raise ValueError("a stored global scale goes with dynamic scales per group")
        if (self.limit is not None or self.power_of_two) and not self.dynamic:
            raise ValueError("only dynamic scales have a limit or are rounded")
        if self.limit is not None and not 0 < self.limit < float("inf"):
            raise ValueError(f"the limit of inputs is a positive number, not {self.limit}")

    @property
    def is_stored(self) -> bool:
        """Whether a scale of the input is stored: its only one, or the global one of dynamic groups."""
        return not self.dynamic or self.global_scale is not None

    def __str__(self) -> str:
        kind = f"int{self.bits}" if self.type == "int" else self.type
        how = f"{'dynamic' if self.dynamic else 'static'} {'symmetric' if self.symmetric else 'asymmetric'}"
        size = f" {self.group_size}" if self.group_size else ""
        limit = "" if self.limit is None else f" up to {self.limit:g}"
        rounded = " in powers of two" if self.power_of_two else ""
        return (
            f"{kind} {how} per {self.granularity}{size}{' and tensor' if self.global_scale else ''}{limit}{rounded}"
        )
