"""One format that a target may be given."""

from __future__ import annotations

from dataclasses import dataclass

from qbridge.ir import Dialect
from qbridge.rules import Rule


@dataclass(frozen=True, slots=True)
class Choice:
    """A format with the engine's limits on it.

    `dialect` is what the format shall choose where it leaves a choice, `dtype` the one that config.json must name.
    """

    format: str
    rules: tuple[Rule, ...] = ()
    dialect: Dialect = ()
    dtype: str = ""
