"""What passes share that drop the stored scales and zero-points of activations, and can give them back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qbridge.ir.layer import Layer, Spec
from qbridge.passes import Pass
from qbridge.passes.bits import Kept, array_of

if TYPE_CHECKING:
    from typing_extensions import Self  # typing has it from Python 3.11 on


@dataclass(frozen=True, slots=True)
class DropsInputs(Pass):
    """A pass without which activations would keep their `parts` ([1] each); no weight changes.

    `kept` are the bits that were dropped, by part (`bits_of`): undo gives these back.
    """

    changes_activations = True

    kept: Kept = ()

    @property
    def recorded_parts(self) -> frozenset[str]:
        """All of them."""
        return self.parts

    def apply(self, layer: Layer) -> Layer:
        """The layer without the parts."""
        rest = {part: array for part, array in layer.arrays.items() if part not in self.parts}
        return Layer(self.plan(layer.spec), rest)

    def undo(self, layer: Layer, before: Spec) -> Layer:
        """The layer with the parts that there were; ValueError where they are not kept."""
        arrays, kept, parts = dict(layer.arrays), dict(self.kept), before.parts()
        for part in sorted(self.parts & parts.keys()):
            if part not in kept:
                raise ValueError(f"{part} was not recorded")
            arrays[part] = array_of(kept[part], *parts[part])
        return Layer(before, arrays)

    def as_dict(self) -> dict[str, Any]:
        """Name, and what it is; `kept` differs from layer to layer and stands elsewhere."""
        return {"pass": self.name, "activations": "changed", "weights": "unchanged"}

    @classmethod
    def from_dict(cls, recorded: Mapping[str, Any], bits: Mapping[str, str]) -> Self:
        """One that gives back the bits."""
        return cls(kept=tuple(bits.items()))
