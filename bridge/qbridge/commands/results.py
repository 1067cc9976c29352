"""What every public call answers with: a text, a line, HTML and JSON of the same result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from qbridge.findings.catalogue.code import REFUSED
from qbridge.findings.finding import Finding, QBridgeError, Severity
from qbridge.findings.hints import one_line

SCHEMA = 1
_LISTS = ("backends", "kernels", "sizes", "targets", "findings")  # of what has a JSON object of its own


class Display(Protocol):
    """What turns results into text."""

    def text(self, result: Result) -> str:
        """The lines that a terminal shows, without colour."""

    def html(self, result: Result) -> str:
        """The same as an element of a page."""

    def page(
        self, outcome: Result | QBridgeError, command: str, path: Any, source: str | None, allow: Iterable[str]
    ) -> bytes:
        """A whole page of what a command came to, and of the checkpoint at `path`, read in the format `source`."""

    def image(
        self, outcome: Result | QBridgeError, command: str, path: Any, source: str | None, allow: Iterable[str]
    ) -> bytes:
        """The map of its layers as a PNG."""


_DISPLAYS: list[Callable[[], Display]] = []


def displayed_by(load: Callable[[], Display]) -> None:
    """Name what shows results, which lies in a room further down; it is loaded when a result is first shown."""
    _DISPLAYS[:] = [load]


def display() -> Display:
    """What shows results."""
    return _DISPLAYS[0]()


class Result:
    """A result that prints itself: `print(result)` shows what the command line shows, a notebook the same as HTML."""

    __slots__ = ()

    @property
    def exit_code(self) -> int:
        """That of the command: 1 where the answer is no."""
        return 0 if getattr(self, "ok", True) else REFUSED

    @property
    def line(self) -> str:
        """What it says, in a few words."""
        return ""

    def as_dict(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        raise NotImplementedError

    def __str__(self) -> str:
        return display().text(self)

    def __repr__(self) -> str:
        return one_line(self, self.line)

    def _repr_html_(self) -> str:
        return display().html(self)


def counted(findings: Sequence[Finding]) -> str:
    """How many errors and warnings there are, each with a comma before it; empty where there is neither."""
    errors = sum(finding.severity is Severity.ERROR for finding in findings)
    warnings = sum(finding.severity is Severity.WARNING for finding in findings)
    return "".join(
        f", {number} {noun}{'' if number == 1 else 's'}"
        for number, noun in ((errors, "error"), (warnings, "warning"))
        if number
    )


def as_json(result: Any, command: str) -> dict[str, Any]:
    """The object that `--json` prints of a command's result, a dataclass: its fields, lists of objects last."""
    names = [name for name in result.__dataclass_fields__ if name != "command"]
    plain = {name: getattr(result, name) for name in names if name not in _LISTS}
    lists = {name: [item.as_dict() for item in getattr(result, name)] for name in _LISTS if name in names}
    return {"schema": SCHEMA, "command": command, **plain, **lists}
