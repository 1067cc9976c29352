"""The command line: parsing and exit codes; every command is one library call.

stdout is data, stderr is progress and findings. Exit codes: 0 ok, 1 the answer is no, 2 usage, 3 unreadable input,
4 I/O, 70 a bug in qbridge, 130 interrupted.
"""

from __future__ import annotations

import gc
import json
import platform
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.console import Console

import qbridge
from qbridge import render
from qbridge.commands.arguments import asked_text, bytes_of, memory_of, positive_sizes_of, prefixes_of, sizes_of
from qbridge.commands.explanation import listing
from qbridge.commands.names import format_names, target_names
from qbridge.commands.words import (
    About,
    Allow,
    CheckedSizes,
    DryRun,
    Dst,
    Experts,
    For,
    From,
    Graft,
    Jobs,
    Json,
    Link,
    Memory,
    NoProof,
    NoValues,
    Once,
    OnGpu,
    Overwrite,
    Progressing,
    RenamePrefix,
    Source,
    Text,
    V1Zeros,
    Version,
    value,
    words,
)
from qbridge.findings.catalogue import CATALOGUE
from qbridge.findings.catalogue.code import BUG, INTERRUPTED
from qbridge.findings.finding import Finding, Findings, QBridgeError
from qbridge.formats.registry import report_unusable
from qbridge.plan.distribution import namesake, qbridge_version
from qbridge.plan.options import Options
from qbridge.progress import KINDS, print_waits
from qbridge.progress import progress as progress_of
from qbridge.targets.registry import report_unusable as report_unusable_targets
from qbridge.write.writer import Advance

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
    help="Convert quantized LLM checkpoints between layouts, losslessly or not at all.",
    epilog="Example: qbridge convert model-W8A8 model-lmdeploy --to lmdeploy",
)

_NOTHING = "nothing was written"
_WRITERS = ("convert", "restore")  # other commands write nothing in any case


def _out() -> Console:
    return Console(highlight=False, soft_wrap=True)


def _err() -> Console:
    return Console(stderr=True, highlight=False, soft_wrap=True)


@contextmanager
def _answering(command: str, as_json: bool) -> Iterator[None]:
    """Turn what the library raises into findings on stderr (or JSON on stdout) and the exit code."""
    outcome = _NOTHING if command in _WRITERS else ""
    try:
        yield
    except QBridgeError as fault:
        if as_json:
            _print_json({"command": command, "findings": [f.as_dict() for f in fault.findings]})
        else:
            render.findings(_err(), fault.findings, outcome)
        raise typer.Exit(fault.exit_code) from None
    except KeyboardInterrupt:
        _err().print("interrupted; the same command goes on where it stopped" if outcome else "interrupted")
        raise typer.Exit(INTERRUPTED) from None


def _print_json(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps({"schema": 1, **value}, indent=2, default=str) + "\n")


def _say(
    as_json: bool, value: Any, show: Callable[[Console, Any], None], found: Sequence[Finding], below: bool = False
) -> None:
    """Print an answer, and what was found above it, or `below` it where it is a table."""
    if as_json:
        _print_json(value.as_dict())
        return
    render.findings(_err(), () if below else found)
    show(_out(), value)
    render.findings(_err(), found if below else ())


