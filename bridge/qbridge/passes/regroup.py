"""Regroup: scales and zero-points for groups of another size, every weight under the scale that it had."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from qbridge.ir.dtypes import Array
from qbridge.ir.layer import Layer, Spec
from qbridge.ir.scheme import Granularity
from qbridge.ir.values import group_index
from qbridge.passes import Pass
from qbridge.passes.counted import Counted


@dataclass(frozen=True, slots=True)
class Regroup(Pass):
    """Groups of `group_size` inputs, or one scale per channel (None).

    A size that divides the old one repeats scales and zero-points. Any other joins neighbours, so it is a ValueError
    when applied where those differ in a bit.
    """

    name = "regroup"
    parts = frozenset({"scale", "zero", "offset", "g_idx"})

    group_size: int | None

    def needs_values(self, spec: Spec) -> bool:
        """Unless every new group lies within an old one."""
        old = _size(spec)
        return self.group_size is None or (old < spec.in_features and old % self.group_size != 0)

    def plan(self, spec: Spec) -> Spec:
        """The spec with the new group size."""
        kind = Granularity.CHANNEL if self.group_size is None else Granularity.GROUP
        return replace(spec, weight=replace(spec.weight, granularity=kind, group_size=self.group_size))

    def apply(self, layer: Layer) -> Layer:
        """Scale and zero repeated, or joined where they are equal; ValueError otherwise."""
        after = self.plan(layer.spec)
        if layer.spec.g_idx:
            return self._split(layer, after)
        return Layer(after, {**layer.arrays, **_regrouped(layer, after)})

    def _split(self, layer: Layer, after: Spec) -> Layer:
        """Act-order: a row's new group is its old one, divided by its rank among that group's rows."""
        old, new = _size(layer.spec), _size(after)
        if old % new:
            raise ValueError(f"groups of {old} in act-order are not split into groups of {new}")
        ratio, groups = old // new, after.scale_shape[1]
        origin = np.minimum(np.arange(groups) // ratio, layer.spec.scale_shape[1] - 1)
        arrays = {p: a[:, origin] if p in ("scale", "zero") else a for p, a in layer.arrays.items()}
        if "g_idx" not in arrays:
            return Layer(after, arrays)
        index = arrays["g_idx"].astype(np.int64)
        order = np.argsort(index, kind="stable")
        rank = np.empty_like(index)
        rank[order] = np.arange(index.size) - np.searchsorted(index[order], index[order])
        arrays["g_idx"] = np.minimum(index * ratio + np.minimum(rank // new, ratio - 1), groups - 1).astype(np.int32)
        return Layer(after, arrays)

    def undo(self, layer: Layer, before: Spec) -> Layer:
        """The scales and zeros of the old groups; ValueError if those that were one differ."""
        if not before.g_idx:
            return Layer(before, {**layer.arrays, **_regrouped(layer, before)})
        ratio = _size(before) // _size(layer.spec)
        first = np.arange(before.scale_shape[1]) * ratio
        origin = np.minimum(np.arange(layer.spec.scale_shape[1]) // ratio, first.size - 1) * ratio
        for part in ("scale", "zero"):
            if part in layer.arrays:
                bits = layer.arrays[part].view(f"u{layer.arrays[part].dtype.itemsize}")
                if (bits != bits[:, origin]).any():
                    raise ValueError(f"{part}: groups that were one group of {_size(before)} differ")
        arrays = {p: a[:, first] if p in ("scale", "zero") else a for p, a in layer.arrays.items()}
        if "g_idx" in arrays:
            arrays["g_idx"] = arrays["g_idx"] // ratio
        return Layer(before, arrays)


def _size(spec: Spec) -> int:
    return spec.weight.group_size or spec.in_features


def _regrouped(layer: Layer, after: Spec) -> dict[str, Array]:
    """Scale and zero by the groups of `after`; ValueError where the columns of one had different ones."""
    was, now = group_index(layer.spec), group_index(after)
    first = np.searchsorted(now, np.arange(after.scale_shape[1]))
    found = {}
    for part in ("scale", "zero", "offset"):
        if part not in layer.arrays:
            continue
        array = layer.arrays[part]
        bits = array.view(f"u{array.dtype.itemsize}")
        joined = was[first][now]  # the group that each column's new group takes its scale from
        pairs = np.unique(np.stack([was, joined]), axis=1)
        differing = sum(bool((bits[:, a] != bits[:, b]).any()) for a, b in pairs.T if a != b)
        if differing:
            what = f"groups of {_size(layer.spec)} differ from those they would join"
            raise Counted(differing, f"{part}: {what}", f"{part}: {differing} {what}")
        found[part] = np.ascontiguousarray(array[:, was[first]])
    return found
