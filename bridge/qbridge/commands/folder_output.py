"""Converting to a folder, which is there whole or not at all, and knowing an output that stands there already."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from qbridge.commands.checkpoint import Checkpoint, PathLike, open_checkpoint
from qbridge.commands.model_card import CARD
from qbridge.commands.output_contents import carried_over, documents_of, planned_files
from qbridge.commands.report import Report
from qbridge.commands.request import Request
from qbridge.commands.restructuring import restructured
from qbridge.findings.finding import io_as_finding
from qbridge.plan import manifest
from qbridge.plan.distribution import qbridge_version
from qbridge.plan.output_files import Shard
from qbridge.plan.plan import Plan
from qbridge.source.opening import MANIFEST
from qbridge.source.reader import Source
from qbridge.write.budget import Effort
from qbridge.write.destination import check_destination
from qbridge.write.finished import is_finished
from qbridge.write.links import SYMBOLIC
from qbridge.write.staging import recover, staged
from qbridge.write.writer import Document, Progress, write_checkpoint


def convert_to_folder(request: Request, src: PathLike, out: Path) -> Report:
    """A conversion into the folder `out`; `src` is the source in the words of whoever asked."""
    options, effort, dry_run = request.options, request.effort, request.dry_run
    with io_as_finding(str(src)), open_checkpoint(request.src, request.source, request.allow, plans=True) as opened:
        there = opened.source.storage.path()
        if not dry_run:
            recover(out, there)
        stands = _may_be_finished(out, request.overwrite)
        if not stands:
            check_destination(out, there, request.overwrite)
        opened, changes = restructured(opened, options)
        plan, shards = planned_files(opened, request.target, options, request.source, request.max_shard_size)
        links: dict[str, int] = {}
        if stands or not dry_run:
            documents = documents_of(opened, plan, changes, options, request.max_shard_size)
            stands = stands and stands_there(opened, plan, shards, documents, out, effort)
        if not stands:
            check_destination(out, there, request.overwrite)
            if not dry_run:
                links = write(opened, plan, shards, documents, out, request.overwrite, effort, request.progress)
    report = Report.of_plan(opened.source.url, out, opened, plan, shards, dry_run, request.start, request.ranks)
    return replace(report, grafted=changes.graft.as_dict(), links=links, already_done=stands)


def _may_be_finished(dst: Path, overwrite: bool) -> bool:
    """Whether DST is worth comparing with what is to be written: an output of qbridge, not to be replaced."""
    return not overwrite and (dst / MANIFEST).is_file()


def write(
    opened: Checkpoint,
    plan: Plan,
    shards: Sequence[Shard],
    documents: Mapping[str, Document],
    dst: Path,
    overwrite: bool,
    effort: Effort,
    progress: Progress | None = None,
    sides: Sequence[str] | None = None,
) -> dict[str, int]:
    """Carry out a plan: shards, `documents` and `sides`, by default those that are neither nor about quantization.

    How many files were linked, by the kind of link.
    """
    source, sides = opened.source, carried_over(opened, documents) if sides is None else sides
    size = sum(shard.size for shard in shards if shard.file is None)
    size += sum(source.file(name).size for name in sides)
    links: dict[str, int] = {}
    with staged(dst, source.storage.path(), overwrite, _identity(source, shards, documents), size) as stage:
        if not stage.complete:
            source.announce()
            links = write_checkpoint(stage, source, plan, shards, documents, sides, effort, progress)
    if SYMBOLIC in links:
        opened.findings.add("QB327", str(dst), (f"{links[SYMBOLIC]} of {len(shards)} files lead to {source.url}",))
    return links


def stands_there(
    opened: Checkpoint,
    plan: Plan,
    shards: Sequence[Shard],
    documents: Mapping[str, Document],
    dst: Path,
    effort: Effort,
) -> bool:
    """Whether DST is already what `write` would make of it; somebody may have edited the card since."""
    sides, written_for_people = carried_over(opened, documents), plan.rewritten.keys() & {CARD}
    return is_finished(dst, opened.source, plan, shards, documents, sides, effort, written_for_people)


def _identity(source: Source, shards: Sequence[Shard], documents: Mapping[str, Document]) -> str:
    """What tells this conversion from every other: the source as it is now, and all that is to be written."""
    digest = hashlib.sha256(qbridge_version().encode())
    for file, stamp in source.stamps.items():
        digest.update(f"{file.storage.url}/{file.name} {stamp} {manifest.header_digest(file)}".encode())
    for shard in shards:
        digest.update(shard.name.encode() + shard.header + (b"linked" if shard.file else b""))
    digest.update(json.dumps(documents, sort_keys=True, default=str).encode())
    return digest.hexdigest()
