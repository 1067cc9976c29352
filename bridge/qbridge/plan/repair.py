"""The passes that make a layer legal, each tried on the values that can make it refuse.

Only small tensors are read: scales, zero-points, g_idx, and whatever else a rule asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from qbridge.findings.finding import Findings
from qbridge.formats.rules import Broken, LayerRule, Problem, Rule
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.passes import Pass
from qbridge.passes.counted import Counted
from qbridge.plan.plan import LayerPlan, is_unquantized
from qbridge.plan.survey import CHUNK_BYTES
from qbridge.plan.windows import EVERYTHING
from qbridge.source.reader import Source

Trial = Callable[[tuple[Pass, ...]], ValueError | None]  # why passes cannot be applied, None if they can

_MOST_PASSES = 8  # more means that a rule and its fix disagree


class Rewritten(NamedTuple):
    """What passes make of a layer: its spec after them, and the passes, first to last."""

    spec: Spec
    passes: tuple[Pass, ...] = ()


def why_not(source: Source, model: Model, name: str, passes: tuple[Pass, ...]) -> ValueError | None:
    """Why passes cannot be applied to a layer as it is stored, or None if they can.

    Only parts that can make a pass refuse are read: codes are large, and most passes that touch them cannot fail.
    """
    spec, slots = model.specs[name], model.slots[name]
    plan = LayerPlan(spec, spec, passes, slots, slots)
    decisive: set[str] = set()
    for step in passes:
        decisive |= step.decisive(spec)
        spec = step.plan(spec)
    try:
        for window in plan.windows(CHUNK_BYTES) if "code" in decisive else (EVERYTHING,):
            plan.run(source, frozenset(decisive), window)
    except ValueError as fault:
        return fault
    return None


def repair(
    spec: Spec,
    model: Model,
    rules: Sequence[Rule],
    findings: Findings,
    trial: Trial,
) -> Rewritten:
    """The spec after the passes that its rules call for; a rule without a pass becomes a finding.

    `trial` tells why passes that depend on values cannot be applied.
    """
    passes: list[Pass] = []
    for rule in rules:
        if not isinstance(rule, LayerRule):
            continue
        if is_unquantized(passes):
            break  # no other limit is one of unquantized tensors
        while (problem := rule.check(spec, model)) is not None:
            step = offered(rule, spec, model)
            fault = trial((*passes, step)) if step and step.needs_values(spec) else None
            if step and fault and findings.allows(rule.code) and (lossy := step.lossy()):
                _note(findings, rule, spec, problem, fault)
                step, fault = lossy, trial((*passes, lossy))
                if fault:
                    _note(findings, replace(rule, code="QB303"), spec, problem, fault)
                    break
            if step is None or fault or len(passes) == _MOST_PASSES:
                _note(findings, rule, spec, problem, fault)
                if step and rule.first and spec.weight.is_computed:  # the others are judged as if it were allowed
                    return Rewritten(step.plan(spec), (*passes, step))
                break
            passes.append(step)
            spec = step.plan(spec)
    return Rewritten(spec, tuple(passes))


def offered(rule: LayerRule, spec: Spec, model: Model) -> Pass | None:
    """A rule's pass, unless it means nothing for the scheme (groups of what has blocks)."""
    step = rule.fix(spec, model)
    if step is not None:
        try:
            step.plan(spec)
        except ValueError:
            return None
    return step


def _note(findings: Findings, rule: LayerRule, spec: Spec, problem: Problem, fault: ValueError | None) -> None:
    """A layer's broken rule, with why its pass cannot help."""
    count, why = (fault.count, fault.what) if isinstance(fault, Counted) else (0, str(fault or ""))
    facts = (*problem.facts, why) if why else problem.facts
    Broken(rule, replace(problem, facts=facts), (spec.name,), count).note(findings)
