"""Findings, reports and tables as text; what they say is readable without colour."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from qbridge.commands.cleaning import Cleaning
from qbridge.commands.explanation import UNKNOWN, Explanation, Listing
from qbridge.commands.inspection import Inspection
from qbridge.commands.names import Names
from qbridge.commands.parts import Finished, PartReport
from qbridge.commands.possibilities import Possibilities, Possibility
from qbridge.commands.proof import Proof
from qbridge.commands.report import Report, Verification
from qbridge.commands.report_rows import counted as _count
from qbridge.commands.report_rows import report_rows, serve_rows
from qbridge.commands.settings import Settings
from qbridge.commands.verdicts import BackendVerdict, Check, CheckTable, SizeVerdict
from qbridge.findings.catalogue.code import Code
from qbridge.findings.finding import Finding, Severity
from qbridge.findings.hints import printable, size
from qbridge.ir.exactness import EXACT
from qbridge.targets.gpus import gpu_of
from qbridge.targets.serving import Served

_NARROWEST = 40  # columns of a terminal that text is wrapped for
_INDENT = 4  # columns before a text that stands below its head
_STYLE = {Severity.ERROR: "bold red", Severity.WARNING: "bold yellow", Severity.NOTE: "bold cyan"}


def findings(console: Console, found: Sequence[Finding], outcome: str = "") -> None:
    """Every finding, and a last line that says how many and, if that is given, what came of it."""
    for finding in found:
        _finding(console, finding)
    errors = sum(f.severity is Severity.ERROR for f in found)
    warnings = sum(f.severity is Severity.WARNING for f in found)
    if errors:
        tail = f"; {outcome}" if outcome else ""
        console.print(Text(f"{_count(errors, 'error')}, {_count(warnings, 'warning')}{tail}"))


def _shown(text: str, style: str = "") -> Text:
    return Text(printable(text), style)


def _finding(console: Console, finding: Finding) -> None:
    head = Text(f"{finding.severity}[{finding.code}]", _STYLE[finding.severity])
    _hanging(console, head.append(": "), finding.message, indent=2, style="bold")
    if finding.where:
        more = f" and {len(finding.where) - 1} more" if len(finding.where) > 1 else ""
        console.print(_shown(f"  --> {finding.where[0]}{more}"))
    for fact in finding.facts:
        _hanging(console, Text("   |  "), fact)
    _hanging(console, Text("   =  "), finding.entry.why)
    commands = {str(way) for way in finding.ways}
    for line in finding.remedies:
        _hanging(console, Text("  help: ", "cyan"), line, whole=line in commands)
    console.print()


def _hanging(
    console: Console, head: Text, text: str, whole: bool = False, indent: int | None = None, style: str = ""
) -> None:
    """A line of text after its head; on a terminal too narrow for it in several, below the first or `indent`.

    Where little room is left beside the head, the text begins below it. What is to be pasted stays `whole`.
    """
    if not console.is_terminal or whole:
        console.print(Text.assemble(head, _shown(text, style)))
        return
    if console.width - len(head) < _NARROWEST <= console.width - _INDENT and len(head) + len(text) > console.width:
        console.print(Text(head.plain.rstrip(), head.style))
        head, indent = Text(" " * _INDENT), _INDENT
    beyond = " " * (len(head) if indent is None else indent)
    width = max(console.width, _NARROWEST)
    lines = textwrap.wrap(
        text,
        width,
        initial_indent=" " * len(head),
        subsequent_indent=beyond,
        break_long_words=False,
        break_on_hyphens=False,
    )
    for number, line in enumerate(lines or [" " * len(head)]):
        first = not number
        console.print(Text.assemble(head if first else beyond, _shown(line[len(head if first else beyond) :], style)))


def report(console: Console, done: Report) -> None:
    """What a conversion did, or would do."""
    _rows(console, report_rows(done))


def part(console: Console, done: PartReport) -> None:
    """What a part of a conversion made, or the plan of all."""
    files = f"{size(sum(done.files.values()))} in {_count(len(done.files), 'file')}"
    there = f", {len(done.there)} of them there already" if done.there else ""
    left = (
        f"{_count(done.missing, 'file')} of all parts" if done.missing else "nothing: qbridge finish makes it whole"
    )
    head = f"part {done.part} of {done.of}" if done.part else "planned"
    _rows(console, [(head, f"{done.destination}: {files}{there}"), ("plan", done.plan), ("missing", left)])


def finished(console: Console, done: Finished) -> None:
    """What parts have become."""
    verb = "already done" if done.already_done else "finished"
    exact = ", ".join(f"{count} {name}" for name, count in done.exactness.items())
    rows = [
        *([("target", f"{done.target}: {done.format}"), ("exactness", exact)] if done.target else ()),
        (verb, f"{done.destination}: {size(sum(done.files.values()))} in {_count(len(done.files), 'file')}"),
    ]
    _rows(console, [*rows, *serve_rows(done.serve)])


def verification(console: Console, done: Verification) -> None:
    """Whether two checkpoints are the same model."""
    rows = [
        ("a", f"{done.a}: {done.formats[0]}"),
        ("b", f"{done.b}: {done.formats[1]}"),
        ("layers", f"{done.identical} identical, {done.equal} equal in value"),
        ("tensors", f"{done.tensors} unquantized ones compared"),
        ("verdict", "the same model" if done.same else "different"),
    ]
    _rows(console, rows)


def cleaning(console: Console, done: Cleaning) -> None:
    """What was removed at a destination."""
    rows = [("removed" if not number else "", path) for number, path in enumerate(done.removed)]
    _rows(
        console,
        [*(rows or [("removed", "nothing: no interrupted run has left anything")]), ("freed", size(done.bytes))],
    )


def inspection(console: Console, found: Inspection) -> None:
    """What a checkpoint is."""
    quantized, plain = size(found.quantized_bytes), size(found.unquantized_bytes)
    rows = [
        ("checkpoint", found.path),
        ("format", f"{found.format} ({found.because})"),
        ("model", found.architecture or "config.json names no architecture"),
        ("size", f"{quantized} quantized, {plain} not, in {_count(len(found.shards), 'shard')}"),
    ]
    for scheme in found.schemes:
        scales = f", scales {', '.join(scheme['scale_dtypes'])}" if scheme["scale_dtypes"] else ""
        rows.append(("scheme", f"{_count(scheme['layers'], 'layer')}: {scheme['scheme']}{scales}"))
        rows.append(("", "dims " + ", ".join(f"{n} x {k}" for n, k in scheme["dims"])))
    kinds = tallied(found.unquantized_linears)
    rows += [("unquantized" if not place else "", kind) for place, kind in enumerate(kinds or ["no linear"])]
    _rows(console, rows)


def tallied(names: Sequence[str], most: int = 12) -> list[str]:
    """Names, those that differ in numbers alone as one with how many there are: blocks.*.attn.qkv (32)."""
    counts = Counter(re.sub(r"(?<![^.])\d+(?![^.])", "*", name) for name in names)
    lines = [kind if count == 1 and "*" not in kind else f"{kind} ({count})" for kind, count in counts.items()]
    return lines if len(lines) <= most else [*lines[:most], f"and {len(lines) - most} kinds more"]


def check(console: Console, done: Check | CheckTable) -> None:
    """Whether an engine would load and serve a checkpoint, and with which kernels, at one size or at several."""
    if isinstance(done, CheckTable):
        _check_table(console, done)
        return
    rows = [
        ("checkpoint", f"{done.source}: {done.format}, {_count(done.layers, 'quantized layer')}"),
        ("model", done.architecture or "config.json names no architecture"),
        ("for", f"{_target(done)}, tp {done.tp}, {gpu_of(done.gpu)}"),
    ]
    for kind in done.kernels:
        what = f"{kind.kind} {kind.out_features} x {kind.in_features}, {kind.scheme}"
        wrongly = ", wrongly" if kind.kernel and not kind.legal else ""
        rows.append(
            ("kernel", f"{_kernel(kind)}{wrongly}: {what} ({kind.layers}){f'; {kind.note}' if kind.note else ''}")
        )
    rows += _needs(done)
    errors = sum(finding.severity == "error" for finding in done.findings)
    if not done.known:
        verdict = "not known"
    elif done.ok:
        verdict = _ASSUMED if done.assumed else "it would be served"
    else:
        verdict = _count(errors, "problem")
    rows.append(("verdict", verdict))
    rows += [(backend.backend, _backend(backend)) for backend in done.backends]
    rows.append(("time", f"{done.seconds:.1f} s"))
    _rows(console, [*rows, *serve_rows(done.serve)])


_ASSUMED = "config.json shows no problem, the rest needs the tensors"


def _target(done: Check | CheckTable) -> str:
    """The target, and the releases that stand in for it."""
    return f"{done.target} (judged by {' and '.join(done.releases)})" if done.releases else done.target


def _kernel(kind: Served) -> str:
    return kind.kernel or "no kernel"


def _needs(done: Check | CheckTable) -> list[tuple[str, str]]:
    """What only values, or tensors, would tell."""
    both = (("needs values", done.needs_values), ("needs tensors", done.needs_tensors))
    return [(name, ", ".join(codes)) for name, codes in both if codes]


def _backend(backend: BackendVerdict) -> str:
    return "yes" if backend.ok else f"no: {backend.codes[0]}, {backend.reason}"


def _check_table(console: Console, done: CheckTable) -> None:
    """What an engine makes of a checkpoint at each tensor-parallel size, a row each, and the commands that help."""
    rows = [
        ("checkpoint", f"{done.source}: {done.format}, {_count(done.layers, 'quantized layer')}"),
        ("model", done.architecture or "config.json names no architecture"),
        ("for", f"{_target(done)}, {gpu_of(done.gpu)}"),
    ]
    _rows(console, [*rows, *_needs(done)])
    console.print()
    _columns(console, [_HEAD, *(_size_row(size, done.assumed) for size in done.sizes)], _shows(done))
    console.print()
    good = sum(size.ok for size in done.sizes)
    answer = f"{good} of {_count(len(done.sizes), 'size')} would be served"
    notes = [("verdict", _ASSUMED if done.assumed and done.ok else answer)]
    if any(not kind.legal for size in done.sizes for kind in size.kernels):
        notes.append(("!", "serves some layers wrongly, or not at all"))
    if done.sizes[0].fits is not None:
        notes.append(("fits", "counts the weights alone; the kv cache and activations need room, too"))
    commands: dict[str, list[str]] = {}
    for row in done.sizes:
        if row.remedy:
            commands.setdefault(str(row.remedy.way), []).append(str(row.tp))
    notes += [(f"tp {','.join(sizes)}", command) for command, sizes in commands.items()]
    _rows(console, [*notes, ("time", f"{done.seconds:.1f} s"), *serve_rows(done.serve)])


_PASTED = ("serve", "check", "cure", "or", "next")  # rows that hold a command, as those of sizes do
_HEAD = ("tp", "verdict", "backends", "kernels", "per GPU", "fits", "cheapest exact remedy")


def _shows(done: CheckTable) -> tuple[bool, ...]:
    """Which columns have something to tell."""
    first = done.sizes[0]
    kernels = any(size.kernels for size in done.sizes)
    fits = any(size.fits is not None for size in done.sizes)
    return (True, True, bool(first.backends), kernels, True, fits, True)


def _size_row(row: SizeVerdict, assumed: bool) -> tuple[str, ...]:
    verdict = ("maybe" if assumed else "yes") if row.ok else "no" if row.known else "not known"
    backends = ", ".join(backend.backend for backend in row.backends if backend.ok)
    kernels = ", ".join(dict.fromkeys(f"{_kernel(kind)}{'' if kind.legal else '!'}" for kind in row.kernels))
    weights = "-"
    if row.weights:
        weights = f"{'' if row.weights.exact else 'about '}{size(row.weights.bytes)}"
    fits = "-" if row.fits is None else "yes" if row.fits else "no"
    remedy = "-" if row.ok else "none"
    if row.remedy:
        option = " ".join(row.remedy.way.words)
        remedy = f"convert{f' {option}' if option else ''}, {row.remedy.percent:+.2f} %"
    return str(row.tp), verdict, backends or "-", kernels or "-", weights, fits, remedy


def _columns(console: Console, rows: Sequence[Sequence[str]], shows: Sequence[bool]) -> None:
    """Rows of cells, each column as wide as its widest cell; the first row is the head."""
    kept = [[cell for cell, shown in zip(row, shows, strict=True) if shown] for row in rows]
    widths = [max(map(len, column)) for column in zip(*kept, strict=True)]
    if console.is_terminal and sum(widths) + 2 * (len(widths) - 1) > console.width:
        _one_below_another(console, kept)
        return
    for number, row in enumerate(kept):
        line = "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        console.print(Text(line, "" if number else "cyan"))


def _one_below_another(console: Console, rows: Sequence[Sequence[str]]) -> None:
    """Rows that are wider than the terminal: each as lines, a label and a cell."""
    head, *others = rows
    for number, row in enumerate(others):
        if number:
            console.print()
        cells = [(label, cell) for label, cell in zip(head, row, strict=True) if cell not in ("", "-")]
        _rows(console, cells, max(map(len, head)))


def possibilities(console: Console, done: Possibilities) -> None:
    """What a checkpoint can become, a row for each target, and below them why weights are not exact in some."""
    rows = [
        ("checkpoint", f"{done.source}: {done.format}, {_count(done.layers, 'quantized layer')}"),
        ("model", done.architecture or "config.json names no architecture"),
        ("at", f"tp {', '.join(map(str, done.tp))}"),
    ]
    _rows(console, rows)
    console.print()
    notes: dict[str, int] = {}
    table = [("target", "becomes", "weights")]
    for each in done.targets:
        note = _note(each)
        number = f" [{notes.setdefault(note, len(notes) + 1)}]" if note else ""
        table.append((each.target, each.format or "-", each.outcome + number))
    _columns(console, table, (True, True, True))
    console.print()
    _rows(console, [(f"[{number}]", note) for note, number in notes.items()])
    casts = dict.fromkeys(each.cast for each in done.casts)
    _rows(console, [(f"--cast {cast}", _targets_of(done, cast)) for cast in casts])
    more = f" --tp {','.join(map(str, done.tp))}" if max(done.tp) > 1 else ""
    _rows(console, [("next", f"qbridge convert SRC DST --to TARGET{more}"), ("time", f"{done.seconds:.1f} s")])


def _targets_of(done: Possibilities, cast: str) -> str:
    """The targets for which a cast keeps every weight."""
    return f"exact for {', '.join(each.target for each in done.casts if each.cast == cast)}"


def _note(each: Possibility) -> str:
    """Why a target does not get exact weights, in one line; empty where it does."""
    if each.outcome == "exact":
        return ""
    parts = [f"--allow {','.join(each.allow)}"] if each.allow else []
    parts += [f"{count} layers {kind}" for kind, count in each.exactness.items() if kind not in EXACT]
    for reason in each.reasons[:1]:
        parts.append(f"{reason.code} {reason.message}{f' ({reason.facts[0]})' if reason.facts else ''}")
    others = dict.fromkeys(reason.code for reason in each.reasons if reason.code != each.reasons[0].code)
    return "; ".join((*parts, *([f"also {', '.join(others)}"] if others else ())))


def proof(console: Console, done: Proof) -> None:
    """What an engine's own loader makes of a checkpoint."""
    engine = f"{done.engine} {done.version or '(not installed)'}, tp {done.tp}"
    stubs = f", stubs for {done.emulated}" if done.emulated else ""
    rows = [("checkpoint", done.destination), ("engine", engine + stubs), ("python", done.python)]
    if done.config:
        rows.append(("config", ", ".join(f"{name} {value}" for name, value in done.config.items() if value)))
    if done.model:
        rows.append(("model", done.model + (f", by {done.backend}" if done.backend else "")))
        modules = f"{_count(done.quantized, 'quantized module')}, {done.unquantized} not"
        rows.append(("modules", f"{modules}; compared with the {done.compared_with}"))
    rows += [("verdict", done.verdict), ("time", f"{done.seconds:.1f} s")]
    _rows(console, rows)


