"""Undo: a pass backwards, so that converting back replays what a manifest records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from qbridge.ir.exactness import Exactness
from qbridge.ir.layer import Layer, Spec
from qbridge.passes import Pass


@dataclass(frozen=True, slots=True)
class Undo(Pass):
    """`step` undone: leads to the spec `before` that it was once given. What was edited since is not undone."""

    step: Pass
    before: Spec

    @property
    def name(self) -> str:
        """undo NAME."""
        return f"undo {self.step.name}"

    @property
    def exactness(self) -> Exactness:
        """What the pass itself keeps."""
        return self.step.exactness

    @property
    def parts(self) -> frozenset[str]:
        """The pass's own."""
        return self.step.parts

    @property
    def whole(self) -> bool:
        """The pass's own."""
        return self.step.whole

    def needs_values(self, spec: Spec) -> bool:
        """The values may have been edited since."""
        return True

    def inputs(self, parts: frozenset[str]) -> frozenset[str]:
        """The pass's own."""
        return self.step.inputs(parts)

    def plan(self, spec: Spec) -> Spec:
        """The spec before the pass."""
        return self.before

    def apply(self, layer: Layer) -> Layer:
        """The layer before the pass; ValueError if its values could not come from it."""
        return self.step.undo(layer, self.before)

    def undo(self, layer: Layer, before: Spec) -> Layer:
        """The pass again."""
        return self.step.apply(layer)

    def within(self, before: Spec, of: Callable[[Spec], Spec]) -> Undo:
        """The pass for these output features, undone."""
        return replace(self, step=self.step.within(self.before, of), before=of(self.before))

    def at(self, start: int) -> Undo:
        """The pass's own, undone."""
        return replace(self, step=self.step.at(start))

    def as_dict(self) -> dict[str, Any]:
        """The pass's own, marked."""
        return {**self.step.as_dict(), "undo": True}
