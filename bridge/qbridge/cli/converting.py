"""convert, plan, finish, restore, clean: the commands that write."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Annotated, Any

import typer

import qbridge
from qbridge.cli.completion import one_of
from qbridge.cli.options import (
    Allow,
    Cast,
    Config,
    DryRun,
    Dst,
    Executor,
    Experts,
    From,
    Graft,
    Jobs,
    Link,
    Memory,
    NoCard,
    NoProof,
    Overwrite,
    Part,
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
from qbridge.commands.arguments import bytes_of, memory_of, part_of, prefixes_of, sizes_of
from qbridge.commands.cleaning import Cleaning
from qbridge.commands.clustered import check_executor
from qbridge.commands.parts import Finished, PartReport
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
    cast: Cast = "",
    keep_undo: Annotated[
        bool, typer.Option("--keep-undo", help="Store what a cast forgets, so that restore gives identical tensors.")
    ] = False,
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
    part: Part = None,
    executor: Executor = None,
    public: Annotated[bool, typer.Option("--public", help="Make the repository of an hf:// DST public.")] = False,
    pr: Annotated[
        bool, typer.Option("--pr", help="Ask for a pull request to the repository of an hf:// DST.")
    ] = False,
    config: Config = None,
    report: ReportFile = None,
    progress: Progressing = "auto",
) -> Report | PartReport | Finished:
    """Convert SRC into DST for a target, losslessly or not at all."""
    options = _library_options(locals())
    number = None if part is None else value("--part", part_of, part)
    for name, given in (("--part", part), ("--executor", executor)):
        if given is not None and (dry_run or overwrite or config or report):
            raise typer.BadParameter(f"{name} goes with none of --dry-run, --overwrite, --config, --report")
    if part is not None and executor is not None:
        raise typer.BadParameter("--executor makes all parts, --part one")
    if executor is not None:
        value("--executor", check_executor, executor)
    if (public or pr) and not dst.startswith("hf://"):
        raise typer.BadParameter("--public and --pr go with a DST hf://org/name")
    with shown(progress) as advance:
        if number is not None:
            return qbridge.convert_part(src, dst, to, *number, progress=advance, **options)
        if executor is not None:
            return qbridge.convert_on_cluster(src, dst, to, executor=executor, progress=advance, **options)
        options |= {"dry_run": dry_run, "overwrite": overwrite, "public": public, "pr": pr, "config": config or ""}
        return qbridge.convert(src, dst, to, progress=advance, report=report, **options)


def plan(src: Source, dst: Dst, to: To, **typed: Any) -> PartReport:
    """Plan a conversion in parts: write DST/plan.json, and nothing else."""
    return qbridge.plan_parts(src, dst, to, **_library_options({"dst": dst, "to": to, **typed}))


# options of convert that its plan does not have
_NOT_PLANNED = ("dry_run", "overwrite", "part", "progress", "public", "pr", "config", "report", "executor")
plan.__signature__ = (_of_convert := inspect.signature(convert, eval_str=True)).replace(  # type: ignore[attr-defined]
    parameters=[each for name, each in _of_convert.parameters.items() if name not in _NOT_PLANNED],
    return_annotation=PartReport,
)


def finish(dst: Annotated[str, typer.Argument(metavar="DST", help="Where the parts are.")]) -> Finished:
    """Make a checkpoint of parts that are all there: index, config and manifest are written."""
    return qbridge.finish(dst)


def _library_options(typed: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a conversion as the library takes them; a usage error for what means nothing."""
    if typed["dtype"] and typed["to"].lower() != "dense":
        raise typer.BadParameter("--dtype goes with --to dense")
    limit = typed["max_shard_size"]
    shape = {
        "tp": value("--tp", sizes_of, typed["tp"]),
        "passes": not typed["no_passes"],
        "rename_prefix": value("--rename-prefix", prefixes_of, typed["rename_prefix"] or ()),
        **{name: typed[name] for name in ("pad", "regroup", "bits", "cast", "keep_undo", "dtype", "experts")},
    }
    try:
        Options(**shape)
    except ValueError as fault:
        raise typer.BadParameter(str(fault)) from fault
    if limit is not None and typed["dst"].endswith(".gguf"):
        raise typer.BadParameter("--max-shard-size goes with a folder, and DST is one file")
    return {
        **shape,
        "source": typed["source"],
        "allow": words(typed["allow"], typed["v1_zeros"]),
        "max_shard_size": None if limit is None else value("--max-shard-size", bytes_of, limit),
        "graft": typed["graft"] or "",
        "memory": value("--memory", memory_of, typed["memory"]),
        "proof": not typed["no_proof"],
        "card": not typed["no_card"],
        "link": typed["link"],
        "jobs": typed["jobs"],
    }


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
    dst: Annotated[str, typer.Argument(metavar="DST", help="Where a conversion was interrupted.")],
) -> Cleaning:
    """Remove what interrupted conversions have left at DST; a finished checkpoint stays."""
    return qbridge.clean(dst)
