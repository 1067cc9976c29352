"""Names and texts of a checkpoint in Markdown, where they do nothing.

What `printable` leaves of a name has no control character, no escape sequence, no character that turns the direction
of writing and none that is invisible.
"""

from __future__ import annotations

import re

from qbridge.findings.hints import printable

# What begins or ends something in Markdown as GitHub and the Hub read it, tables and formulas included.
_MARKDOWN = re.compile(r"[\\`*_{}\[\]<#|~&!$]|(?<=:)//|(?<=www)\.|@")


def as_markdown(text: str) -> str:
    """A text within a line or a cell of a table: no markup, no link, no HTML."""
    return _MARKDOWN.sub(lambda match: f"\\{match[0]}", printable(text))


def as_code_block(text: str, language: str = "") -> str:
    """Lines as a block of code of Markdown that nothing in them ends."""
    lines = [printable(line) for line in text.split("\n")]
    fence = "`" * max(3, 1 + max((len(run) for line in lines for run in re.findall("`+", line)), default=0))
    return "\n".join((f"{fence}{language}", *lines, fence))
