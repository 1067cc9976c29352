"""Regular expressions of a config against module names, in bounded time and memory whatever they say.

No engine with the syntax of `re` can promise that, and a thread cannot be stopped, so `re` itself runs in a process
of its own that the kernel ends. Plain names, which make up the long lists, never get there.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from qbridge.findings.finding import error

SECONDS = 2  # of CPU time; honest patterns over 36 000 names take a tenth
_MOST_SECONDS = 20
_PAIRS_PER_SECOND = 4_000_000  # half of what was measured, for long lists of honest patterns
_WALL = 10  # times that, for a machine that is busy
_CHILD = Path(__file__).with_name("_matching.py")
_EXACT = re.compile(r"\^?((?:[\w/ -]|\\[./_-])*)(\$?)")


@dataclass(frozen=True, slots=True)
class Matches:
    """By pattern: the names that it matches, or why it is no regular expression."""

    names: Mapping[str, frozenset[str]]
    faults: Mapping[str, str]

    def of(self, pattern: str) -> frozenset[str]:
        """The names that a pattern matches, none for one that was not asked about."""
        return self.names.get(pattern, frozenset())


def matches(patterns: Iterable[str], names: Iterable[str], whole: bool = False) -> Matches:
    """Each pattern against every name from its start, or as a whole; QBridgeError (QB027) if that takes too long."""
    return _matches(tuple(dict.fromkeys(patterns)), tuple(names), whole)


@lru_cache(maxsize=4)
def _matches(patterns: Sequence[str], names: Sequence[str], whole: bool) -> Matches:
    known, found, open_ = frozenset(names), dict[str, frozenset[str]](), list[str]()
    for pattern in patterns:
        exact = _EXACT.fullmatch(pattern)
        if exact and (whole or exact[2]):
            name = exact[1].replace("\\", "")
            ends = (name,) if whole else (name, f"{name}\n")  # `$` is also before a last newline
            found[pattern] = known.intersection(ends)
        else:
            open_.append(pattern)
    faults = {}
    for pattern, answer in zip(open_, _ask(open_, names, whole) if open_ else (), strict=True):
        if isinstance(answer, str):
            faults[pattern] = answer
        else:
            found[pattern] = frozenset(names[number] for number in answer)
    return Matches(found, faults)


def _ask(patterns: Sequence[str], names: Sequence[str], whole: bool) -> list[list[int] | str]:
    """What the other process says; it works in order, so the pattern without an answer is the one to blame."""
    seconds = min(SECONDS + len(patterns) * len(names) // _PAIRS_PER_SECOND, _MOST_SECONDS)
    asked = json.dumps({"patterns": patterns, "names": names, "whole": whole, "seconds": seconds})
    command = [sys.executable, "-I", "-S", "-W", "ignore", str(_CHILD)]
    try:
        done = subprocess.run(
            command, input=asked.encode(), capture_output=True, timeout=seconds * _WALL, check=False
        )
        said, status = done.stdout, done.returncode
    except subprocess.TimeoutExpired as late:
        said, status = late.stdout or b"", None
    answers = [json.loads(line) for line in said.splitlines(keepends=True) if line.endswith(b"\n")]
    if status == 0 and len(answers) == len(patterns):
        return answers
    slow = patterns[len(answers)] if len(answers) < len(patterns) else patterns[-1]
    facts = (f"{len(names)} module names were not matched in {seconds} s of CPU time",)
    raise error("QB027", repr(slow[:80]), facts)
