"""From a model and a target to a plan: passes per layer, output tensors, config; decided from headers.

Only the survey reads data, and only the small tensors (scales): is every one finite, and does a cast back to what
the manifest records lose nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from qbridge.architecture.config import as_dtype, compute_dtype, spell
from qbridge.architecture.drafts import draft_linears
from qbridge.architecture.growth import follow, growth
from qbridge.architecture.mixers import with_layer_types
from qbridge.findings.finding import Finding, Findings
from qbridge.formats.protocol import Format
from qbridge.formats.rules import Broken, ModelRule, Rule, ValueRule, broken, without_fix
from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.ir.plain import as_tensors, plain_layout
from qbridge.ir.slots import Slot
from qbridge.passes import Pass
from qbridge.plan.casting import Caster, Casting, castings
from qbridge.plan.experts import check_experts, rearrange
from qbridge.plan.options import DEFAULTS, Options
from qbridge.plan.output_tensors import check_names, computed_tensors, outputs_of, rearranged_layers
from qbridge.plan.plan import LayerPlan, Plan, is_unquantized
from qbridge.plan.ranking import OWN, because, distance
from qbridge.plan.repair import Rewritten, Trial, repair, why_not
from qbridge.plan.residue import residue_layers
from qbridge.plan.resizing import resized
from qbridge.plan.serving import check_served, for_kernels
from qbridge.plan.survey import SourceValues
from qbridge.source.reader import Source
from qbridge.targets.choice import Choice
from qbridge.targets.registry import rules_of
from qbridge.targets.target import Target

_LOG = logging.getLogger(__name__)

Recorded = Mapping[str, Rewritten]  # by layer, the spec that a manifest records and the passes that lead back to it


@dataclass(frozen=True, slots=True)
class Candidate:
    """A format of a target that a model may be written in, with all that its plan depends on.

    Without a `source`, whose values would tell, every pass counts as one that can be applied; and so with one that is
    planned from headers alone (`by_headers`), where no rule on values is asked either.
    """

    source: Source | None
    model: Model
    target: Target
    choice: Choice
    recorded: Recorded
    options: Options
    by_headers: bool = False
    casting: Casting | None = None

    @property
    def values(self) -> Source:
        """The source, which a plan reads; ValueError without one."""
        if self.source is None:
            raise ValueError("without a source there is a draft and no plan")
        return self.source

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The limits on the format, without their passes where none are allowed."""
        rules = rules_of(self.target, self.choice, self.options.tp)
        return rules if self.options.passes else tuple(map(without_fix, rules))

    def trial(self, name: str, back: tuple[Pass, ...] = ()) -> Trial:
        """What tells why a layer does not take some passes after those of `back`."""
        source = self.source
        if source is None or self.by_headers:
            return lambda passes: None
        return lambda passes: why_not(source, self.model, name, (*back, *passes))


@dataclass(slots=True)
class Draft:
    """What headers say of a candidate: the passes of every layer, the model they lead to, and what breaks a rule.

    It is made once for a candidate; what only values show is added when the plan is asked for, and found out once.
    """

    candidate: Candidate
    layers: Mapping[str, Rewritten]
    result: Model
    findings: Findings
    _broken: tuple[Broken, ...] | None = None

    def plan(self, findings: Findings, *, thorough: bool = False, copied: bool = False) -> Plan:
        """The plan; only good if no finding, old or new, is an error.

        Unless `thorough`, values are not looked at where headers refuse already. No cast of the engine's is an error
        for what is `copied` into the source's own format.
        """
        findings.merge(self.findings)
        if thorough or not findings.errors:
            for fault in self._broken_by_values():
                fault.note(findings, mild=copied and isinstance(fault.rule, ValueRule) and fault.rule.casts)
        if findings.errors:
            return Plan(self.candidate.model, self.candidate.target, self.candidate.choice.format, {}, (), {})
        return _lay_out(self, findings)

    def _broken_by_values(self) -> tuple[Broken, ...]:
        if self.candidate.by_headers:
            return ()
        if self._broken is None:
            passes = {name: layer.passes for name, layer in self.layers.items()}
            values = SourceValues(self.candidate.values, self.candidate.model, passes)
            rules = [rule for rule in self.candidate.rules if isinstance(rule, ValueRule)]
            self._broken = tuple(broken(rules, self.result, values))
        return self._broken


