"""What is wrong with a tensor whose dtype or shape is not the one that its scheme gives."""

from __future__ import annotations

from qbridge.ir.dtypes import DType

Kind = tuple[DType, tuple[int, ...]]  # of a tensor
_FLOAT_ZEROS = (
    "zero-points in floats (HQQ, TinyGEMM) are another scheme, which is not read: quantize with integer ones"
)


def mismatch(name: str, stored: Kind, wanted: Kind) -> str:
    """That a tensor is not of the kind that its scheme gives, by the last word of its name; of zero-points why."""
    (dtype, shape), (unit, dims) = stored, wanted
    fact = f"{name} is {dtype}{list(shape)}, the scheme gives {unit}{list(dims)}"
    return f"{fact}; {_FLOAT_ZEROS}" if "zero" in name and dtype.is_float and not unit.is_float else fact
