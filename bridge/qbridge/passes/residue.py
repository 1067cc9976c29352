"""The residue: what a pass forgets and undo needs, which is stored beside the manifest where that is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from qbridge.ir.dtypes import Array
from qbridge.ir.layer import Layer, Spec
from qbridge.ir.scheme import Granularity, WeightScheme
from qbridge.passes import Pass

EXPONENTS = "exponents"  # the scales of groups, whole
NEGATIVE_ZEROS = "negative_zeros"  # which codes are -0, a bit each


@dataclass(frozen=True, slots=True)
class NegativeZeros(Pass):
    """Which codes of e2m1 are -0: 1 for these, 0 for all others, as codes of 1 bit. No layer: it is only stored."""

    name = "negative-zeros"
    parts = frozenset({"code"})

    def plan(self, spec: Spec) -> Spec:
        """A spec with codes of one bit."""
        return replace(spec, weight=WeightScheme(1, Granularity.TENSOR), activation=None, input_scale_dtype=None)

    def apply(self, layer: Layer) -> Layer:
        """The bits alone."""
        arrays = {"code": (layer.arrays["code"] == 8).astype(np.int8)} if "code" in layer.arrays else {}
        return Layer(self.plan(layer.spec), arrays)

    def undo(self, layer: Layer, before: Spec) -> Layer:
        """ValueError: the other codes are not there."""
        raise ValueError("only the zeros of a layer are stored")


STORED: Mapping[str, tuple[tuple[Pass, ...], str]] = {  # by kind, the passes that make it, and which part it is then
    EXPONENTS: ((), "scale"),
    NEGATIVE_ZEROS: ((NegativeZeros(),), "code"),
}


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """The residue of a layer that is in memory, as it was before the pass."""

    layer: Layer

    def rows(self, kind: str, before: Spec, start: int) -> Array:
        """Of some output features of the layer."""
        passes, part = STORED[kind]
        layer = self.layer
        for step in passes:
            layer = step.apply(layer)
        return layer.arrays[part][start : start + before.out_features]
