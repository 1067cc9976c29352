"""A conversion in parts: planned once, made by whoever sees the source, a checkpoint when all parts are there."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from qbridge.commands.checkpoint import PathLike
from qbridge.commands.model_card import DST
from qbridge.commands.results import Result, as_json, counted
from qbridge.commands.shared_planning import Wanted, check_share
from qbridge.findings.arguments import checked
from qbridge.findings.finding import Finding, error, io_as_finding
from qbridge.findings.hints import word_of_command
from qbridge.findings.way import Way
from qbridge.plan.shared_plan import PLAN, SharedPlan, parsed
from qbridge.source.folder import Folder
from qbridge.source.gguf_files import SUFFIX
from qbridge.source.reader import Source
from qbridge.write.budget import Effort
from qbridge.write.destination import check_apart
from qbridge.write.parts import finished_files, is_checkpoint, make_whole, missing_files, remove_hidden, write_part
from qbridge.write.remote_stores import remote_store
from qbridge.write.stores import FolderStore, Store
from qbridge.write.writer import Progress


@dataclass(frozen=True, slots=True, repr=False)
class PartReport(Result):
    """What one part of a conversion made, or the plan of all of them (`part` and `of` are 0).

    `plan` is the digest of plan.json; `files` gives bytes by output file, `there` names those that were there
    already, whole and of the same plan; `missing` counts the files of all parts that are not there yet.
    """

    source: str
    destination: str
    part: int
    of: int
    plan: str
    files: Mapping[str, int]
    there: Sequence[str]
    missing: int
    seconds: float
    findings: Sequence[Finding] = ()
    command: str = "convert"

    @property
    def line(self) -> str:
        """Which part, and how many files of it were written."""
        written = len(self.files) - len(self.there)
        done = (
            f"part {self.part}/{self.of}, {written} files written"
            if self.part
            else f"{len(self.files)} files planned"
        )
        return f"{done}, {len(self.there)} there already, {self.missing} missing{counted(self.findings)}"

    def as_dict(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        return as_json(self, self.command)


@dataclass(frozen=True, slots=True, repr=False)
class Finished(Result):
    """The checkpoint that parts became; fields are as in `Report`, `plan` is the digest of plan.json.

    `command` is `convert` where a cluster made the parts. `already_done`: it was finished before, and nothing was
    written; what the plan said is not known any more.
    """

    destination: str
    target: str
    format: str
    layers: int
    exactness: Mapping[str, int]
    files: Mapping[str, int]
    plan: str
    already_done: bool
    seconds: float
    serve: str
    findings: Sequence[Finding] = ()
    command: str = "finish"

    @property
    def line(self) -> str:
        """How many files, and how exact."""
        done = "already finished" if self.already_done else "finished"
        kept = "".join(f", {count} {kind}" for kind, count in self.exactness.items())
        return f"{len(self.files)} files{kept}, {done}{counted(self.findings)}"

    def as_dict(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        return as_json(self, self.command)


@checked
def plan_parts(
    src: PathLike,
    dst: PathLike,
    target: str,
    source: str | None = None,
    *,
    allow: Iterable[str] = (),
    max_shard_size: int | None = None,
    **options: Any,
) -> PartReport:
    """Plan a conversion whose parts `convert_part` makes: DST/plan.json is written, and nothing else.

    Options are those of `convert`. A plan that is there already, and is the same, stays. QBridgeError: QB065 for a
    conversion that has no parts, QB066 where another plan is there, QB031 where anything else is.
    """
    start = time.monotonic()
    wanted = Wanted.of(src, target, source, allow, max_shard_size, **options)
    with io_as_finding(str(dst)):
        store = store_of_parts(src, dst)
        if plan := wanted.finished_plan(store):
            return _report_of_finished(wanted, store, plan, 0, 0, start)
        with wanted.shared(store) as (plan, opened):
            check_share(plan, opened, plan.sizes)
        there = sorted(finished_files(store, plan, list(plan.sizes)))
    missing, found = len(plan.sizes) - len(there), plan.facts["findings"]
    return PartReport(
        str(src), str(dst), 0, 0, plan.digest, plan.sizes, there, missing, _since(start), found, command="plan"
    )


@checked
def convert_part(
    src: PathLike,
    dst: PathLike,
    target: str,
    part: int,
    of: int,
    source: str | None = None,
    *,
    allow: Iterable[str] = (),
    max_shard_size: int | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> PartReport:
    """Make the files of one part (1 to `of`) of a conversion: in any order, and again without harm.

    The plan is DST/plan.json; the first part makes it where `plan_parts` did not. Options are those of `convert`, the
    same for every part; `jobs`, `memory` and `proof` may differ. No value is read that another part needs.
    QBridgeError: QB066 where the plan was made of other options or of another source, and as `plan_parts`.
    """
    start = time.monotonic()
    if not 1 <= part <= of:
        raise ValueError("a part is 1 to the number of parts")
    wanted = Wanted.of(src, target, source, allow, max_shard_size, **options)
    with io_as_finding(str(dst)):
        store = store_of_parts(src, dst)
        if plan := wanted.finished_plan(store):
            return _report_of_finished(wanted, store, plan, part, of, start)
        with wanted.shared(store) as (plan, opened):
            names = plan.share(part, of)
            there = _make(wanted, store, plan, opened, names, f"part-{part}-of-{of}", progress)
        missing = len(plan.sizes) - len(finished_files(store, plan, list(plan.sizes)))
    sizes = {name: plan.sizes[name] for name in names}
    return PartReport(str(src), str(dst), part, of, plan.digest, sizes, there, missing, _since(start))


@checked
def finish(dst: PathLike) -> Finished:
    """Make a checkpoint of parts that are all there: index, manifest and config are written, the plan is removed.

    QBridgeError (QB067) with the files that are not there, or not of the plan.
    """
    start = time.monotonic()
    with io_as_finding(str(dst)):
        store = _written_store(dst)
        text = store.read(PLAN)
        if text is None:
            return _finished_before(store, start)
        nowhere = Folder(dst)  # where the source lies does not matter any more
        plan = parsed(text, (nowhere, nowhere))
        if missing := missing_files(store, plan):
            fact = f"{len(missing)} of {len(plan.sizes)} files are not there, or not of this plan"
            raise error("QB067", missing, (fact,))
        make_whole(store, plan)
    facts = {**plan.facts, "serve": plan.facts["serve"].replace(DST, word_of_command(str(dst)))}
    files = {**plan.sizes, **{name: len(text.encode()) for name, text in plan.documents.items()}}
    return Finished(str(dst), files=files, plan=plan.digest, already_done=False, seconds=_since(start), **facts)


def make_file(wanted: Wanted, dst: PathLike, name: str) -> None:
    """Make one output file of a conversion that was planned, unless it is there whole. Errors as `convert_part`."""
    with io_as_finding(str(dst)):
        store = store_of_parts(wanted.src, dst)
        with wanted.shared(store) as (plan, opened):
            _make(wanted, store, plan, opened, [name], f"file-{quote(name, safe='')}", None)


def _make(
    wanted: Wanted,
    store: Store,
    plan: SharedPlan,
    source: Source,
    names: Sequence[str],
    label: str,
    progress: Progress | None,
) -> list[str]:
    """Make some files of a plan; the names of those that were there already."""
    check_share(plan, source, names)
    return sorted(write_part(store, source, plan, names, label, Effort.of(wanted.options), progress))


def _finished_before(store: Store, start: float) -> Finished:
    """What a place holds that has no plan; QBridgeError (QB067) where that is no checkpoint."""
    if not is_checkpoint(store):
        way = Way(command=f"qbridge plan SRC {word_of_command(store.url)} --to TARGET", note="as for convert")
        raise error("QB067", store.url, (f"there is no {PLAN}",), (way,))
    remove_hidden(store)
    files = {name: store.size(name) or 0 for name in store.names()}
    return Finished(store.url, "", "", 0, {}, files, "", True, _since(start), "")


def _report_of_finished(
    wanted: Wanted, store: Store, plan: SharedPlan, part: int, of: int, start: float
) -> PartReport:
    """What there is to say of a part whose output was finished before."""
    names = plan.share(part, of) if part else list(plan.sizes)
    sizes, command = {name: plan.sizes[name] for name in names}, "convert" if part else "plan"
    digest, found = plan.digest, plan.facts["findings"]
    return PartReport(
        str(wanted.src), store.url, part, of, digest, sizes, names, 0, _since(start), found, command=command
    )


def store_of_parts(src: PathLike, dst: PathLike) -> Store:
    """The store of an output, which is not that of the source."""
    store = _written_store(dst)
    if isinstance(store, FolderStore):
        check_apart(Path(dst), src)
    return store


def _written_store(dst: PathLike) -> Store:
    """The store that a DST means; QBridgeError (QB065) for one that shows nothing before all is there."""
    far = remote_store(os.fspath(dst))
    if Path(dst).suffix == SUFFIX:
        raise error("QB065", str(dst), ("it is one file",), fix="Name a folder, without .gguf at its end.")
    if far is not None and not far.shows_parts:
        raise error("QB065", far.url, ("its files are seen when all are there",), fix="Make the parts in a bucket.")
    return far or FolderStore(Path(dst))


def _since(start: float) -> float:
    return round(time.monotonic() - start, 3)
