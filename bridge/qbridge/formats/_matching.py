"""The process that `qbridge.formats.patterns` starts: matches patterns against names under limits of time and memory.

stdin: {"patterns", "names", "whole", "seconds"} as JSON; stdout: a line per pattern, either the numbers of the names
that it matches or, as text, why it is no regular expression. Standard library alone, so that it starts in 20 ms.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator

MEMORY = 2 << 30


def limit(seconds: int) -> None:
    """Let the kernel end this process after so many seconds of CPU time, without a core file."""
    try:
        import resource
    except ImportError:  # Windows; the parent's clock remains
        return
    for kind, value in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def answers(patterns: list[str], names: list[str], whole: bool) -> Iterator[list[int] | str]:
    """Pattern by pattern, so that the parent knows which one took too long."""
    for text in patterns:
        try:
            pattern = re.compile(text)
        except (re.error, OverflowError, RecursionError) as fault:
            yield str(fault) or type(fault).__name__
            continue
        match = pattern.fullmatch if whole else pattern.match
        yield [number for number, name in enumerate(names) if match(name)]


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    limit(asked["seconds"])
    for answer in answers(asked["patterns"], asked["names"], asked["whole"]):
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
