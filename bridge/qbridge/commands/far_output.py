"""Converting to where a server is: each file is sent once it is proved; config.json is the last of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from qbridge.commands.checkpoint import Checkpoint, open_checkpoint
from qbridge.commands.output_contents import carried_over, documents_of, planned_files
from qbridge.commands.report import Report
from qbridge.commands.request import Request
from qbridge.commands.restructuring import restructured
from qbridge.findings.finding import error, io_as_finding
from qbridge.plan.distribution import qbridge_version
from qbridge.plan.output_files import Shard, index_of, weights_of
from qbridge.plan.plan import Plan
from qbridge.plan.shared_plan import PLAN, described, parsed
from qbridge.source.weight_files import INDEX
from qbridge.write.budget import Effort
from qbridge.write.local_spool import SHARD
from qbridge.write.parts import check_empty, is_checkpoint, is_whole, make_whole, write_part
from qbridge.write.stores import Store
from qbridge.write.writer import Document, Progress, text_of


def convert_far(request: Request, store: Store) -> Report:
    """A conversion to where a server is."""
    options, stands = request.options, False
    if options.link:
        raise error("QB065", "--link", (f"{store.url} is no folder of this machine",))
    with io_as_finding(store.url), open_checkpoint(request.src, request.source, request.allow, plans=True) as opened:
        if not request.dry_run:
            store.check_writable(opened.source.storage.restricted)
        opened, changes = restructured(opened, options)
        size = request.max_shard_size
        plan, shards = planned_files(opened, request.target, options, request.source, size, SHARD)
        if not request.dry_run:
            documents = documents_of(opened, plan, changes, options, size)
            sides = carried_over(opened, documents)
            stands = write_far(store, opened, plan, shards, documents, sides, request.effort, request.progress)
    report = Report.of_plan(
        opened.source.url, store.url, opened, plan, shards, request.dry_run, request.start, request.ranks
    )
    return replace(report, grafted=changes.graft.as_dict(), already_done=stands)


def write_far(
    store: Store,
    opened: Checkpoint,
    plan: Plan,
    shards: Sequence[Shard],
    documents: Mapping[str, Document],
    sides: Sequence[str],
    effort: Effort,
    progress: Progress | None = None,
) -> bool:
    """Carry out a plan at a place; what an earlier run of the same plan has left there whole is not made again.

    Whether all was there before. QBridgeError: QB065 for what is read as a whole, QB031 where something else lies
    there, QB066 where another conversion has begun.
    """
    store.room(max((shard.size for shard in shards), default=0))
    if plan.needs_index(len(weights_of(shards))):
        documents = {INDEX: index_of(shards), **documents}
    texts = {name: text_of(value) for name, value in documents.items()}
    text = described(opened.source, plan, shards, sides, texts, {}, qbridge_version(), {})
    storages = [opened.source.storage, *(file.storage for file in opened.source.stamps)]
    shared = parsed(text, [storages[0], *(each for each in storages if each is not storages[0])])
    if store.size(PLAN) is None and is_checkpoint(store) and is_whole(store, shared):
        return True
    if store.size(PLAN) is None:
        check_empty(store)
    if not store.create(PLAN, text) and store.read(PLAN) != text:
        raise error("QB066", store.url, ("another conversion has begun there",))
    opened.source.announce()
    write_part(store, opened.source, shared, list(shared.sizes), "part-1-of-1", effort, progress)
    make_whole(store, shared)
    return False
