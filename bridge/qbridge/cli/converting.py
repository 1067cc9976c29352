"""convert, restore, clean: the commands that write."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import qbridge
from qbridge.cli.completion import one_of
from qbridge.cli.options import (
    Allow,
    Config,
    DryRun,
    Dst,
    Experts,
    From,
    Graft,
    Jobs,
    Link,
    Memory,
    NoCard,
    NoProof,
    Overwrite,
    Progressing,
    RenamePrefix,
    ReportFile,
    ShardSize,
    Sizes,
    Source,
    To,
    V1Zeros,
    shown,
    value,
    words,
)
from qbridge.commands.arguments import bytes_of, memory_of, prefixes_of, sizes_of
from qbridge.commands.cleaning import Cleaning
from qbridge.commands.report import Report
from qbridge.ir.scheme import DENSE
from qbridge.plan.options import Options


def convert(
    src: Source,
    dst: Dst,
    to: To,
    source: From = None,
    tp: Sizes = "1",
    pad: Annotated[
        bool, typer.Option("--pad", help="Let MLPs grow to be legal; exact, and undone by restore.")
    ] = False,
    regroup: Annotated[
        int | None, typer.Option("--regroup", metavar="G", help="Group size to have; exact, or refused.")
    ] = None,
    bits: Annotated[
        int | None,
        typer.Option(
            "--bits", metavar="4|8", help="Width to widen narrower codes to.", autocompletion=one_of("4", "8")
        ),
    ] = None,
    no_passes: Annotated[bool, typer.Option("--no-passes", help="Change the layout only.")] = False,
    dtype: Annotated[
        str,
        typer.Option(
            "--dtype",
            metavar="DTYPE",
            help="Of dense weights: bfloat16, float16 or float32.",
            autocompletion=one_of(*DENSE),
        ),
    ] = "",
    experts: Experts = "",
    graft: Graft = None,
    rename_prefix: RenamePrefix = None,
    link: Link = False,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    max_shard_size: ShardSize = None,
    allow: Allow = None,
    v1_zeros: V1Zeros = None,
    jobs: Jobs = 0,
    memory: Memory = "512MB",
    no_proof: NoProof = False,
    no_card: NoCard = False,
    config: Config = None,
    report: ReportFile = None,
    progress: Progressing = "auto",
) -> Report:
    """Convert SRC into DST for a target, losslessly or not at all."""
    limit = None if max_shard_size is None else value("--max-shard-size", bytes_of, max_shard_size)
    sizes = value("--tp", sizes_of, tp)
    prefixes = value("--rename-prefix", prefixes_of, rename_prefix or ())
    try:
        Options(sizes, pad, regroup, bits, not no_passes, dtype, experts, rename_prefix=prefixes)
    except ValueError as fault:
        raise typer.BadParameter(str(fault)) from fault
    if limit is not None and dst.suffix == ".gguf":
        raise typer.BadParameter("--max-shard-size goes with a folder, and DST is one file")
    if dtype and to.lower() != "dense":
        raise typer.BadParameter("--dtype goes with --to dense")
    with shown(progress) as advance:
        return qbridge.convert(
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
            card=not no_card,
            config=config or "",
            report=report,
        )


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
    config: Config = None,
    progress: Progressing = "auto",
) -> Report:
    """Undo what qbridge.json beside SRC records: the original's tensors and config at DST."""
    with shown(progress) as advance:
        return qbridge.restore(
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
            config=config or "",
        )


def clean(
    dst: Annotated[Path, typer.Argument(metavar="DST", help="Where a conversion was interrupted.")],
) -> Cleaning:
    """Remove what interrupted conversions have left at DST; a finished checkpoint stays."""
    return qbridge.clean(dst)
