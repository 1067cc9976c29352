"""Codes: what each means, why it matters, an example, the way out, and where the rule comes from.

Those of one engine alone come with the engine (`Target.codes`): `qbridge.targets.registry.codes` has them all.

The hundreds say who speaks: 0 the source on disk, 1 a format that cannot be read or written here, 2 a target's
engine, 3 exactness, 4 the operating system, 5 `verify`, 7 `prove`, 8 what was asked, 9 qbridge itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from qbridge.findings.catalogue import (
    checks,
    completeness,
    containers,
    contradictions,
    derived,
    engine,
    mlx,
    outcome,
    parts,
    proof,
    remote,
    scheme,
    source,
    structure,
    tensors,
    usage,
)
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
    "complete_by",
    "entry_of",
    "known",
    "register",
]

_GROUPS = (
    *(source, containers, tensors, contradictions, scheme, engine, derived),
    *(checks, outcome, structure, completeness, usage, remote, parts, mlx, proof),
)
CATALOGUE: Mapping[str, Code] = {entry.code: entry for group in _GROUPS for entry in group.ENTRIES}
_BROUGHT: dict[str, Code] = {}  # by targets, of this package and of others
_SOURCES: list[Callable[[], Iterable[Code]]] = []  # of entries that are not asked for yet


def register(entries: Iterable[Code]) -> None:
    """Add the entries of a target's codes; none of them is one of `CATALOGUE`, which stays as it is."""
    _BROUGHT.update({entry.code: entry for entry in entries})


def complete_by(source: Callable[[], Iterable[Code]]) -> None:
    """Ask a room further down for more entries, the first time that a code is in no list."""
    _SOURCES.append(source)


def known() -> Mapping[str, Code]:
    """Every entry by its code: those of the catalogue, and those that were registered."""
    while _SOURCES:
        register(_SOURCES.pop()())
    return {**CATALOGUE, **_BROUGHT}


def entry_of(code: str) -> Code:
    """The entry of a code; KeyError for one of ours that is in no list.

    One of another package may be unknown where its package is not loaded, as in a process that is handed an error.
    """
    entry = CATALOGUE.get(code) or _BROUGHT.get(code) or known().get(code)
    if entry is None and code.startswith("QB"):
        raise KeyError(code)
    unknown = "The package that brings this code is not loaded here."
    return entry or Code(code, f"{code} of another package", unknown, unknown, "", unknown, "")
