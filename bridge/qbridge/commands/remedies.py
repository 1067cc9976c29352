"""The conversions that check prints as ways out, each planned before it is printed, so that it works when pasted."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qbridge.commands.checkpoint import Checkpoint, open_checkpoint
from qbridge.commands.conversion import look_at_values, planned
from qbridge.findings.catalogue.code import ALLOW
from qbridge.findings.finding import Finding, Findings, QBridgeError
from qbridge.findings.way import Advice, Way
from qbridge.ir.exactness import Exactness, weakest
from qbridge.plan.options import Options
from qbridge.plan.plan import Plan
from qbridge.source.folder import model_name
from qbridge.targets.serving import capability_of
from qbridge.targets.target import Target

_OFFERED = ALLOW.keys() - {"incomplete", "pickle"}  # the others make no sound model
WRITTEN = frozenset(
    {"drop-activation-details", "drop-kv-scales", "rounded"}
)  # change what convert writes, nothing read
CONVERT = Way(command="qbridge convert")  # a conversion as a way out, of which `Remedies` makes the whole command
_EXACT = (Exactness.REVERSIBLE, Exactness.EQUAL)


@dataclass(frozen=True, slots=True)
class Attempt:
    """A conversion that was planned: for how many GPUs, with which words of --allow, and the codes that stop it."""

    tp: int
    way: Way
    allow: tuple[str, ...] = ()
    exactness: Exactness = Exactness.REVERSIBLE
    codes: tuple[str, ...] = ()


@dataclass
class Remedies:
    """Ways out for one checkpoint, target, tensor-parallel size and GPU; each is planned once.

    Small values (scales, zero-points) are read for that, codes only where a pass depends on them. Where there are no
    weights, `whole` is False and nothing is tried.
    """

    src: str
    target: Target
    tp: int
    gpu: str
    source: str | None
    allow: frozenset[str]
    whole: bool
    _attempts: dict[tuple[int, Way], Attempt] = field(default_factory=dict)
    _opened: dict[frozenset[str], Checkpoint] = field(default_factory=dict)
    _stack: ExitStack = field(default_factory=ExitStack)

    def proved(self, findings: Findings) -> tuple[Finding, ...]:
        """The findings, with no conversion among their ways out but those that succeed."""
        with self._stack:
            return tuple(replace(finding, advice=self._advice(finding)) for finding in findings)

    def _advice(self, finding: Finding) -> tuple[Advice, ...]:
        return tuple(dict.fromkeys(new for entry in finding.advice for new in self._proved(entry)))

    def _proved(self, entry: Advice) -> Iterator[Advice]:
        if isinstance(entry, Way) and entry.option == "--allow" and entry.value in WRITTEN:
            entry = CONVERT  # its attempt finds out that the word is needed
        if not isinstance(entry, Way) or not entry.command or entry.serve:
            yield entry
        elif not self.whole:
            command = self._command(self.tp, entry)
            yield replace(entry, command=command, note="once its weights are there", exact=False)
        elif (attempt := self._attempt(entry)).codes:
            if not entry.option:
                yield f"No conversion helps: qbridge convert refuses it too, by {', '.join(attempt.codes)}."
        else:
            notes = (attempt.way.note, *self._costs(attempt))
            command = self._command(attempt.tp, attempt.way, attempt.allow)
            note, exact = "; ".join(filter(None, notes)), attempt.exactness in _EXACT
            yield replace(attempt.way, command=command, note=note, exact=exact)

    def _costs(self, attempt: Attempt) -> Iterator[str]:
        if attempt.tp != self.tp:
            yield "fewer GPUs"
        if attempt.exactness not in _EXACT:
            yield f"weights are {attempt.exactness}"
        for word in attempt.allow:
            yield f"{word}: {ALLOW[word]}"

    def _attempt(self, way: Way) -> Attempt:
        """The conversion that a way asks for, or the nearest to it that succeeds; the first one where none does."""
        first = self._planned(self.tp, replace(way, command="", exact=False))
        if not first.codes or way.option:
            return first
        wider = [(self.tp, Way("--pad"))] if self.tp > 1 else []
        fewer = [(size, Way()) for size in range(self.tp - 1, 0, -1) if self.tp % size == 0]
        others = (self._planned(tp, other) for tp, other in (*wider, *fewer))
        return next((attempt for attempt in others if not attempt.codes), first)

    def _planned(self, tp: int, way: Way) -> Attempt:
        if (tp, way) not in self._attempts:
            self._attempts[tp, way] = self._tried(tp, way, frozenset())
        return self._attempts[tp, way]

    def _tried(self, tp: int, way: Way, allow: frozenset[str]) -> Attempt:
        """Plan a conversion; where words of --allow are all that it lacks, with them."""
        words = tuple(sorted(allow))
        try:
            wanted: Any = Options.of(self.target, tp, **way.keyword)
            opened = self._open(self.allow | allow)
            plan = planned(opened, self.target, wanted)
            refused = self._unserved(opened, plan, tp)
        except QBridgeError as fault:
            errors = [finding for finding in fault.findings if finding.severity == "error"]
            lacking = {finding.entry.allow or "" for finding in errors if not finding.final}
            if not any(finding.final for finding in errors) and lacking <= _OFFERED and not lacking <= allow:
                return self._tried(tp, way, allow | lacking)
            return Attempt(tp, way, words, codes=tuple(dict.fromkeys(finding.code for finding in errors)))
        exactness = weakest(*(layer.exactness for layer in plan.layers.values()))
        return Attempt(tp, way, words, exactness, refused)

    def _open(self, allow: frozenset[str]) -> Checkpoint:
        """The checkpoint with findings of its own; its small values are read once for all that is tried."""
        if allow not in self._opened:
            opened = open_checkpoint(self.src, self.source, allow, plans=True)
            self._stack.enter_context(opened)
            self._stack.enter_context(opened.source.remembering())
            look_at_values(opened)
            self._opened[allow] = opened
        findings = Findings(allow)
        findings.merge(self._opened[allow].findings)
        return replace(self._opened[allow], findings=findings)

    def _unserved(self, opened: Checkpoint, plan: Plan, tp: int) -> tuple[str, ...]:
        """QB227 where no kernel of the GPU serves what would be written."""
        specs = {name: layer.after for name, layer in plan.layers.items()}
        after = replace(opened.model, specs=specs, format=plan.format.NAME, config=plan.config)
        kinds = self.target.serving(after, tp, capability_of(self.gpu))
        return () if all(kind.legal for kind in kinds) else ("QB227",)

    def _command(self, tp: int, way: Way, allow: tuple[str, ...] = ()) -> str:
        """The command line that the option of a way is added to; DST is a new folder in the current one."""
        words = [
            "qbridge",
            "convert",
            shlex.quote(self.src),
            shlex.quote(new_folder(self.src, self.target.engine, *way.keyword)),
            "--to",
            self.target.name,
        ]
        words += [f"--tp {tp}"] if tp > 1 else []
        words += [f"--from {self.source}"] if self.source else []
        return " ".join((*words, *(f"--allow {word}" for word in sorted({*self.allow, *allow}))))


def new_folder(src: str, *purpose: str) -> str:
    """A folder that is not there yet, named after the model at `src` and what it is for."""
    base = "-".join((model_name(src), *purpose))
    return next(out for out in (base, *(f"{base}-{count}" for count in range(2, 1000))) if not Path(out).exists())
