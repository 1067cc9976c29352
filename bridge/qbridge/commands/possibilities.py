"""what: target by target, what a checkpoint can become: what is kept, what is lost, what is refused and why."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from qbridge.commands.checkpoint import Checkpoint, PathLike, no_garbage, open_checkpoint
from qbridge.commands.planning import look_at_values, planned
from qbridge.commands.remedies import lacking_words, new_folder
from qbridge.commands.report import tensor_bytes
from qbridge.commands.results import Result, as_json, counted
from qbridge.findings.arguments import checked
from qbridge.findings.finding import Finding, Findings, QBridgeError, Severity, io_as_finding
from qbridge.findings.hints import word_of_command
from qbridge.ir.exactness import EXACT, Exactness
from qbridge.plan.casting import applicable
from qbridge.plan.options import Options, sizes
from qbridge.plan.plan import Plan
from qbridge.targets.registry import targets
from qbridge.targets.target import Target

Outcome = Literal["exact", "lossy", "refused"]


@dataclass(frozen=True, slots=True)
class Reason:
    """Why something is lost or refused: a code, what it means here, and how many layers or tensors it is about."""

    code: str
    message: str
    facts: tuple[str, ...]
    count: int

    @classmethod
    def of(cls, finding: Finding) -> Reason:
        """The reason that a finding is."""
        return cls(finding.code, finding.message, finding.facts, len(finding.where))

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"code": self.code, "message": self.message, "facts": list(self.facts), "count": self.count}


@dataclass(frozen=True, slots=True)
class Possibility:
    """What a checkpoint becomes for one target.

    `outcome` is exact where every weight keeps its value and nothing is left out, lossy where `allow` has words that
    must be given or weights are rounded, refused where no word helps. `exactness` counts layers by class, `passes`
    layers by pass; `format` is what would be written, empty where it is refused. `reasons` say what is lost, or what
    stops it. `command` is the conversion, empty where it is refused; `bytes` the size of all tensors before and
    after; `cast` is the word of --cast that it is about, empty without one.
    """

    target: str
    outcome: Outcome
    cast: str = ""
    format: str = ""
    exactness: Mapping[str, int] = field(default_factory=dict)
    passes: Mapping[str, int] = field(default_factory=dict)
    allow: tuple[str, ...] = ()
    reasons: tuple[Reason, ...] = ()
    bytes: Mapping[str, int] = field(default_factory=dict)
    command: str = ""

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**fields, "reasons": [reason.as_dict() for reason in self.reasons]}


@dataclass(frozen=True, slots=True, repr=False)
class Possibilities(Result):
    """What a checkpoint can become, target by target, at some tensor-parallel sizes.

    `casts` are the targets for which `--cast` keeps every weight as well, cast by cast.
    """

    source: str
    format: str
    architecture: str
    layers: int
    tp: tuple[int, ...]
    seconds: float
    targets: Sequence[Possibility]
    casts: Sequence[Possibility] = ()
    findings: Sequence[Finding] = ()

    @property
    def by_target(self) -> Mapping[str, Possibility]:
        """The answers by the names of the targets."""
        return {each.target: each for each in self.targets}

    @property
    def line(self) -> str:
        """How many targets are exact, lossy and refused."""
        kinds = [each.outcome for each in self.targets]
        counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in ("exact", "lossy", "refused"))
        return f"{self.format}, {self.layers} layers: {counts}{counted(self.findings)}"

    def as_dict(self) -> dict[str, Any]:
        """The object that `what --json` prints."""
        return as_json(self, "what")


@checked
@no_garbage()
def what(
    src: PathLike, source: str | None = None, *, tp: int | Sequence[int] = 1, allow: Iterable[str] = ()
) -> Possibilities:
    """Say what a checkpoint can become: for every target what is kept, lost or refused, and why.

    The checkpoint is opened once and its small values (scales, zero-points) are read once, whatever the number of
    targets; codes are read only where a pass depends on them. The outputs are to be legal at every size of `tp`.
    `source` is its format, detected if None. Raises QBridgeError where it cannot be read at all.

    >>> answers = what("fixtures/awq/llama_gemm/model")
    >>> answers.by_target["gptq"].outcome, answers.by_target["fp8"].reasons[0].code
    ('exact', 'QB110')
    """
    start = time.monotonic()
    with (
        io_as_finding(str(src)),
        open_checkpoint(src, source, allow, plans=True) as opened,
        opened.source.remembering(),
    ):
        look_at_values(opened)
        options = f" --from {shlex.quote(source)}" if source else ""
        found = [_possibility(str(src), opened, target, Options.of(target, tp), options) for target in targets()]
        cast = [
            _possibility(str(src), opened, target, Options.of(target, tp, cast=word), options)
            for word in applicable(opened.specs.values())
            for target in targets()
        ]
        return Possibilities(
            source=str(src),
            format=opened.format,
            architecture=opened.model.architecture,
            layers=len(opened.specs),
            tp=sizes(tp),
            seconds=round(time.monotonic() - start, 3),
            targets=found,
            casts=[each for each in cast if each.outcome == "exact"],
            findings=tuple(opened.findings),
        )


def _possibility(src: str, opened: Checkpoint, target: Target, options: Options, more: str) -> Possibility:
    """Plan a conversion; where words of --allow are all that it lacks, with them."""
    allow = opened.findings.allow
    while True:
        tried = replace(opened, findings=Findings(allow))
        tried.findings.merge(opened.findings)
        try:
            plan = planned(tried, target, options)
        except QBridgeError as fault:
            words = lacking_words(fault.findings, allow)
            if not words:
                return Possibility(target.name, "refused", options.cast, reasons=_stopping(fault.findings))
            allow |= words
            continue
        words = allow - opened.findings.allow
        return _planned(src, tried, plan, options, words, more)


def _planned(
    src: str, opened: Checkpoint, plan: Plan, options: Options, words: frozenset[str], more: str
) -> Possibility:
    """What a plan keeps and loses; `words` of --allow had to be given for it, `more` are options to print."""
    exactness = plan.exactness
    exact = not words and EXACT.issuperset(map(Exactness, exactness))
    return Possibility(
        target=plan.target.name,
        outcome="exact" if exact else "lossy",
        cast=options.cast,
        format=plan.format.NAME,
        exactness=exactness,
        passes=plan.pass_counts,
        allow=tuple(sorted(words)),
        reasons=tuple(Reason.of(finding) for finding in opened.findings if finding.entry.allow in words),
        bytes=tensor_bytes(opened, plan),
        command=_command(src, plan.target, options, words | opened.findings.allow, more),
    )


def _stopping(findings: Iterable[Finding]) -> tuple[Reason, ...]:
    return tuple(Reason.of(finding) for finding in findings if finding.severity is Severity.ERROR)


def _command(src: str, target: Target, options: Options, words: frozenset[str], more: str) -> str:
    """The conversion as a command line; DST is a new folder in the current one."""
    sizes = f" --tp {','.join(map(str, options.tp))}" if max(options.tp) > 1 else ""
    cast = f" --cast {options.cast}" if options.cast else ""
    allow = "".join(f" --allow {word}" for word in sorted(words))
    dst = new_folder(src, target.engine)
    return (
        f"qbridge convert {word_of_command(src)} {word_of_command(dst)} --to {target.name}{sizes}{cast}{more}{allow}"
    )
