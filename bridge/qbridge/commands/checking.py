"""check: would an engine load this checkpoint as it is, and serve it rightly? From headers or config.json alone."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import overload

from qbridge.commands.checkpoint import PathLike, no_garbage
from qbridge.commands.judging import Judge, Subject, Verdict
from qbridge.commands.releases import between
from qbridge.commands.remedies import JUDGING, WRITTEN, Remedies, Remedy, Sizes
from qbridge.commands.reporting import with_report
from qbridge.commands.verdicts import BackendVerdict, Check, CheckTable, SizeVerdict
from qbridge.findings.arguments import checked
from qbridge.findings.finding import Finding, Findings, Severity, in_order
from qbridge.findings.way import Advice, Way
from qbridge.plan.options import Options, allowed
from qbridge.targets.gpus import Gpu, gpu_of
from qbridge.targets.rank_weights import RankWeights, rank_weights
from qbridge.targets.registry import find_target, nearer, neighbours
from qbridge.targets.target import Target


@overload
def check(
    src: PathLike,
    target: str,
    tp: int = 1,
    gpu: str = "sm80",
    source: str | None = None,
    *,
    allow: Iterable[str] = (),
    values: bool = True,
    report: PathLike | None = None,
) -> Check: ...


@overload
def check(
    src: PathLike,
    target: str,
    tp: Sequence[int],
    gpu: str = "sm80",
    source: str | None = None,
    *,
    allow: Iterable[str] = (),
    values: bool = True,
    report: PathLike | None = None,
) -> CheckTable: ...


@checked
@with_report("src")
@no_garbage()
def check(
    src: PathLike,
    target: str,
    tp: int | Sequence[int] = 1,
    gpu: str = "sm80",
    source: str | None = None,
    *,
    allow: Iterable[str] = (),
    values: bool = True,
    report: PathLike | None = None,
) -> Check | CheckTable:
    """Judge a checkpoint for a target as it is, by shapes alone; nothing is converted and no weight is read.

    Several sizes of `tp` give a table, which is a yes if each of them is. `gpu` is a compute capability such as sm90
    or a name such as H100. A folder with nothing but config.json is judged by the dims that it names. A version of an
    engine between two of our tables is judged by both. Without `values` headers are all that is read, and the answer
    is no where a value would be needed (QB064). `report` is the file of a page. Raises QBridgeError where the folder
    cannot be read at all; ValueError for a `tp` that is not positive, TypeError for what is of another type.

    >>> check("fixtures/awq/llama_gemm/model", "vllm")
    <Check: yes, for vllm@0.33.0, tp 1, sm80>
    >>> check("fixtures/awq/llama_gemm/model", "vllm", tp=[1, 2]).by_tp[2].ok
    True
    """
    start = time.monotonic()
    releases = neighbours(target)
    wanted = nearer(target.partition("@")[2], releases) if releases else find_target(target)
    sizes = tuple(dict.fromkeys(Options.of(wanted, tp).tp))
    findings = Findings(allowed(allow) - WRITTEN)  # the engine reads what is there, whatever convert may leave out
    device = gpu_of(gpu)
    subject = Subject.of(src, source, findings, values)
    name = target.strip().lower() if releases else wanted.name
    asked = Asked.of(subject, name, wanted, releases or (wanted,), device)
    if isinstance(tp, int):
        return asked.alone(tp, gpu, start)
    return asked.table(sizes, gpu, start)


@dataclass(frozen=True, slots=True)
class Asked:
    """A checkpoint held against the releases that stand for a target, whose conversions are for the nearer one."""

    subject: Subject
    name: str
    target: Target
    judges: Sequence[Judge]
    backends: Sequence[tuple[str, Judge]]
    gpu: Gpu

    @classmethod
    def of(cls, subject: Subject, name: str, target: Target, releases: Sequence[Target], gpu: Gpu) -> Asked:
        """Ask each release what no tensor-parallel size changes."""
        judges = [Judge(subject, release, gpu) for release in releases]
        chosen = target.backends.items() if len(releases) == 1 else ()
        backends = [(backend, Judge(subject, engine, gpu)) for backend, engine in chosen]
        return cls(subject, name, target, judges, backends, gpu)

    @property
    def releases(self) -> tuple[str, ...]:
        """The names of the releases that stand in for a version that is in no table."""
        return tuple(judge.target.name for judge in self.judges) if len(self.judges) > 1 else ()

    def at(self, tp: int) -> tuple[Verdict, list[BackendVerdict]]:
        """The verdict at a tensor-parallel size, and those of the engines that the target chooses among."""
        verdicts = [judge.at(tp) for judge in self.judges]
        if len(verdicts) > 1:
            targets = [judge.target for judge in self.judges]
            return between(self.name, targets, verdicts, self.target, self.subject.findings.allow), []
        engines = {backend: judge.at(tp) for backend, judge in self.backends}
        return _by_one_engine(verdicts[0], engines), [_of_backend(*entry) for entry in engines.items()]

    def alone(self, tp: int, gpu: str, start: float) -> Check:
        """The answer at one size; `gpu` is what was typed, `start` when it began (monotonic seconds)."""
        verdict, backends = self.at(tp)
        with self._remedies(alone=True) as remedies:
            findings = [
                remedies.proved(finding, dict.fromkeys(finding.advice, (tp,))) for finding in verdict.findings
            ]
        return Check(
            source=self.subject.path,
            target=self.name,
            tp=tp,
            gpu=gpu,
            format=self.subject.model.format,
            architecture=self.subject.model.architecture,
            layers=len(self.subject.model.specs),
            assumed=self.subject.assumed,
            ok=verdict.ok,
            kernels=verdict.kernels,
            needs_values=self._codes("needs_values"),
            seconds=round(time.monotonic() - start, 3),
            serve=_serve(verdict, backends),
            needs_tensors=self._codes("needs_tensors"),
            releases=self.releases,
            known=_known(verdict),
            backends=backends,
            findings=tuple(findings),
        )

    def table(self, sizes: Sizes, gpu: str, start: float) -> CheckTable:
        """The answers at several sizes, and each thing that is found once."""
        answers = [self.at(tp) for tp in sizes]
        verdicts = [verdict for verdict, _ in answers]
        with self._remedies(alone=len(sizes) == 1) as remedies:
            cheapest = remedies.cheapest({each.tp: each.errors for each in verdicts if not each.ok})
            rows = [self._row(*answer, cheapest.get(answer[0].tp)) for answer in answers]
            findings = [remedies.proved(*entry) for entry in _merged(verdicts)]
        return CheckTable(
            source=self.subject.path,
            target=self.name,
            gpu=gpu,
            format=self.subject.model.format,
            architecture=self.subject.model.architecture,
            layers=len(self.subject.model.specs),
            assumed=self.subject.assumed,
            ok=all(row.ok for row in rows),
            needs_values=self._codes("needs_values"),
            needs_tensors=self._codes("needs_tensors"),
            releases=self.releases,
            seconds=round(time.monotonic() - start, 3),
            sizes=rows,
            findings=in_order(findings),
        )

    def _row(self, verdict: Verdict, backends: Sequence[BackendVerdict], remedy: Remedy | None) -> SizeVerdict:
        weights = rank_weights(self.subject.model, self.target.parallel, verdict.tp)
        return SizeVerdict(
            tp=verdict.tp,
            ok=verdict.ok,
            known=_known(verdict),
            codes=list(dict.fromkeys(finding.code for finding in verdict.errors)),
            weights=weights,
            fits=self._fits(weights),
            remedy=remedy,
            serve=_serve(verdict, backends),
            kernels=verdict.kernels,
            backends=backends,
        )

    def _fits(self, weights: RankWeights | None) -> bool | None:
        """Whether the GPU's memory holds a rank's weights; None where one of the two is unknown."""
        if weights is None or self.gpu.memory is None or not self.subject.whole:
            return None
        return weights.bytes <= self.gpu.memory

    def _remedies(self, alone: bool) -> Remedies:
        subject, allow = self.subject, self.subject.findings.allow - JUDGING
        return Remedies(
            subject.storage,
            subject.source,
            subject.model,
            self.target,
            self.gpu,
            allow,
            subject.whole,
            subject.opened,
            subject.values,
            alone,
        )

    def _codes(self, kind: str) -> list[str]:
        return sorted(set().union(*(getattr(judge, kind) for judge in self.judges)))


def _of_backend(backend: str, verdict: Verdict) -> BackendVerdict:
    codes = tuple(dict.fromkeys(finding.code for finding in verdict.errors))
    return BackendVerdict(backend, verdict.ok, codes, _reason(verdict.errors[0]) if codes else "", verdict.serve)


def _by_one_engine(verdict: Verdict, engines: Mapping[str, Verdict]) -> Verdict:
    """A yes where one engine serves it, though the target's limits on what all of them load stop it: as a warning."""
    served = next((backend for backend, engine in engines.items() if engine.ok), None)
    if verdict.ok or served is None:
        return verdict
    fact = f"it is served with --backend {served}"
    mild = (
        replace(finding, severity=Severity.WARNING, facts=(*finding.facts, fact))
        if finding in verdict.errors
        else finding
        for finding in verdict.findings
    )
    return replace(verdict, findings=in_order(mild), serve=engines[served].serve)


