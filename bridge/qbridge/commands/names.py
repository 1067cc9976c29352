"""formats, targets: what a checkpoint can be read as and written for, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qbridge.commands.results import SCHEMA, Result
from qbridge.findings.finding import Finding, Findings
from qbridge.formats.registry import load, report_unusable, usable
from qbridge.targets.registry import report_unusable as report_unusable_targets
from qbridge.targets.registry import targets


@dataclass(frozen=True, slots=True, repr=False)
class Names(Result):
    """The answer of a command that lists names: an entry each, with its summary; its aliases or formats as well."""

    command: str
    entries: Sequence[Mapping[str, Any]]
    findings: Sequence[Finding] = ()

    @property
    def line(self) -> str:
        """The names."""
        return ", ".join(entry["name"] for entry in self.entries)

    @property
    def rows(self) -> list[tuple[str, str]]:
        """Each name, its aliases behind it, and what it is."""
        return [(" ".join((entry["name"], *entry.get("aliases", ()))), entry["summary"]) for entry in self.entries]

    def as_dict(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        found = [finding.as_dict() for finding in self.findings]
        return {"schema": SCHEMA, "command": self.command, self.command: self.entries, "findings": found}


def format_names() -> Names:
    """Every format that can be imported."""
    formats, findings = [load(name) for name in usable()], Findings()
    report_unusable(findings)
    entries = [{"name": f.NAME, "aliases": f.ALIASES, "summary": f.SUMMARY} for f in formats]
    return Names("formats", entries, tuple(findings))


def target_names() -> Names:
    """Every engine at every version in the table, then every format by its own name."""
    findings = Findings()
    report_unusable(findings)
    report_unusable_targets(findings)
    entries = [{"name": t.name, "formats": t.formats, "summary": t.summary} for t in targets()]
    return Names("targets", entries, tuple(findings))
