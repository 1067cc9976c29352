"""From a model and a target to a plan: passes per layer, output tensors, config; decided from headers.

Only the survey reads data, and only the small tensors (scales): is every one finite, and does a cast back to what
the manifest records lose nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from qbridge.codes import BitPacked, can_repack, repack
from qbridge.dtypes import Array, DType, to_float64
from qbridge.exactness import Exactness, weakest
from qbridge.findings import Findings
from qbridge.formats import decode, encode_part, find, needed
from qbridge.hf_config import as_dtype, spell
from qbridge.ir import Layer, Model, Spec
from qbridge.layout import ScaledZeros, Slot, is_fixed
from qbridge.passes import Pass
from qbridge.passes.recast import Moved
from qbridge.rules import LayerRule, ModelRule, Problem, Rule, ValueRule, Values
from qbridge.source import Source
from qbridge.targets import Target, rules_of
from qbridge.targets.choice import Choice

_BLOCK = 8 << 20  # bytes; a multiple of every item size
_MOST_PASSES = 8  # more means that a rule and its fix disagree


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """What happens to one layer; `read` and `write` are its slots by part."""

    before: Spec
    after: Spec
    passes: tuple[Pass, ...]
    read: Mapping[str, Slot]
    write: Mapping[str, Slot]

    @property
    def exactness(self) -> Exactness:
        """The weakest promise of its passes."""
        return weakest(*(p.exactness for p in self.passes))

    @property
    def touched(self) -> frozenset[str]:
        """The parts that some pass reads or rewrites."""
        return frozenset().union(*(p.parts for p in self.passes))

    def copied(self, part: str) -> bool:
        """Whether the part's bytes do not change, so that the tensor is copied and not decoded."""
        kept = part not in self.touched and part in self.read
        return kept and self.read[part].same_bytes(self.write[part])

    def run(self, source: Source, parts: frozenset[str]) -> Layer:
        """The layer after the passes, with at least `parts` of it."""
        wanted = frozenset(needed(self.write, parts)) | parts
        for step in reversed(self.passes):
            wanted = step.inputs(wanted)
        slots = needed(self.read, self.before.parts().keys() & wanted)
        layer = decode(self.before, slots, {slot.tensor: source.read(slot.tensor) for slot in slots.values()})
        for step in self.passes:
            layer = step.apply(layer)
        return layer

    def encoded(self, source: Source, part: str) -> Array:
        """The stored array of one part (or fixed tensor) after the passes; ValueError if a value does not fit."""
        slot = self.write[part]
        if part == "code" and "code" not in self.touched:
            origin, shape = self.read[part], (self.after.out_features, self.after.in_features)
            read, write = origin.codec, slot.codec
            if isinstance(read, BitPacked) and isinstance(write, BitPacked) and can_repack(read, write):
                return repack(source.read(origin.tensor), read, write, shape, slot)
        return encode_part(self.run(source, frozenset({part})), part, slot)


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """One tensor to write: a copy of the source tensor `origin`, or the encoded `part` of `layer`.

    `shard` is the source file beside whose other tensors it is written.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    shard: Path
    origin: str = ""
    layer: str = ""
    part: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Everything decided before a weight is read."""

    model: Model
    target: Target
    format: str
    layers: Mapping[str, LayerPlan]
    outputs: Sequence[OutputTensor]
    config: Mapping[str, Any]
    because: str = ""

    @property
    def exactness(self) -> dict[str, int]:
        """Layers by class."""
        counts: dict[str, int] = {}
        for layer in self.layers.values():
            counts[str(layer.exactness)] = counts.get(str(layer.exactness), 0) + 1
        return counts


def make_plan(
    source: Source,
    model: Model,
    target: Target,
    choice: Choice,
    findings: Findings,
    recorded: Mapping[str, tuple[Spec, tuple[Pass, ...]]] | None = None,
    values: bool = True,
) -> Plan:
    """Plan a conversion into one format of a target; every problem becomes a finding.

    The plan is only good if none of them is an error, and if the value rules were walked (`values`). `recorded`
    gives, by layer, the spec that a manifest records and the passes that lead back to it.
    """
    destination, rules = find(choice.format), rules_of(choice)
    back_to_a_format = not target.version  # an engine is given today's layout, whatever the original was
    starts: dict[str, tuple[Spec, tuple[Pass, ...]]] = {}
    for name, spec in model.specs.items():
        start, back = (recorded or {}).get(name, (spec, ()))
        kept = dict(start.dialect) if back_to_a_format and name in (recorded or {}) else {}
        starts[name] = replace(start, dialect=tuple(sorted({**kept, **dict(choice.dialect)}.items()))), back
    started = replace(model, specs={name: start for name, (start, _) in starts.items()})
    after: dict[str, tuple[Spec, tuple[Pass, ...]]] = {}
    for name, (start, back) in starts.items():
        ended, passes = repair(start, started, rules, findings, Trial(source, model, name, back))
        after[name] = ended, (*back, *passes)
    result = replace(model, specs={n: spec for n, (spec, _) in after.items()}, format=destination.NAME)
    result = _check_model(result, rules, findings)
    if values:
        _check_values(result, SourceValues(source, model), rules, findings)
    if findings.errors:
        return Plan(model, target, destination.NAME, {}, (), {})
    result = destination.settle(result)
    layers = {
        name: LayerPlan(
            model.specs[name], result.specs[name], passes, model.slots[name], destination.layout(result.specs[name])
        )
        for name, (_, passes) in after.items()
    }
    outputs = outputs_of(source, result, layers)
    _check_names(outputs, findings)
    config = spell(as_dtype(result.config, choice.dtype), target.transformers)
    config["quantization_config"] = destination.config(result)
    return Plan(model, target, destination.NAME, layers, outputs, config)


