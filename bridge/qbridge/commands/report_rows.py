"""What a conversion did in labelled lines: for a terminal, and for the card of the model that it wrote."""

from __future__ import annotations

from collections.abc import Mapping

from qbridge.commands.report import Report
from qbridge.findings.hints import size
from qbridge.source.opening import RESIDUE

_MODULES = 4  # grafted modules that are named


def counted(number: int, noun: str) -> str:
    """A number of things: 1 layer, 2 layers."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def subject_rows(done: Report) -> list[tuple[str, str]]:
    """Which model it is, for whom, and what was done to its layers."""
    exact = ", ".join(f"{count} {name}" for name, count in done.exactness.items())
    return [
        ("model", f"{done.architecture}, {counted(done.layers, 'quantized layer')}"),
        ("target", f"{done.target}: {done.format}{f' ({done.chosen})' if done.chosen else ''}"),
        ("exactness", exact),
        ("passes", ", ".join(f"{name} x {count}" for name, count in done.passes.items()) or "none"),
        *_activations(done),
    ]


def size_rows(done: Report) -> list[tuple[str, str]]:
    """What it costs in bytes and, where dims grew, in work."""
    stored = done.tensor_bytes
    return [
        ("tensors", f"{size(stored['before'])} -> {size(stored['after'])}, {_change(stored)}"),
        *_padding(done),
    ]


def grafted_rows(done: Report, original: str) -> list[tuple[str, str]]:
    """What was grafted, from an original by some name."""
    if not done.grafted:
        return []
    modules, taken = done.grafted["modules"], done.grafted
    more = f" and {len(modules) - _MODULES} more" if len(modules) > _MODULES else ""
    what = f"{counted(taken['tensors'], 'tensor')}, {size(taken['bytes'])}, from {original}"
    return [("grafted", f"{what}: {', '.join(modules[:_MODULES])}{more}")]


def report_rows(done: Report) -> list[tuple[str, str]]:
    """What a conversion did, or would do."""
    verb = "already done" if done.already_done else "would write" if done.dry_run else "wrote"
    rows = [
        ("source", f"{done.source}: {done.source_format} ({done.because})"),
        *subject_rows(done),
        *size_rows(done),
        *(grafted_rows(done, done.grafted["original"]) if done.grafted else ()),
        *_linked(done),
        (verb, f"{done.destination}: {size(sum(done.files.values()))} in {counted(_shards(done), 'shard')}"),
        *_residue(done),
    ]
    if done.already_done:
        rows.append(("", "compared byte for byte; nothing was written"))
    elif not done.dry_run:
        rows.append(("time", f"{done.seconds:.1f} s"))
    return [*rows, *serve_rows(done.serve)]


def _shards(done: Report) -> int:
    """How many files have weights."""
    return len(done.files.keys() - {RESIDUE})


def _residue(done: Report) -> list[tuple[str, str]]:
    """What is stored for restore, and no engine reads."""
    stored = done.files.get(RESIDUE)
    return [] if stored is None else [("residue", f"{size(stored)} in {RESIDUE}: what the cast forgets, for restore")]


def serve_rows(command: str) -> list[tuple[str, str]]:
    """The command that serves a checkpoint, or the lines of Python that load it."""
    return [("" if number else "serve", line) for number, line in enumerate(command.split("\n") if command else ())]


def _activations(done: Report) -> list[tuple[str, str]]:
    """How many layers have their inputs quantized otherwise, by what the user has allowed."""
    count = done.activations_changed
    return [("activations", f"changed: {counted(count, 'layer')}; weights unchanged")] if count else []


def _linked(done: Report) -> list[tuple[str, str]]:
    """How many files were linked."""
    if not done.links:
        return []
    kinds = ", ".join(f"{count} by {kind}" for kind, count in done.links.items())
    return [("linked", f"{kinds}, of {counted(len(done.files), 'file')}")]


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