def draft(candidate: Candidate, findings: Findings) -> Draft:
    """Decide from headers how a model gets into one format; every problem becomes a finding.

    Every layer begins where its manifest leads back to, after the passes that a person asked for. MLPs grow where
    that was asked for. Each layer is repaired until it breaks no rule that a pass can mend. The whole is checked.
    """
    starts = _cast(candidate, _begin(candidate, findings), findings)
    candidate, starts = _grow(candidate, starts, findings)
    layers = _repair(candidate, starts, findings)
    candidate = _for_kernels(candidate, layers)
    result = _check(candidate, layers, findings)
    return Draft(candidate, layers, result, findings)


def _begin(candidate: Candidate, findings: Findings) -> dict[str, Rewritten]:
    """Every layer as the manifest records it, or as it is stored, after the passes that were asked for.

    An engine is given today's layout, whatever the original was; a format gets the recorded dialect back.
    """
    starts: dict[str, Rewritten] = {}
    recorded = candidate.recorded if candidate.options.passes else {}
    for name, stored in candidate.model.specs.items():
        spec, back = recorded.get(name, Rewritten(stored))
        dialect = dict(spec.dialect) if candidate.target.is_called_as_format and name in recorded else {}
        dialect |= dict(candidate.choice.dialect)
        start = Rewritten(replace(spec, dialect=tuple(sorted(dialect.items()))), back)
        starts[name] = _asked_for(start, candidate.options, candidate.trial(name), findings)
    return starts


def _cast(candidate: Candidate, starts: dict[str, Rewritten], findings: Findings) -> dict[str, Rewritten]:
    """Every layer in the number format that a person asked for; what has no exact cast becomes a finding."""
    if candidate.casting is None:
        return starts
    source = None if candidate.by_headers else candidate.source
    caster = Caster(candidate.casting, candidate.model, source, candidate.choice.dialect)
    return caster.run(starts, findings)


def _asked_for(start: Rewritten, options: Options, trial: Trial, findings: Findings) -> Rewritten:
    """A layer after the passes that a person asked for; one that its values do not allow becomes a finding."""
    spec, passes = start
    for step in options.steps(spec):
        fault = trial((*passes, step)) if step.needs_values(spec) else None
        if fault:
            findings.add("QB310", spec.name, (f"{step.name}: {fault}",))
            continue
        spec, passes = step.plan(spec), (*passes, step)
    return Rewritten(spec, passes)


def _grow(
    candidate: Candidate, starts: Mapping[str, Rewritten], findings: Findings
) -> tuple[Candidate, dict[str, Rewritten]]:
    """Pad the MLPs that are not legal at the sizes asked for; those that cannot be become findings.

    Unquantized linears that grow with them, or that the manifest leads back to, do so in the candidate's model.
    """
    recorded = candidate.recorded if candidate.options.passes else {}
    plain = {name: back.spec.dims for name, back in recorded.items() if name not in starts}
    grown = dict(starts)
    if not candidate.options.pad:
        return _with_resized(candidate, plain, findings), grown
    before = _after(_with_resized(candidate, plain, findings).model, starts)
    needed = growth(before, candidate.options.tp, candidate.target.parallel.multiple)
    for block, reason in needed.refused.items():
        findings.add("QB254", block, (reason,))
    for name, step in needed.passes.items():
        if name not in starts:
            plain[name] = (step.out_features, step.in_features)
            continue
        spec, passes = starts[name]
        fault = candidate.trial(name)((*passes, step)) if step.needs_values(spec) else None
        if fault:
            findings.add("QB254", name, (str(fault),))
        else:
            grown[name] = Rewritten(step.plan(spec), (*passes, step))
    return _with_resized(candidate, plain, findings), grown


def _with_resized(candidate: Candidate, plain: Mapping[str, tuple[int, int]], findings: Findings) -> Candidate:
    """The candidate whose unquantized linears have other dims, by name; grafted ones become findings."""
    source, stored = candidate.source, draft_linears(candidate.model)
    dims = {name: new for name, new in plain.items() if name in stored and stored[name].dims != new}
    if source is None or not dims:
        return candidate
    model = resized(source, candidate.model, dims)
    for name, linear in model.rearranged.items():
        if linear.dims and linear.read.whole in source.adopted:
            findings.add("QB254", name, ("it is grafted: graft first, and pad what that gives",))
    return replace(candidate, model=model)


