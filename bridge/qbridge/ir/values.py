"""The one definition of the value of a code: exact, in float64."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qbridge.ir.dtypes import Array, DType, to_float64
from qbridge.ir.floats import VALUES
from qbridge.ir.layer import Layer, Spec
from qbridge.ir.scheme import DENSE, GLOBAL_SCALE, INTEGERS, Granularity


def group_index(spec: Spec, g_idx: Array | None = None) -> npt.NDArray[np.intp]:
    """Column of scale and zero for each input feature, int [in_features]."""
    if g_idx is not None:
        return g_idx.astype(np.intp)
    if spec.weight.granularity is Granularity.GROUP and spec.weight.group_size:
        return np.arange(spec.in_features) // spec.weight.group_size
    if spec.weight.block:
        return np.arange(spec.in_features) // spec.weight.block[1]
    return np.zeros(spec.in_features, np.intp)


def row_index(spec: Spec) -> npt.NDArray[np.intp]:
    """Row of scale and zero for each output feature, int [out_features]."""
    if spec.weight.granularity is Granularity.TENSOR:
        return np.zeros(spec.out_features, np.intp)
    return np.arange(spec.out_features) // (spec.weight.block[0] if spec.weight.block else 1)


def code_values(codes: Array, kind: str) -> npt.NDArray[np.float64]:
    """What codes are worth before zero and scale: integers themselves, floats by their bits."""
    if kind in INTEGERS:
        return codes.astype(np.float64)
    values: npt.NDArray[np.float64] = VALUES[kind][codes]
    return values


def dequantize(layer: Layer) -> npt.NDArray[np.float64]:
    """W [out_features, in_features]: exact (a code times its scale, or times two, has 53 significant bits at most).

    A quotient by a global scale is rounded once, and so is a sum with a float32 offset of a much different exponent.
    """
    spec = layer.spec
    if spec.weight.is_computed:
        return to_float64(layer.arrays["code"], DType.F64)
    if spec.weight.is_dense:
        return to_float64(layer.arrays["code"], DENSE[spec.weight.type])
    g_idx = layer.arrays["g_idx"].astype(np.int32) if spec.g_idx else None
    rows, columns = row_index(spec)[:, None], group_index(spec, g_idx)[None, :]
    codes = code_values(layer.arrays["code"], spec.weight.type)
    if "zero" in layer.arrays:
        codes -= layer.arrays["zero"].astype(np.float64)[rows, columns]
    values = _scaled(codes, to_float64(layer.arrays["scale"], spec.scale_dtype)[rows, columns], layer)
    if "offset" in layer.arrays:
        values += to_float64(layer.arrays["offset"], spec.scale_dtype)[rows, columns]
    return values


def code_table(
    layer: Layer, scale: Array, zero: Array | None = None, offset: Array | None = None
) -> npt.NDArray[np.float64]:
    """The weight that each code stands for under scales (zero-points, offsets) of a layer, [*scale.shape, codes].

    As `dequantize` has it. Codes are in the order of their lowest `bits` bits: of integers 0, 1, ... come first and
    -1 last.
    """
    scheme = layer.spec.weight
    codes = np.arange(2**scheme.bits, dtype=np.uint8)
    if scheme.type == "int":
        sign = 2 ** (scheme.bits - 1)
        codes = ((codes ^ sign).astype(np.int16) - sign).astype(np.int8)
    values = code_values(codes, scheme.type)
    if zero is not None:
        values = values - zero.astype(np.float64)[..., None]
    values = _scaled(values, to_float64(scale, layer.spec.scale_dtype)[..., None], layer)
    return values if offset is None else values + to_float64(offset, layer.spec.scale_dtype)[..., None]


def _scaled(codes: npt.NDArray[np.float64], scale: npt.NDArray[np.float64], layer: Layer) -> npt.NDArray[np.float64]:
    """Codes times their scale, times or through the global one."""
    spec = layer.spec
    with np.errstate(invalid="ignore"):  # an infinite code of scale 0
        values: npt.NDArray[np.float64] = codes * scale
    if spec.weight.global_scale is None:
        return values
    outer = float(to_float64(layer.arrays["global_scale"], GLOBAL_SCALE)[0])
    return values * outer if spec.weight.global_scale == "multiply" else values / outer
