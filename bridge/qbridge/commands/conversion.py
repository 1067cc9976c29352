"""The pipeline: open, detect, read, plan, stream, finish."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from qbridge.architecture.config import spell_tokenizer, unread_tokenizer
from qbridge.architecture.expected import judge
from qbridge.architecture.prefixes import Prefixes
from qbridge.architecture.sizes import judge_sizes
from qbridge.commands.checkpoint import Checkpoint, PathLike, open_checkpoint, with_original
from qbridge.commands.far_output import write_far
from qbridge.commands.model_card import CARD, DST, SRC, Conversion, card_of, command_of, judge_card
from qbridge.commands.report import Report
from qbridge.commands.reporting import with_report
from qbridge.commands.restructuring import Changes, restructured
from qbridge.commands.whole_file import WholeFile, whole_file
from qbridge.findings.arguments import checked
from qbridge.findings.finding import error, io_as_finding
from qbridge.formats.registry import named, side_files
from qbridge.plan import manifest
from qbridge.plan.distribution import qbridge_version
from qbridge.plan.gguf_output import gguf_shards
from qbridge.plan.links import linked_shards, rewritten_layers
from qbridge.plan.options import DEFAULTS, MEMORY, Options
from qbridge.plan.output_files import Shard, plan_shards
from qbridge.plan.plan import Plan
from qbridge.plan.planner import Recorded, best_plan
from qbridge.plan.residue import residue_shard
from qbridge.plan.survey import survey
from qbridge.source.opening import MANIFEST
from qbridge.source.reader import TOKENIZER, Source
from qbridge.source.storage import Storage
from qbridge.targets.registry import find_target
from qbridge.targets.target import Target
from qbridge.write.budget import Effort
from qbridge.write.destination import check_destination
from qbridge.write.finished import is_finished
from qbridge.write.links import SYMBOLIC
from qbridge.write.local_spool import SHARD
from qbridge.write.remote_stores import remote_store
from qbridge.write.staging import recover, staged
from qbridge.write.stores import Store
from qbridge.write.writer import Document, Progress, write_checkpoint

_LOG = logging.getLogger(__name__)


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
    start = time.monotonic()
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
    out, store = Path(dst), remote_store(os.fspath(dst), public, pr, overwrite)
    if store is not None:
        return _convert_far(store, storage, wanted, source, allow, dry_run, max_shard_size, options, progress)
    if file := whole_file(out, wanted, max_shard_size):
        return _convert_to_file(storage, file, wanted, source, options, allow, dry_run, overwrite, progress, start)
    with io_as_finding(str(src)), open_checkpoint(storage, source, allow, plans=True) as opened:
        there = opened.source.storage.path()
        if not dry_run:
            recover(out, there)
        stands = _may_be_finished(out, overwrite)
        if not stands:
            check_destination(out, there, overwrite)
        opened, changes = restructured(opened, options)
        plan, shards = planned_files(opened, wanted, options, source, max_shard_size)
        links: dict[str, int] = {}
        if stands or not dry_run:
            documents = documents_of(opened, plan, changes, options, max_shard_size)
            stands = stands and stands_there(opened, plan, shards, documents, out, Effort.of(options))
        if not stands:
            check_destination(out, there, overwrite)
            if not dry_run:
                links = write(opened, plan, shards, documents, out, overwrite, Effort.of(options), progress)
    done = Report.of_plan(opened.source.url, out, opened, plan, shards, dry_run, start, max(options.tp))
    return replace(done, grafted=changes.graft.as_dict(), links=links, already_done=stands)


def _convert_far(
    store: Store,
    src: PathLike | Storage,
    target: Target,
    source: str | None,
    allow: Iterable[str],
    dry_run: bool,
    max_shard_size: int | None,
    options: Options,
    progress: Progress | None,
) -> Report:
    """`convert` to where a server is."""
    start, stands = time.monotonic(), False
    if options.link:
        raise error("QB065", "--link", (f"{store.url} is no folder of this machine",))
    with io_as_finding(store.url), open_checkpoint(src, source, allow, plans=True) as opened:
        if not dry_run:
            store.check_writable(opened.source.storage.restricted)
        opened, changes = restructured(opened, options)
        plan, shards = planned_files(opened, target, options, source, max_shard_size, SHARD)
        if not dry_run:
            documents = documents_of(opened, plan, changes, options, max_shard_size)
            sides = carried_over(opened, documents)
            stands = write_far(store, opened, plan, shards, documents, sides, Effort.of(options), progress)
    report = Report.of_plan(opened.source.url, store.url, opened, plan, shards, dry_run, start, max(options.tp))
    return replace(report, grafted=changes.graft.as_dict(), already_done=stands)


def planned_files(
    opened: Checkpoint,
    target: Target,
    options: Options,
    source: str | None,
    max_shard_size: int | None,
    unasked_size: int | None = None,
) -> tuple[Plan, list[Shard]]:
    """The plan of a conversion, the model card included, and its files; `source` is the format that was asked for.

    `unasked_size` is the most bytes of a shard where nobody asked for any.
    """
    plan = prepare(opened, target, options)
    shards = files_of(plan, opened, options.link, max_shard_size or unasked_size)
    plan = _with_card(opened, plan, shards, options, source, max_shard_size)
    _LOG.info("planned: %d tensors in %d files", len(plan.outputs), len(shards))
    return plan, shards


def documents_of(
    opened: Checkpoint, plan: Plan, changes: Changes, options: Options, max_shard_size: int | None
) -> dict[str, Document]:
    """The files that are neither weights nor carried over, by name: the manifest first, config.json last."""
    block = plan.config.get("quantization_config", {})
    return {
        MANIFEST: manifest.build(opened.source, plan, changes.record(), _shaping(options, max_shard_size)),
        **plan.rewritten,
        **side_files(plan.format, block),
        "config.json": plan.config,
    }


def _convert_to_file(
    src: PathLike | Storage,
    file: WholeFile,
    target: Target,
    source: str | None,
    options: Options,
    allow: Iterable[str],
    dry_run: bool,
    overwrite: bool,
    progress: Progress | None,
    start: float,
) -> Report:
    """`convert` into one file: what lies beside a folder's weights is in its metadata, as far as it is needed."""
    with io_as_finding(str(file.path)), open_checkpoint(src, source, allow, plans=True) as opened:
        there, effort = opened.source.storage.path(), Effort.of(options)
        if not dry_run:
            recover(file.stage, there)
        stands = file.path.is_file() and not overwrite
        if not stands:
            file.check(there, overwrite)
        opened, changes = restructured(opened, options)
        plan = prepare(opened, target, options)
        record = manifest.build(opened.source, plan, changes.record(), _shaping(options, None))
        plan = file.with_records(plan, record)
        shards = [replace(shard, name=file.path.name) for shard in files_of(plan, opened, options.link)]
        stands = stands and file.is_finished(opened.source, plan, shards, effort)
        if not stands:
            file.check(there, overwrite)
            if not dry_run:
                write(opened, plan, shards, {}, file.stage, overwrite, effort, progress, sides=())
                file.publish(shards)
    report = Report.of_plan(opened.source.url, file.path, opened, plan, shards, dry_run, start, max(options.tp))
    return replace(report, grafted=changes.graft.as_dict(), already_done=stands)


