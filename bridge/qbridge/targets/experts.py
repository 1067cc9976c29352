"""Unquantized experts as an engine takes them: one by one, or in tensors that all of them share."""

from __future__ import annotations

from collections.abc import Iterator

from qbridge.architecture.experts import LIES, Experts, rearrangements
from qbridge.formats.rules import ModelRule, Problem
from qbridge.ir.model import Model
from qbridge.targets.choice import Arrange


def as_taken(arrange: Arrange, source: str) -> ModelRule:
    """Unquantized experts must lie as an engine takes those of the class (QB336)."""

    def check(model: Model) -> Iterator[Problem]:
        alike: dict[tuple[str, str], list[str]] = {}
        for block, (experts, wanted) in rearrangements(model, lambda lies: arrange(model, lies)).items():
            if isinstance(wanted, Experts):
                alike.setdefault((experts.lies, wanted.lies), []).append(block)
        for (lies, how), blocks in alike.items():
            fact = f"they are stored {LIES[lies]}: it takes those of {model.architecture} {LIES[how]}"
            yield Problem((fact,), where=tuple(blocks))

    return ModelRule("QB336", check, source)