def _repair(candidate: Candidate, starts: Mapping[str, Rewritten], findings: Findings) -> dict[str, Rewritten]:
    """Every layer after the passes that its rules call for; rules that no pass mends become findings."""
    started, rules = _after(candidate.model, starts), candidate.rules
    layers: dict[str, Rewritten] = {}
    for name, (start, back) in starts.items():
        spec, passes = repair(start, started, rules, findings, candidate.trial(name, back))
        layers[name] = Rewritten(spec, (*back, *passes))
    return layers


def _for_kernels(candidate: Candidate, layers: Mapping[str, Rewritten]) -> Candidate:
    """The candidate whose config names the dtype of the engine's kernels, where the model's own has none."""
    written = replace(_after(candidate.model, layers), format=candidate.choice.format.NAME)
    return replace(candidate, model=for_kernels(candidate.target, candidate.model, written, candidate.options.tp))


def _check(candidate: Candidate, layers: Mapping[str, Rewritten], findings: Findings) -> Model:
    """The model that the layers make, without what the user allowed to be dropped; broken rules become findings.

    Its config has followed the layers: rules look at the one that is written.
    """
    model = replace(_after(candidate.model, layers), format=candidate.choice.format.NAME)
    model = replace(model, config=follow(model.config, model.specs))
    model = as_tensors(model, [name for name, layer in layers.items() if is_unquantized(layer.passes)])
    for rule in candidate.rules:
        if not isinstance(rule, ModelRule):
            continue
        faults = tuple(broken((rule,), model))
        for fault in faults:
            fault.note(findings)
        if faults and rule.drop and findings.allows(rule.code):
            model = rule.drop(model)
    return model


def _after(model: Model, layers: Mapping[str, Rewritten]) -> Model:
    """The model with its layers as they have become."""
    return replace(model, specs={name: layer.spec for name, layer in layers.items()})


def _lay_out(draft: Draft, findings: Findings) -> Plan:
    """Slots of every layer, output tensors and config; two tensors of one name become a finding."""
    candidate, destination = draft.candidate, draft.candidate.choice.format
    model, result = candidate.model, destination.settle(draft.result)
    layers = {
        name: LayerPlan(model.specs[name], spec, layer.passes, model.slots[name], layout(spec))
        for name, layer in draft.layers.items()
        for spec, layout in [_written(name, layer, result, destination)]
    }
    outputs = outputs_of(candidate.values, result, layers)
    check_names(outputs, findings)
    config = spell(as_dtype(result.config, candidate.choice.dtype), candidate.target.reader)
    if (result.specs or result.kv_cache) and (block := destination.config(result)):
        config |= dict.fromkeys(getattr(destination, "BLOCK_KEYS", ("quantization_config",)), block)
    others = rearranged_layers(result)
    plan = Plan(
        model,
        candidate.target,
        destination,
        layers,
        outputs,
        config,
        others=others,
        residue=residue_layers(layers),
    )
    if compute := getattr(destination, "computed", None):
        plan = replace(plan, outputs=[*outputs, *computed_tensors(candidate.values, compute(result))])
    if describe := getattr(destination, "metadata", None):
        plan = replace(plan, metadata=describe(result, candidate.values, findings))
    _derive(plan, findings)
    check_experts(plan, candidate.options, findings)
    check_served(candidate.target, replace(result, config=config), candidate.options.tp, findings)
    return plan


def _written(
    name: str, layer: Rewritten, result: Model, destination: Format
) -> tuple[Spec, Callable[[Spec], Mapping[str, Slot]]]:
    """The settled spec of a layer, and what gives the slots that it is written to."""
    if is_unquantized(layer.passes):
        return layer.spec, plain_layout
    return result.specs[name], destination.layout


