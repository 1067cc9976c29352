"""PlainInputs: activations without a limit, and without scales rounded to powers of two."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from qbridge.ir.exactness import Exactness
from qbridge.ir.layer import Layer, Spec


@dataclass(frozen=True, slots=True)
class PlainInputs:
    """The details of dynamic activations dropped; ValueError when applied unless that is `allowed`.

    No weight changes, and the details are in the spec, so that undo brings them back.
    """

    allowed: bool = False

    @property
    def name(self) -> str:
        """plain-inputs."""
        return "plain-inputs"

    @property
    def exactness(self) -> Exactness:
        """The weights stay; undo needs to know what was dropped."""
        return Exactness.EQUAL

    @property
    def parts(self) -> frozenset[str]:
        """None: it is about what the engine does."""
        return frozenset()

    def needs_values(self, spec: Spec) -> bool:
        """Unless it is allowed, it must be tried to be refused."""
        return not self.allowed

    def inputs(self, parts: frozenset[str]) -> frozenset[str]:
        """Each part comes from itself alone."""
        return parts

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
