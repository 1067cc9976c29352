"""What values say before anything is planned (the survey), and the passes that make a layer legal.

Only small tensors are read: scales, zero-points, g_idx, and whatever else a rule asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from qbridge.dtypes import Array, DType, is_finite
from qbridge.findings import Findings
from qbridge.ir import Model, Spec
from qbridge.layout import Slot
from qbridge.passes import Pass
from qbridge.passes.recast import Moved
from qbridge.plan import LayerPlan
from qbridge.rules import LayerRule, Problem, Rule
from qbridge.source import Source
from qbridge.windows import EVERYTHING

_BLOCK = 8 << 20  # bytes or codes that are looked at at a time; a multiple of every item size
_MOST_PASSES = 8  # more means that a rule and its fix disagree


@dataclass(frozen=True, slots=True)
class SourceValues:
    """The values of a source, for rules that ask: as they are, or after the passes of each layer."""

    source: Source
    model: Model
    passes: Mapping[str, tuple[Pass, ...]] = field(default_factory=dict)

    def part(self, layer: str, part: str) -> Array:
        """A canonical part of a layer."""
        spec, slots = self.model.specs[layer], self.model.slots[layer]
        plan = LayerPlan(spec, spec, self.passes.get(layer, ()), slots, {})
        return plan.run(self.source, frozenset({part})).arrays[part]

    def blocks(self, tensor: str) -> Iterator[Array]:
        """An unquantized tensor in blocks, as flat arrays of its dtype."""
        info = self.model.tensors[tensor]
        for block in self.source.blocks(info.stored, _BLOCK):
            yield block.view(info.dtype.numpy)


@dataclass(frozen=True, slots=True)
class Trial:
    """Applies passes to a layer's small parts, to learn whether its values let them."""

    source: Source
    model: Model
    name: str
    back: tuple[Pass, ...] = ()

    def __call__(self, passes: tuple[Pass, ...]) -> ValueError | None:
        """Why the passes cannot be applied after `back`, or None if they can."""
        steps = (*self.back, *passes)
        slots = self.model.slots[self.name]
        spec = self.model.specs[self.name]
        plan = LayerPlan(spec, spec, steps, slots, slots)
        decisive: set[str] = set()  # codes are large, and most passes that touch them cannot fail
        for step in steps:
            decisive |= step.parts if step.needs_values(spec) else step.parts - {"code"}
            spec = step.plan(spec)
        try:
            for window in plan.windows(_BLOCK) if "code" in decisive else (EVERYTHING,):
                plan.run(self.source, frozenset(decisive), window)
        except ValueError as fault:
            return fault
        return None


def repair(
    spec: Spec,
    model: Model,
    rules: Sequence[Rule],
    findings: Findings,
    trial: Callable[[tuple[Pass, ...]], ValueError | None],
) -> tuple[Spec, tuple[Pass, ...]]:
    """The spec after the passes that its rules call for; a rule without a pass becomes a finding.

    `trial` tells why passes that depend on values cannot be applied.
    """
    passes: list[Pass] = []
    for rule in rules:
        if not isinstance(rule, LayerRule):
            continue
        while (problem := rule.check(spec, model)) is not None:
            step = offered(rule, spec, model)
            fault = trial((*passes, step)) if step and step.needs_values(spec) else None
            if step and fault and findings.allows(rule.code) and (lossy := step.lossy()):
                _note(findings, rule.code, spec, problem, fault)
                step, fault = lossy, trial((*passes, lossy))
                if fault:
                    _note(findings, "QB303", spec, problem, fault)
                    break
            if step is None or fault or len(passes) == _MOST_PASSES:
                _note(findings, rule.code, spec, problem, fault)
                break
            passes.append(step)
            spec = step.plan(spec)
    return spec, tuple(passes)


def offered(rule: LayerRule, spec: Spec, model: Model) -> Pass | None:
    """A rule's pass, unless it means nothing for the scheme (groups of what has blocks)."""
    step = rule.fix(spec, model)
    if step is not None:
        try:
            step.plan(spec)
        except ValueError:
            return None
    return step


def _note(findings: Findings, code: str, spec: Spec, problem: Problem, fault: ValueError | None) -> None:
    """A layer's broken rule, with why its pass cannot help."""
    count = fault.count if isinstance(fault, Moved) else 0
    facts = problem.facts if count or not fault else (*problem.facts, str(fault))
    findings.add(code, spec.name, facts, problem.help, count)


def survey(source: Source, model: Model, findings: Findings) -> None:
    """Read every scale once: one that is NaN or infinite, or zero and divides, is a finding (QB017).

    So is a tensor that the scheme fixes and that holds something else (QB016, QB020).
    """
    values = SourceValues(source, model)
    for name, spec in model.specs.items():
        for part, slot in model.slots[name].items():
            if part in ("scale", "input_scale", "global_scale", "input_global_scale"):
                _check_finite(source, slot, spec.parts()[part][0], findings)
            scheme = {"global_scale": spec.weight, "input_global_scale": spec.activation}.get(part)
            if scheme is not None and scheme.global_scale == "divide" and not values.part(name, part).any():
                findings.add("QB017", slot.tensor, ("it is zero, and divides",))
            try:
                if slot.codec.redundant:
                    values.part(name, part)
                elif slot.codec.fixed:
                    slot.codec.decode(source.read(slot.tensor), slot.dtype, slot.shape)
            except ValueError as fault:
                findings.add(_code_of(part, slot), slot.tensor, (str(fault),))


def _check_finite(source: Source, slot: Slot, dtype: DType, findings: Findings) -> None:
    count, first, done = 0, 0, 0
    for block in source.blocks(slot.tensor, _BLOCK):
        values = block.view(dtype.numpy)
        bad = np.flatnonzero(~is_finite(values, dtype))
        first = first if count or not bad.size else done + int(bad[0])
        count += bad.size
        done += values.size
    if count:
        findings.add("QB017", slot.tensor, (f"{count} of them, the first at index {first}",))


def _code_of(part: str, slot: Slot) -> str:
    """What it means that a tensor cannot be decoded."""
    if slot.codec.needs:
        return "QB025"
    return "QB020" if part == "zero" and slot.codec.fixed else "QB016"
