"""What is typed after options, as values: sizes in bytes, numbers, prefixes; ValueError for anything else."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Sequence
from typing import TextIO

from qbridge.architecture.prefixes import Prefix, pairs_of
from qbridge.plan.options import LEAST_MEMORY, check_sizes

PROGRESS = ("auto", "json", "none")
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_LEAST_PLAIN = 10**6  # a smaller number without a unit is a size whose unit was forgotten


def asked_text(words: Sequence[str] | None, stdin: TextIO | None) -> str | None:
    """What `explain` is asked about: its words, or all that is piped in; None where there is neither."""
    if words and list(words) != ["-"]:
        return " ".join(words)
    if stdin is None or not (words or _is_piped(stdin)):
        return None
    text = stdin.buffer.read().decode(errors="replace")
    return text if words else text or None


def _is_piped(stream: TextIO) -> bool:
    """Whether a stream is a pipe or a file: what a terminal, or nobody, would write is not waited for."""
    try:
        mode = os.fstat(stream.fileno()).st_mode
    except (OSError, ValueError):  # one of Python's own, or closed
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)


def sizes_of(text: str) -> tuple[int, ...]:
    """The tensor-parallel sizes of --tp."""
    try:
        return tuple(int(size) for size in text.split(","))
    except ValueError as fault:
        raise ValueError("numbers with commas between them, such as 2,4,8") from fault


def positive_sizes_of(text: str) -> tuple[int, ...]:
    """The tensor-parallel sizes of check's --tp, each once."""
    sizes = tuple(dict.fromkeys(sizes_of(text)))
    check_sizes(sizes)
    return sizes


def jobs_of(text: str) -> int:
    """The threads of --jobs."""
    if not re.fullmatch(r"\d{1,6}", text.strip()):
        raise ValueError("a number of threads, 0 for one on each core")
    return int(text)


def part_of(text: str) -> tuple[int, int]:
    """The part of --part, and how many there are."""
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip())
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise ValueError("a part and how many there are, such as 1/8")
    return int(match[1]), int(match[2])


def progress_of(text: str) -> str:
    """The word of --progress."""
    if text not in PROGRESS:
        raise ValueError("auto, json or none")
    return text


def memory_of(text: str) -> int:
    """The bytes of --memory."""
    size = bytes_of(text)
    if size < LEAST_MEMORY:
        raise ValueError(f"at least {LEAST_MEMORY // 10**6}MB")
    return size


def bytes_of(text: str) -> int:
    """The bytes that a size such as 5GB or 512MiB stands for."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)(B?)", text.strip(), re.IGNORECASE)
    if not match or float(match[1]) <= 0:
        raise ValueError("a size such as 5GB or 512MiB")
    unit = match[2].upper()
    if not unit and not match[4] and float(match[1]) < _LEAST_PLAIN:
        raise ValueError(f"{text} has no unit: a size such as {text}GB or {text}MB")
    return max(1, int(float(match[1]) * (_BINARY[unit] if match[3] and unit else _UNITS[unit])))


def prefixes_of(texts: Iterable[str]) -> tuple[Prefix, ...]:
    """The pairs of --rename-prefix."""
    pairs = []
    for text in texts:
        old, sign, new = text.partition("=")
        if not sign or "=" in new:
            raise ValueError("OLD=NEW, such as model.language_model=model")
        pairs.append((old, new))
    return pairs_of(pairs)