@app.command(
    cls=Once, epilog="Example: qbridge convert model-W8A8 model-lmdeploy --from llm-compressor --to lmdeploy"
)
def convert(
    src: Source,
    dst: Dst,
    to: Annotated[str, typer.Option("--to", metavar="TARGET", help="Engine[@version] or format.")],
    source: From = None,
    tp: Annotated[str, typer.Option("--tp", metavar="N[,N]", help="Tensor-parallel sizes to be legal at.")] = "1",
    pad: Annotated[
        bool, typer.Option("--pad", help="Let MLPs grow to be legal; exact, and undone by restore.")
    ] = False,
    regroup: Annotated[
        int | None, typer.Option("--regroup", metavar="G", help="Group size to have; exact, or refused.")
    ] = None,
    bits: Annotated[
        int | None, typer.Option("--bits", metavar="4|8", help="Width to widen narrower codes to.")
    ] = None,
    no_passes: Annotated[bool, typer.Option("--no-passes", help="Change the layout only.")] = False,
    dtype: Annotated[
        str, typer.Option("--dtype", metavar="DTYPE", help="Of dense weights: bfloat16, float16 or float32.")
    ] = "",
    experts: Experts = "",
    graft: Graft = None,
    rename_prefix: RenamePrefix = None,
    link: Link = False,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    max_shard_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="For example 5GB; default: the source's shards.")
    ] = None,
    allow: Allow = None,
    v1_zeros: V1Zeros = None,
    jobs: Jobs = 0,
    memory: Memory = "512MB",
    no_proof: NoProof = False,
    progress: Progressing = "auto",
    as_json: Json = False,
) -> None:
    """Convert SRC into DST for a target, losslessly or not at all."""
    limit = None if max_shard_size is None else value("--max-shard-size", bytes_of, max_shard_size)
    sizes = value("--tp", sizes_of, tp)
    prefixes = value("--rename-prefix", prefixes_of, rename_prefix or ())
    try:
        Options(sizes, pad, regroup, bits, not no_passes, dtype, experts, rename_prefix=prefixes)
    except ValueError as fault:
        raise typer.BadParameter(str(fault)) from fault
    if dtype and to.lower() != "dense":
        raise typer.BadParameter("--dtype goes with --to dense")
    with _answering("convert", as_json):
        with _progress(progress) as advance:
            done = qbridge.convert(
                src,
                dst,
                to,
                source,
                allow=words(allow, v1_zeros),
                dry_run=dry_run,
                overwrite=overwrite,
                max_shard_size=limit,
                progress=advance,
                tp=sizes,
                pad=pad,
                regroup=regroup,
                bits=bits,
                passes=not no_passes,
                dtype=dtype,
                experts=experts,
                graft=graft or "",
                rename_prefix=prefixes,
                link=link,
                jobs=jobs,
                memory=value("--memory", memory_of, memory),
                proof=not no_proof,
            )
        _say(as_json, done, render.report, done.findings)


@app.command(cls=Once)
def restore(
    src: Source,
    dst: Dst,
    allow: Allow = None,
    link: Link = False,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    jobs: Jobs = 0,
    memory: Memory = "512MB",
    no_proof: NoProof = False,
    progress: Progressing = "auto",
    as_json: Json = False,
) -> None:
    """Undo what qbridge.json beside SRC records: the original's tensors and config at DST."""
    with _answering("restore", as_json):
        with _progress(progress) as advance:
            done = qbridge.restore(
                src,
                dst,
                allow=words(allow, None),
                dry_run=dry_run,
                overwrite=overwrite,
                progress=advance,
                link=link,
                jobs=jobs,
                memory=value("--memory", memory_of, memory),
                proof=not no_proof,
            )
        _say(as_json, done, render.report, done.findings)


@app.command(cls=Once, epilog="Example: qbridge check Qwen2-72B-GPTQ-Int4 --for vllm --tp 2 --gpu sm90")
def check(
    src: Source,
    target: For,
    tp: CheckedSizes = "1",
    gpu: OnGpu = "sm80",
    source: From = None,
    allow: Allow = None,
    v1_zeros: V1Zeros = None,
    no_values: NoValues = False,
    as_json: Json = False,
) -> None:
    """Say whether an engine would load and rightly serve SRC as it is, by shapes alone; exit 1 if not everywhere."""
    sizes = value("--tp", positive_sizes_of, tp)
    with _answering("check", as_json):
        some = sizes if len(sizes) > 1 else sizes[0]
        done = qbridge.check(src, target, some, gpu, source, allow=words(allow, v1_zeros), values=not no_values)
        _say(as_json, done, render.check, done.findings, below=len(sizes) > 1)
        if not done.ok:
            raise typer.Exit(1)


@app.command(cls=Once)
def inspect(
    src: Source, source: From = None, allow: Allow = None, v1_zeros: V1Zeros = None, as_json: Json = False
) -> None:
    """Say what a checkpoint is: format, schemes, dims, sizes."""
    with _answering("inspect", as_json):
        found = qbridge.inspect(src, source, allow=words(allow, v1_zeros))
        _say(as_json, found, render.inspection, found.findings)


