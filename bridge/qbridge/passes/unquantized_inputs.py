"""UnquantizedInputs: the activation scheme dropped, for engines that quantize inputs in their own way."""

from __future__ import annotations

from dataclasses import dataclass, replace

from qbridge.ir.layer import Spec
from qbridge.passes.dropped_inputs import DropsInputs


@dataclass(frozen=True, slots=True)
class UnquantizedInputs(DropsInputs):
    """Weights alone: activations have no scheme any more, and their stored scales and zero-points go."""

    name = "unquantized-inputs"
    parts = frozenset({"input_scale", "input_zero", "input_global_scale"})

    def plan(self, spec: Spec) -> Spec:
        """The spec of weights alone; ValueError for one whose activations are not quantized."""
        if spec.activation is None:
            raise ValueError("its activations are not quantized")
        return replace(spec, activation=None, input_scale_dtype=None)
