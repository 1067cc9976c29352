"""Converting to where a server is: each file is sent once it is proved; config.json is the last of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qbridge.commands.checkpoint import Checkpoint
from qbridge.findings.finding import error
from qbridge.plan.distribution import qbridge_version
from qbridge.plan.output_files import Shard, index_of, weights_of
from qbridge.plan.plan import Plan
from qbridge.plan.shared_plan import PLAN, described, parsed
from qbridge.source.weight_files import INDEX
from qbridge.write.budget import Effort
from qbridge.write.parts import check_empty, is_checkpoint, is_whole, make_whole, write_part
from qbridge.write.stores import Store
from qbridge.write.writer import Document, Progress, text_of


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