def _shaping(options: Options, max_shard_size: int | None) -> dict[str, Any]:
    """The options that shape the output and may come from a user's settings, as far as they are not the defaults."""
    given = {"tp": list(options.tp) if options.tp != DEFAULTS.tp else None, "max_shard_size": max_shard_size}
    return {name: value for name, value in given.items() if value is not None}


def _with_card(
    opened: Checkpoint,
    plan: Plan,
    shards: Sequence[Shard],
    options: Options,
    source: str | None,
    max_shard_size: int | None,
) -> Plan:
    """The plan with the model card among its files, unless none is wanted or the source's has to stay as it is."""
    before = named(opened.format)
    if options.card:
        report = Report.of_plan(SRC, Path(DST), opened, plan, shards, True, 0.0, max(options.tp))
        command = command_of(plan.target.name, source, options, opened.findings.allow, max_shard_size)
        card = card_of(opened.source, Conversion(before, plan, report, command), opened.findings)
        if card is not None:
            return replace(plan, rewritten={**plan.rewritten, CARD: card})
    judge_card(opened.source, before, plan.format, opened.findings)
    return plan


def _may_be_finished(dst: Path, overwrite: bool) -> bool:
    """Whether DST is worth comparing with what is to be written: an output of qbridge, not to be replaced."""
    return not overwrite and (dst / MANIFEST).is_file()


