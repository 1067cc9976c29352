"""Dequantize: the weights themselves instead of codes, each rounded once from its exact value."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from qbridge.codecs.compiling import Kernel, compiled
from qbridge.ir.dtypes import Array, DType, from_float64, is_finite
from qbridge.ir.exactness import Exactness
from qbridge.ir.layer import Layer, Spec
from qbridge.ir.scheme import DENSE, Granularity, WeightScheme
from qbridge.ir.values import code_table, group_index, row_index
from qbridge.passes import Pass
from qbridge.passes.counted import Counted

_ENTRIES = 1 << 16  # of the table of values that is held at a time: with what makes it, it stays in a core's cache

NAMES = {dtype: name for name, dtype in DENSE.items()}


@dataclass(frozen=True, slots=True)
class Dequantize(Pass):
    """Weights in `dtype` (F16, BF16 or F32), nearest even; activations are not quantized any more.

    ValueError when applied to a layer with a weight beyond the range of the dtype. It cannot be undone.
    """

    name = "dequantize"
    exactness = Exactness.DEQUANTIZED  # the codes are gone
    parts = frozenset({"code", "scale", "zero", "offset", "g_idx", "global_scale"})

    dtype: DType

    def inputs(self, parts: frozenset[str]) -> frozenset[str]:
        """A weight needs all its parts."""
        return parts | self.parts if "code" in parts else parts

    def plan(self, spec: Spec) -> Spec:
        """The spec of a dense weight."""
        name = NAMES[self.dtype]
        weight = WeightScheme(8 * self.dtype.itemsize, Granularity.TENSOR, type=name)  # type: ignore[arg-type]
        plain = replace(spec, activation=None, input_scale_dtype=None, g_idx=False, dialect=())
        return replace(plain, weight=weight, scale_dtype=self.dtype)

    def apply(self, layer: Layer) -> Layer:
        """The layer of weights; ValueError if one of them is beyond the range of the dtype."""
        arrays = {part: array for part, array in layer.arrays.items() if part == "bias"}
        if "code" in layer.arrays:
            arrays["code"] = self._weights(layer)
        return Layer(self.plan(layer.spec), arrays)

    def _weights(self, layer: Layer) -> Array:
        if layer.spec.weight.is_computed:
            return self._rounded(layer.arrays["code"])
        spec, codes = layer.spec, layer.arrays["code"].view(np.uint8)
        g_idx = layer.arrays["g_idx"].astype(np.int32) if spec.g_idx else None
        rows, columns = row_index(spec), group_index(spec, g_idx).astype(np.uint32)
        weights, words = np.empty(spec.dims, self.dtype.numpy), f"<u{self.dtype.itemsize}"  # numba has no float16
        beyond = 0
        for first, entries, exact in _tables(layer):
            # a quotient that float64 rounds lies next to no tie of a narrower dtype: 24 bits against its 53
            table = from_float64(exact, self.dtype)
            begin, end = np.searchsorted(rows, [first, first + len(entries)])
            own = codes[begin:end], rows[begin:end] - first, columns, entries
            _gather()(*own, table.view(words), weights[begin:end].view(words))
            lost: Array = np.isfinite(exact) & ~is_finite(table, self.dtype)
            if np.logical_or.reduce(lost, axis=1)[entries].any():
                beyond += int(np.count_nonzero(_looked_up(*own, lost)))
        self._check(beyond)
        return weights

    def _rounded(self, exact: Array) -> Array:
        """Weights of float64, rounded."""
        weights = from_float64(exact.astype(np.float64, copy=False), self.dtype)
        self._check(int(np.count_nonzero(np.isfinite(exact) & ~is_finite(weights, self.dtype))))
        return weights

    def _check(self, beyond: int) -> None:
        """ValueError if weights are beyond the range of the dtype."""
        if beyond:
            raise Counted(beyond, f"weights are beyond the range of {NAMES[self.dtype]}")

    def undo(self, layer: Layer, before: Spec) -> Layer:
        """ValueError: the codes are gone."""
        raise ValueError("weights that were dequantized have no codes any more")

    def as_dict(self) -> dict[str, Any]:
        """Name and dtype."""
        return {"pass": self.name, "dtype": str(self.dtype)}


def _tables(layer: Layer) -> Iterator[tuple[int, npt.NDArray[np.uint32], npt.NDArray[np.float64]]]:
    """(first row of the scale, table entry of each scale from it on, the values of the codes by entry).

    Scales of one byte, without zero-points, are few: one table has an entry for every byte.
    """
    scale, shape, beside = layer.arrays["scale"], layer.spec.scale_shape, ("zero", "offset")
    if scale.itemsize == 1 and "zero" not in layer.arrays:
        every = np.arange(256, dtype=np.uint8)[:, None]
        yield 0, scale.view(np.uint8).astype(np.uint32), code_table(layer, every)[:, 0]
        return
    share = max(1, _ENTRIES // (shape[1] * 2**layer.spec.weight.bits))
    for first in range(0, shape[0], share):
        own = slice(first, first + share)
        zero, offset = (layer.arrays[part][own] if part in layer.arrays else None for part in beside)
        exact = code_table(layer, scale[own], zero, offset)
        entries = np.arange(exact.shape[0] * shape[1], dtype=np.uint32).reshape(-1, shape[1])
        yield first, entries, exact.reshape(entries.size, -1)


def _looked_up(codes: Array, rows: Array, columns: Array, entries: Array, table: Array) -> Array:
    """What `_gather` fills, for any table and without compiling; it takes longer."""
    found: Array = table[entries[rows[:, None], columns], codes & (table.shape[1] - 1)]
    return found


@cache
def _gather() -> Kernel:
    """(bytes of codes, row of scales of each row, column of each column, entry of each scale, table, out).

    A code stands for a value of its entry by its lowest bits.
    """

    def kernel(codes, rows, columns, entries, table, out):  # type: ignore[no-untyped-def]
        count, values = np.uint32(table.shape[1]), table.reshape(-1)
        for i in range(codes.shape[0]):
            own, line, into = entries[rows[i]], codes[i], out[i]
            for j in range(codes.shape[1]):
                into[j] = values[own[columns[j]] * count + (np.uint32(line[j]) & (count - np.uint32(1)))]

    return compiled(kernel)
