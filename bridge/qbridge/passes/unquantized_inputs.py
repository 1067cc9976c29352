"""UnquantizedInputs: the activation scheme dropped, for engines that quantize inputs in their own way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from qbridge.ir.layer import Layer, Spec
from qbridge.passes import Pass
from qbridge.passes.bits import Kept, array_of

_PARTS = frozenset({"input_scale", "input_zero", "input_global_scale"})


@dataclass(frozen=True, slots=True)
class UnquantizedInputs(Pass):
    """Weights alone: activations have no scheme any more, and their stored scales and zero-points ([1] each) go.

    No weight changes. `kept` are the bits that were dropped, by part (`bits_of`): undo gives these back.
    """

    name = "unquantized-inputs"
    parts = _PARTS
    recorded_parts = _PARTS
    changes_activations = True

    kept: Kept = ()

    def plan(self, spec: Spec) -> Spec:
        """The spec of weights alone; ValueError for one whose activations are not quantized."""
        if spec.activation is None:
            raise ValueError("its activations are not quantized")
        return replace(spec, activation=None, input_scale_dtype=None)

    def apply(self, layer: Layer) -> Layer:
        """The layer without the parts."""
        rest = {part: array for part, array in layer.arrays.items() if part not in _PARTS}
        return Layer(self.plan(layer.spec), rest)

    def undo(self, layer: Layer, before: Spec) -> Layer:
        """The layer with the parts that there were; ValueError where they are not kept."""
        arrays, kept, parts = dict(layer.arrays), dict(self.kept), before.parts()
        for part in sorted(_PARTS & parts.keys()):
            if part not in kept:
                raise ValueError(f"{part} was not recorded")
            arrays[part] = array_of(kept[part], *parts[part])
        return Layer(before, arrays)

    def as_dict(self) -> dict[str, Any]:
        """Name, and what it is; `kept` differs from layer to layer and stands elsewhere."""
        return {"pass": self.name, "activations": "changed", "weights": "unchanged"}

    @classmethod
    def from_dict(cls, recorded: Mapping[str, Any], bits: Mapping[str, str]) -> UnquantizedInputs:
        """One that gives back the bits."""
        return cls(kept=tuple(bits.items()))
