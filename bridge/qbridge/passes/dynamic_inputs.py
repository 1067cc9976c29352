"""DynamicInputs: 8-bit activations that are quantized as they come, symmetric per token, instead of as calibrated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from qbridge.ir.layer import Layer, Spec
from qbridge.ir.scheme import ActivationScheme, Granularity
from qbridge.passes import Pass
from qbridge.passes.bits import Kept, array_of

_PARTS = frozenset({"input_scale", "input_zero"})


@dataclass(frozen=True, slots=True)
class DynamicInputs(Pass):
    """Scales and zero-points of activations ([1] each) dropped; ValueError when applied unless that is `allowed`.

    No weight changes. `kept` are the bits that were dropped, by part (`bits_of`): undo gives these back.
    """

    name = "dynamic-inputs"
    parts = _PARTS
    recorded_parts = _PARTS
    changes_activations = True

    allowed: bool = False
    kept: Kept = ()

    def needs_values(self, spec: Spec) -> bool:
        """Unless it is allowed, it must be tried to be refused."""
        return not self.allowed

    def plan(self, spec: Spec) -> Spec:
        """The spec with dynamic activations; ValueError for one whose activations are not quantized."""
        acts = spec.activation
        if acts is None:
            raise ValueError("its activations are not quantized")
        after = ActivationScheme(acts.bits, Granularity.TOKEN, dynamic=True, type=acts.type)
        return replace(spec, activation=after, input_scale_dtype=None)

    def apply(self, layer: Layer) -> Layer:
        """The layer without the parts."""
        if not self.allowed:
            raise ValueError("without their scales activations are quantized otherwise; no weight changes")
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

    def lossy(self) -> DynamicInputs:
        """The same, allowed."""
        return replace(self, allowed=True)

    def as_dict(self) -> dict[str, Any]:
        """Name, and what it is; `kept` differs from layer to layer and stands elsewhere."""
        return {"pass": self.name, "activations": "changed", "weights": "unchanged"}

    @classmethod
    def from_dict(cls, recorded: Mapping[str, Any], bits: Mapping[str, str]) -> DynamicInputs:
        """One that gives back the bits."""
        return cls(allowed=True, kept=tuple(bits.items()))