@app.command(cls=Once)
def verify(
    a: Annotated[str, typer.Argument(metavar="A")],
    b: Annotated[str, typer.Argument(metavar="B")],
    graft: Graft = None,
    allow: Allow = None,
    v1_zeros: V1Zeros = None,
    jobs: Jobs = 0,
    memory: Memory = "512MB",
    progress: Progressing = "auto",
    as_json: Json = False,
) -> None:
    """Compare two checkpoints layer by layer, across formats; exit 1 if they are not the same model."""
    with _answering("verify", as_json):
        with _progress(progress) as advance:
            done = qbridge.verify(
                a,
                b,
                allow=words(allow, v1_zeros),
                graft=graft or "",
                jobs=jobs,
                memory=value("--memory", memory_of, memory),
                progress=advance,
            )
        _say(as_json, done, render.verification, done.findings)
        if not done.same:
            raise typer.Exit(1)


@app.command(cls=Once)
def clean(
    dst: Annotated[Path, typer.Argument(metavar="DST", help="Where a conversion was interrupted.")],
    as_json: Json = False,
) -> None:
    """Remove what interrupted conversions have left at DST; a finished checkpoint stays."""
    with _answering("clean", as_json):
        done = qbridge.clean(dst)
        _say(as_json, done, render.cleaning, ())


def _say_unusable(*reports: Callable[[Findings], None]) -> None:
    findings = Findings()
    for report in reports:
        report(findings)
    render.findings(_err(), tuple(findings))


@app.command(cls=Once)
def formats(as_json: Json = False) -> None:
    """List the formats that can be read and written."""
    with _answering("formats", as_json):
        _say_unusable(report_unusable)
        _say(as_json, format_names(), render.names, ())


@app.command(cls=Once)
def targets(as_json: Json = False) -> None:
    """List what a checkpoint can be converted for."""
    with _answering("targets", as_json):
        _say_unusable(report_unusable, report_unusable_targets)
        _say(as_json, target_names(), render.names, ())


@app.command(cls=Once)
def explain(
    text: Text = None,
    src: About = None,
    as_json: Json = False,
) -> None:
    """Explain a QB code, or what an engine that refused a checkpoint printed; without either, list both."""
    with _answering("explain", as_json):
        asked = asked_text(text, sys.stdin)
        if asked is None:
            _say(as_json, listing(), render.listing, ())
        else:
            done = qbridge.explain(asked, src)
            _say(as_json, done, render.explanation, ())
            if not done.ok:
                raise typer.Exit(1)


@app.callback()
def _main(version: Version = False) -> None:
    """Convert quantized LLM checkpoints between layouts, losslessly or not at all."""


def _progress(kind: str) -> AbstractContextManager[Callable[[Advance], None] | None]:
    if kind not in KINDS:
        raise typer.BadParameter("auto, json or none", param_hint="--progress")
    return progress_of(kind, _err())


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _warn_of_namesake() -> None:
    """Say where the files of PyPI's other qbridge lie among these; exit where they have replaced one of them."""
    version = namesake()
    if not version:
        return
    replaced = not hasattr(qbridge, "list_formats")
    findings = Findings()
    findings.add("QB602" if replaced else "QB601", str(Path(__file__).parent), (f"qbridge {version} of PyPI",))
    render.findings(_err(), tuple(findings))
    if replaced:
        sys.exit(QBridgeError(findings).exit_code)


def main() -> None:
    """Run the program; a bug in qbridge exits with 70 and says what to report."""
    with suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGTERM, _interrupt)
    print_waits(_err)
    try:
        _warn_of_namesake()
        app()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        sys.exit(0)
    except Exception:
        traceback.print_exc()
        versions = f"qbridge {qbridge_version()}, Python {platform.python_version()}"
        sys.stderr.write(f"\nbug[QB900]: {CATALOGUE['QB900'].title} ({versions}); arguments: {sys.argv[1:]}\n")
        sys.exit(BUG)
    finally:
        gc.freeze()  # the process ends: to look through all of it for garbage would take a tenth of a second
