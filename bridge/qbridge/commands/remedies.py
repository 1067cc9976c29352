"""The conversions that check prints as ways out, each planned before it is printed, so that it works when pasted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from qbridge.commands.checkpoint import Checkpoint, open_checkpoint
from qbridge.commands.planning import look_at_values, planned
from qbridge.commands.report import tensor_bytes
from qbridge.findings.catalogue.code import ALLOW
from qbridge.findings.finding import Finding, Findings, QBridgeError, Severity
from qbridge.findings.hints import word_of_command
from qbridge.findings.way import Advice, Way
from qbridge.ir.exactness import EXACT, Exactness, weakest
from qbridge.ir.model import Model
from qbridge.passes.float4 import is_mxfp4
from qbridge.plan.casting import FP8
from qbridge.plan.options import Options
from qbridge.plan.plan import Plan
from qbridge.plan.planner import refusal
from qbridge.source.addresses import local_name
from qbridge.source.folder import model_name
from qbridge.source.gguf_files import SUFFIX
from qbridge.source.opening import MANIFEST
from qbridge.source.storage import Storage
from qbridge.targets.gpus import Gpu
from qbridge.targets.target import Target

JUDGING = frozenset({"assumed-version"})  # words that mean nothing to convert
OFFERED = ALLOW.keys() - JUDGING - {"incomplete", "other-sizes", "pickle"}  # the others make no sound model
# Words that change what convert writes, nothing that is read.
WRITTEN = frozenset({"dequantized", "drop-activation-details", "drop-kv-scales", "other-sizes", "rounded"})
CONVERT = Way(command="qbridge convert")  # a conversion as a way out, of which `Remedies` makes the whole command
_CONVERSIONS = ("Convert it", "Write ")  # how fixes of the catalogue begin that are conversions
Sizes = tuple[int, ...]  # tensor-parallel sizes at which an output is to be legal


@dataclass(frozen=True, slots=True)
class Attempt:
    """A conversion that was planned: for how many GPUs, with which words of --allow, and the codes that stop it.

    `remaining` are the codes of all that is found of its output, `written` and `added` the bytes of its tensors and
    how many more these are than the source's.
    """

    sizes: Sizes
    way: Way
    allow: tuple[str, ...] = ()
    exactness: Exactness = Exactness.REVERSIBLE
    codes: tuple[str, ...] = ()
    remaining: frozenset[str] = frozenset()
    written: int = 0
    added: int = 0

    @property
    def exact(self) -> bool:
        """Whether it succeeds and every weight keeps its value."""
        return not self.codes and self.exactness in EXACT


@dataclass(frozen=True, slots=True)
class Remedy:
    """The cheapest exact conversion for a tensor-parallel size: its whole command, and its bytes."""

    way: Way
    written: int
    added: int

    @property
    def percent(self) -> float:
        """By how much the tensors grow."""
        return 100 * self.added / max(self.written - self.added, 1)

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        costs = {"bytes_written": self.written, "bytes_added": self.added, "percent": round(self.percent, 3)}
        return {**self.way.as_dict(), **costs}


@dataclass
class Remedies:
    """Ways out for one checkpoint, target and GPU; each is planned once. Use it in a `with`.

    Small values (scales, zero-points) are read for that, codes only where a pass depends on them, and nothing where
    headers alone refuse. Of a checkpoint on a server none are read for that, nor without `values`; `opened` is what
    was read of it. Where there are no weights, `whole` is False, and headers are all that there is to ask.
    """

    storage: Storage
    source: str | None
    model: Model
    target: Target
    gpu: Gpu
    allow: frozenset[str]
    whole: bool
    opened: Checkpoint | None = None
    values: bool = True  # whether any may be read
    alone: bool = True  # whether one size is asked about, so that fewer GPUs are a way out
    _attempts: dict[tuple[Sizes, Way], Attempt] = field(default_factory=dict)
    _opened: dict[frozenset[str], Checkpoint] = field(default_factory=dict)
    _stack: ExitStack = field(default_factory=ExitStack)
    _refusals: set[str] = field(default_factory=set)

    def __enter__(self) -> Remedies:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def proved(self, finding: Finding, sizes: Mapping[Advice, Sizes]) -> Finding:
        """A finding with no conversion among its ways out but those that succeed at the sizes that it is for."""
        ways = dict.fromkeys(new for entry in finding.advice for new in self._proved(entry, sizes[entry], finding))
        refusal = next(filter(None, (self._refusal(entry, sizes[entry]) for entry in finding.advice)), "")
        if refusal and (finding.fix or finding.entry.fix).startswith(_CONVERSIONS):
            return replace(finding, advice=(*ways, refusal), fix=refusal)
        if refusal and refusal not in self._refusals and _stops(finding):
            self._refusals.add(refusal)
            ways[refusal] = None
        return replace(finding, advice=tuple(ways))

    def cheapest(self, stopped: Mapping[int, Iterable[Finding]]) -> dict[int, Remedy]:
        """By size, the conversion that adds the fewest bytes of those that are exact and need no --allow.

        `stopped` has the errors of each size that has some. Sizes for which that is the same output have one command.
        """
        if not self.whole:
            return {}
        best = {tp: attempt for tp, found in stopped.items() if (attempt := self._cheapest(found, tp))}
        together: dict[tuple[Way, int], Sizes] = {}
        for tp, attempt in best.items():
            key = attempt.way, attempt.added
            together[key] = (*together.get(key, ()), tp)
        for (way, added), sizes in together.items():
            attempt = self._planned(sizes, way)
            if attempt.exact and attempt.added == added:
                best |= dict.fromkeys(sizes, attempt)
        return {tp: self._remedy(attempt) for tp, attempt in best.items()}

    def _cheapest(self, findings: Iterable[Finding], tp: int) -> Attempt | None:
        entries = (entry for finding in findings for entry in finding.advice)
        ways = dict.fromkeys((Way(), *(_bare(entry) for entry in entries if _is_conversion(entry)), *self._casts()))
        attempts = (self._planned((tp,), way) for way in ways)
        good = (attempt for attempt in attempts if attempt.exact and not attempt.allow)
        return min(good, key=lambda attempt: attempt.added, default=None)

    def _remedy(self, attempt: Attempt) -> Remedy:
        way = replace(attempt.way, command=self._command(attempt.sizes, attempt.way), exact=True)
        return Remedy(way, attempt.written, attempt.added)

    def _proved(self, entry: Advice, sizes: Sizes, finding: Finding) -> Iterator[Advice]:
        if isinstance(entry, Way) and entry.option == "--allow" and entry.value in WRITTEN:
            entry = CONVERT  # its attempt finds out that the word is needed
        if not isinstance(entry, Way) or not _is_conversion(entry):
            yield entry
            return
        for attempt in self._at(entry, sizes):
            if self._mends(attempt, finding):
                yield self._whole_command(attempt, sizes)

    def _refusal(self, entry: Advice, sizes: Sizes) -> str:
        """That no conversion helps, where `entry` is one without options and none succeeds; else nothing."""
        if not isinstance(entry, Way) or not _is_conversion(entry) or entry.option:
            return ""
        codes = ", ".join(self._at(entry, sizes)[0].codes)
        return f"No conversion helps: qbridge convert refuses it too, by {codes}." if codes else ""

    def _mends(self, attempt: Attempt, finding: Finding) -> bool:
        """Whether an output has no error, nor the finding, where that is a warning or a note."""
        return not attempt.codes and (_stops(finding) or finding.code not in attempt.remaining)

    def _at(self, entry: Way, sizes: Sizes) -> list[Attempt]:
        """A conversion for all sizes at once; where that fails, those that succeed for one, or the failure."""
        together = self._attempt(entry, sizes)
        if not together.codes or len(sizes) == 1:
            return [together]
        each = [self._attempt(entry, (size,)) for size in sizes]
        return [attempt for attempt in each if not attempt.codes] or [together]

    def _whole_command(self, attempt: Attempt, sizes: Sizes) -> Way:
        command = self._command(attempt.sizes, attempt.way, attempt.allow)
        if not self.whole:
            return replace(attempt.way, command=command, note="once its weights are there", exact=False)
        fewer = "fewer GPUs" if max(attempt.sizes) < min(sizes) else ""
        notes = filter(None, (attempt.way.note, fewer, *self._costs(attempt)))
        exact = attempt.exact and "rounded" not in attempt.allow
        return replace(attempt.way, command=command, note="; ".join(notes), exact=exact)

    def _costs(self, attempt: Attempt) -> Iterator[str]:
        if attempt.exactness not in EXACT:
            yield f"weights are {attempt.exactness}"
        if self._by_headers:
            yield "by its headers"
        if "QB313" in attempt.remaining:
            yield "activations change"
        for word in attempt.allow:
            yield f"{word}: {ALLOW[word]}"

    def _attempt(self, way: Way, sizes: Sizes) -> Attempt:
        """The conversion that a way asks for, or the nearest to it that succeeds; the first one where none does."""
        first = self._planned(sizes, _bare(way))
        if not first.codes or way.option:
            return first
        wider = [(sizes, Way("--pad"))] if max(sizes) > 1 else []
        fewer = [((size,), Way()) for size in range(sizes[0] - 1, 0, -1) if sizes[0] % size == 0]
        casts = [(sizes, cast) for cast in self._casts()]
        tried = (self._planned(*other) for other in (*wider, *casts, *(fewer if self.alone else ())))
        return next((attempt for attempt in tried if not attempt.codes), first)

    def _casts(self) -> tuple[Way, ...]:
        """The casts that may help: to float8, which most engines take, of weights that fewer do."""
        return (Way("--cast", FP8),) if any(map(is_mxfp4, self.model.specs.values())) else ()

    def _planned(self, sizes: Sizes, way: Way) -> Attempt:
        if (sizes, way) not in self._attempts:
            options: Any = Options.of(self.target, sizes, **way.keyword)
            refused = self._refused(options)
            known = Attempt(sizes, way, codes=refused) if refused or not self.whole else None
            self._attempts[sizes, way] = known or self._tried(sizes, way, options, frozenset())
        return self._attempts[sizes, way]

    def _refused(self, options: Options) -> tuple[str, ...]:
        """The codes for which headers alone refuse a conversion, so that no value is read to say so thoroughly.

        Where a manifest leads back to other layers, headers are not all that there is.
        """
        if self.storage.has(MANIFEST):
            return ()
        return _codes(refusal(self.model, self.target, self.allow | OFFERED, options))

    def _tried(self, sizes: Sizes, way: Way, options: Options, allow: frozenset[str]) -> Attempt:
        """Plan a conversion; where words of --allow are all that it lacks, with them."""
        words = tuple(sorted(allow))
        try:
            opened = self._open(self.allow | allow)
            plan = planned(opened, self.target, options, by_headers=self._by_headers)
            refused = self._unserved(opened, plan, sizes)
        except QBridgeError as fault:
            if lacking := lacking_words(fault.findings, allow):
                return self._tried(sizes, way, options, allow | lacking)
            return Attempt(sizes, way, words, codes=_codes(filter(_stops, fault.findings)))
        exactness = weakest(*(layer.exactness for layer in plan.layers.values()))
        remaining, size = frozenset(_codes(opened.findings)), tensor_bytes(opened, plan)
        added = size["after"] - size["before"]
        return Attempt(sizes, way, words, exactness, refused, remaining, size["after"], added)

    def _open(self, allow: frozenset[str]) -> Checkpoint:
        """The checkpoint with findings of its own; its small values are read once for all that is tried."""
        if allow not in self._opened:
            opened = self._read_before(allow) or open_checkpoint(
                self.storage, self.source, allow, plans=True, values=self.values
            )
            self._stack.enter_context(opened)
            self._stack.enter_context(opened.source.remembering())
            look_at_values(opened, small=not self._by_headers)
            self._opened[allow] = opened
        findings = Findings(allow)
        findings.merge(self._opened[allow].findings)
        return replace(self._opened[allow], findings=findings)

    @property
    def _by_headers(self) -> bool:
        """Whether conversions are planned from headers alone: values are not to be read, or cost too much."""
        return self.storage.is_far or not self.values

    def _read_before(self, allow: frozenset[str]) -> Checkpoint | None:
        """The checkpoint as it was judged, where its words of --allow are the same."""
        if self.opened is None or self.opened.findings.allow - JUDGING != allow:
            return None
        return self.opened

    def _unserved(self, opened: Checkpoint, plan: Plan, sizes: Sizes) -> tuple[str, ...]:
        """QB227 where no kernel of the GPU serves what would be written."""
        specs = {name: layer.after for name, layer in plan.layers.items()}
        after = replace(opened.model, specs=specs, format=plan.format.NAME, config=plan.config)
        kinds = (kind for tp in sizes for kind in self.target.serving(after, tp, self.gpu.capability))
        return () if all(kind.legal for kind in kinds) else ("QB227",)

    def _command(self, sizes: Sizes, way: Way, allow: tuple[str, ...] = ()) -> str:
        """The command line that the option of a way is added to; DST is a new folder in the current one."""
        words = [
            "qbridge",
            "convert",
            word_of_command(self.storage.url),
            word_of_command(new_folder(self.storage.url, self.target.engine, *way.keyword)),
            "--to",
            self.target.name,
        ]
        words += [f"--tp {','.join(map(str, sizes))}"] if max(sizes) > 1 else []
        words += [f"--from {self.source}"] if self.source else []
        return " ".join((*words, *(f"--allow {word}" for word in sorted({*self.allow, *allow}))))


def lacking_words(findings: Iterable[Finding], allow: frozenset[str]) -> frozenset[str]:
    """The words of --allow that let all of some errors pass and are not given yet; empty where no words do."""
    errors = [finding for finding in findings if _stops(finding)]
    words = frozenset(finding.entry.allow or "" for finding in errors if not finding.final)
    if any(finding.final for finding in errors) or not words <= OFFERED or words <= allow:
        return frozenset()
    return words


def new_folder(src: str, *purpose: str) -> str:
    """A folder that is not there yet, named after the model at `src` and what it is for."""
    base = "-".join((model_name(local_name(src)).removesuffix(SUFFIX), *purpose))
    return next(out for out in (base, *(f"{base}-{count}" for count in range(2, 1000))) if not Path(out).exists())


def _is_conversion(entry: Advice) -> bool:
    return isinstance(entry, Way) and bool(entry.command) and not entry.serve


def _bare(way: Advice) -> Way:
    """A way without the words of its command, so that each conversion is tried once."""
    return replace(way, command="", exact=False) if isinstance(way, Way) else Way()


def _stops(finding: Finding) -> bool:
    return finding.severity is Severity.ERROR


def _codes(findings: Iterable[Finding]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(finding.code for finding in findings))
