"""The plan that the parts of a conversion share: made once, and held against what each part was asked for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from qbridge.commands.checkpoint import PathLike, open_checkpoint
from qbridge.commands.model_card import DST, SRC
from qbridge.commands.output_contents import carried_over, documents_of, planned_files
from qbridge.commands.report import Report
from qbridge.commands.restructuring import restructured
from qbridge.findings.finding import error, io_as_finding
from qbridge.plan.distribution import qbridge_version
from qbridge.plan.options import Options
from qbridge.plan.output_files import index_of, weights_of
from qbridge.plan.shared_plan import PLAN, SharedPlan, changed, described, parsed, tensors_read
from qbridge.source.addresses import at_commit
from qbridge.source.opening import storage_of
from qbridge.source.reader import Source
from qbridge.source.storage import Range, Storage
from qbridge.source.weight_files import INDEX
from qbridge.targets.registry import find_target
from qbridge.write.parts import check_empty, is_checkpoint, is_whole
from qbridge.write.stores import Store
from qbridge.write.writer import text_of

FACTS = ("target", "format", "layers", "exactness", "serve", "findings")  # of a Report that a plan records
_EFFORT = frozenset(
    {"jobs", "memory", "proof", "link", "graft"}
)  # options that do not shape the output, or are paths


@dataclass(frozen=True, slots=True, eq=False)
class Wanted:
    """What was asked for of a conversion in parts; each field as in `convert`."""

    src: PathLike
    target: str
    source: str | None
    allow: tuple[str, ...]
    max_shard_size: int | None
    options: Options

    @classmethod
    def of(
        cls,
        src: PathLike,
        target: str,
        source: str | None,
        allow: Iterable[str],
        max_size: int | None,
        **options: Any,
    ) -> Wanted:
        """ValueError for options that mean nothing, QBridgeError (QB065) for one that parts do not have."""
        if max_size is not None and max_size < 1:
            raise ValueError("max_shard_size is a number of bytes, 1 or more")
        found = cls(src, target, source, tuple(allow), max_size, Options.of(find_target(target), **options))
        if found.options.link:
            raise error("QB065", "--link", ("a link is one of this machine, and parts are made on many",))
        return found

    def identity(self) -> dict[str, Any]:
        """The options that shape the output, as a plan records them: no path of a machine is among them."""
        given = {each.name: getattr(self.options, each.name) for each in fields(Options) if each.name not in _EFFORT}
        others = {
            "target": find_target(self.target).name,
            "from": self.source,
            "allow": sorted(self.allow),
            "max_shard_size": self.max_shard_size,
            "graft": bool(self.options.graft),
        }
        plain: dict[str, Any] = json.loads(json.dumps({**given, **others}))
        return plain

    @contextmanager
    def shared(self, store: Store) -> Iterator[tuple[SharedPlan, Source]]:
        """The plan that lies at a place, made where there is none, and the source as the plan knows it.

        QBridgeError: QB066 where the plan is another one, QB031 where something else is in the store.
        """
        text = store.read(PLAN)
        if text is None:
            check_empty(store)
            made = self._planned()
            text = made if store.create(PLAN, made) else store.read(PLAN) or b""
            store.commit(whole=False)
        storages = self._storages(text)
        try:
            plan = parsed(text, storages)
            self._check_same(plan)
            names = [tensor.file.name for tensor in plan.tensors.values()]
            source = Source(storages[0], {}, plan.tensors, sorted(set(names)), list(plan.sides), plan.memory)
            yield plan, source
        finally:
            for storage in storages:
                storage.close()

    def finished_plan(self, store: Store) -> SharedPlan | None:
        """The plan of an output that was finished before; None where none was.

        QBridgeError (QB031) where a checkpoint is there that is not what the plan would give.
        """
        if store.size(PLAN) is not None or not is_checkpoint(store):
            return None
        text = self._planned()
        storages = self._storages(text)
        for storage in storages:
            storage.close()
        plan = parsed(text, storages)
        if not is_whole(store, plan):
            raise error("QB031", store.url, ("a checkpoint is there",), fix="Choose another DST, or remove it.")
        return plan

    def _check_same(self, plan: SharedPlan) -> None:
        """QBridgeError (QB066) where a plan was made of other options, or by another version."""
        wanted, there = self.identity(), plan.identity["options"]
        facts = [
            f"{name}: {there.get(name)} there, {wanted[name]} here"
            for name in wanted
            if there.get(name) != wanted[name]
        ]
        if plan.identity["qbridge"] != qbridge_version():
            facts.append(f"qbridge {plan.identity['qbridge']} made it, this is {qbridge_version()}")
        if facts:
            raise error("QB066", PLAN, facts)

    def _storages(self, text: bytes) -> list[Storage]:
        """Where the files of the source, and of what is grafted, lie: at the commit that was planned."""
        try:
            pinned = str(json.loads(text)["pinned"])
        except (ValueError, LookupError, TypeError):
            pinned = ""
        src = at_commit(self.src, pinned) if isinstance(self.src, str) else self.src
        return [storage_of(src), *([storage_of(self.options.graft)] if self.options.graft else [])]

    def _planned(self) -> bytes:
        """The text of the plan, for which the small values of the source are read."""
        options = self.options
        with io_as_finding(str(self.src)), open_checkpoint(self.src, self.source, self.allow, plans=True) as opened:
            opened, changes = restructured(opened, options)
            plan, shards = planned_files(opened, find_target(self.target), options, self.source, self.max_shard_size)
            documents = documents_of(opened, plan, changes, options, self.max_shard_size)
            sides = carried_over(opened, documents)
            if plan.needs_index(len(weights_of(shards))):
                documents = {INDEX: index_of(shards), **documents}
            texts = {name: text_of(value) for name, value in documents.items()}
            report = Report.of_plan(SRC, Path(DST), opened, plan, shards, True, 0.0, max(options.tp))
            facts = {name: getattr(report, name) for name in FACTS}
            return described(opened.source, plan, shards, sides, texts, self.identity(), qbridge_version(), facts)


def check_share(plan: SharedPlan, source: Source, names: Iterable[str]) -> None:
    """Hold the files that a share is read from against the plan, and have the source know them.

    QBridgeError (QB066) with those that are not what was planned.
    """
    wanted = set(names)
    read = sorted({each for shard in plan.shards if shard.name in wanted for each in tensors_read(plan, shard)})
    if others := list(changed(plan, source, read)):
        raise error(
            "QB066", others, ("it is not what the plan was made of",), fix="Name the source that was planned."
        )
    tensors = [plan.tensors[name] for name in read]
    source.stamps = {tensor.file: tensor.file.stamp for tensor in tensors}
    for storage in {id(tensor.file.storage): tensor.file.storage for tensor in tensors}.values():
        ranges = [Range(each.file.name, each.begin, each.end) for each in tensors if each.file.storage is storage]
        storage.expect(ranges)
        storage.announce(ranges, "weights")
