"""The promise a conversion keeps, a class per layer, from the strongest to the weakest."""

from __future__ import annotations

from enum import Enum


class Exactness(str, Enum):
    """What a conversion keeps of a layer."""

    REVERSIBLE = "reversible"  # converting back gives identical tensors
    EQUAL = "equal"  # every weight has the same real value; undo replays the manifest
    ROUNDED = "rounded"  # some scale moved by at most one unit in its last place
    DEQUANTIZED = "dequantized"  # the codes are gone, each weight rounded once
    REQUANTIZED = "requantized"  # new codes

    def __str__(self) -> str:
        return self.value


EXACT = frozenset({Exactness.REVERSIBLE, Exactness.EQUAL})  # those that keep the value of every weight


def weakest(*classes: Exactness) -> Exactness:
    """The weakest of some classes; reversible if there is none."""
    order = list(Exactness)
    return max(classes, key=order.index, default=Exactness.REVERSIBLE)
