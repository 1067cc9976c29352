"""qbridge: lossless conversion of quantized LLM checkpoints between layouts.

    import qbridge
    report = qbridge.convert("model-W8A8", "model-for-lmdeploy", target="lmdeploy")

Every function raises `QBridgeError`, which holds every finding at once. Nothing here imports torch until
a `stream` is asked for tensors.
"""

from __future__ import annotations

import logging as _logging
from importlib import import_module as _import_module

from qbridge.commands.checking import check
from qbridge.commands.checkpoint import Checkpoint
from qbridge.commands.checkpoint import open_checkpoint as open  # noqa: F401 `qbridge.open`, no name to import bare
from qbridge.commands.cleaning import Cleaning, clean
from qbridge.commands.clustered import convert_on_cluster
from qbridge.commands.conversion import convert
from qbridge.commands.explanation import Explanation, explain
from qbridge.commands.inspection import Inspection, inspect
from qbridge.commands.parts import Finished, PartReport, convert_part, finish, plan_parts
from qbridge.commands.possibilities import Possibilities, Possibility, what
from qbridge.commands.proof import Proof
from qbridge.commands.proving import prove
from qbridge.commands.report import Report, Verification
from qbridge.commands.restoration import restore
from qbridge.commands.results import displayed_by as _displayed_by
from qbridge.commands.streaming import Stream, stream
from qbridge.commands.verdicts import Check, CheckTable
from qbridge.commands.verification import verify
from qbridge.findings.finding import (
    ArgumentTypeError,
    Finding,
    Findings,
    QBridgeError,
    RefusedError,
    Severity,
    StorageError,
    UnreadableError,
    UsageError,
)
from qbridge.formats.registry import usable
from qbridge.ir.exactness import Exactness
from qbridge.ir.layer import Layer, Spec, identical
from qbridge.ir.model import Model
from qbridge.ir.scheme import ActivationScheme, Granularity, WeightScheme
from qbridge.loaders.transformers import load
from qbridge.plan.distribution import qbridge_version
from qbridge.plan.options import Options
from qbridge.targets.registry import targets as _targets
from qbridge.targets.target import Target
from qbridge.write.writer import Advance

__version__ = qbridge_version()
_logging.getLogger(__name__).addHandler(_logging.NullHandler())
_displayed_by(lambda: _import_module("qbridge.display"))


def list_formats() -> list[str]:
    """The ids of every format, built-in and third-party, that can be imported."""
    return list(usable())


def list_targets() -> list[Target]:
    """Every target: engines at their versions, then formats by their own names."""
    return _targets()


__all__ = [
    "ActivationScheme",
    "Advance",
    "ArgumentTypeError",
    "Check",
    "CheckTable",
    "Checkpoint",
    "Cleaning",
    "Exactness",
    "Explanation",
    "Finding",
    "Findings",
    "Finished",
    "Granularity",
    "Inspection",
    "Layer",
    "Model",
    "Options",
    "PartReport",
    "Possibilities",
    "Possibility",
    "Proof",
    "QBridgeError",
    "RefusedError",
    "Report",
    "Severity",
    "Spec",
    "StorageError",
    "Stream",
    "Target",
    "UnreadableError",
    "UsageError",
    "Verification",
    "WeightScheme",
    "check",
    "clean",
    "convert",
    "convert_on_cluster",
    "convert_part",
    "explain",
    "finish",
    "identical",
    "inspect",
    "list_formats",
    "list_targets",
    "load",
    "plan_parts",
    "prove",
    "restore",
    "stream",
    "verify",
    "what",
]
