"""The options of the commands, and what is typed after them as values of the library."""

from __future__ import annotations

import platform
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from qbridge.cli import completion
from qbridge.commands.arguments import PROGRESS, progress_of
from qbridge.findings.catalogue.code import ALLOW
from qbridge.plan.casting import CASTS, FP8, INT8, MXFP8, NVFP4
from qbridge.plan.distribution import qbridge_version
from qbridge.progress import progress
from qbridge.write.writer import Advance

Source = Annotated[
    str, typer.Argument(metavar="SRC", help="A folder, org/name\\[@revision] of the Hub, or https://host/folder.")
]
Dst = Annotated[
    str, typer.Argument(metavar="DST", help="The folder to write, which must not exist; or hf://org/name\\[@branch].")
]
From = Annotated[
    str | None,
    typer.Option(
        "--from", metavar="FORMAT", help="The format of SRC; detected if left out.", autocompletion=completion.formats
    ),
]
Allow = Annotated[
    list[str] | None,
    typer.Option(
        "--allow",
        metavar="WHAT[,WHAT]",
        help=f"Let a finding pass: {', '.join(ALLOW)}.",
        autocompletion=completion.allowed,
    ),
]
V1Zeros = Annotated[
    str | None,
    typer.Option(
        "--v1-zeros",
        metavar="wrap|add",
        help="Read all-ones zero-points of GPTQ version 1 as 0, or plus 1.",
        autocompletion=completion.one_of("wrap", "add"),
    ),
]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"qbridge {qbridge_version()}, Python {platform.python_version()}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", "-V", callback=_version, is_eager=True, help="Print the version.")
]
_TARGET = r"Engine\[@version] or format."  # \[ because the help is rich text
To = Annotated[str, typer.Option("--to", metavar="TARGET", help=_TARGET, autocompletion=completion.targets)]
For = Annotated[str, typer.Option("--for", metavar="TARGET", help=_TARGET, autocompletion=completion.targets)]
Sizes = Annotated[str, typer.Option("--tp", metavar="N[,N]", help="Tensor-parallel sizes to be legal at.")]
CheckedSizes = Annotated[
    str, typer.Option("--tp", metavar="N[,N]", help="Tensor-parallel size; of several there is a table.")
]
OnGpu = Annotated[
    str,
    typer.Option(
        "--gpu", metavar="GPU", help="A name such as H100, or a compute capability.", autocompletion=completion.gpus
    ),
]
Checked = Annotated[str, typer.Argument(metavar="DST", help="A folder, or a GGUF file, of this machine.")]
In = Annotated[
    str, typer.Option("--in", metavar="ENGINE", help="The engine to load it in.", autocompletion=completion.provers)
]
PythonPath = Annotated[
    str, typer.Option("--python", metavar="PATH", help="The Python that has the engine; default: this one.")
]
OneSize = Annotated[int, typer.Option("--tp", metavar="N", min=1, help="Tensor-parallel size; each rank loads.")]
Emulated = Annotated[
    str,
    typer.Option(
        "--emulate",
        metavar="GPU",
        help="Let stubs stand in for a GPU: sm90.",
        autocompletion=completion.one_of("sm80", "sm89", "sm90", "sm100"),
    ),
]
Original = Annotated[
    str | None,
    typer.Option("--source", metavar="SRC", help="Compare quantized modules with those of this checkpoint."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Errors and the answer alone: no warning, no progress.")]
Verbose = Annotated[
    int,
    typer.Option(
        "--verbose",
        "-v",
        count=True,
        metavar="",
        show_default=False,
        help="Log on stderr what is done; -vv each step.",
    ),
]

DryRun = Annotated[bool, typer.Option("--dry-run", help="Plan only; write nothing.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the checkpoint at DST.")]
Jobs = Annotated[
    int, typer.Option("--jobs", metavar="N", min=0, help="Threads, as --memory allows; 0: one for each core.")
]
Memory = Annotated[
    str, typer.Option("--memory", metavar="SIZE", help="Bytes to work in beyond the idle program's; 64MB or more.")
]
NoProof = Annotated[bool, typer.Option("--no-proof", help="Do not read back and compare what is written.")]
ReportFile = Annotated[
    Path | None,
    typer.Option(
        "--report", metavar="FILE.html", help="Write a page of the result; to FILE.png, the map of its layers."
    ),
]
NoCard = Annotated[bool, typer.Option("--no-card", help="Carry README.md over as it is: no model card.")]
ShardSize = Annotated[
    str | None,
    typer.Option("--max-shard-size", metavar="SIZE", help="For example 5GB; default: the source's shards."),
]
Cast = Annotated[
    str,
    typer.Option(
        "--cast",
        metavar="|".join((FP8, NVFP4, MXFP8, INT8)),
        help="Number format to have, of MXFP4 or symmetric int4; exact, or refused.",
        autocompletion=completion.one_of(*CASTS),
    ),
]
Experts = Annotated[
    str,
    typer.Option(
        "--experts",
        metavar="fused|separate",
        help="How unquantized experts are stored; restore undoes it.",
        autocompletion=completion.one_of("fused", "separate"),
    ),
]
Graft = Annotated[
    Path | None,
    typer.Option("--graft", metavar="ORIGINAL", help="Take what SRC lacks from the unquantized original; proved."),
]
Config = Annotated[
    Path | None,
    typer.Option("--config", metavar="ORIGINAL", help="Take config and tokenizer of a GGUF file from the original."),
]
RenamePrefix = Annotated[
    list[str] | None,
    typer.Option("--rename-prefix", metavar="OLD=NEW", help="Replace the beginning of names, config's lists too."),
]
Link = Annotated[bool, typer.Option("--link", help="Link files that do not change instead of writing them.")]
Part = Annotated[
    str | None,
    typer.Option("--part", metavar="I/N", help="Make the I-th of N parts; finish makes them a checkpoint."),
]
Executor = Annotated[
    str | None,
    typer.Option("--executor", metavar="ray[://HOST:PORT]", help="Make each file on a node of a Ray cluster."),
]
NoValues = Annotated[bool, typer.Option("--no-values", help="Read headers alone; no where a value is needed.")]
Progressing = Annotated[
    str,
    typer.Option(
        "--progress",
        metavar="auto|json|none",
        help="Progress on stderr.",
        autocompletion=completion.one_of(*PROGRESS),
    ),
]

Text = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[CODE|MESSAGE]...",
        help="For example QB015, or a line of a log; - reads a whole log.",
        autocompletion=completion.known_codes,
    ),
]
About = Annotated[
    Path | None, typer.Option("--src", metavar="SRC", help="The checkpoint that the commands are about.")
]


def value(option: str, parse: Callable[[Any], Any], typed: Any) -> Any:
    """What `parse` makes of what was typed after an option; a usage error where it makes nothing of it."""
    try:
        return parse(typed)
    except ValueError as fault:
        raise typer.BadParameter(str(fault), param_hint=option) from fault


def words(allow: list[str] | None, v1_zeros: str | None) -> list[str]:
    """The words of --allow, each option with one or several, and those that other options stand for."""
    if v1_zeros not in (None, "wrap", "add"):
        raise typer.BadParameter("wrap or add", param_hint="--v1-zeros")
    split = [word.strip().lower() for option in allow or () for word in option.split(",")]
    return [*filter(None, split), *([f"v1-zeros-{v1_zeros}"] if v1_zeros else ())]


def shown(kind: str) -> AbstractContextManager[Callable[[Advance], None] | None]:
    """What to call as a command advances, by the word of --progress."""
    return progress(value("--progress", progress_of, kind), Console(stderr=True, highlight=False, soft_wrap=True))
