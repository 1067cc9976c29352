"""The nearest name to one that is not known."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence


def folded(name: str) -> str:
    """A name as names are compared: letters of any case, - and _ alike."""
    return name.strip().lower().replace("_", "-")


def did_you_mean(name: str, known: Mapping[str, object] | Sequence[str]) -> tuple[str, ...]:
    """Help lines: the nearest known name if one is near, and all of them."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return (*(f"did you mean {n!r}?" for n in near), f"known: {', '.join(sorted(known))}")
