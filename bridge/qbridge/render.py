"""Findings, reports and tables as text; what they say is readable without colour."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.text import Text

from qbridge.commands.checking import Check
from qbridge.commands.cleaning import Cleaning
from qbridge.commands.explanation import UNKNOWN, Explanation, Listing
from qbridge.commands.inspection import Inspection
from qbridge.commands.names import Names
from qbridge.commands.report import Report, Verification
from qbridge.findings.catalogue.code import Code
from qbridge.findings.finding import Finding, Severity
from qbridge.findings.hints import printable

_MODULES = 4  # grafted modules that are named
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
    console.print(head.append(f": {finding.message}", "bold"))
    if finding.where:
        more = f" and {len(finding.where) - 1} more" if len(finding.where) > 1 else ""
        console.print(_shown(f"  --> {finding.where[0]}{more}"))
    for fact in finding.facts:
        console.print(_shown(f"   |  {fact}"))
    console.print(Text(f"   =  {finding.entry.why}"))
    for line in finding.remedies:
        console.print(Text("  help: ", "cyan").append_text(_shown(line)))
    console.print()


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def size(count: float) -> str:
    """Bytes for people: 1.8 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def report(console: Console, done: Report) -> None:
    """What a conversion did, or would do."""
    verb = "already done" if done.already_done else "would write" if done.dry_run else "wrote"
    exact = ", ".join(f"{count} {name}" for name, count in done.exactness.items())
    stored = done.tensor_bytes
    rows = [
        ("source", f"{done.source}: {done.source_format} ({done.because})"),
        ("model", f"{done.architecture}, {_count(done.layers, 'quantized layer')}"),
        ("target", f"{done.target}: {done.format}{f' ({done.chosen})' if done.chosen else ''}"),
        ("exactness", exact),
        ("passes", ", ".join(f"{name} x {count}" for name, count in done.passes.items()) or "none"),
        ("tensors", f"{size(stored['before'])} -> {size(stored['after'])}, {_change(stored)}"),
        *_padding(done),
        *_restructured(done),
        (verb, f"{done.destination}: {size(sum(done.files.values()))} in {_count(len(done.files), 'shard')}"),
    ]
    if done.already_done:
        rows.append(("", "compared byte for byte; nothing was written"))
    elif not done.dry_run:
        rows.append(("time", f"{done.seconds:.1f} s"))
    _rows(console, [*rows, *_serve(done.serve)])


def _restructured(done: Report) -> list[tuple[str, str]]:
    """What was grafted, and how many files were linked."""
    rows = []
    if done.grafted:
        modules, taken = done.grafted["modules"], done.grafted
        more = f" and {len(modules) - _MODULES} more" if len(modules) > _MODULES else ""
        what = f"{_count(taken['tensors'], 'tensor')}, {size(taken['bytes'])}, from {taken['original']}"
        rows.append(("grafted", f"{what}: {', '.join(modules[:_MODULES])}{more}"))
    if done.links:
        kinds = ", ".join(f"{count} by {kind}" for kind, count in done.links.items())
        rows.append(("linked", f"{kinds}, of {_count(len(done.files), 'file')}"))
    return rows


def _serve(command: str) -> list[tuple[str, str]]:
    """The command that serves a checkpoint, or the lines of Python that load it."""
    return [("" if number else "serve", line) for number, line in enumerate(command.split("\n") if command else ())]


def _padding(done: Report) -> list[tuple[str, str]]:
    """What other dims cost: an intermediate size is padded, or cropped on the way back."""
    if done.weights["before"] == done.weights["after"]:
        return []
    weights, flops = _change(done.weights), _change(done.flops)
    return [("padding", f"weights of quantized layers {weights}, their FLOPs per token {flops}")]


def _change(sides: Mapping[str, int]) -> str:
    """By how much it grew, in percent."""
    before, after = sides["before"], sides["after"]
    return f"{100 * (after - before) / max(before, 1):+.2f} %"


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
        scales = ", ".join(scheme["scale_dtypes"])
        rows.append(("scheme", f"{_count(scheme['layers'], 'layer')}: {scheme['scheme']}, scales {scales}"))
        rows.append(("", "dims " + ", ".join(f"{n} x {k}" for n, k in scheme["dims"])))
    kinds = tallied(found.unquantized_linears)
    rows += [("unquantized" if not place else "", kind) for place, kind in enumerate(kinds or ["no linear"])]
    _rows(console, rows)


def tallied(names: Sequence[str], most: int = 12) -> list[str]:
    """Names, those that differ in numbers alone as one with how many there are: blocks.*.attn.qkv (32)."""
    counts = Counter(re.sub(r"(?<![^.])\d+(?![^.])", "*", name) for name in names)
    lines = [kind if count == 1 and "*" not in kind else f"{kind} ({count})" for kind, count in counts.items()]
    return lines if len(lines) <= most else [*lines[:most], f"and {len(lines) - most} kinds more"]


def check(console: Console, done: Check) -> None:
    """Whether an engine would load and serve a checkpoint, and with which kernels."""
    rows = [
        ("checkpoint", f"{done.source}: {done.format}, {_count(done.layers, 'quantized layer')}"),
        ("model", done.architecture or "config.json names no architecture"),
        ("for", f"{done.target}, tp {done.tp}, {done.gpu}"),
    ]
    for kind in done.kernels:
        served = f"{kind.kernel or 'no kernel'}{'' if kind.legal or not kind.kernel else ', wrongly'}"
        what = f"{kind.kind} {kind.out_features} x {kind.in_features}, {kind.scheme}"
        rows.append(("kernel", f"{served}: {what} ({kind.layers}){f'; {kind.note}' if kind.note else ''}"))
    if done.needs_values:
        rows.append(("needs values", ", ".join(done.needs_values)))
    if done.needs_tensors:
        rows.append(("needs tensors", ", ".join(done.needs_tensors)))
    errors = sum(finding.severity == "error" for finding in done.findings)
    good = "config.json shows no problem, the rest needs the tensors" if done.assumed else "it would be served"
    rows.append(("verdict", good if done.ok else f"{_count(errors, 'problem')}"))
    rows.append(("time", f"{done.seconds:.1f} s"))
    _rows(console, [*rows, *_serve(done.serve)])


def explanation(console: Console, done: Explanation) -> None:
    """One entry of the catalogue, or the messages of engines in a text."""
    if done.code is not None:
        _entry(console, done.code)
    for number, meaning in enumerate(done.messages):
        if number:
            console.print()
        _rows(console, meaning.rows)
    if not done.ok:
        console.print(Text(UNKNOWN))


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


def names(console: Console, done: Names) -> None:
    """Names and what they are."""
    _rows(console, done.rows)


def _rows(console: Console, rows: Sequence[tuple[str, str]]) -> None:
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        console.print(Text(f"{name:<{width}}  ", "cyan").append_text(_shown(value)))
