"""A layer some output features at a time, where its codes must be decoded to get to where they are written.

A window is a range of output features that no stored word straddles. What lies beyond the features that a layer has
before and after every pass (padding, or what is cropped of it) belongs to the last one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from qbridge.codecs.parts import decode
from qbridge.ir.dtypes import Array
from qbridge.ir.layer import Layer, Spec
from qbridge.ir.scheme import Granularity
from qbridge.ir.slots import Slot
from qbridge.passes import Pass
from qbridge.source.reader import Source
from qbridge.source.regions import Rectangle


@dataclass(frozen=True, slots=True)
class Window:
    """Output features from `start` to `end`, or to the last one of a layer (None)."""

    start: int
    end: int | None

    def rows(self, spec: Spec) -> int:
        """How many of a layer's output features it has."""
        return (spec.out_features if self.end is None else self.end) - self.start

    def times(self, count: int) -> Window:
        """The window in a tensor that interleaves `count` layers: edges times `count`."""
        return Window(self.start * count, None if self.end is None else self.end * count)

    def share(self, count: int) -> Window:
        """One layer's part of this window of such a tensor: edges divided by `count`."""
        return Window(self.start // count, None if self.end is None else self.end // count)

    def of(self, spec: Spec) -> Spec:
        """The spec of these output features alone."""
        return replace(spec, out_features=self.rows(spec))

    def step(self, step: Pass, before: Spec) -> Pass:
        """The pass as it is for these output features, where a layer was `before` it."""
        return step.within(before, self.of).at(self.start)


EVERYTHING = Window(0, None)


def windows(
    stages: Sequence[Spec], slots: Sequence[Slot], limit: int, within: Window = EVERYTHING
) -> Iterator[Window]:
    """The windows of a layer, or of one of them, with about `limit` codes each.

    `stages` are the layer's specs, `slots` those of its codes; where one of these has no place for a range of output
    features, there is one window.
    """
    steps = [_step(slot) for slot in slots]
    steps += [spec.weight.block[0] for spec in stages if spec.weight.block]
    start, end = within.start, within.end or min(spec.out_features for spec in stages)
    if all(steps):
        step = math.lcm(*steps)
        share = max(1, limit // max(spec.in_features for spec in stages) // step) * step
        while start + share < end:
            yield Window(start, start + share)
            start += share
    yield Window(start, within.end)


def read_layer(source: Source, spec: Spec, slots: Mapping[str, Slot], window: Window) -> Layer:
    """A window of the parts whose slots are given; ValueError as `codecs.parts.decode` raises it."""
    in_window = window.of(spec)
    read_in_part, read_whole = dict[str, Slot](), dict[str, Slot]()
    stored: dict[str, Array] = {}
    for part, slot in slots.items():
        region = part_of(slot, part, spec, window)
        if region is None:
            read_whole[part] = slot
            continue
        read_in_part[part] = replace(slot, shape=(region.rows, region.columns))
        if slot.tensor in stored:  # the blocks of another part
            continue
        stored[slot.tensor] = np.empty((region.rows, region.columns), slot.dtype.numpy)
        source.read_rectangle(slot.tensor, region, stored[slot.tensor])
    whole = decode(spec, read_whole, {slot.tensor: source.read(slot.tensor) for slot in read_whole.values()})
    arrays = {part: _rows(part, array, spec, window) for part, array in whole.arrays.items()}
    arrays |= decode(in_window, read_in_part, stored).arrays
    shapes = {part: shape for part, (_, shape) in in_window.parts().items()}
    return Layer(in_window, {part: array.reshape(shapes[part]) for part, array in arrays.items()})


def part_of(slot: Slot, part: str, spec: Spec, window: Window) -> Rectangle | None:
    """Where of a stored matrix the window of a part lies; None if it is no rectangle, or the part has no features."""
    if part not in ("code", "scale", "zero", "offset") or len(slot.shape) != 2 or not _step(slot):
        return None
    if part != "code" and spec.weight.granularity not in (Granularity.CHANNEL, Granularity.GROUP):
        return None
    shape, span = (slot.shape[0], slot.shape[1]), (window.start, window.start + window.rows(spec))
    region = slot.codec.rows(shape, spec.dims, span, slot.dtype.itemsize)
    return None if region is None else Rectangle(shape, *region)


def _step(slot: Slot) -> int:
    """A window's edges are multiples of this in a slot; 0 where a range of output features is no rectangle."""
    return slot.codec.step(slot.dtype.itemsize)


def _rows(part: str, array: Array, spec: Spec, window: Window) -> Array:
    """The window's rows of a canonical array."""
    start, end = window.start, window.start + window.rows(spec)
    if part in ("scale", "zero", "offset"):
        if spec.weight.granularity is Granularity.TENSOR:
            return array
        if spec.weight.block:
            start, end = start // spec.weight.block[0], -(-end // spec.weight.block[0])
    elif part not in ("code", "bias"):
        return array
    return array[start:end]
