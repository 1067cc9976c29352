"""Making a share of the output files of a plan, and proving that all shares are there.

A file that was written and proved is followed by a receipt: the digest of the plan and the file's size, in a hidden
folder. A file without one is made again, whoever left it there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from qbridge.findings.finding import error
from qbridge.plan.output_files import Shard
from qbridge.plan.shared_plan import PLAN, SharedPlan
from qbridge.source.foreign import CONFIG
from qbridge.source.json_text import json_text
from qbridge.source.reader import Source
from qbridge.write.budget import Effort
from qbridge.write.stores import HIDDEN, Store, is_hidden
from qbridge.write.writer import Advance, Progress, copy_file, write_shards


@dataclass(slots=True)
class PartStage:
    """A folder in which files grow until they are whole, and then go to the store of the output."""

    folder: Path
    finished: frozenset[str]
    store: Store
    digest: str

    @property
    def home(self) -> Path:
        """Where there is room for what is needed meanwhile."""
        return self.folder

    def note(self, name: str) -> None:
        """Move a file, already flushed to the disk, to its place; then say which plan it is of."""
        file = self.folder / name
        size = file.stat().st_size
        self.store.take(file, name)
        self.store.put(receipt(name), _receipt_text(self.digest, size))


def receipt(name: str) -> str:
    """The name of the receipt of a file."""
    return f"{HIDDEN}{quote(name, safe='')}.json"


def _receipt_text(digest: str, size: int) -> bytes:
    return json_text({"plan": digest, "size": size}).encode() + b"\n"


def finished_files(store: Store, plan: SharedPlan, names: Sequence[str]) -> frozenset[str]:
    """Those of some files that are there whole, with a receipt of this plan."""
    sizes = plan.sizes
    return frozenset(
        name
        for name in names
        if store.read(receipt(name)) == _receipt_text(plan.digest, sizes[name]) and store.size(name) == sizes[name]
    )


def write_part(
    store: Store,
    source: Source,
    plan: SharedPlan,
    names: Sequence[str],
    label: str,
    effort: Effort,
    progress: Progress | None = None,
) -> frozenset[str]:
    """Write and prove the files of a share that are not there; the names of those that were there already."""
    finished = finished_files(store, plan, names)
    if finished >= set(names):
        return finished
    shards = [shard for shard in plan.shards if shard.name in names]
    with store.working(label) as folder:
        stage = PartStage(folder, finished, store, plan.digest)
        for batch, advance in _batches(store, shards, progress):
            write_shards(stage, source, plan, batch, effort, advance)
        for name in names:
            if name in plan.sides and name not in finished:
                copy_file(source.file(name), folder / name)
                stage.note(name)
    store.commit(whole=False)
    return finished


def _batches(
    store: Store, shards: Sequence[Shard], progress: Progress | None
) -> Iterator[tuple[Sequence[Shard], Progress | None]]:
    """As many shards at a time as there is room for where they grow, and what to call as each batch advances."""
    room = store.room(max((shard.size for shard in shards), default=0)) or len(shards) or 1
    whole, done = sum(shard.data_size for shard in shards), 0
    for begin in range(0, len(shards), room):
        batch = shards[begin : begin + room]
        yield batch, progress and _moved_on(progress, done, whole, begin, len(shards))
        done += sum(shard.data_size for shard in batch)


def _moved_on(progress: Progress, done: int, whole: int, shards_done: int, shards: int) -> Progress:
    """What to call as a batch advances before which so much was done."""

    def advance(at: Advance) -> None:
        progress(Advance(done + at.bytes_done, whole, at.shard, shards_done + at.shards_done, shards))

    return advance


def missing_files(store: Store, plan: SharedPlan) -> list[str]:
    """The files of a plan that no part has made, or whose beginning is not what the plan says."""
    finished = finished_files(store, plan, list(plan.sizes))
    return [name for name in plan.sizes if name not in finished or not _begins_as_planned(store, plan, name)]


def is_whole(store: Store, plan: SharedPlan) -> bool:
    """Whether a finished output is that of a plan: its documents, and every file by its size and beginning."""
    return all(store.read(name) == text.encode() for name, text in plan.documents.items()) and all(
        store.size(name) == size and _begins_as_planned(store, plan, name) for name, size in plan.sizes.items()
    )


def _begins_as_planned(store: Store, plan: SharedPlan, name: str) -> bool:
    header = next((shard.header for shard in plan.shards if shard.name == name), b"")
    return not header or store.read(name, len(header)) == header


def make_whole(store: Store, plan: SharedPlan) -> None:
    """Write what makes the files a checkpoint, then remove what was needed until then; may be run again."""
    for name, text in plan.documents.items():
        store.put(name, text.encode())
    store.commit(whole=True)
    store.remove([PLAN])  # from now on it is finished, whatever is still to be removed
    remove_hidden(store)


def remove_hidden(store: Store) -> None:
    """Remove receipts, and what runs that were killed have left."""
    store.remove([name for name in store.names() if is_hidden(name)])


def is_checkpoint(store: Store) -> bool:
    """Whether a finished output lies at a place."""
    return store.size(CONFIG) is not None


def check_empty(store: Store) -> None:
    """QBridgeError (QB031) where something lies at a place that no part has put there."""
    others = [name for name in store.names() if not is_hidden(name)]
    if others:
        raise error("QB031", store.url, (f"it holds {others[0]}, and no {PLAN}",), fix="Choose another DST.")


def left_by_parts(store: Store) -> list[str]:
    """The plan, receipts and files that parts have made, where no checkpoint has become of them; of one, the rest."""
    names = store.names()
    hidden = [name for name in names if is_hidden(name)]
    if is_checkpoint(store):
        return [*hidden, *(name for name in names if name == PLAN and hidden)]
    receipts = {receipt(name): name for name in names}
    return [*(receipts[name] for name in hidden if name in receipts), *hidden, *(n for n in names if n == PLAN)]
