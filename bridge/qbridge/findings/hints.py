"""The nearest name to one that is not known, and names that can be printed."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Mapping, Sequence

MOST = 150  # characters of a line of names
NEAREST = 3  # of those that are like another one
_LINE = 100  # characters of a repr


def folded(name: str) -> str:
    """A name as names are compared: letters of any case, - and _ alike."""
    return name.strip().lower().replace("_", "-")


def printable(text: str) -> str:
    """Text for a terminal: a name from a file moves no cursor, and one that is no text can still be printed."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def word_of_command(path: str) -> str:
    """A path as one word of a command line, quoted for a shell, and no option though it may begin with -."""
    return shlex.quote(f"./{path}" if path.startswith("-") else path)


def one_line(value: object, text: str) -> str:
    """A repr of one short line: names from files are printable in it, and cut where they are long."""
    shown = printable(text)
    return f"<{type(value).__name__}: {shown if len(shown) <= _LINE else shown[: _LINE - 3] + '...'}>"


def size(count: float) -> str:
    """Bytes for people: 1.8 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def did_you_mean(name: str, known: Mapping[str, object] | Sequence[str], listing: str) -> tuple[str, ...]:
    """Help lines: the nearest known names if any is near, and all; `listing` lists them where they are many."""
    near, names = difflib.get_close_matches(name, list(known), n=NEAREST), ", ".join(sorted(known))
    rest = f"known: {names}" if len(names) <= MOST else f"{listing} lists all {len(known)}"
    return (*((f"did you mean {' or '.join(map(repr, near))}?",) if near else ()), rest)
