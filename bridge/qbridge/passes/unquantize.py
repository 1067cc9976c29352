"""Unquantize: a layer that its target cannot hold, as plain weights that are rounded once, for users who allow it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from qbridge.ir.dtypes import DType
from qbridge.ir.exactness import Exactness
from qbridge.ir.layer import Layer, Spec
from qbridge.passes import Pass
from qbridge.passes.dequantize import Dequantize


@dataclass(frozen=True, slots=True)
class Unquantize(Pass):
    """Weights in `dtype` (F16, BF16 or F32), nearest even, among the unquantized tensors of the model.

    ValueError when applied unless it is `allowed`, or where a weight is beyond the range of the dtype. It cannot be
    undone.
    """

    name = "unquantize"
    exactness = Exactness.DEQUANTIZED
    unquantizes = True
    parts = Dequantize.parts

    dtype: DType
    allowed: bool = False

    def needs_values(self, spec: Spec) -> bool:
        """Always: it must be tried to be refused."""
        return True

    def inputs(self, parts: frozenset[str]) -> frozenset[str]:
        """A weight needs all its parts."""
        return self._dequantize.inputs(parts)

    def plan(self, spec: Spec) -> Spec:
        """The spec of a dense weight."""
        return self._dequantize.plan(spec)

    def apply(self, layer: Layer) -> Layer:
        """The layer of weights."""
        if not self.allowed:
            raise ValueError("each weight would be rounded")
        return self._dequantize.apply(layer)

    def undo(self, layer: Layer, before: Spec) -> Layer:
        """ValueError: the codes are gone."""
        return self._dequantize.undo(layer, before)

    @property
    def _dequantize(self) -> Dequantize:
        return Dequantize(self.dtype)

    def lossy(self) -> Unquantize:
        """The same, allowed."""
        return replace(self, allowed=True)

    def as_dict(self) -> dict[str, Any]:
        """Name and dtype."""
        return {"pass": self.name, "dtype": str(self.dtype)}

    @classmethod
    def from_dict(cls, recorded: Mapping[str, Any], bits: Mapping[str, str]) -> Unquantize:
        """Allowed: it was applied."""
        return cls(DType(recorded["dtype"]), allowed=True)