def files_of(plan: Plan, opened: Checkpoint, link: bool, max_shard_size: int | None = None) -> list[Shard]:
    """The output files, linked where that is asked for; QBridgeError (QB326) where none can be."""
    if plan.metadata:
        shards = gguf_shards(plan.outputs, plan.metadata, max_shard_size)
    else:
        shards = plan_shards(plan.outputs, max_shard_size)
    if link:
        shards = linked_shards(shards, opened.source, opened.findings)
        opened.findings.stop_on_errors()
    residue = residue_shard(opened.source, plan.residue)
    return [*shards, residue] if residue else shards


def prepare(opened: Checkpoint, target: Target, options: Options = DEFAULTS) -> Plan:
    """The plan of a conversion, once every value that it depends on was read; QBridgeError with what stops it."""
    with opened.source.remembering():
        look_at_values(opened, small=not options.link)  # what is linked is not decoded
        return planned(opened, target, options)


def look_at_values(opened: Checkpoint, small: bool = True) -> None:
    """Judge what is there and, unless told otherwise, read the `small` values once, whatever the target is.

    QBridgeError for what cannot be decoded or is not there.
    """
    judge(opened.model, opened.source.tensors, opened.findings)
    judge_sizes(opened.model, opened.findings, mild=True)
    if small:
        survey(opened.source, opened.model, opened.findings)
    opened.findings.stop_on_errors()


def planned(opened: Checkpoint, target: Target, options: Options = DEFAULTS, by_headers: bool = False) -> Plan:
    """The plan of a conversion of what was looked at; QBridgeError with what stops it.

    `by_headers` it may be refused after all, once values are read.
    """

    @cache
    def recorded(format_name: str) -> Recorded:
        return manifest.way_back(opened.source, opened.model, format_name)

    plan = best_plan(opened.source, opened.model, target, opened.findings, recorded, options, by_headers)
    opened.findings.stop_on_errors()
    if options.link:  # what is linked is not decoded
        survey(opened.source, opened.model, opened.findings, rewritten_layers(plan))
        opened.findings.stop_on_errors()
    return replace(plan, rewritten=_rewritten(opened, target))


def _rewritten(opened: Checkpoint, target: Target) -> dict[str, str]:
    """The side files in words that the target's transformers knows, where it does not know those that are there."""
    if not unread_tokenizer(opened.model.tokenizer, target.reader.of(opened.model.config)):
        return {}
    text = opened.source.file(TOKENIZER).read().decode()
    return {TOKENIZER: spell_tokenizer(text)}


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


def carried_over(opened: Checkpoint, documents: Mapping[str, Document]) -> list[str]:
    """The files of the source that are carried over as they are."""
    replaced = opened.model.consumed.union(documents)
    return [name for name in opened.source.side_files if name not in replaced]


def _identity(source: Source, shards: Sequence[Shard], documents: Mapping[str, Document]) -> str:
    """What tells this conversion from every other: the source as it is now, and all that is to be written."""
    digest = hashlib.sha256(qbridge_version().encode())
    for file, stamp in source.stamps.items():
        digest.update(f"{file.storage.url}/{file.name} {stamp} {manifest.header_digest(file)}".encode())
    for shard in shards:
        digest.update(shard.name.encode() + shard.header + (b"linked" if shard.file else b""))
    digest.update(json.dumps(documents, sort_keys=True, default=str).encode())
    return digest.hexdigest()
