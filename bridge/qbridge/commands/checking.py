"""check: would an engine load this checkpoint as it is, and serve it rightly? From headers or config.json alone."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from qbridge.architecture.config import unread, unread_tokenizer
from qbridge.architecture.expected import judge
from qbridge.architecture.from_config import config_alone
from qbridge.commands.checkpoint import PathLike, no_garbage, open_checkpoint
from qbridge.commands.remedies import CONVERT, WRITTEN, Remedies
from qbridge.commands.report import as_json
from qbridge.findings.catalogue import entry_of
from qbridge.findings.finding import Finding, Findings, QBridgeError, Severity, io_as_finding
from qbridge.findings.way import Advice, Way
from qbridge.formats.assumed import assumed_model
from qbridge.formats.registry import named
from qbridge.formats.rules import Broken, LayerRule, Problem, ValueRule, broken
from qbridge.ir.model import Model
from qbridge.plan.options import Options, allowed, typed
from qbridge.plan.repair import offered
from qbridge.source.opening import storage_of
from qbridge.source.reader import TOKENIZER
from qbridge.source.weight_files import INDEX, SINGLE, weight_files, weight_map
from qbridge.targets.choice import Choice
from qbridge.targets.registry import find_target, rules_of
from qbridge.targets.serving import Served, capability_of
from qbridge.targets.target import Target


@dataclass(frozen=True, slots=True)
class Check:
    """The answer for one target at one tensor-parallel size.

    `kernels` are the kinds of layers and what would serve each; `needs_values` the codes of rules that only a
    conversion can walk, because they look at values, `needs_tensors` of those that ask for tensors, where there are
    none. `assumed` says that the dims come from config.json alone, so that `ok` says no more than that it shows no
    problem; `serve` is the command that serves the checkpoint as it is, empty unless `ok`.
    """

    source: str
    target: str
    tp: int
    gpu: str
    format: str
    architecture: str
    layers: int
    assumed: bool
    ok: bool
    kernels: Sequence[Served]
    needs_values: Sequence[str]
    seconds: float
    serve: str = ""
    needs_tensors: Sequence[str] = ()
    findings: Sequence[Finding] = field(default=())

    def as_dict(self) -> dict[str, Any]:
        """The object that `check --json` prints."""
        return as_json(self, "check")


@no_garbage()
def check(
    src: PathLike,
    target: str,
    tp: int = 1,
    gpu: str = "sm80",
    source: str | None = None,
    *,
    allow: Iterable[str] = (),
) -> Check:
    """Judge a checkpoint for a target as it is, by shapes alone; nothing is converted and no weight is read.

    `gpu` is a compute capability such as sm90. A folder with nothing but config.json is judged by the dims that it
    names. Raises QBridgeError where the folder cannot be read at all; ValueError for a `tp` that is not positive,
    TypeError for what is of another type.
    """
    start = time.monotonic()
    wanted = find_target(target)
    options = Options.of(wanted, tp)
    findings = Findings(allowed(allow) - WRITTEN)  # the engine reads what is there, whatever convert may leave out
    typed("tp", tp, int)
    typed("gpu", gpu, str)
    typed("src", src, str, os.PathLike)
    model, config, stored = _model(Path(src), source, findings)
    needs: list[str] = []
    choice = wanted.choice_of(model.format)
    if choice is None:
        facts = (f"it is {model.format or 'of no format that qbridge reads'}, {wanted.name} loads {_named(wanted)}",)
        findings.add("QB260", str(src), facts, (CONVERT,))
    judged = choice or replace(wanted.choices[0], format=named(model.format), rules=())
    if stored is not None:
        judge(model, stored, findings)
        _index_followed(wanted, findings)
    _spelling(model, wanted, findings)
    if model.specs:
        needs = _walk(model, wanted, judged, options, findings)
    if wanted.derivation is not None and choice is not None:
        _derived(wanted.derivation.check(config, model), findings)
    kernels = wanted.serving(model, tp, capability_of(gpu))
    _unserved(kernels, gpu, findings)
    whole = stored is not None and bool(model.slots or not model.specs)
    remedies = Remedies(str(src), wanted, tp, gpu, source, findings.allow, whole)
    return Check(
        source=str(src),
        target=wanted.name,
        tp=tp,
        gpu=gpu,
        format=model.format,
        architecture=model.architecture,
        layers=len(model.specs),
        assumed=not model.slots and bool(model.specs),
        ok=not findings.errors,
        kernels=kernels,
        needs_values=needs,
        seconds=round(time.monotonic() - start, 3),
        needs_tensors=[] if model.slots or not model.specs else _unknown(wanted),
        serve="" if findings.errors else wanted.command(model, model.format, str(src), tp),
        findings=remedies.proved(findings),
    )


def _unknown(wanted: Target) -> list[str]:
    """What config.json alone cannot answer: whether all tensors are there, and are what the engine builds."""
    derived = wanted.derivation.codes if wanted.derivation else ()
    return sorted({"QB263", *(code for code in derived if code in ("QB280", "QB281", "QB282"))})


def _spelling(model: Model, wanted: Target, findings: Findings) -> None:
    """What the model's config files say in words that the engine's transformers does not know, but convert does."""
    if words := unread(model.config, wanted.reader):
        findings.add("QB265", "config.json", words, (CONVERT,))
    if facts := unread_tokenizer(model.tokenizer, wanted.reader):
        findings.add("QB205", TOKENIZER, facts, (CONVERT,))


def _named(target: Target) -> str:
    return ", ".join(dict.fromkeys(target.formats))


def _model(
    path: Path, source: str | None, findings: Findings
) -> tuple[Model, Mapping[str, Any], frozenset[str] | None]:
    """The model from headers, with what is wrong as findings, its config.json, and the names of all its tensors.

    From config.json alone where there is no weight file at all, with the names that an index gives, or None.
    """
    try:
        with io_as_finding(str(path)), open_checkpoint(path, source, findings.allow, strict=False) as opened:
            findings.merge(opened.findings)
            return opened.model, opened.source.config, frozenset(opened.source.tensors)
    except QBridgeError as fault:
        bare = {f.code for f in fault.findings if f.severity is Severity.ERROR} <= {"QB003", "QB008"}
        storage = storage_of(path) if bare else None
        if storage is None or weight_files(storage):
            raise
    model = assumed_model(storage)
    findings.add("QB261", storage.url, (f"{len(model.specs)} linears of {model.architecture}",))
    index = weight_map(storage, findings) if storage.has(INDEX) else None
    return model, config_alone(storage), None if index is None else frozenset(index)


def _index_followed(wanted: Target, findings: Findings) -> None:
    """An index of other files stops the engines that look at it first, though the single file is complete."""
    if wanted.version and not wanted.single_first and any(finding.code == "QB040" for finding in findings):
        findings.add("QB003", INDEX, (f"{wanted.name} follows the index, not {SINGLE}",), (CONVERT,))


def _walk(model: Model, target: Target, choice: Choice, options: Options, findings: Findings) -> list[str]:
    """Every rule of the engine on the model as it is; the codes of those that would need values."""
    rules = target.limits(choice, options.tp)
    elsewhere = any(rule.elsewhere for rule in rules if isinstance(rule, LayerRule)) and _holds(model, target, choice)
    for fault in broken(rules, model):
        help = _commands(fault.problem.help)
        if not help and (_is_mended(fault, model) or (elsewhere and _is_elsewhere(fault))):
            help = (CONVERT,)
        replace(fault, problem=replace(fault.problem, help=help)).note(findings)
    return sorted({rule.code for rule in rules if isinstance(rule, ValueRule)})


def _is_mended(fault: Broken, model: Model) -> bool:
    """Whether converting a layer mends it."""
    rule = fault.rule
    return isinstance(rule, LayerRule) and offered(rule, model.specs[fault.where[0]], model) is not None


def _is_elsewhere(fault: Broken) -> bool:
    return isinstance(fault.rule, LayerRule) and fault.rule.elsewhere


def _derived(deviations: Iterable[tuple[str, Problem]], findings: Findings) -> None:
    """What the engine would build otherwise, where no rule has said so already of the same layers."""
    blamed = {name for finding in findings.errors for name in finding.where}
    for code, problem in deviations:
        if blamed.isdisjoint(problem.where):
            ways = _commands(problem.help) or (CONVERT,)
            findings.add(code, problem.where, problem.facts, ways, mild=problem.mild)


def _holds(model: Model, target: Target, judged: Choice) -> bool:
    """Whether another format of the target can hold the model, as far as shapes tell."""

    def holds(choice: Choice) -> bool:
        rules = [rule for rule in rules_of(target, choice) if entry_of(rule.code).severity == "error"]
        return all(_is_mended(fault, model) for fault in broken(rules, model))

    return any(holds(choice) for choice in target.choices if choice is not judged)


@lru_cache
def _commands(advice: tuple[Advice, ...]) -> tuple[Advice, ...]:
    """Options as what to do with a checkpoint that is there: a whole command, or its server with fewer ranks."""

    def whole(entry: Advice) -> Advice:
        if not isinstance(entry, Way):
            return entry
        return replace(entry, serve=True) if entry.option == "--tp" else entry.of(CONVERT.command)

    return tuple(map(whole, advice))


def _unserved(kernels: Sequence[Served], gpu: str, findings: Findings) -> None:
    """Layers that no kernel serves rightly, where no rule has said so already."""
    blamed = {name for finding in findings.errors for name in finding.where}
    for kind in kernels:
        if not kind.legal and blamed.isdisjoint(kind.names):
            what = f"{kind.scheme} on {gpu}"
            why = (kind.note,) if kind.note else kind.reasons
            help = (f"serve it with {kind.instead}",) if kind.instead else (CONVERT,)
            findings.add("QB227", kind.names, (what, *why), help)
