"""Exact rewrites of a layer that can be undone, one file each."""

from __future__ import annotations

from typing import Any, Protocol

from qbridge.ir.exactness import Exactness
from qbridge.ir.layer import Layer, Spec


class Pass(Protocol):
    """A frozen dataclass that predicts the next spec without data, rewrites a layer, and undoes it."""

    @property
    def name(self) -> str:
        """The pass's name in plans and manifests."""

    @property
    def exactness(self) -> Exactness:
        """What the pass keeps."""

    @property
    def parts(self) -> frozenset[str]:
        """The parts it reads and rewrites; `apply` may be given a layer with only these."""

    def needs_values(self, spec: Spec) -> bool:
        """Whether `apply` may refuse a layer of this spec (ValueError), so that its parts must be read to know."""

    def inputs(self, parts: frozenset[str]) -> frozenset[str]:
        """The parts that `apply` and `undo` must be given to yield these; any others may be left out."""

    def plan(self, spec: Spec) -> Spec:
        """The spec after the pass."""

    def apply(self, layer: Layer) -> Layer:
        """The layer after the pass; its spec is plan(layer.spec)."""

    def undo(self, layer: Layer, before: Spec) -> Layer:
        """The layer that `apply` was given, whose spec was `before`."""

    def lossy(self) -> Pass | None:
        """The pass that rounds where this one refuses, for users who allow it (`--allow rounded`)."""

    def as_dict(self) -> dict[str, Any]:
        """Name and arguments, as the manifest keeps them."""
