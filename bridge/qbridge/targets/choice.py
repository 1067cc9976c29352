"""One format that a target may be given."""

from __future__ import annotations

from dataclasses import dataclass

from qbridge.ir import Dialect
from qbridge.rules import Rule
from qbridge.targets.parallel import Parallel


@dataclass(frozen=True, slots=True)
class Choice:
    """A format with the engine's limits on it.

    `dialect` is what the format shall choose where it leaves a choice, `dtype` the one that config.json must name.
    What is found of the codes of `avoided` lets the target's other formats be tried first. `parallel` stands for the
    target's limits on what a rank holds where another of its engines loads the format.
    """

    format: str
    rules: tuple[Rule, ...] = ()
    dialect: Dialect = ()
    dtype: str = ""
    avoided: frozenset[str] = frozenset()
    parallel: Parallel | None = None
