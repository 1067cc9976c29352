"""From a checkpoint to the plan of its conversion: judge it, read small values, ask the planner."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from qbridge.architecture.config import spell_tokenizer, unread_tokenizer
from qbridge.architecture.expected import judge
from qbridge.architecture.sizes import judge_sizes
from qbridge.commands.checkpoint import Checkpoint
from qbridge.plan import manifest
from qbridge.plan.links import rewritten_layers
from qbridge.plan.options import DEFAULTS, Options
from qbridge.plan.plan import Plan
from qbridge.plan.planner import Recorded, best_plan
from qbridge.plan.survey import survey
from qbridge.source.reader import TOKENIZER
from qbridge.targets.target import Target


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
    judge_sizes(opened.model, opened.findings)
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
