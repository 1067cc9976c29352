"""The nearest name to one that is not known, and names that can be printed."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

MOST = 40  # names in a line
_LINE = 100  # characters of a repr


def folded(name: str) -> str:
    """A name as names are compared: letters of any case, - and _ alike."""
    return name.strip().lower().replace("_", "-")


def printable(text: str) -> str:
    """Text for a terminal: a name from a file moves no cursor, and one that is no text can still be printed."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(value: object, text: str) -> str:
    """A repr of one short line: names from files are printable in it, and cut where they are long."""
    shown = printable(text)
    return f"<{type(value).__name__}: {shown if len(shown) <= _LINE else shown[: _LINE - 3] + '...'}>"


def did_you_mean(name: str, known: Mapping[str, object] | Sequence[str]) -> tuple[str, ...]:
    """Help lines: the nearest known name if one is near, and all; of very many, some that begin alike."""
    near = difflib.get_close_matches(name, list(known), n=1)
    names = sorted(known)
    if len(names) > MOST:
        alike = [each for each in names if each[:4] == name[:4]] or names
        more = f" and {len(alike) - MOST} more" if len(alike) > MOST else ""
        return (*(f"did you mean {n!r}?" for n in near), f"known: {', '.join(alike[:MOST])}{more}")
    return (*(f"did you mean {n!r}?" for n in near), f"known: {', '.join(names)}")
