"""PlainInputs: activations without a limit, and without scales rounded to powers of two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from qbridge.ir.layer import Layer, Spec
from qbridge.passes import Pass


@dataclass(frozen=True, slots=True)
class PlainInputs(Pass):
    """The details of dynamic activations dropped; ValueError when applied unless that is `allowed`.

    No weight changes, and the details are in the spec, so that undo brings them back.
    """

    name = "plain-inputs"
    changes_activations = True

    allowed: bool = False

    def needs_values(self, spec: Spec) -> bool:
        """Unless it is allowed, it must be tried to be refused."""
        return not self.allowed

    def plan(self, spec: Spec) -> Spec:
        """The spec without the details."""
        acts = spec.activation
        return spec if acts is None else replace(spec, activation=replace(acts, limit=None, power_of_two=False))

    def apply(self, layer: Layer) -> Layer:
        """The same arrays."""
        if not self.allowed:
            raise ValueError("dropping it changes how inputs are quantized")
        return Layer(self.plan(layer.spec), layer.arrays)

    def undo(self, layer: Layer, before: Spec) -> Layer:
        """The same arrays under the spec that there was."""
        return Layer(before, layer.arrays)

    def lossy(self) -> PlainInputs:
        """The same, allowed."""
        return replace(self, allowed=True)

    def as_dict(self) -> dict[str, Any]:
        """Name."""
        return {"pass": self.name}

    @classmethod
    def from_dict(cls, recorded: Mapping[str, Any], bits: Mapping[str, str]) -> PlainInputs:
        """Allowed: it was applied."""
        return cls(allowed=True)