def _reason(finding: Finding) -> str:
    return f"{finding.message}{f' ({finding.facts[0]})' if finding.facts else ''}"


def _known(verdict: Verdict) -> bool:
    """Whether it is a yes or a no: not if all that stops it is that two releases differ."""
    return {finding.code for finding in verdict.errors} != {"QB237"}


def _serve(verdict: Verdict, backends: Sequence[BackendVerdict]) -> str:
    """The command that serves it, with an engine that does where the target chooses among several."""
    served = [backend.serve for backend in backends if backend.ok]
    return verdict.serve if verdict.serve in served or not served else served[0] * verdict.ok


def _merged(verdicts: Sequence[Verdict]) -> Iterator[tuple[Finding, dict[Advice, Sizes]]]:
    """Each thing that is found, once, with all its facts; by way out, the sizes that it is for."""
    together: dict[tuple[object, ...], dict[int, Finding]] = {}
    for verdict in verdicts:
        for finding in verdict.findings:
            key = finding.code, finding.severity, finding.where, finding.final, finding.fix
            together.setdefault(key, {})[verdict.tp] = finding
    sizes = [verdict.tp for verdict in verdicts]
    for found in together.values():
        advice: dict[Advice, Sizes] = {}
        for tp, finding in found.items():
            for entry in finding.advice:
                if not (isinstance(entry, Way) and entry.serve and entry.value in sizes):  # the table has its row
                    advice[entry] = (*advice.get(entry, ()), tp)
        facts = tuple(dict.fromkeys(fact for finding in found.values() for fact in finding.facts))
        shared = set(facts).intersection(*(finding.facts for finding in found.values()))
        facts = tuple(sorted(facts, key=shared.__contains__))  # those of one size first
        if len(found) < len(sizes) and not all(f"(tp {tp})" in " ".join(facts) for tp in found):
            facts = (f"at tp {', '.join(map(str, found))}", *facts)
        yield replace(next(iter(found.values())), facts=facts, advice=tuple(advice)), advice
