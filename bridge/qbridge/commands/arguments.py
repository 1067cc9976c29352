"""What the words of a command line mean: types of options, sizes, lists, and what may be said once."""

from __future__ import annotations

import re
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from qbridge.findings.catalogue.code import ALLOW
from qbridge.plan.options import LEAST_MEMORY

Source = Annotated[Path, typer.Argument(metavar="SRC", help="The checkpoint folder.")]
Dst = Annotated[Path, typer.Argument(metavar="DST", help="The folder to write; must not exist.")]
From = Annotated[
    str | None, typer.Option("--from", metavar="FORMAT", help="The format of SRC; detected if left out.")
]
Allow = Annotated[
    list[str] | None, typer.Option("--allow", metavar="WHAT[,WHAT]", help=f"Let a finding pass: {', '.join(ALLOW)}.")
]
V1Zeros = Annotated[
    str | None,
    typer.Option(
        "--v1-zeros", metavar="wrap|add", help="Read all-ones zero-points of GPTQ version 1 as 0, or plus 1."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]

DryRun = Annotated[bool, typer.Option("--dry-run", help="Plan only; write nothing.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the checkpoint at DST.")]
Jobs = Annotated[
    int, typer.Option("--jobs", metavar="N", min=0, help="Threads, as --memory allows; 0: one for each core.")
]
Memory = Annotated[
    str, typer.Option("--memory", metavar="SIZE", help="Bytes to work in beyond the idle program's; 64MB or more.")
]
NoProof = Annotated[bool, typer.Option("--no-proof", help="Do not read back and compare what is written.")]
Progressing = Annotated[str, typer.Option("--progress", metavar="auto|json|none", help="Progress on stderr.")]

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_LEAST_PLAIN = 10**6  # a smaller number without a unit is a size whose unit was forgotten


class Once(TyperCommand):
    """A command whose options of one value are given at most once: the last of two would win in silence."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse; a usage error for an option that is given twice."""
        names = [word.partition("=")[0] for word in takewhile(lambda word: word != "--", args)]
        for option in self.params:
            repeatable = getattr(option, "multiple", True) or getattr(option, "is_flag", False)
            if not repeatable and sum(name in option.opts for name in names) > 1:
                ctx.fail(f"{option.opts[0]} is given more than once")
        return super().parse_args(ctx, args)


def words(allow: list[str] | None, v1_zeros: str | None) -> list[str]:
    """The words of --allow, each option with one or several, and those that other options stand for."""
    if v1_zeros not in (None, "wrap", "add"):
        raise typer.BadParameter("wrap or add", param_hint="--v1-zeros")
    split = [word.strip().lower() for option in allow or () for word in option.split(",")]
    return [*filter(None, split), *([f"v1-zeros-{v1_zeros}"] if v1_zeros else ())]


def sizes_of(text: str) -> tuple[int, ...]:
    """The numbers of --tp."""
    try:
        return tuple(int(size) for size in text.split(","))
    except ValueError as fault:
        raise typer.BadParameter("numbers with commas between them, such as 2,4,8", param_hint="--tp") from fault


def memory_of(text: str) -> int:
    """The bytes of --memory."""
    size = bytes_of(text, "--memory")
    if size < LEAST_MEMORY:
        raise typer.BadParameter(f"at least {LEAST_MEMORY // 10**6}MB", param_hint="--memory")
    return size


def bytes_of(text: str, option: str) -> int:
    """A number of bytes with its unit; without one only where it is too large for any other unit."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)(B?)", text.strip(), re.IGNORECASE)
    if not match or float(match[1]) <= 0:
        raise typer.BadParameter("a size such as 5GB or 512MiB", param_hint=option)
    unit = match[2].upper()
    if not unit and not match[4] and float(match[1]) < _LEAST_PLAIN:
        raise typer.BadParameter(f"{text} has no unit: a size such as {text}GB or {text}MB", param_hint=option)
    return max(1, int(float(match[1]) * (_BINARY[unit] if match[3] and unit else _UNITS[unit])))
