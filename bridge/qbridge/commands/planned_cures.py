"""The conversions that explain prints as cures, each planned first where the checkpoint is here."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from qbridge.commands.conversion import convert
from qbridge.findings.finding import QBridgeError, Severity
from qbridge.source.foreign import CONFIG

_OPEN = ("N", "ORIGINAL")  # words of a command that a reader replaces


def planned(lines: Iterable[str], checkpoint: str) -> tuple[tuple[str, ...], str]:
    """The command lines whose conversion would succeed, and what to say where none would.

    Lines that cannot be planned stay: the checkpoint is not here, or a word of theirs is a reader's to replace.
    """
    every = tuple(dict.fromkeys(lines))
    if not checkpoint or not (Path(checkpoint) / CONFIG).is_file():
        return every, ""
    refusals = {line: _refusal(line) for line in every}
    good = tuple(line for line, codes in refusals.items() if not codes)
    codes = dict.fromkeys(code for refused in refusals.values() for code in refused)
    if good or not codes:
        return good, ""
    return (), f"No conversion of this checkpoint helps: qbridge convert refuses it by {', '.join(codes)}."


def _refusal(line: str) -> tuple[str, ...]:
    """The codes for which a conversion is refused; empty where it succeeds, or cannot be planned."""
    words = shlex.split(line)[2:]
    if any(word in words for word in _OPEN):
        return ()
    src, dst, *options = words
    try:
        convert(src, dst, dry_run=True, **_keywords(options))
    except QBridgeError as fault:
        found = (finding for finding in fault.findings if finding.severity is Severity.ERROR)
        return tuple(dict.fromkeys(finding.code for finding in found))
    return ()


def _keywords(options: list[str]) -> dict[str, Any]:
    """The options of a cure as arguments of the library."""
    found: dict[str, Any] = {}
    rest = iter(options)
    for option in rest:
        if option == "--to":
            found["target"] = next(rest)
        elif option == "--allow":
            found["allow"] = next(rest).split(",")
        elif option == "--pad":
            found["pad"] = True
        else:
            found[option[2:]] = int(next(rest))
    return found
