"""What is said: findings, and the catalogue of their codes."""

from __future__ import annotations

from qbridge.findings.finding import Finding, Findings, QBridgeError, Severity, error, io_as_finding

__all__ = [
    "Finding",
    "Findings",
    "QBridgeError",
    "Severity",
    "error",
    "io_as_finding",
]
