"""Threads, memory and proof: what a command may use."""

from __future__ import annotations

import os
from dataclasses import dataclass

from qbridge.plan.options import MEMORY, Options, check_effort
from qbridge.source.folder import OPEN_FILES

_THREAD = 24 << 20  # bytes of a thread that dequantizes: codes, float64 values, words, and what is read back
_BLOCK = 32 << 20  # most bytes of a tensor that a thread takes at once
_OTHER_FILES = 32  # open besides those of the source: outputs, libraries, the terminal


@dataclass(frozen=True, slots=True)
class Effort:
    """What a conversion may use: threads, bytes of memory, and whether it proves what it writes."""

    jobs: int = 0
    memory: int = MEMORY
    proof: bool = True

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing, and less memory than one thread and its kernels take (ValueError)."""
        check_effort(self.jobs, self.memory)

    @classmethod
    def of(cls, options: Options) -> Effort:
        """What the options of a command let it use."""
        return cls(options.jobs, options.memory, options.proof)

    @property
    def threads(self) -> int:
        """The threads asked for, or one for each core that this process may run on; fewer where memory is short."""
        own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(self.jobs or own, max(1, self.memory // _THREAD))

    @property
    def open_files(self) -> int:
        """Shards of the source that a thread may keep open, so that all stay below what a process may open."""
        try:
            import resource
        except ImportError:  # Windows, where a process may open more than any conversion does
            return OPEN_FILES
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = OPEN_FILES if soft == resource.RLIM_INFINITY else (soft - _OTHER_FILES) // (self.threads + 2)
        return max(1, min(OPEN_FILES, most))

    @property
    def fetched(self) -> int:
        """Bytes of files on a server that may be under way at a time."""
        return self.memory // 4

    @property
    def spooled(self) -> int:
        """Files on a server that are read at a time: one for each thread, and those before and after."""
        return self.threads + 2

    @property
    def block(self) -> int:
        """Bytes of a tensor that a thread takes at once: it holds them as they were, as they are and read back."""
        return max(1 << 20, min(_BLOCK, self.memory // (4 * self.threads)))
