"""The one definition of the value of a code: exact, in float64."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qbridge.dtypes import Array, to_float64
from qbridge.ir import Granularity, Layer, Spec


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
    if kind == "int":
        return codes.astype(np.float64)
    values: npt.NDArray[np.float64] = _FLOAT8[kind][codes]
    return values


def _float8_table(exponent_bits: int, finite: bool) -> npt.NDArray[np.float64]:
    """The value of every byte: OCP 8-bit floating point, revision 1.0; `finite` has NaN at 0x7f and no infinity."""
    mantissa_bits = 7 - exponent_bits
    bias = 2 ** (exponent_bits - 1) - 1
    byte = np.arange(256)
    exponent, mantissa = (byte >> mantissa_bits) & (2**exponent_bits - 1), byte & (2**mantissa_bits - 1)
    fraction = mantissa / 2.0**mantissa_bits + (exponent > 0)
    values = fraction * 2.0 ** (np.maximum(exponent, 1) - bias)
    if finite:
        values[(byte & 0x7F) == 0x7F] = np.nan
    else:
        special = exponent == 2**exponent_bits - 1
        values[special] = np.where(mantissa[special] == 0, np.inf, np.nan)
    signed: npt.NDArray[np.float64] = np.where(byte >= 128, -values, values)
    return signed


_FLOAT8 = {"e4m3fn": _float8_table(4, finite=True), "e5m2": _float8_table(5, finite=False)}


def dequantize(layer: Layer) -> npt.NDArray[np.float64]:
    """W [out_features, in_features], exact: an 8-bit code times a float32 has 32 significant bits at most."""
    spec = layer.spec
    g_idx = layer.arrays["g_idx"].astype(np.int32) if spec.g_idx else None
    rows, columns = row_index(spec)[:, None], group_index(spec, g_idx)[None, :]
    codes = code_values(layer.arrays["code"], spec.weight.type)
    if "zero" in layer.arrays:
        codes -= layer.arrays["zero"].astype(np.float64)[rows, columns]
    scale: npt.NDArray[np.float64] = to_float64(layer.arrays["scale"], spec.scale_dtype)[rows, columns]
    return codes * scale
