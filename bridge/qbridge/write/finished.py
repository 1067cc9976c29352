"""Whether a folder is the output of a conversion already: by names and headers first, then by every byte."""

from __future__ import annotations

import os
import threading
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from qbridge.plan.output_files import Shard, index_of, weights_of
from qbridge.plan.plan import Plan
from qbridge.source.reader import Source
from qbridge.source.storage import File
from qbridge.source.weight_files import INDEX
from qbridge.write.budget import Effort
from qbridge.write.jobs import Job, jobs_of
from qbridge.write.output import FileOutput
from qbridge.write.workspace import Workspace
from qbridge.write.writer import Document, text_of

_COMPARED = 1 << 20  # bytes of a file that are compared at a time


def is_finished(
    dst: Path,
    source: Source,
    plan: Plan,
    shards: Sequence[Shard],
    documents: Mapping[str, Document],
    sides: Sequence[str],
    effort: Effort,
    editable: Collection[str] = (),
) -> bool:
    """Whether `dst` holds what a plan makes of the source, and nothing else: by names and headers, then by values.

    Documents that are `editable` have to be there, whatever they say.

    Two fine-tunes of one model are alike in all but values, so the proof that follows each writing is made here too.
    """
    fixed = {name: value for name, value in documents.items() if name not in editable}
    if plan.needs_index(len(weights_of(shards))):
        fixed[INDEX] = index_of(shards)
    return _looks_finished(dst, source, shards, fixed, sides, editable) and _has_values(
        dst, source, plan, shards, effort
    )


def is_finished_file(file: Path, source: Source, plan: Plan, shard: Shard, effort: Effort) -> bool:
    """Whether `file` is the one file of a plan: by its header first, then by values."""
    if not (file.is_file() and _is_shard(file, shard) and _latest(source) <= file.stat().st_mtime_ns):
        return False
    with ThreadPoolExecutor(effort.threads, "qbridge-proof") as working:
        return _holds(file, source, plan, shard, effort, working)


def _looks_finished(
    dst: Path,
    source: Source,
    shards: Sequence[Shard],
    documents: Mapping[str, Document],
    sides: Sequence[str],
    editable: Collection[str],
) -> bool:
    """Whether `dst` has the headers, documents and side files that a conversion writes, later than its source."""
    texts = {name: text_of(value) for name, value in documents.items()}
    wanted = {shard.name for shard in shards} | set(sides)
    try:
        there = {str(file.relative_to(dst)) for file in dst.rglob("*") if file.is_file()}
        return (
            there == texts.keys() | wanted | set(editable)
            and all(_same_file(dst / name, source.file(name)) for name in sides)
            and all((dst / name).read_bytes() == text.encode() for name, text in texts.items())
            and all(_is_shard(dst / shard.name, shard) for shard in shards)
            and _latest(source) <= os.stat(dst / next(iter(documents))).st_mtime_ns
        )
    except OSError:
        return False


def _has_values(dst: Path, source: Source, plan: Plan, shards: Sequence[Shard], effort: Effort) -> bool:
    source.spool(dst.parent, effort.fetched, effort.spooled)
    with ThreadPoolExecutor(effort.threads, "qbridge-proof") as working:
        return all(_holds(dst / shard.name, source, plan, shard, effort, working) for shard in shards)


def _holds(file: Path, source: Source, plan: Plan, shard: Shard, effort: Effort, working: ThreadPoolExecutor) -> bool:
    if shard.file is not None:
        return _is_link(file, shard.file) or _same_file(file, shard.file)
    local = threading.local()

    def proved(job: Job) -> bool:
        if not hasattr(local, "workspace"):
            local.workspace = Workspace()
        job.read(source, local.workspace)
        return not job.prove(source, output, local.workspace)

    output = FileOutput.of(file)
    try:
        jobs = jobs_of(source, plan, shard, effort.block)
        while some := list(islice(jobs, 4 * effort.threads)):
            if not all(working.map(proved, some)):
                return False
        return True
    finally:
        output.close()


def _is_shard(file: Path, shard: Shard) -> bool:
    if shard.file is not None:  # linked to the source's
        return _is_link(file, shard.file) or _same_beginning(file, shard.file)
    with open(file, "rb") as stream:
        return file.stat().st_size == shard.size and stream.read(len(shard.header)) == shard.header


def _latest(source: Source) -> int:
    """When the last of the source's shards was changed, in ns; 0 where that is not known."""
    paths = [source.file(name).path for name in source.shards]
    return max((os.stat(path).st_mtime_ns for path in paths if path is not None), default=0)


def _is_link(file: Path, other: File) -> bool:
    """Whether a file is one of the source's, under another name or by a link."""
    return other.path is not None and os.path.samefile(file, other.path)


def _same_beginning(file: Path, other: File) -> bool:
    """Whether two shards have the same size and header."""
    with open(file, "rb") as stream:
        length = 8 + int.from_bytes(stream.read(8), "little")
        stream.seek(0)
        return file.stat().st_size == other.size and stream.read(length) == other.read(length)


def _same_file(file: Path, other: File) -> bool:
    """Whether two files have the same bytes."""
    if file.stat().st_size != other.size:
        return False
    with open(file, "rb") as stream:
        return all(stream.read(len(block)) == block.tobytes() for block in other.blocks(_COMPARED))
