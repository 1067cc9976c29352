"""CastInputs: activations as float8, quantized as they come, or not quantized, where a cast of weights needs that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from qbridge.ir.layer import Spec
from qbridge.ir.scheme import ActivationScheme, Granularity
from qbridge.passes.dropped_inputs import DropsInputs

if TYPE_CHECKING:
    from typing_extensions import Self  # typing has it from Python 3.11 on


@dataclass(frozen=True, slots=True)
class CastInputs(DropsInputs):
    """Dynamic float8 (e4m3) per token, or per token and group of `group_size` inputs; no weight changes.

    The stored scales of inputs are dropped, and recorded.
    """

    name = "cast-inputs"
    parts = frozenset({"input_scale", "input_zero", "input_global_scale"})

    group_size: int | None = None

    def plan(self, spec: Spec) -> Spec:
        """The spec with such activations."""
        kind = Granularity.GROUP if self.group_size else Granularity.TOKEN
        after = ActivationScheme(8, kind, True, type="e4m3fn", group_size=self.group_size)
        return replace(spec, activation=after, input_scale_dtype=None)

    def as_dict(self) -> dict[str, Any]:
        """Name, group size, and what it is."""
        sizes = {"group_size": self.group_size} if self.group_size else {}
        return {**DropsInputs.as_dict(self), **sizes}

    @classmethod
    def from_dict(cls, recorded: Mapping[str, Any], bits: Mapping[str, str]) -> Self:
        """One that gives back the bits."""
        return cls(tuple(bits.items()), recorded.get("group_size"))
