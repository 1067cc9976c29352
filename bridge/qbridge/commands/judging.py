"""One checkpoint held against one target: which rules it breaks and what would serve it, by tensor-parallel size.

What does not depend on the size is asked once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from qbridge.architecture.config import unread, unread_tokenizer
from qbridge.architecture.expected import judge
from qbridge.architecture.from_config import config_alone
from qbridge.architecture.names import VISION, is_head
from qbridge.architecture.sizes import judge_sizes
from qbridge.commands.checkpoint import Checkpoint, PathLike, open_checkpoint
from qbridge.commands.remedies import CONVERT
from qbridge.findings.finding import Finding, Findings, QBridgeError, Severity, io_as_finding
from qbridge.findings.way import Advice, Way
from qbridge.formats.assumed import assumed_model
from qbridge.formats.registry import named
from qbridge.formats.rules import LayerRule, Problem, Rule, ValueRule, broken
from qbridge.ir.model import Model
from qbridge.source.foreign import no_weights
from qbridge.source.opening import storage_of
from qbridge.source.reader import TOKENIZER
from qbridge.source.storage import Storage
from qbridge.source.weight_files import INDEX, SINGLE, weight_files, weight_map
from qbridge.targets.choice import Choice
from qbridge.targets.gpus import Gpu
from qbridge.targets.serving import Served
from qbridge.targets.target import Target

# What only tensors show: which linears are quantized, and whether codes lie as the block says.
_BY_TENSORS = frozenset({"QB234", "QB280", "QB281", "QB282", "QB284"})
_LINEARS = frozenset({"QB280", "QB281", "QB282", "QB285"})


@dataclass(frozen=True, slots=True)
class Subject:
    """What is judged: a checkpoint from its headers, or a folder that has no more than a config.json.

    `path` is the place as a person named it, `storage` where its files lie; `config` is config.json as it is,
    `tensors` the names of all tensors, None where nothing names them; `findings` are what is wrong whatever the
    target. `source` is the format that was asked for, if any. Without `values` none may be read; `opened` is what was
    read then, or of a checkpoint on a server. `first` is the name of the first file of its weights.
    """

    path: str
    storage: Storage
    source: str | None
    model: Model
    config: Mapping[str, Any]
    tensors: frozenset[str] | None
    findings: Findings
    opened: Checkpoint | None = None
    values: bool = True
    first: str = ""

    @classmethod
    def of(cls, path: PathLike, source: str | None, findings: Findings, values: bool = True) -> Subject:
        """Read a checkpoint; QBridgeError where it cannot be read at all."""
        with io_as_finding(str(path)):
            storage = storage_of(path)
        model, config, tensors, opened = _model(storage, source, findings, values)
        if tensors is not None:
            judge(model, tensors, findings)
        judge_sizes(model, findings)
        return cls(
            storage.url,
            storage,
            source,
            model,
            config,
            tensors,
            findings,
            opened if storage.is_far or not values else None,
            values,
            opened.source.shards[0] if opened and opened.source.shards else "",
        )

    @property
    def whole(self) -> bool:
        """Whether there are weights, so that a conversion can be planned."""
        return self.tensors is not None and bool(self.model.slots or not self.model.specs)

    @property
    def assumed(self) -> bool:
        """Whether the dims are those that config.json names."""
        return bool(self.model.specs) and not self.model.slots


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a target makes of a checkpoint at a size; `serve` is the command that serves it, empty unless `ok`."""

    tp: int
    findings: Sequence[Finding]
    kernels: Sequence[Served] = ()
    serve: str = ""

    @property
    def errors(self) -> list[Finding]:
        """What stops it."""
        return [finding for finding in self.findings if finding.severity is Severity.ERROR]

    @property
    def ok(self) -> bool:
        """Whether nothing does."""
        return not self.errors


@dataclass(slots=True)
class Judge:
    """Holds a checkpoint against a target on a GPU."""

    subject: Subject
    target: Target
    gpu: Gpu
    _choice: Choice = field(init=False)
    _whatever_size: Findings = field(init=False)
    _deviations: Sequence[tuple[str, Problem]] = field(init=False, default=())

    def __post_init__(self) -> None:
        """Ask what no size changes."""
        model, target = self.subject.model, self.target
        findings = Findings(self.subject.findings.allow)
        findings.merge(self.subject.findings)
        choice = target.choice_of(model.format)
        if choice is None:
            loads = ", ".join(dict.fromkeys(target.formats))
            facts = (f"it is {model.format or 'of no format that qbridge reads'}, {target.name} loads {loads}",)
            findings.add("QB260", self.subject.path, facts, (CONVERT,))
        self._choice = choice or replace(target.choices[0], format=named(model.format), rules=())
        if self.subject.tensors is not None:
            _index_followed(target, findings)
            _tower_found(self.subject, target, findings)
        _spelling(model, target, findings)
        if model.specs:
            _walk(target.whole_limits(choice) if choice else (), model, findings)
        if target.derivation is not None and choice is not None:
            found = target.derivation.check(self.subject.config, model)
            self._deviations = tuple(entry for entry in found if not self.subject.assumed or _in_config(*entry))
        if not self.subject.values and self.needs_values:
            findings.add("QB064", sorted(self.needs_values))
        self._whatever_size = findings

    def at(self, tp: int) -> Verdict:
        """The verdict at a tensor-parallel size; conversions among its ways out are not tried yet."""
        model, target = self.subject.model, self.target
        findings = Findings(self._whatever_size.allow)
        findings.merge(self._whatever_size)
        if model.specs:
            _walk(target.rank_limits(self._choice, (tp,)), model, findings)
        _derived(self._deviations, findings)
        kernels = target.serving(model, tp, self.gpu.capability)
        _unserved(kernels, str(self.gpu), findings)
        serve = (
            "" if findings.errors else target.command(model, model.format, self.subject.path, tp, self.subject.first)
        )
        return Verdict(tp, tuple(findings), kernels, serve)

    @property
    def needs_values(self) -> set[str]:
        """The codes of rules that look at values."""
        return {rule.code for rule in self._choice.rules if isinstance(rule, ValueRule)} if self._specs else set()

    @property
    def needs_tensors(self) -> set[str]:
        """The codes of what config.json alone cannot answer: whether all tensors are there, and are what is built."""
        if not self.subject.assumed:
            return set()
        derived = self.target.derivation.codes if self.target.derivation else ()
        return {"QB263", *_BY_TENSORS.intersection({*derived, *(rule.code for rule in self.target.rules)})}

    @property
    def _specs(self) -> bool:
        return bool(self.subject.model.specs)


