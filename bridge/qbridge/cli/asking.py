"""check, what, prove, inspect, verify, formats, targets, explain: the commands that answer, and write nothing."""

from __future__ import annotations

import sys
from typing import Annotated, cast

import typer

import qbridge
from qbridge.cli.command import Program
from qbridge.cli.options import (
    About,
    Allow,
    Checked,
    CheckedSizes,
    Emulated,
    For,
    From,
    Graft,
    In,
    Jobs,
    Memory,
    NoValues,
    OneSize,
    OnGpu,
    Original,
    Progressing,
    PythonPath,
    ReportFile,
    Sizes,
    Source,
    Text,
    V1Zeros,
    shown,
    value,
    words,
)
from qbridge.commands.arguments import asked_text, memory_of, positive_sizes_of
from qbridge.commands.explanation import Explanation, Listing, listing
from qbridge.commands.inspection import Inspection
from qbridge.commands.names import Names, format_names, target_names
from qbridge.commands.possibilities import Possibilities
from qbridge.commands.proof import Proof
from qbridge.commands.report import Verification
from qbridge.commands.settings import Settings, settings
from qbridge.commands.verdicts import Check, CheckTable


def check(
    src: Source,
    target: For,
    tp: CheckedSizes = "1",
    gpu: OnGpu = "sm80",
    source: From = None,
    allow: Allow = None,
    v1_zeros: V1Zeros = None,
    no_values: NoValues = False,
    report: ReportFile = None,
) -> Check | CheckTable:
    """Say whether an engine would load and rightly serve SRC as it is, by shapes alone; exit 1 if not everywhere."""
    sizes = value("--tp", positive_sizes_of, tp)
    several = sizes if len(sizes) > 1 else sizes[0]
    answer: Check | CheckTable = qbridge.check(
        src, target, several, gpu, source, allow=words(allow, v1_zeros), values=not no_values, report=report
    )
    return answer


def what(
    src: Source, source: From = None, tp: Sizes = "1", allow: Allow = None, v1_zeros: V1Zeros = None
) -> Possibilities:
    """Say what SRC can become: for every target what is kept, lost or refused, and why."""
    return qbridge.what(src, source, tp=value("--tp", positive_sizes_of, tp), allow=words(allow, v1_zeros))


def prove(
    dst: Checked,
    engine: In,
    python: PythonPath = "",
    tp: OneSize = 1,
    emulate: Emulated = "",
    source: Original = None,
    allow: Allow = None,
) -> Proof:
    """Load DST with an engine's own loader, and say what that makes of it; exit 1 unless it loads."""
    return qbridge.prove(
        dst, engine, python=python, tp=tp, emulate=emulate, original=source, allow=words(allow, None)
    )


def inspect(
    src: Source,
    source: From = None,
    allow: Allow = None,
    v1_zeros: V1Zeros = None,
    report: ReportFile = None,
) -> Inspection:
    """Say what a checkpoint is: format, schemes, dims, sizes."""
    return qbridge.inspect(src, source, allow=words(allow, v1_zeros), report=report)


def verify(
    a: Annotated[str, typer.Argument(metavar="A")],
    b: Annotated[str, typer.Argument(metavar="B")],
    graft: Graft = None,
    allow: Allow = None,
    v1_zeros: V1Zeros = None,
    jobs: Jobs = 0,
    memory: Memory = "512MB",
    progress: Progressing = "auto",
    report: ReportFile = None,
) -> Verification:
    """Compare two checkpoints layer by layer, across formats; exit 1 if they are not the same model."""
    with shown(progress) as advance:
        return qbridge.verify(
            a,
            b,
            allow=words(allow, v1_zeros),
            graft=graft or "",
            jobs=jobs,
            memory=value("--memory", memory_of, memory),
            progress=advance,
            report=report,
        )


def formats() -> Names:
    """List the formats that can be read and written."""
    return format_names()


def targets() -> Names:
    """List what a checkpoint can be converted for."""
    return target_names()


def config(context: typer.Context) -> Settings:
    """Show the defaults that are set, by environment variables QBRIDGE_* or the user's config file."""
    program = cast(Program, context.find_root().command)
    return settings(program.defaults())


def explain(text: Text = None, src: About = None) -> Explanation | Listing:
    """Explain a QB code, or what an engine that refused a checkpoint printed; without either, list both."""
    asked = asked_text(text, sys.stdin)
    return listing() if asked is None else qbridge.explain(asked, src)
