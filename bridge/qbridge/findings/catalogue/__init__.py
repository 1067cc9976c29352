"""Every QB code: what it means, why it matters, an example, the way out, and where the rule comes from.

The hundreds say who speaks: 0 the source on disk, 1 a format that cannot be read or written here, 2 a target's
engine, 3 exactness, 4 the operating system, 5 `verify`, 9 qbridge itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from qbridge.findings.catalogue import checks, completeness, engine, float8, outcome, scheme, source, tensors
from qbridge.findings.catalogue.code import ALLOW, BUG, CHOICES, INTERRUPTED, IO, REFUSED, UNREADABLE, USAGE, Code

__all__ = [
    "ALLOW",
    "BUG",
    "CATALOGUE",
    "CHOICES",
    "INTERRUPTED",
    "IO",
    "REFUSED",
    "UNREADABLE",
    "USAGE",
    "Code",
    "entry_of",
    "known",
    "register",
]

CATALOGUE: Mapping[str, Code] = {
    entry.code: entry
    for group in (source, tensors, scheme, engine, float8, checks, outcome, completeness)
    for entry in group.ENTRIES
}
_BROUGHT: dict[str, Code] = {}  # by targets of other packages


def register(entries: Iterable[Code]) -> None:
    """Add the entries of another package's codes; none of them is one of `CATALOGUE`, which stays as it is."""
    _BROUGHT.update({entry.code: entry for entry in entries})


def known() -> Mapping[str, Code]:
    """Every entry by its code: those of the catalogue, and those that were registered."""
    return {**CATALOGUE, **_BROUGHT}


def entry_of(code: str) -> Code:
    """The entry of a code; KeyError for one of ours that is in no list.

    One of another package may be unknown where its package is not loaded, as in a process that is handed an error.
    """
    if code in CATALOGUE or code.startswith("QB"):
        return CATALOGUE[code]
    unknown = "The package that brings this code is not loaded here."
    return _BROUGHT.get(code) or Code(code, f"{code} of another package", unknown, unknown, "", unknown, "")
