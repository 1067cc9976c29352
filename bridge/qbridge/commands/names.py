"""formats, targets: what a checkpoint can be read as and written for, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qbridge.commands.report import SCHEMA
from qbridge.formats.registry import load, usable
from qbridge.targets.registry import targets


@dataclass(frozen=True, slots=True)
class Names:
    """The answer of a command that lists names: an entry each, with its summary; its aliases or formats as well."""

    command: str
    entries: Sequence[Mapping[str, Any]]

    @property
    def rows(self) -> list[tuple[str, str]]:
        """Each name, its aliases behind it, and what it is."""
        return [(" ".join((entry["name"], *entry.get("aliases", ()))), entry["summary"]) for entry in self.entries]

    def as_dict(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        return {"schema": SCHEMA, "command": self.command, self.command: self.entries}


def format_names() -> Names:
    """Every format that can be imported."""
    formats = [load(name) for name in usable()]
    return Names("formats", [{"name": f.NAME, "aliases": f.ALIASES, "summary": f.SUMMARY} for f in formats])


def target_names() -> Names:
    """Every engine at every version in the table, then every format by its own name."""
    return Names("targets", [{"name": t.name, "formats": t.formats, "summary": t.summary} for t in targets()])