def explanation(console: Console, done: Explanation) -> None:
    """One entry of the catalogue, or the messages of engines in a text."""
    if done.code is not None:
        _entry(console, done.code)
    for number, meaning in enumerate(done.messages):
        if number:
            console.print()
        _rows(console, meaning.rows)
    if not done.ok:
        _hanging(console, Text(), UNKNOWN)


def listing(console: Console, known: Listing) -> None:
    """Every code, then every message of an engine."""
    _rows(console, [(entry.code, entry.title) for entry in known.codes])
    console.print()
    _rows(console, [(f"{message.origin} {message.versions}", message.words) for message in known.messages])


def _entry(console: Console, entry: Code) -> None:
    console.print(Text(f"{entry.code}: {entry.title}", "bold"))
    rows = [
        ("what", entry.what),
        ("why", entry.why),
        ("example", entry.example),
        ("fix", entry.fix),
        ("allow", entry.allow or "nothing lets it pass" if entry.severity == "error" else "it stops nothing"),
        ("source", entry.source),
    ]
    _rows(console, rows)


def names(console: Console, done: Names | Settings) -> None:
    """Names and what they are."""
    _rows(console, done.rows)


def _rows(console: Console, rows: Sequence[tuple[str, str]], width: int = 0) -> None:
    width = max((width, *(len(name) for name, _ in rows)))
    pasted = False
    for name, value in rows:
        pasted = pasted if not name else name in _PASTED or name.startswith("tp ")
        _hanging(console, Text(f"{name:<{width}}  ", "cyan"), value, whole=pasted)
