"""The model card of a checkpoint that gets another format: tags and lines of code that no longer hold."""

from __future__ import annotations

import re
from collections.abc import Iterator

from qbridge.findings.finding import Findings
from qbridge.formats.protocol import Format
from qbridge.source.reader import Source

CARD = "README.md"
_MOST = 10**6  # bytes of a card that is looked at
_LINES = 5  # that a finding shows
_BREAKS = re.compile(r"[-_\s]")


def judge_card(source: Source, before: Format, after: Format, findings: Findings) -> None:
    """QB048 where the card, carried over as it is, names the source's format in its tags or code."""
    text = source.side_text(CARD, _MOST)
    words = {_plain(word) for word in (before.NAME, *before.ALIASES)}
    words -= {_plain(word) for word in (after.NAME, *after.ALIASES)}
    lines = [(number, line) for number, line in _telling(text) if any(word in _plain(line) for word in words)]
    if lines and before.NAME != after.NAME:
        shown = [f"line {number}: {line.strip()[:100]}" for number, line in lines[:_LINES]]
        more = [f"and {len(lines) - _LINES} more lines"] if len(lines) > _LINES else []
        findings.add("QB048", CARD, (*shown, *more))


def _plain(text: str) -> str:
    """A name without what tools spell in several ways: compressed_tensors, llmcompressor."""
    return _BREAKS.sub("", text.lower())


def _telling(text: str) -> Iterator[tuple[int, str]]:
    """(number, line) of the metadata before the text, and of its blocks of code."""
    lines = text.splitlines()
    is_metadata, is_code = bool(lines) and lines[0].strip() == "---", False
    for number, line in enumerate(lines, 1):
        bare = line.strip()
        if is_metadata and number > 1 and bare == "---":
            is_metadata = False
        elif bare.startswith(("```", "~~~")):
            is_code = not is_code
        elif is_metadata or is_code:
            yield number, line
