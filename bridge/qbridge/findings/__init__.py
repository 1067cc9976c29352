"""What is said: findings, and the catalogue of their codes."""

from __future__ import annotations

from qbridge.findings.finding import Finding, Findings, QBridgeError, Severity, error, io_as_finding
from qbridge.findings.way import Advice, Way

__all__ = [
    "Advice",
    "Finding",
    "Findings",
    "QBridgeError",
    "Severity",
    "Way",
    "error",
    "io_as_finding",
]
