"""Commands that stand in README and the docs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
_FENCED = re.compile(r"(?ms)^```sh\n(.*?)^```$")
_INDENTED = re.compile(r"(?m)^\n((?: {4}\S.*\n)+)")
_SPAN = re.compile(r"`(\w+ \w+ [^-`\n][^`\n]*)`")  # with an argument: `qbridge restore` alone is a name
_SHOWN = re.compile(r"(?m)^\$ (.+)$")


def blocks(page: Path) -> list[str]:
    """Blocks of a page that a shell takes; what is optional in a synopsis (`[--dtype a|b]`) is left out of them."""
    text = page.read_text()
    indented = (re.sub(r"(?m)^ {4}", "", block) for block in _INDENTED.findall(text))
    shells = [*_FENCED.findall(text), *(block for block in indented if block.startswith(("qbridge ", "hf ")))]
    return [re.sub(r" \[[^\]\n]*\]", "", block) for block in shells]


def lines(program: str) -> Iterator[tuple[Path, str]]:
    """(page, line) of each command that begins with `program`: in blocks, transcripts and the text."""
    for page in PAGES:
        text = page.read_text()
        found = [line for block in blocks(page) for line in block.replace("\\\n", " ").splitlines()]
        found += _SHOWN.findall(text)
        found += [" ".join(span.split()) for span in _SPAN.findall(text)]
        for line in dict.fromkeys(found):
            if line.startswith(f"{program} "):
                yield page, re.sub(r"\s+# .*$", "", line)
