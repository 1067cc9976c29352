"""The stored arrays of a layer's parts, and the parts of stored arrays."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from qbridge.ir.dtypes import Array
from qbridge.ir.layer import Layer, Spec
from qbridge.ir.slots import Slot


def needed(slots: Mapping[str, Slot], parts: Collection[str]) -> dict[str, Slot]:
    """The slots of `parts`, and of those without which one of them cannot be read or written."""
    found = {part: slot for part, slot in slots.items() if part in parts}
    for part in {part for slot in found.values() for part in slot.codec.needs}:
        found[part] = slots[part]
    return found


def parts_inside(slots: Mapping[str, Slot], part: str) -> list[str]:
    """The parts that are written in the blocks of another one."""
    return [other for other, slot in slots.items() if slot.codec.inside == part]


def encode(layer: Layer, slots: Mapping[str, Slot]) -> dict[str, Any]:
    """The stored array of every part that the layer holds, and of every fixed tensor, by tensor name."""
    return {
        slot.tensor: encode_part(layer, part, slot)
        for part, slot in slots.items()
        if (part in layer.arrays or slot.codec.fixed) and not slot.codec.inside
    }


def encode_part(layer: Layer, part: str, slot: Slot) -> Array:
    """The stored array of one part (or fixed tensor) of a layer; ValueError for a value that the slot cannot hold."""
    array = layer.arrays.get(part, np.empty(0))
    return slot.codec.encode(array, slot, layer.arrays)


def decode(spec: Spec, slots: Mapping[str, Slot], stored: Mapping[str, Any]) -> Layer:
    """The layer of stored arrays by tensor name; parts whose tensor is not given are left out.

    ValueError for a stored value that `encode` could not have written (a product that is no integer times its scale).
    """
    parts, arrays = spec.parts(), dict[str, Array]()
    for part, slot in sorted(slots.items(), key=lambda item: len(item[1].codec.needs)):
        if slot.tensor not in stored or slot.codec.fixed:
            continue
        arrays[part] = slot.codec.decode(stored[slot.tensor], *parts[part], arrays)
    return Layer(spec, arrays)
