"""From a model and a target to a plan: passes per layer, output tensors, config; decided from headers.

Only the survey reads data, and only the small tensors (scales): is every one finite, and does a cast back to what
the manifest records lose nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from qbridge.architecture.config import as_dtype, compute_dtype, spell
from qbridge.architecture.growth import follow, growth
from qbridge.findings.finding import Findings
from qbridge.formats.rules import ModelRule, Rule, ValueRule, Values, without_fix
from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.ir.scheme import DENSE
from qbridge.passes import Pass
from qbridge.plan.options import NONE, Wishes
from qbridge.plan.output_tensors import outputs_of
from qbridge.plan.plan import LayerPlan, OutputTensor, Plan
from qbridge.plan.repair import Trial, repair
from qbridge.plan.survey import SourceValues
from qbridge.source.reader import Source
from qbridge.targets.choice import Choice
from qbridge.targets.registry import rules_of
from qbridge.targets.target import Target

Recorded = Mapping[str, tuple[Spec, tuple[Pass, ...]]]


def make_plan(
    source: Source,
    model: Model,
    target: Target,
    choice: Choice,
    findings: Findings,
    recorded: Recorded | None = None,
    wishes: Wishes = NONE,
    thorough: bool = True,
    copied: bool = False,
) -> Plan:
    """Plan a conversion into one format of a target; every problem becomes a finding.

    The plan is only good if none of them is an error. `recorded` gives, by layer, the spec that a manifest records
    and the passes that lead back to it. Unless `thorough`, values are not looked at once something else is refused.
    No cast of the engine's is an error for what is `copied` into the source's own format.
    """
    destination, rules = choice.format, rules_of(target, choice, wishes.tp)
    if wishes.dtype:
        model = replace(model, config=as_dtype(model.config, wishes.dtype))
    if not wishes.passes:
        rules, recorded = tuple(without_fix(rule) for rule in rules), None
    back_to_a_format = not target.version  # an engine is given today's layout, whatever the original was
    starts: dict[str, tuple[Spec, tuple[Pass, ...]]] = {}
    for name, spec in model.specs.items():
        start, back = (recorded or {}).get(name, (spec, ()))
        kept = dict(start.dialect) if back_to_a_format and name in (recorded or {}) else {}
        start = replace(start, dialect=tuple(sorted({**kept, **dict(choice.dialect)}.items())))
        starts[name] = _asked_for(start, back, wishes, Trial(source, model, name), findings)
    if wishes.pad:
        _grow(starts, model, target, wishes, source, findings)
    started = replace(model, specs={name: start for name, (start, _) in starts.items()})
    after: dict[str, tuple[Spec, tuple[Pass, ...]]] = {}
    for name, (start, back) in starts.items():
        ended, passes = repair(start, started, rules, findings, Trial(source, model, name, back))
        after[name] = ended, (*back, *passes)
    result = replace(model, specs={n: spec for n, (spec, _) in after.items()}, format=destination.NAME)
    result = _check_model(result, rules, findings)
    if thorough or not findings.errors:
        steps = {name: passes for name, (_, passes) in after.items()}
        _check_values(result, SourceValues(source, model, steps), rules, copied, findings)
    if findings.errors:
        return Plan(model, target, destination, {}, (), {})
    result = destination.settle(result)
    layers = {
        name: LayerPlan(
            model.specs[name], result.specs[name], passes, model.slots[name], destination.layout(result.specs[name])
        )
        for name, (_, passes) in after.items()
    }
    outputs = outputs_of(source, result, layers)
    _check_names(outputs, findings)
    config = spell(as_dtype(follow(result.config, result.specs), choice.dtype), target.reader)
    block = destination.config(result)
    if block:
        config["quantization_config"] = block
    return Plan(model, target, destination, layers, outputs, config)


def _asked_for(
    spec: Spec, back: tuple[Pass, ...], wishes: Wishes, trial: Trial, findings: Findings
) -> tuple[Spec, tuple[Pass, ...]]:
    """A layer after the passes that a person asked for; one that its values do not allow becomes a finding."""
    passes = back
    for step in wishes.steps(spec):
        fault = trial((*passes, step)) if step.needs_values(spec) else None
        if fault:
            findings.add("QB310", spec.name, (f"{step.name}: {fault}",))
            continue
        spec, passes = step.plan(spec), (*passes, step)
    return spec, passes


def _grow(
    starts: dict[str, tuple[Spec, tuple[Pass, ...]]],
    model: Model,
    target: Target,
    wishes: Wishes,
    source: Source,
    findings: Findings,
) -> None:
    """Pad the MLPs that are not legal at the sizes asked for; those that cannot be become findings."""
    started = replace(model, specs={name: start for name, (start, _) in starts.items()})
    found = growth(started, wishes.tp, target.parallel.multiple)
    for block, reason in found.refused.items():
        findings.add("QB254", block, (reason,))
    for name, step in found.passes.items():
        spec, passes = starts[name]
        fault = Trial(source, model, name)((*passes, step)) if step.needs_values(spec) else None
        if fault:
            findings.add("QB254", name, (str(fault),))
        else:
            starts[name] = step.plan(spec), (*passes, step)


def best_plan(
    source: Source,
    model: Model,
    target: Target,
    findings: Findings,
    recorded: Callable[[str], Recorded],
    wishes: Wishes = NONE,
) -> Plan:
    """The plan for the first of the target's formats that can hold the model, or for the one with fewest problems.

    `recorded` gives, for a format, what `make_plan` is given. The plan's `because` says why it is this format.
    """
    because = ""
    choices = target.in_order(model.format)
    second_best: tuple[Plan, Findings] | None = None
    for choice in choices:
        tried = Findings(findings.allow)
        plan = make_plan(source, model, target, choice, tried, recorded(choice.format.NAME), wishes, thorough=False)
        own = target.keeps and model.format == choice.format.NAME
        plan = replace(plan, because="the source's own format" if own else because)
        avoided = [finding for finding in tried if finding.code in choice.avoided]
        if not tried.errors and not avoided:
            findings.merge(tried)
            return plan
        if not tried.errors:
            second_best = second_best or (plan, tried)
        because = f"not {choice.format.NAME}: {(tried.errors or avoided)[0]}"
    if second_best:
        findings.merge(second_best[1])
        return second_best[0]
    for choice in choices:
        if _is_copy(choice, model):  # the engine does the same to the source, and no other format spares it that
            tried = Findings(findings.allow)
            plan = make_plan(
                source,
                model,
                target,
                choice,
                tried,
                recorded(choice.format.NAME),
                wishes,
                thorough=False,
                copied=True,
            )
            if not tried.errors:
                findings.merge(tried)
                return replace(plan, because="the source's own format")
    refused: list[tuple[Plan, Findings]] = []
    for choice in choices:
        tried = Findings(findings.allow)
        refused.append((make_plan(source, model, target, choice, tried, recorded(choice.format.NAME), wishes), tried))
    plan, nearest = min(refused, key=lambda entry: _distance(entry[1]))
    findings.merge(nearest)
    return plan


def _is_copy(choice: Choice, model: Model) -> bool:
    """Whether the engine is given the format and the dtype that the source has."""
    same = not choice.dtype or compute_dtype(model.config, DType.F32) is DENSE[choice.dtype]
    return model.format == choice.format.NAME and same


def _distance(findings: Findings) -> tuple[int, int]:
    """How far a format is from holding the model: layers whose scheme it has no place for, then kinds of problems.

    A mild problem counts as one, too: the format that has fewer of either kind says more of what is wrong.
    """
    without_place = sum(len(finding.where) for finding in findings.errors if finding.code in ("QB110", "QB219"))
    return without_place, len({finding.code for finding in findings if finding.entry.severity == "error"})


def _check_model(model: Model, rules: Sequence[Rule], findings: Findings) -> Model:
    """The model after what the user allowed to be dropped; every broken rule becomes a finding."""
    for rule in rules:
        if not isinstance(rule, ModelRule):
            continue
        problems = list(rule.check(model))
        for problem in problems:
            findings.add(rule.code, problem.where, problem.facts, problem.help)
        if problems and rule.drop and findings.allows(rule.code):
            model = rule.drop(model)
    return model


def _check_values(model: Model, values: Values, rules: Sequence[Rule], copied: bool, findings: Findings) -> None:
    for rule in rules:
        if isinstance(rule, ValueRule):
            for problem in rule.check(model, values):
                mild = problem.mild or (copied and rule.casts)
                findings.add(rule.code, problem.where, problem.facts, problem.help, mild=mild)


def _check_names(outputs: Sequence[OutputTensor], findings: Findings) -> None:
    seen: set[str] = set()
    for output in outputs:
        if output.name in seen:
            findings.add("QB033", output.name)
        seen.add(output.name)