def _derive(plan: Plan, findings: Findings) -> None:
    """What the engine would build otherwise than what is planned, from its block: no word allows it."""
    derivation = plan.target.derivation
    for code, problem in derivation.check(plan.config, plan.written) if derivation else ():
        findings.add(code, problem.where, problem.facts, problem.help, mild=problem.mild, final=True)


def _with_asked_config(model: Model, options: Options, findings: Findings) -> Model:
    """The model whose config has the dtype that is asked for, and names layers that no class would guess (QB345)."""
    model, named = with_layer_types(model)
    if named:
        findings.add("QB345", named, ("as the tensors of each layer are",))
    return replace(model, config=as_dtype(model.config, options.dtype)) if options.dtype else model


def best_plan(
    source: Source,
    model: Model,
    target: Target,
    findings: Findings,
    recorded: Callable[[str], Recorded],
    options: Options = DEFAULTS,
    by_headers: bool = False,
) -> Plan:
    """The plan for the first of the target's formats that can hold the model, or for the one with fewest problems.

    `recorded` gives, for a format, where its layers lead back to. The plan's `because` says why it is this format.
    Each format is drafted once, however often it is looked at. `by_headers`: no value is read, so that what a rule on
    values would refuse is planned.
    """
    model = _with_asked_config(model, options, findings)
    rejected: list[tuple[str, Finding]] = []  # (format, why not)
    drafts: list[Draft] = []
    second_best: tuple[Plan, Findings] | None = None
    for choice, casting in _tried(target, model, options):
        drafted = Findings(findings.allow)
        own = rearrange(source, model, target, choice, options, drafted)
        back = recorded(choice.format.NAME)
        candidate = Candidate(source, own, target, choice, back, options, by_headers, casting)
        drafts.append(draft(candidate, drafted))
        tried = Findings(findings.allow)
        plan = replace(drafts[-1].plan(tried), because=because(target, choice.format.NAME, model, rejected))
        avoided = [finding for finding in tried if finding.code in choice.avoided]
        stopping = ", ".join(dict.fromkeys(finding.code for finding in (*tried.errors, *avoided)))
        _LOG.info("%s as %s: %s", target.name, choice.format.NAME, f"no, {stopping}" if stopping else "yes")
        _LOG.debug("passes, by layers: %s", plan.pass_counts)
        if not tried.errors and not avoided:
            findings.merge(tried)
            return plan
        if not tried.errors:
            second_best = second_best or (plan, tried)
        rejected.append((choice.format.NAME, (tried.errors or avoided)[0]))
    if second_best:
        findings.merge(second_best[1])
        return second_best[0]
    for one in drafts:
        if _is_copy(one.candidate, model):  # the engine does the same to the source, whatever the format
            tried = Findings(findings.allow)
            plan = one.plan(tried, copied=True)
            if not tried.errors:
                findings.merge(tried)
                return replace(plan, because=OWN)
    refused: list[tuple[Plan, Findings]] = []
    for one in drafts:
        tried = Findings(findings.allow)
        refused.append((one.plan(tried, thorough=True), tried))
    plan, nearest = min(refused, key=lambda entry: distance(entry[1]))
    findings.merge(nearest)
    return plan


def refusal(model: Model, target: Target, allow: frozenset[str], options: Options = DEFAULTS) -> tuple[Finding, ...]:
    """Why headers alone refuse a model in every format of a target, by the nearest one; empty if some may hold it."""
    tried: list[Findings] = []
    for choice, casting in _tried(target, model, options):
        candidate = Candidate(None, model, target, choice, {}, options, casting=casting)
        tried.append(draft(candidate, Findings(allow)).findings)
        if not tried[-1].errors:
            return ()
    return min(tried, key=distance).errors


def _tried(target: Target, model: Model, options: Options) -> Iterator[tuple[Choice, Casting | None]]:
    """The formats of a target, each with every cast that the options leave open."""
    for choice in target.in_order(model.format):
        for casting in castings(options.cast, options.keep_undo):
            yield choice, casting


def _is_copy(candidate: Candidate, model: Model) -> bool:
    """Whether the engine is given the format and the dtype that the source has."""
    planned = as_dtype(candidate.model.config, candidate.choice.dtype)
    same = compute_dtype(planned, DType.F32) is compute_dtype(model.config, DType.F32)
    return same and model.format == candidate.choice.format.NAME
