"""The one definition of the value of a code: exact, in float64."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qbridge.dtypes import to_float64
from qbridge.ir import Granularity, Layer, Spec


def group_index(spec: Spec, g_idx: npt.NDArray[np.int32] | None = None) -> npt.NDArray[np.intp]:
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


def dequantize(layer: Layer) -> npt.NDArray[np.float64]:
    """W [out_features, in_features], exact: an 8-bit integer times a float32 has 32 significant bits at most.

    Raises NotImplementedError for float codes.
    """
    spec = layer.spec
    if spec.weight.type != "int":
        raise NotImplementedError(f"{spec.name}: values of {spec.weight.type} codes")
    g_idx = layer.arrays["g_idx"].astype(np.int32) if spec.g_idx else None
    rows, columns = row_index(spec)[:, None], group_index(spec, g_idx)[None, :]
    codes = layer.arrays["code"].astype(np.float64)
    if "zero" in layer.arrays:
        codes -= layer.arrays["zero"].astype(np.float64)[rows, columns]
    scale: npt.NDArray[np.float64] = to_float64(layer.arrays["scale"], spec.scale_dtype)[rows, columns]
    return codes * scale
