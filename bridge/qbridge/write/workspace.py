"""Buffers that one thread uses again for every job, and the comparison of what was written."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from qbridge.ir.dtypes import Array
from qbridge.ir.slots import Slot
from qbridge.source.regions import Rectangle


@dataclass(slots=True)
class Workspace:
    """Memory of one thread, taken again for every job."""

    _kept: dict[str, Array] = field(default_factory=dict)

    def bytes(self, use: str, size: int) -> Array:
        """So many bytes for a use, with any content; valid until the next call for the same use."""
        if use not in self._kept or self._kept[use].nbytes < size:
            self._kept.pop(use, None)
            self._kept[use] = np.empty(size, np.uint8)
        return self._kept[use][:size]

    def words(self, use: str, slot: Slot, place: Rectangle) -> Array:
        """Memory for a rectangle of a slot's words."""
        size = place.words * slot.dtype.itemsize
        return self.bytes(use, size).view(slot.dtype.numpy).reshape(place.rows, place.columns)


def same_values(first: Array, second: Array) -> bool:
    """Whether two arrays hold the same bytes."""
    flat = [np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in (first, second)]
    return same_bytes(flat[0], flat[1])


def same_bytes(first: Array, second: Array) -> bool:
    """Whether two flat arrays of bytes are the same, eight at a time where they can be."""
    wide = "u8" if first.nbytes % 8 == 0 and first.nbytes == second.nbytes else "u1"
    return np.array_equal(first.view(wide), second.view(wide))
