"""Whether a folder is the output of a conversion already: by names and headers first, then by every byte."""

from __future__ import annotations

import filecmp
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from qbridge.plan.output_files import Shard, index_of
from qbridge.plan.plan import Plan
from qbridge.source.reader import Source
from qbridge.source.weight_files import INDEX
from qbridge.write.budget import Effort
from qbridge.write.jobs import Job, jobs_of
from qbridge.write.workspace import Workspace
from qbridge.write.writer import Document, text_of


def is_finished(
    dst: Path,
    source: Source,
    plan: Plan,
    shards: Sequence[Shard],
    documents: Mapping[str, Document],
    sides: Sequence[Path],
    effort: Effort,
) -> bool:
    """Whether `dst` holds what a plan makes of the source, and nothing else: by names and headers, then by values.

    Two fine-tunes of one model are alike in all but values, so the proof that follows each writing is made here too.
    """
    return _looks_finished(dst, source, shards, documents, sides) and _has_values(dst, source, plan, shards, effort)


def _looks_finished(
    dst: Path, source: Source, shards: Sequence[Shard], documents: Mapping[str, Document], sides: Sequence[Path]
) -> bool:
    """Whether `dst` has the headers, documents and side files that a conversion writes, later than its source."""
    texts = {name: text_of(value) for name, value in documents.items()}
    if len(shards) > 1:
        texts[INDEX] = text_of(index_of(shards))
    wanted = {shard.name for shard in shards} | set(map(str, sides))
    try:
        there = {str(file.relative_to(dst)) for file in dst.rglob("*") if file.is_file()}
        return (
            there == texts.keys() | wanted
            and all(filecmp.cmp(dst / file, source.path / file, shallow=False) for file in sides)
            and all((dst / name).read_bytes() == text.encode() for name, text in texts.items())
            and all(_is_shard(dst / shard.name, shard) for shard in shards)
            and _latest(source.shards) <= os.stat(dst / next(iter(documents))).st_mtime_ns
        )
    except OSError:
        return False


def _has_values(dst: Path, source: Source, plan: Plan, shards: Sequence[Shard], effort: Effort) -> bool:
    with ThreadPoolExecutor(effort.threads, "qbridge-proof") as working:
        return all(_holds(dst / shard.name, source, plan, shard, effort, working) for shard in shards)


def _holds(file: Path, source: Source, plan: Plan, shard: Shard, effort: Effort, working: ThreadPoolExecutor) -> bool:
    if shard.file is not None:
        return os.path.samefile(file, shard.file) or filecmp.cmp(file, shard.file, shallow=False)
    local = threading.local()

    def proved(job: Job) -> bool:
        if not hasattr(local, "workspace"):
            local.workspace = Workspace()
        job.read(source, local.workspace)
        return not job.prove(source, descriptor, local.workspace)

    descriptor = os.open(file, os.O_RDONLY)
    try:
        jobs = jobs_of(source, plan, shard, effort.block)
        while some := list(islice(jobs, 4 * effort.threads)):
            if not all(working.map(proved, some)):
                return False
        return True
    finally:
        os.close(descriptor)


def _is_shard(file: Path, shard: Shard) -> bool:
    if shard.file is not None:  # linked to the source's
        return os.path.samefile(file, shard.file) or _same_beginning(file, shard.file)
    with open(file, "rb") as stream:
        return file.stat().st_size == shard.size and stream.read(len(shard.header)) == shard.header


def _latest(files: Sequence[Path]) -> int:
    """When the last of some files was changed, in ns."""
    return max((os.stat(file).st_mtime_ns for file in files), default=0)


def _same_beginning(file: Path, other: Path) -> bool:
    """Whether two shards have the same size and header."""
    with open(file, "rb") as one, open(other, "rb") as two:
        length = 8 + int.from_bytes(one.read(8), "little")
        one.seek(0)
        return file.stat().st_size == other.stat().st_size and one.read(length) == two.read(length)
