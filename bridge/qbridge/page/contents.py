"""What a page says of a result, gathered from it and from the headers of its checkpoint."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qbridge.commands.checkpoint import Checkpoint, PathLike, no_garbage, open_checkpoint
from qbridge.commands.inspection import Inspection
from qbridge.commands.judging import Subject
from qbridge.commands.report import Report, Verification
from qbridge.commands.report_rows import counted, report_rows
from qbridge.commands.results import Result
from qbridge.commands.verdicts import Check, CheckTable, SizeVerdict
from qbridge.findings.finding import Finding, Findings, QBridgeError
from qbridge.findings.hints import size
from qbridge.ir.model import Model
from qbridge.page.layer_map import LayerMap, layer_map
from qbridge.page.samples import Sample, samples
from qbridge.plan.distribution import qbridge_version
from qbridge.plan.options import allowed
from qbridge.source.opening import MANIFEST
from qbridge.targets.parallel import Parallel
from qbridge.targets.rank_weights import rank_weights
from qbridge.targets.registry import find_target

SIZES = (1, 2, 4, 8)  # tensor-parallel sizes whose memory is shown, besides those that were asked for
FILES = 100  # of which names are listed
Rows = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Place:
    """The checkpoint that a page draws: as the command was given it."""

    path: PathLike
    source: str | None = None
    allow: Iterable[str] = ()


@dataclass(slots=True)
class Contents:
    """What stands on a page, in its order; `notes` say why a part is not there."""

    title: str
    answer: str
    good: bool
    facts: Rows
    serve: str = ""
    grid: LayerMap | None = None
    samples: Sequence[Sample] = ()
    memory_heads: tuple[str, ...] = ()
    memory: list[tuple[str, ...]] = field(default_factory=list)
    findings: Sequence[Finding] = ()
    provenance: Rows = field(default_factory=list)
    files: Mapping[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@no_garbage()
def contents_of(outcome: Result | QBridgeError, command: str, place: Place) -> Contents:
    """Everything that a page of a result says, or of what stopped `command`.

    What cannot be drawn is a note, never an error.
    """
    result = None if isinstance(outcome, QBridgeError) else outcome
    found: Contents = _of_refusal(command) if result is None else _SAYS[type(result)](result)
    found.findings = tuple(getattr(outcome, "findings", ()))
    found.provenance = [("written by", f"qbridge {qbridge_version()}, Python {platform.python_version()}")]
    found.provenance += [("checkpoint", str(place.path))]
    try:
        opened = open_checkpoint(place.path, place.source, place.allow)
    except QBridgeError as fault:
        _without_tensors(found, result, place, fault)
        return found
    with opened:
        _draw(found, result, opened)
    return found


def _of_refusal(command: str) -> Contents:
    return Contents(f"qbridge {command}", "no: nothing was written" if command == "convert" else "no", False, [])


def _draw(found: Contents, result: Result | None, opened: Checkpoint) -> None:
    """The parts that come from the checkpoint itself."""
    found.provenance.append(("format", f"{opened.format} ({opened.because})"))
    found.grid = layer_map(opened.model, _exactness(opened), _different(result))
    found.samples = samples(opened)
    if not found.samples:
        found.notes.append("No codes were sampled: they lie on a server, or there are none that can be read in part.")
    found.files = {name: opened.source.file(name).size for name in opened.source.shards}
    _say_memory(found, result, opened.model)


def _without_tensors(found: Contents, result: Result | None, place: Place, fault: QBridgeError) -> None:
    """A folder with no more than a config.json, or a container that is described and not read."""
    codes = ", ".join(dict.fromkeys(finding.code for finding in fault.findings))
    if result is None:
        found.notes.append("The checkpoint cannot be read, so there is nothing to draw.")
        return
    found.notes.append(f"Layers and values are not drawn: the weights were not read ({codes}).")
    if not isinstance(result, Check | CheckTable):
        return
    try:
        subject = Subject.of(place.path, place.source, Findings(allowed(place.allow)))
    except QBridgeError:
        return
    found.grid = layer_map(subject.model)
    found.notes.append("The map shows the layers that config.json names, with sizes that are worked out.")
    _say_memory(found, result, subject.model)


def _exactness(opened: Checkpoint) -> dict[str, str]:
    """The class of each layer, where qbridge wrote the checkpoint and its manifest says so."""
    try:
        steps = opened.source.side_object(MANIFEST).get("steps", ())
        return {name: str(step["exactness"]) for step in steps for name in step["layers"] if isinstance(name, str)}
    except (QBridgeError, LookupError, TypeError, AttributeError):
        return {}


def _different(result: Result | None) -> frozenset[str]:
    """The layers that are not the same in two checkpoints."""
    if not isinstance(result, Verification):
        return frozenset()
    return frozenset(name for finding in result.findings if finding.code == "QB501" for name in finding.where)


def _say_memory(found: Contents, result: Result | None, model: Model) -> None:
    """The bytes of weights on each GPU, by tensor-parallel size."""
    parallel = _parallel(result)
    asked = {row.tp: row for row in result.sizes} if isinstance(result, CheckTable) else {}
    rows = []
    for tp in sorted({*SIZES, *asked}):
        held = rank_weights(model, parallel, tp)
        bytes_ = "cannot be split so" if held is None else f"{'' if held.exact else 'at most '}{size(held.bytes)}"
        rows.append((str(tp), bytes_, *(_verdict(asked.get(tp)) if asked else ())))
    found.memory = rows
    found.memory_heads = ("tp", "weights per GPU", *(("verdict", "fits", "way out") if asked else ()))


def _verdict(row: SizeVerdict | None) -> tuple[str, str, str]:
    """What check says of a size."""
    if row is None:
        return "not asked", "", ""
    answer = "not known" if not row.known else "yes" if row.ok else f"no: {', '.join(row.codes)}"
    fits = {None: "not known", True: "yes", False: "no"}[row.fits]
    return answer, fits, str(row.remedy.way) if row.remedy else ""


def _parallel(result: Result | None) -> Parallel:
    """How the target of a result shares weights; by linears alone where there is no target."""
    name = getattr(result, "target", "")
    try:
        return find_target(name).parallel if name else Parallel(())
    except QBridgeError:
        return Parallel(())


def _of_report(done: Report) -> Contents:
    did = "planned" if done.dry_run else "written"
    kept = ", ".join(f"{count} {name}" for name, count in done.exactness.items()) or "no quantized layers"
    title = f"Conversion of {Path(done.source).name or done.source}"
    return Contents(title, f"{did} for {done.target}: {kept}", True, _labelled(report_rows(done)), done.serve)


def _of_inspection(done: Inspection) -> Contents:
    rows = [
        ("checkpoint", done.path),
        ("format", f"{done.format} ({done.because})"),
        ("model", done.architecture or "config.json names no architecture"),
        ("quantized", size(done.quantized_bytes)),
        ("not quantized", f"{size(done.unquantized_bytes)} in {counted(done.unquantized_tensors, 'tensor')}"),
        *((f"scheme {number}", _scheme(each)) for number, each in enumerate(done.schemes, 1)),
    ]
    return Contents(f"Inspection of {Path(done.path).name or done.path}", done.line, True, rows)


def _scheme(each: Mapping[str, Any]) -> str:
    dims = ", ".join(f"{rows} x {columns}" for rows, columns in each["dims"])
    return f"{counted(each['layers'], 'layer')}: {each['scheme']}; {dims}"


def _of_verification(done: Verification) -> Contents:
    rows = [
        ("a", f"{done.a}: {done.formats[0]}"),
        ("b", f"{done.b}: {done.formats[1]}"),
        ("layers", f"{done.identical} identical, {done.equal} equal in value"),
        ("tensors", f"{done.tensors} unquantized ones compared"),
    ]
    answer = "the same model" if done.same else "different"
    return Contents(f"Verification of {Path(done.b).name or done.b}", answer, done.same, rows)


def _of_check(done: Check | CheckTable) -> Contents:
    sizes = f"tp {done.tp}" if isinstance(done, Check) else f"tp {', '.join(str(row.tp) for row in done.sizes)}"
    rows = [
        ("checkpoint", done.source),
        ("model", f"{done.architecture}, {counted(done.layers, 'quantized layer')}, {done.format}"),
        ("target", f"{done.target}, {sizes}, {done.gpu}"),
    ]
    if done.assumed:
        rows.append(("dims", "assumed from config.json"))
    for kind in done.kernels if isinstance(done, Check) else ():
        served = kind.kernel or kind.note or "nothing serves it"
        rows.append(("kernel", f"{kind.kind}: {served} ({counted(kind.layers, 'layer')})"))
    title = f"Check of {Path(done.source).name or done.source}"
    return Contents(title, done.line, done.ok, _labelled(rows), done.serve)


def _labelled(rows: Iterable[tuple[str, str]]) -> Rows:
    """Rows of a terminal as those of a page, which has the serve command in a place of its own."""
    found: Rows = []
    serving = False
    for label, value in rows:
        serving = label == "serve" or (serving and not label)
        if not serving:
            found.append((label, value))
    return found


_SAYS: Mapping[type[Result], Any] = {
    Report: _of_report,
    Inspection: _of_inspection,
    Verification: _of_verification,
    Check: _of_check,
    CheckTable: _of_check,
}
