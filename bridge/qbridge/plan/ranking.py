"""Which of several refusals is the nearest to a plan, and why a format was not taken, in words."""

from __future__ import annotations

from collections.abc import Sequence

from qbridge.findings.finding import Finding, Findings
from qbridge.ir.model import Model
from qbridge.targets.target import Target

OWN = "the source's own format"


def because(target: Target, format_name: str, model: Model, rejected: Sequence[tuple[str, Finding]]) -> str:
    """Why it is this format: the source has it already, or those before it (name, why not) cannot hold the model."""
    if target.keeps and model.format == format_name:
        return OWN
    return "; ".join(f"not {name}: {in_words(finding)}" for name, finding in rejected)


def in_words(finding: Finding) -> str:
    """Why a format was not taken, for a report of what was: no error, for nothing is wrong."""
    return f"{finding.message}{f' ({finding.facts[0]})' if finding.facts else ''}, {finding.code}"


def distance(findings: Findings) -> tuple[int, int]:
    """How far a format is from holding the model: layers whose scheme it has no place for, then kinds of problems.

    A mild problem counts as one, too: the format that has fewer of either kind says more of what is wrong.
    """
    without_place = sum(len(finding.where) for finding in findings.errors if finding.code in ("QB110", "QB219"))
    return without_place, len({finding.code for finding in findings if finding.entry.severity == "error"})
