"""qbridge: lossless conversion of quantized LLM checkpoints between layouts.

    import qbridge
    report = qbridge.convert("model-W8A8", "model-for-lmdeploy", target="lmdeploy")

Every function raises `QBridgeError`, which holds every finding at once. Nothing here imports torch until
a `stream` is asked for tensors.
"""

from __future__ import annotations

from qbridge.checking import Check, check
from qbridge.checkpoint import Checkpoint
from qbridge.checkpoint import open_checkpoint as open  # the public name, as in open(path)
from qbridge.conversion import Stream, convert, stream
from qbridge.distribution import qbridge_version
from qbridge.exactness import Exactness
from qbridge.findings import Finding, Findings, QBridgeError, Severity
from qbridge.formats import usable
from qbridge.inspection import Inspection, inspect
from qbridge.ir import ActivationScheme, Granularity, Layer, Model, Spec, WeightScheme, identical
from qbridge.report import Report, Verification
from qbridge.restoration import restore
from qbridge.sink import Advance
from qbridge.targets import Target
from qbridge.targets import targets as _targets
from qbridge.verification import verify

__version__ = qbridge_version()


def list_formats() -> list[str]:
    """The ids of every format, built-in and third-party, that can be imported."""
    return list(usable())


def list_targets() -> list[Target]:
    """Every target: engines at their versions, then formats by their own names."""
    return _targets()


__all__ = [
    "ActivationScheme",
    "Advance",
    "Check",
    "Checkpoint",
    "Exactness",
    "Finding",
    "Findings",
    "Granularity",
    "Inspection",
    "Layer",
    "Model",
    "QBridgeError",
    "Report",
    "Severity",
    "Spec",
    "Stream",
    "Target",
    "Verification",
    "WeightScheme",
    "check",
    "convert",
    "identical",
    "inspect",
    "list_formats",
    "list_targets",
    "open",
    "restore",
    "stream",
    "verify",
]
