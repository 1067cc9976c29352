"""The conversion of a checkpoint: open, detect, read, plan, stream, finish, one of three ways out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from qbridge.architecture.prefixes import Prefixes
from qbridge.commands.checkpoint import PathLike, with_original
from qbridge.commands.far_output import convert_far
from qbridge.commands.file_output import convert_to_file, whole_file
from qbridge.commands.folder_output import convert_to_folder
from qbridge.commands.report import Report
from qbridge.commands.reporting import with_report
from qbridge.commands.request import Request
from qbridge.findings.arguments import checked
from qbridge.plan.options import MEMORY, Options
from qbridge.targets.registry import find_target
from qbridge.write.remote_stores import remote_store
from qbridge.write.writer import Progress


@checked
@with_report("src", written="dst")
def convert(
    src: PathLike,
    dst: PathLike,
    target: str,
    source: str | None = None,
    *,
    allow: Iterable[str] = (),
    dry_run: bool = False,
    overwrite: bool = False,
    max_shard_size: int | None = None,
    progress: Progress | None = None,
    report: PathLike | None = None,
    tp: int | Sequence[int] = 1,
    pad: bool = False,
    regroup: int | None = None,
    bits: int | None = None,
    cast: str = "",
    keep_undo: bool = False,
    passes: bool = True,
    dtype: str = "",
    experts: str = "",
    graft: PathLike = "",
    rename_prefix: Prefixes = (),
    link: bool = False,
    jobs: int = 0,
    memory: int = MEMORY,
    proof: bool = True,
    card: bool = True,
    public: bool = False,
    pr: bool = False,
    config: PathLike = "",
) -> Report:
    """Convert the checkpoint `src` into the folder `dst` for a target, losslessly or not at all.

    `target` is an engine (`lmdeploy`, `lmdeploy@0.6.2`) or a format; `source` the format of `src`, detected if None.
    `max_shard_size` is in bytes of tensor data, None keeps the source's shards. `progress` is called with an
    `Advance`. Nothing stands at `dst` unless the report is returned; after an interrupt the same call goes on where
    it stopped, and after its end it finds that all is done (`Report.already_done`). Raises QBridgeError.

    `report` is the file of a page of the report. Everything from `tp` to `card` is a field of `Options`, which says
    what it means. Raises ValueError too for what means nothing, TypeError for what is of another type.

    `dst` may be `hf://org/name[@branch]`: one commit there, or a pull request with `pr`. A repository that is not
    there is made, private unless it is to be `public`; shards have 5 GB unless `max_shard_size` says otherwise.

    >>> convert("fixtures/awq/llama_gemm/model", "model-gptq", "gptq", dry_run=True)
    <Report: awq to gptq (gptq), 7 reversible, planned>
    """
    if max_shard_size is not None and max_shard_size < 1:
        raise ValueError("max_shard_size is a number of bytes, 1 or more")
    wanted, storage = find_target(target), with_original(src, config)
    options = Options.of(
        wanted,
        tp,
        pad=pad,
        regroup=regroup,
        bits=bits,
        cast=cast,
        keep_undo=keep_undo,
        passes=passes,
        dtype=dtype,
        experts=experts,
        graft=graft,
        rename_prefix=rename_prefix,
        link=link,
        jobs=jobs,
        memory=memory,
        proof=proof,
        card=card,
    )
    request = Request(storage, wanted, source, allow, dry_run, overwrite, max_shard_size, options, progress)
    out, store = Path(dst), remote_store(os.fspath(dst), public, pr, overwrite)
    if store is not None:
        return convert_far(request, store)
    if file := whole_file(out, wanted, max_shard_size):
        return convert_to_file(request, file)
    return convert_to_folder(request, src, out)
