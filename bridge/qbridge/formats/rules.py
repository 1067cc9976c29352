"""Rules: one limit of a format or a target each, as data the planner walks over.

A layer rule looks at one spec within its model and may offer an exact pass; a model rule looks at the whole; a value
rule needs the values of small tensors, or of tensors that a cast may change, and so a checkpoint with data.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

from qbridge.findings.catalogue import entry_of
from qbridge.findings.finding import Findings
from qbridge.findings.way import Advice
from qbridge.ir.dtypes import Array
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.passes import Pass


@dataclass(frozen=True, slots=True)
class Problem:
    """A broken rule: facts and help without the place, so that equal problems of many layers become one.

    `help` has the ways out, as options of `qbridge convert`, and plain text where there is nothing to type. A `mild`
    one is a warning, whatever the catalogue says of its code.
    """

    facts: tuple[str, ...] = ()
    help: tuple[Advice, ...] = ()
    where: tuple[str, ...] = ()
    mild: bool = False


@dataclass(frozen=True, slots=True)
class LayerRule:
    """A limit on every layer; `fix` gives the exact pass that repairs a spec, or None if there is none.

    Both are given the spec as it has become, and the model as it was before the first rule. A rule that is `first` is
    asked before those of the format.
    """

    code: str
    check: Callable[[Spec, Model], Problem | None]
    source: str
    fix: Callable[[Spec, Model], Pass | None] = lambda spec, model: None
    first: bool = False


@dataclass(frozen=True, slots=True)
class ModelRule:
    """A limit on the model; each problem names its places.

    `drop` gives the model without what the rule objects to, for users who allow it (`--allow`).
    """

    code: str
    check: Callable[[Model], Iterable[Problem]]
    source: str
    drop: Callable[[Model], Model] | None = None


class Values(Protocol):
    """The data that value rules may ask for."""

    def part(self, layer: str, part: str) -> Array:
        """A canonical part of a layer as the model that the rule is given describes it."""

    def once(self, key: Hashable, find: Callable[[], Any]) -> Any:
        """What `find` gives of the unquantized tensors, which no pass changes: asked once for a key."""

    def blocks(self, tensor: str) -> Iterator[Array]:
        """An unquantized tensor in blocks, as flat arrays of its dtype."""


@dataclass(frozen=True, slots=True)
class ValueRule:
    """A limit that only values can show; `check` reads no more than it needs.

    A rule about `casts` says what the engine does to the values when it loads them: no reason to refuse a model that
    it is given in the format, and with the dtype, that the source has already.
    """

    code: str
    check: Callable[[Model, Values], Iterable[Problem]]
    source: str
    casts: bool = False


Rule = LayerRule | ModelRule | ValueRule


@dataclass(frozen=True, slots=True)
class Broken:
    """A rule that a model breaks, with its problem; `where` are the layers, tensors, files or keys it is about.

    `values` is how many values of each place are wrong, 0 where nothing is counted.
    """

    rule: Rule
    problem: Problem
    where: tuple[str, ...]
    values: int = 0

    @property
    def stops(self) -> bool:
        """Whether it is an error, by its code and its problem."""
        return not self.problem.mild and entry_of(self.rule.code).severity == "error"

    def note(self, findings: Findings, *, mild: bool = False) -> None:
        """Make it a finding: a warning if it is `mild` or its problem is, else of its code's severity."""
        problem = self.problem
        findings.add(self.rule.code, self.where, problem.facts, problem.help, self.values, mild=mild or problem.mild)


def broken(rules: Iterable[Rule], model: Model, values: Values | None = None) -> Iterator[Broken]:
    """Every rule that a model breaks, as it is, in the order of the rules; value rules where there are `values`."""
    for rule in rules:
        if isinstance(rule, LayerRule):
            for name, spec in model.specs.items():
                if (problem := rule.check(spec, model)) is not None:
                    yield Broken(rule, problem, (name,))
        elif isinstance(rule, ModelRule):
            yield from (Broken(rule, problem, problem.where) for problem in rule.check(model))
        elif values is not None:
            yield from (Broken(rule, problem, problem.where) for problem in rule.check(model, values))


def without_fix(rule: Rule) -> Rule:
    """The same limit, to be reported where it would be mended."""
    return replace(rule, fix=lambda spec, model: None) if isinstance(rule, LayerRule) else rule
