"""DST.gguf: an output that is one file, with config.json and the manifest in keys of its own.

It is written in a folder beside DST, as any output is; its one file takes DST's name at the end.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qbridge.commands.checkpoint import open_checkpoint
from qbridge.commands.folder_output import write
from qbridge.commands.output_contents import files_of, shaping
from qbridge.commands.planning import prepare
from qbridge.commands.report import Report
from qbridge.commands.request import Request
from qbridge.commands.restructuring import restructured
from qbridge.findings.finding import error, io_as_finding
from qbridge.findings.way import Way
from qbridge.plan import manifest
from qbridge.plan.output_files import Shard
from qbridge.plan.plan import Plan
from qbridge.source.foreign import stage_name
from qbridge.source.gguf_files import CONFIG_KEY, MANIFEST_KEY, SUFFIX
from qbridge.source.json_text import json_text
from qbridge.source.reader import Source
from qbridge.targets.target import Target
from qbridge.write.budget import Effort
from qbridge.write.destination import check_destination
from qbridge.write.finished import is_finished_file
from qbridge.write.output import fsync_folder
from qbridge.write.staging import recover


@dataclass(frozen=True, slots=True)
class WholeFile:
    """A file that holds all of an output."""

    path: Path

    @property
    def stage(self) -> Path:
        """The folder in which it is written."""
        return self.path.parent / stage_name(self.path.name, "folder")

    def check(self, src: Path | None, overwrite: bool) -> None:
        """QBridgeError (QB031) if it would touch the source or anything that was not offered."""
        if src is not None and src.resolve() == self.path.resolve():
            raise error("QB031", str(self.path), ("SRC and DST are one file",), fix="Name another DST.")
        if self.path.is_symlink() or (self.path.exists() and not self.path.is_file()):
            raise error("QB031", str(self.path), ("it is no file",), fix="Choose another DST.")
        if self.path.exists() and not overwrite:
            raise error("QB031", str(self.path), ("a file is there",), (Way("--overwrite"),), "Choose another DST.")
        shutil.rmtree(self.stage, ignore_errors=True)  # whole, of a run that was cut before its last step
        check_destination(self.stage, src, overwrite)

    def with_records(self, plan: Plan, record: Mapping[str, Any]) -> Plan:
        """The plan whose metadata have its config and manifest."""
        records = {CONFIG_KEY: json_text(plan.config), MANIFEST_KEY: json_text(record)}
        return replace(plan, metadata={**plan.metadata, **records})

    def is_finished(self, source: Source, plan: Plan, shards: Sequence[Shard], effort: Effort) -> bool:
        """Whether it is already what a plan makes of the source."""
        return is_finished_file(self.path, source, plan, shards[0], effort)

    def publish(self, shards: Sequence[Shard]) -> None:
        """Give the file its name: the one moment at which DST appears."""
        os.replace(self.stage / shards[0].name, self.path)
        fsync_folder(self.path.parent)
        shutil.rmtree(self.stage)


def whole_file(dst: Path, target: Target, max_shard_size: int | None) -> WholeFile | None:
    """The file that DST names, for a target that has its models in one; None where DST is a folder.

    ValueError for a size of shards, of which there is one.
    """
    in_one = any(hasattr(choice.format, "metadata") for choice in target.choices)
    if dst.suffix != SUFFIX or dst.is_dir() or not in_one:
        return None
    if max_shard_size is not None:
        raise ValueError(f"max_shard_size is for a folder, and {dst.name} is one file")
    return WholeFile(dst)


def convert_to_file(request: Request, file: WholeFile) -> Report:
    """A conversion into one file: what lies beside a folder's weights is in its metadata, as far as it is needed."""
    options, overwrite, effort = request.options, request.overwrite, request.effort
    url = str(file.path)
    with io_as_finding(url), open_checkpoint(request.src, request.source, request.allow, plans=True) as opened:
        there = opened.source.storage.path()
        if not request.dry_run:
            recover(file.stage, there)
        stands = file.path.is_file() and not overwrite
        if not stands:
            file.check(there, overwrite)
        opened, changes = restructured(opened, options)
        plan = prepare(opened, request.target, options)
        record = manifest.build(opened.source, plan, changes.record(), shaping(options, None))
        plan = file.with_records(plan, record)
        shards = [replace(shard, name=file.path.name) for shard in files_of(plan, opened, options.link)]
        stands = stands and file.is_finished(opened.source, plan, shards, effort)
        if not stands:
            file.check(there, overwrite)
            if not request.dry_run:
                write(opened, plan, shards, {}, file.stage, overwrite, effort, request.progress, sides=())
                file.publish(shards)
    report = Report.of_plan(
        opened.source.url, file.path, opened, plan, shards, request.dry_run, request.start, request.ranks
    )
    return replace(report, grafted=changes.graft.as_dict(), already_done=stands)