def _model(
    storage: Storage, source: str | None, findings: Findings, values: bool
) -> tuple[Model, Mapping[str, Any], frozenset[str] | None, Checkpoint | None]:
    """The model from headers, with what is wrong as findings, its config.json, and the names of all its tensors.

    From config.json alone where there is no weight file at all, with the names that an index gives, or None.
    """
    try:
        with (
            io_as_finding(storage.url),
            open_checkpoint(storage, source, findings.allow, False, False, values) as opened,
        ):
            findings.merge(opened.findings)
            return opened.model, opened.source.config, frozenset(opened.source.tensors), opened
    except QBridgeError as fault:
        bare = {f.code for f in fault.findings if f.severity is Severity.ERROR} <= {"QB003", "QB008"}
        if not bare or weight_files(storage):
            raise
    model = assumed_model(storage)
    instead, fix = no_weights(storage) or ("", "")
    facts = filter(None, (instead, f"{len(model.specs)} linears of {model.architecture}"))
    findings.add("QB261", storage.url, tuple(facts), fix=fix)
    index = weight_map(storage, findings) if storage.has(INDEX) else None
    return model, config_alone(storage), None if index is None else frozenset(index), None


def _spelling(model: Model, target: Target, findings: Findings) -> None:
    """What the model's config files say in words that the engine's transformers does not know, but convert does."""
    if words := unread(model.config, target.reader):
        findings.add("QB265", "config.json", words, (CONVERT,))
    if facts := unread_tokenizer(model.tokenizer, target.reader.of(model.config)):
        findings.add("QB205", TOKENIZER, facts, (CONVERT,))


def _index_followed(target: Target, findings: Findings) -> None:
    """An index of other files stops the engines that look at it first, though the single file is complete."""
    if target.version and not target.single_first and any(finding.code == "QB040" for finding in findings):
        findings.add("QB003", INDEX, (f"{target.name} follows the index, not {SINGLE}",), (CONVERT,))


def _tower_found(subject: Subject, target: Target, findings: Findings) -> None:
    """Without an index, some engines look for no tower: what is stored of it is left out."""
    towers = [name for name in subject.tensors or () if any(part in VISION for part in name.split("."))]
    if towers and subject.model.architecture in target.towers_by_index and not subject.storage.has(INDEX):
        fact = f"{target.name} builds the tower where {INDEX} names its tensors, and there is none"
        findings.add("QB269", sorted(towers), (fact,), (CONVERT,))


def _walk(rules: Iterable[Rule], model: Model, findings: Findings) -> None:
    """Rules on the model as it is; where one names no way out, a conversion may be one, which planning finds out."""
    for fault in broken(rules, model):
        stops = fault.stops or isinstance(fault.rule, LayerRule)
        help = _commands(fault.problem.help) or ((CONVERT,) if stops else ())
        replace(fault, problem=replace(fault.problem, help=help)).note(findings)


def _in_config(code: str, problem: Problem) -> bool:
    """Whether config.json alone shows it: what is wrong of the block or the head, not of linears by stored names."""
    return code not in _LINEARS or all(map(is_head, problem.where))


def _derived(deviations: Iterable[tuple[str, Problem]], findings: Findings) -> None:
    """What the engine would build otherwise, where no rule has told so already of the same layers."""
    blamed = {name for finding in findings.errors for name in finding.where}
    for code, problem in deviations:
        if blamed.isdisjoint(problem.where):
            ways = _commands(problem.help) or (CONVERT,)
            findings.add(code, problem.where, problem.facts, ways, mild=problem.mild)


@lru_cache
def _commands(advice: tuple[Advice, ...]) -> tuple[Advice, ...]:
    """Options as what to do with a checkpoint that is there: a whole command, or its server with fewer ranks."""

    def whole(entry: Advice) -> Advice:
        if not isinstance(entry, Way):
            return entry
        return replace(entry, serve=True) if entry.option == "--tp" else entry.of(CONVERT.command)

    return tuple(map(whole, advice))


def _unserved(kernels: Sequence[Served], gpu: str, findings: Findings) -> None:
    """Layers that no kernel serves rightly, where no rule has told so already."""
    blamed = {name for finding in findings.errors for name in finding.where}
    for kind in kernels:
        if not kind.legal and blamed.isdisjoint(kind.names):
            what = f"{kind.scheme} on {gpu}"
            why = (kind.note,) if kind.note else kind.reasons
            help = (f"serve it with {kind.instead}",) if kind.instead else (CONVERT,)
            findings.add("QB227", kind.names, (what, *why), help)