Recorded = Callable[[str], Mapping[str, tuple[Spec, tuple[Pass, ...]]]]


def best_plan(source: Source, model: Model, target: Target, findings: Findings, recorded: Recorded) -> Plan:
    """The plan for the first of the target's formats that can hold the model, or for the one with fewest problems.

    `recorded` gives, for a format, what `make_plan` is given. The plan's `because` says why it is this format.
    """
    because = ""
    failed: list[tuple[int, Choice]] = []
    for choice in target.in_order(model.format):
        for values in (False, True):
            tried = Findings(findings.allow)
            plan = make_plan(source, model, target, choice, tried, recorded(choice.format), values)
            if tried.errors:
                because = f"not {choice.format}: {tried.errors[0]}"
                failed.append((sum(max(1, len(f.where)) for f in tried.errors), choice))
                break
        else:
            findings.merge(tried)
            own = target.keeps and choice.format == model.format
            return replace(plan, because="the source's own format" if own else because)
    fewest = min(failed, key=lambda entry: entry[0])[1]
    return make_plan(source, model, target, fewest, findings, recorded(fewest.format))


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


@dataclass(frozen=True, slots=True)
class SourceValues:
    """The values of a source, for rules that ask."""

    source: Source
    model: Model

    def part(self, layer: str, part: str) -> Array:
        """A canonical part of a layer, as the source has it."""
        slots = needed(self.model.slots[layer], {part})
        stored = {slot.tensor: self.source.read(slot.tensor) for slot in slots.values()}
        return decode(self.model.specs[layer], slots, stored).arrays[part]

    def blocks(self, tensor: str) -> Iterator[Array]:
        """An unquantized tensor in blocks, as flat arrays of its dtype."""
        info = self.model.tensors[tensor]
        for block in self.source.blocks(info.stored, _BLOCK):
            yield block.view(info.dtype.numpy)


def _check_values(model: Model, values: Values, rules: Sequence[Rule], findings: Findings) -> None:
    for rule in rules:
        if isinstance(rule, ValueRule):
            for problem in rule.check(model, values):
                findings.add(rule.code, problem.where, problem.facts, problem.help)


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
        try:
            plan.run(self.source, plan.touched)
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
            step = rule.fix(spec, model)
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


def _note(findings: Findings, code: str, spec: Spec, problem: Problem, fault: ValueError | None) -> None:
    """A layer's broken rule, with why its pass cannot help."""
    count = fault.count if isinstance(fault, Moved) else 0
    facts = problem.facts if count or not fault else (*problem.facts, str(fault))
    findings.add(code, spec.name, facts, problem.help, count)


def survey(source: Source, model: Model, findings: Findings) -> None:
    """Read every scale once: one that is NaN or infinite is a finding (QB017).

    So is a tensor that the scheme fixes and that holds something else (QB016, QB020).
    """
    for name, spec in model.specs.items():
        for part, slot in model.slots[name].items():
            if part in ("scale", "input_scale"):
                dtype, _ = spec.parts()[part]
                bad = np.flatnonzero(~np.isfinite(to_float64(source.read(slot.tensor), dtype)))
                if bad.size:
                    findings.add("QB017", slot.tensor, (f"{bad.size} of them, the first at index {bad[0]}",))
            elif isinstance(slot.codec, ScaledZeros):
                try:
                    SourceValues(source, model).part(name, part)
                except ValueError as fault:
                    findings.add("QB025", slot.tensor, (str(fault),))
            elif is_fixed(slot.codec):
                try:
                    slot.codec.decode(source.read(slot.tensor), slot.dtype, slot.shape)
                except ValueError as fault:
                    findings.add("QB020" if part == "zero" else "QB016", slot.tensor, (str(fault),))


def outputs_of(source: Source, model: Model, layers: Mapping[str, LayerPlan]) -> list[OutputTensor]:
    """Every tensor of the output, in the order of the source's shards."""
    found = []
    for name, info in model.tensors.items():
        shard = source.tensors[info.stored].file
        found.append(OutputTensor(name, info.dtype, info.shape, shard, origin=info.stored))
    for name, layer in layers.items():
        home = source.tensors[layer.read["code"].tensor].file
        for part, slot in layer.write.items():
            origin = layer.read[part].tensor if layer.copied(part) else ""
            shard = source.tensors[layer.read[part].tensor].file if part in layer.read else home
            found.append(OutputTensor(slot.tensor, slot.dtype, slot.shape, shard, origin, name, part))
    return found


def _check_names(outputs: Sequence[OutputTensor], findings: Findings) -> None:
    seen: set[str] = set()
    for output in outputs:
        if output.name in seen:
            findings.add("QB033", output.name)
        seen.add(output.name)
