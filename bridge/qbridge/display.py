"""Results as a person sees them: on a terminal, as text in Python, as HTML in a notebook."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from io import StringIO
from typing import Any

from rich.console import Console
from rich.terminal_theme import TerminalTheme

from qbridge import render
from qbridge.commands.checkpoint import PathLike
from qbridge.commands.cleaning import Cleaning
from qbridge.commands.explanation import Explanation, Listing
from qbridge.commands.inspection import Inspection
from qbridge.commands.names import Names
from qbridge.commands.parts import Finished, PartReport
from qbridge.commands.possibilities import Possibilities
from qbridge.commands.proof import Proof
from qbridge.commands.report import Report, Verification
from qbridge.commands.results import Result
from qbridge.commands.settings import Settings
from qbridge.commands.verdicts import Check, CheckTable
from qbridge.findings.finding import Finding, QBridgeError, Severity

_SHOW: Mapping[type[Result], Callable[[Console, Any], None]] = {
    Check: render.check,
    CheckTable: render.check,
    Cleaning: render.cleaning,
    Explanation: render.explanation,
    Finished: render.finished,
    Inspection: render.inspection,
    Listing: render.listing,
    Names: render.names,
    PartReport: render.part,
    Possibilities: render.possibilities,
    Proof: render.proof,
    Report: render.report,
    Settings: render.names,
    Verification: render.verification,
}
_TABLES = (CheckTable,)  # what is found stands below them
_WIDTH = 100  # columns where there is no terminal

# Colours that are as legible on white as on black: their luminance is about 0.18.
_RED, _YELLOW, _CYAN = (214, 60, 60), (150, 115, 0), (0, 130, 140)
_PALETTE = [(110, 110, 110), _RED, (60, 135, 60), _YELLOW, (80, 110, 220), (190, 70, 170), _CYAN, (128, 128, 128)]
_THEME = TerminalTheme((255, 255, 255), (0, 0, 0), _PALETTE)
_ELEMENT = (
    '<pre style="margin:0;color:inherit;background:transparent;white-space:pre-wrap;overflow-wrap:anywhere;'
    'line-height:1.35;font-family:ui-monospace,Menlo,Consolas,monospace">{code}</pre>'
)


def answer(result: Result, out: Console, err: Console, least: Severity = Severity.NOTE) -> None:
    """Print a result on `out`, and on `err` what was found that is as grave as `least` or graver.

    What was found stands above the result, or below it where that is a table.
    """
    found = graver(getattr(result, "findings", ()), least)
    below = isinstance(result, _TABLES)
    render.findings(err, () if below else found)
    _SHOW[type(result)](out, result)
    render.findings(err, found if below else ())


def graver(found: Iterable[Finding], least: Severity) -> list[Finding]:
    """The findings that are as grave as `least` or graver."""
    order = list(Severity)
    return [finding for finding in found if order.index(finding.severity) <= order.index(least)]


def text(result: Result) -> str:
    """The lines that a terminal shows of a result, without colour."""
    console = _recorder()
    answer(result, console, console)
    return console.export_text().rstrip("\n")


def html(result: Result) -> str:
    """The same as one element of a page: names are escaped, colours suit light and dark, nothing is fetched."""
    console = _recorder()
    answer(result, console, console)
    return console.export_html(theme=_THEME, code_format=_ELEMENT, inline_styles=True)


def page(
    outcome: Result | QBridgeError, command: str, path: PathLike, source: str | None, allow: Iterable[str]
) -> bytes:
    """A whole page of what a command came to, and of the checkpoint at `path`."""
    from qbridge.page.contents import Place, contents_of
    from qbridge.page.document import page_of

    return page_of(contents_of(outcome, command, Place(path, source, allow))).encode()


def image(
    outcome: Result | QBridgeError, command: str, path: PathLike, source: str | None, allow: Iterable[str]
) -> bytes:
    """The map of its layers as a PNG."""
    from qbridge.page.contents import Place, contents_of
    from qbridge.page.image import image_of

    return image_of(contents_of(outcome, command, Place(path, source, allow)))


def _recorder() -> Console:
    return Console(file=StringIO(), record=True, width=_WIDTH, force_terminal=False, highlight=False, soft_wrap=True)
