"""Targets: what a checkpoint is converted for. A format by its own name, or an engine at a version.

Every rule cites the package, version and file that it was read from."""

from __future__ import annotations

from qbridge.targets.registry import find_target, source_formats, targets
from qbridge.targets.target import Target

__all__ = [
    "Target",
    "find_target",
    "source_formats",
    "targets",
]
