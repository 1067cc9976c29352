"""The files of an output: shards, the documents beside them, the model card, and what is carried over."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qbridge.commands.checkpoint import Checkpoint
from qbridge.commands.model_card import CARD, DST, SRC, Conversion, card_of, command_of, judge_card
from qbridge.commands.planning import prepare
from qbridge.commands.report import Report
from qbridge.commands.restructuring import Changes
from qbridge.formats.registry import named, side_files
from qbridge.plan import manifest
from qbridge.plan.gguf_output import gguf_shards
from qbridge.plan.links import linked_shards
from qbridge.plan.options import DEFAULTS, Options
from qbridge.plan.output_files import Shard, plan_shards
from qbridge.plan.plan import Plan
from qbridge.plan.residue import residue_shard
from qbridge.source.opening import MANIFEST
from qbridge.targets.target import Target
from qbridge.write.writer import Document

_LOG = logging.getLogger(__name__)


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


def documents_of(
    opened: Checkpoint, plan: Plan, changes: Changes, options: Options, max_shard_size: int | None
) -> dict[str, Document]:
    """The files that are neither weights nor carried over, by name: the manifest first, config.json last."""
    block = plan.config.get("quantization_config", {})
    return {
        MANIFEST: manifest.build(opened.source, plan, changes.record(), shaping(options, max_shard_size)),
        **plan.rewritten,
        **side_files(plan.format, block),
        "config.json": plan.config,
    }


def shaping(options: Options, max_shard_size: int | None) -> dict[str, Any]:
    """The options that shape the output and may come from a user's settings, as far as they are not the defaults."""
    given = {"tp": list(options.tp) if options.tp != DEFAULTS.tp else None, "max_shard_size": max_shard_size}
    return {name: value for name, value in given.items() if value is not None}


def carried_over(opened: Checkpoint, documents: Mapping[str, Document]) -> list[str]:
    """The files of the source that are carried over as they are."""
    replaced = opened.model.consumed.union(documents)
    return [name for name in opened.source.side_files if name not in replaced]
