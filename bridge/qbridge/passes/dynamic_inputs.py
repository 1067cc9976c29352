"""DynamicInputs: 8-bit activations that are quantized as they come, symmetric per token, instead of as calibrated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from qbridge.ir.layer import Layer, Spec
from qbridge.ir.scheme import ActivationScheme, Granularity
from qbridge.passes.dropped_inputs import DropsInputs


@dataclass(frozen=True, slots=True)
class DynamicInputs(DropsInputs):
    """Scales and zero-points of activations dropped; ValueError when applied unless that is `allowed`."""

    name = "dynamic-inputs"
    parts = frozenset({"input_scale", "input_zero"})

    allowed: bool = False

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
        return DropsInputs.apply(self, layer)

    def lossy(self) -> DynamicInputs:
        """The same, allowed."""
        return replace(self, allowed=True)

    @classmethod
    def from_dict(cls, recorded: Mapping[str, Any], bits: Mapping[str, str]) -> DynamicInputs:
        """One that gives back the bits."""
        return cls(allowed=True, kept=tuple(bits.items()))
