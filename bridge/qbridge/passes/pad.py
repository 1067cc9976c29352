"""Pad: more output or input features, whose weights are exactly zero."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from qbridge.ir.dtypes import Array, one
from qbridge.ir.layer import Layer, Spec
from qbridge.ir.scheme import Granularity
from qbridge.ir.values import group_index, row_index
from qbridge.passes import Pass
from qbridge.passes.counted import Counted


@dataclass(frozen=True, slots=True)
class Pad(Pass):
    """A linear of (`out_features`, `in_features`), the new ones last; every weight of them is 0.

    New output features and whole new groups get zero-points of the middle code, scales of 1 and offsets of 0. New
    input features that fall into an old group take its scale, and the code that is its zero-point: ValueError when
    applied to a layer where that is no code, or has an offset. Undo crops, and is a ValueError where what it would
    crop is not zero.
    """

    name = "pad"
    parts = frozenset({"code", "scale", "zero", "offset", "g_idx", "bias"})  # what has a row or a column per feature

    out_features: int
    in_features: int

    def inputs(self, parts: frozenset[str]) -> frozenset[str]:
        """Codes may have to be zero-points, and cropped zero-points are not looked at alone."""
        return parts | {"zero", "offset", "g_idx"} if "code" in parts else parts

    def needs_values(self, spec: Spec) -> bool:
        """Where new inputs fall into an old group, its zero-point must be a code, and its offset be none."""
        if spec.weight.symmetric and spec.weight.type != "affine":
            return False
        wider = self.in_features > spec.in_features and self._joins(spec)
        many_rows = spec.weight.granularity in (Granularity.TENSOR, Granularity.BLOCK)
        return wider or (many_rows and self.out_features > spec.out_features)

    def recodes(self, spec: Spec) -> bool:
        """Where new codes must be the zero-points of old groups."""
        return self.needs_values(spec)

    def _joins(self, spec: Spec) -> bool:
        size = spec.weight.group_size
        return size is None or spec.in_features % size != 0

    def plan(self, spec: Spec) -> Spec:
        """The spec with the new dims."""
        return replace(spec, out_features=self.out_features, in_features=self.in_features)

    def within(self, before: Spec, of: Callable[[Spec], Spec]) -> Pad:
        """As many output features as these are after the pass."""
        return replace(self, out_features=of(self.plan(before)).out_features)

    def apply(self, layer: Layer) -> Layer:
        """The layer with zero weights around it."""
        after = self.plan(layer.spec)
        return Layer(after, {part: self._padded(part, layer, after) for part in layer.arrays})

    def _padded(self, part: str, layer: Layer, after: Spec) -> Array:
        array = layer.arrays[part]
        dtype, shape = after.parts()[part]
        if part in ("code", "zero", "offset", "bias"):
            found = np.zeros(shape, dtype.numpy)
        elif part == "scale":
            found = np.full(shape, one(dtype))
        elif part == "g_idx":
            size = after.weight.group_size or after.in_features
            return np.concatenate([array, np.arange(array.size, self.in_features, dtype=np.int32) // size])
        else:
            return array
        found[tuple(slice(length) for length in array.shape)] = array
        if part == "code":
            self._fill(found, layer, after)
        return found

    def _fill(self, codes: Array, layer: Layer, after: Spec) -> None:
        """Codes of new inputs in old groups: the zero-points that they share."""
        rows, columns = layer.spec.out_features, layer.spec.in_features
        if "offset" in layer.arrays and self.needs_values(layer.spec):
            raise ValueError("new weights in groups with an offset are mostly not 0")
        if "zero" not in layer.arrays:
            return
        if layer.spec.weight.block:
            self._fill_blocks(codes, layer, after)
            return
        if layer.spec.weight.granularity is Granularity.TENSOR:
            rows, zeros = codes.shape[0], layer.arrays["zero"]
            if self.out_features > layer.spec.out_features:
                self._check_codes(zeros, layer.spec)
                codes[layer.spec.out_features :] = zeros
        if self.in_features == columns:
            return
        group = group_index(after)[columns:]
        old = group < layer.spec.scale_shape[1]
        zeros = layer.arrays["zero"][:, group[old]]
        self._check_codes(zeros, layer.spec)
        codes[:rows, columns:][:, old] = zeros

    def _fill_blocks(self, codes: Array, layer: Layer, after: Spec) -> None:
        """Codes of all that is new: the zero-points of the blocks that it falls into, 0 in whole new blocks."""
        (rows, columns), (old_rows, old_columns) = layer.spec.dims, layer.spec.scale_shape
        lines, groups = row_index(after), group_index(after)
        zeros = np.zeros(after.scale_shape, np.int16)
        zeros[:old_rows, :old_columns] = layer.arrays["zero"]
        self._check_codes(zeros, layer.spec)
        codes[rows:] = zeros[lines[rows:]][:, groups]
        codes[:rows, columns:] = zeros[lines[:rows]][:, groups[columns:]]

    def _check_codes(self, zeros: Array, spec: Spec) -> None:
        half = 2 ** (spec.weight.bits - 1)
        outside = int(np.count_nonzero((zeros < -half) | (zeros >= half)))
        if outside:
            raise Counted(outside, "zero-points are no codes, so no code has the value 0")

    def undo(self, layer: Layer, before: Spec) -> Layer:
        """The layer without what was added; ValueError if any weight or bias of that is not zero."""
        arrays = layer.arrays
        if "code" in arrays:
            self._check_zero(layer, before)
        if "bias" in arrays and np.any(arrays["bias"][before.out_features :]):
            raise ValueError("a bias of the padding is not zero")
        shapes = {part: shape for part, (_, shape) in before.parts().items()}
        return Layer(before, {part: _shortened(array, shapes[part]) for part, array in arrays.items()})

    def _check_zero(self, layer: Layer, before: Spec) -> None:
        codes, index = layer.arrays["code"], group_index(layer.spec, layer.arrays.get("g_idx"))
        corners: Mapping[str, tuple[slice, slice]] = {
            "output": (slice(before.out_features, None), slice(None)),
            "input": (slice(None), slice(before.in_features, None)),
        }
        for kind, (rows, columns) in corners.items():
            lines = row_index(layer.spec)[rows]
            zeros = layer.arrays["zero"][lines][:, index[columns]] if "zero" in layer.arrays else 0
            differing = codes[rows, columns] != zeros
            if "offset" in layer.arrays:
                differing |= layer.arrays["offset"][lines][:, index[columns]] != 0
            wrong = int(np.count_nonzero(differing))
            if wrong:
                raise ValueError(f"{wrong} weights of the padded {kind} features are not zero")


def cropped(layer: Layer, dims: tuple[int, int]) -> Layer:
    """A layer without its padding; ValueError if what is padded is not zero."""
    if layer.spec.dims == dims:
        return layer
    return Pad(*layer.spec.dims).undo(layer, replace(layer.spec, out_features=dims[0], in_features=dims[1]))


def _shortened(array: Array, shape: tuple[int, ...]) -> Array:
    return np.ascontiguousarray(array[tuple(slice(length) for length in shape)])
