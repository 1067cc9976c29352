"""Writing a checkpoint: every tensor at its planned place, on all cores, in bounded memory, proved on the way.

Threads take jobs in the order of the files; each reads, works and writes by itself. A shard whose jobs are done is
flushed to the disk and noted in the journal, while the next is being written. Documents and side files come last.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qbridge.findings import error
from qbridge.jobs import Job, Workspace, jobs_of, write_all
from qbridge.plan import Plan
from qbridge.shards import Shard, index_of
from qbridge.source import INDEX, OPEN_FILES, Source
from qbridge.staging import Stage

MEMORY = 512 * 10**6  # bytes beyond those of the idle program
_BLOCK = 32 << 20  # most bytes of a tensor that a thread takes at once
_DIRTY = 192 << 20  # bytes written before the disk is asked to take them
_OTHER_FILES = 32  # open besides those of the source: outputs, libraries, the terminal
_FLUSHING = 4  # finished shards that may wait for the disk

_flush_data = getattr(os, "fdatasync", os.fsync)  # macOS has none

Document = str | Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Advance:
    """How far a conversion is: bytes, shards, and the shard that is being written."""

    bytes_done: int
    bytes_total: int
    shard: str
    shards_done: int
    shards_total: int


Progress = Callable[[Advance], None]


@dataclass(frozen=True, slots=True)
class Effort:
    """What a conversion may use: threads, bytes of memory, and whether it proves what it writes."""

    jobs: int = 0
    memory: int = MEMORY
    proof: bool = True

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing (ValueError)."""
        if self.jobs < 0 or self.memory < 1:
            raise ValueError("jobs and memory are positive")

    @property
    def threads(self) -> int:
        """The threads asked for, or one for each core that this process may run on."""
        own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return self.jobs or own

    @property
    def open_files(self) -> int:
        """Shards of the source that a thread may keep open, so that all stay below what a process may open."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = OPEN_FILES if soft == resource.RLIM_INFINITY else (soft - _OTHER_FILES) // (self.threads + 2)
        return max(1, min(OPEN_FILES, most))

    @property
    def block(self) -> int:
        """Bytes of a tensor that a thread takes at once: it holds them as they were, as they are and read back."""
        return max(1 << 20, min(_BLOCK, self.memory // (4 * self.threads)))


def write_document(path: Path, value: Document) -> None:
    """A text as it is, anything else as indented JSON with a final newline, flushed to the disk."""
    with open(path, "w", encoding="utf-8", newline="") as stream:
        stream.write(value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def write_checkpoint(
    stage: Stage,
    source: Source,
    plan: Plan,
    shards: Sequence[Shard],
    documents: Mapping[str, Document],
    sides: Sequence[Path],
    effort: Effort,
    progress: Progress | None = None,
) -> None:
    """Shards, index, side files (relative paths) and `documents` into a stage, each flushed to the disk.

    Shards that the stage has already are left as they are. Raises QBridgeError (QB403) where a proof fails, and
    QB038 where the source changed meanwhile.
    """
    source.open_files = min(source.open_files, effort.open_files)
    _Writer(stage, source, plan, shards, effort, progress).run()
    source.check_unchanged()
    if len(shards) > 1:
        write_document(stage.folder / INDEX, index_of(shards))
    for relative in sides:
        (stage.folder / relative).parent.mkdir(parents=True, exist_ok=True)
        with open(source.path / relative, "rb") as read, open(stage.folder / relative, "wb") as write:
            shutil.copyfileobj(read, write, 1 << 20)
            write.flush()
            os.fsync(write.fileno())
    for name, value in documents.items():
        write_document(stage.folder / name, value)


@dataclass(slots=True)
class _Writer:
    """The writing of the shards of one conversion."""

    stage: Stage
    source: Source
    plan: Plan
    shards: Sequence[Shard]
    effort: Effort
    progress: Progress | None
    _done: int = 0
    _total: int = field(init=False)
    _own: threading.local = field(default_factory=threading.local)
    _stopping: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._total = sum(shard.data_size for shard in self.shards)

    def run(self) -> None:
        """Write what is missing."""
        flushed: deque[Future[None]] = deque()
        threads = self.effort.threads
        with ThreadPoolExecutor(threads, "qbridge") as working, ThreadPoolExecutor(1, "qbridge-flush") as flushing:
            try:
                for number, shard in enumerate(self.shards):
                    self._advance(shard, number, 0)
                    if shard.name in self.stage.finished:
                        self._advance(shard, number + 1, shard.data_size)
                        continue
                    self._write(shard, number, working, flushing, flushed)
                    self._advance(shard, number + 1, 0)
                    while len(flushed) > _FLUSHING:
                        flushed.popleft().result()
                while flushed:
                    flushed.popleft().result()
            except BaseException:
                self._stopping.set()  # jobs that wait are not begun
                raise

    def _write(
        self,
        shard: Shard,
        number: int,
        working: ThreadPoolExecutor,
        flushing: ThreadPoolExecutor,
        flushed: deque[Future[None]],
    ) -> None:
        out = os.open(self.stage.folder / shard.name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        waiting: deque[tuple[Job, Future[None]]] = deque()
        unflushed = 0
        try:
            write_all(out, shard.header, 0)
            for job in jobs_of(self.source, self.plan, shard, self.effort.block):
                waiting.append((job, working.submit(self._work, job, out)))
                while len(waiting) > 2 * self.effort.threads:
                    unflushed += self._finish(waiting, shard, number)
                if unflushed > _DIRTY and (not flushed or flushed[-1].done()):
                    flushed.append(flushing.submit(_flush_data, out))
                    unflushed = 0
            while waiting:
                self._finish(waiting, shard, number)
        except BaseException:
            self._stopping.set()
            for _, future in waiting:
                future.cancel()
            for _, future in waiting:
                with contextlib.suppress(BaseException):
                    future.result()
            for flush in flushed:
                with contextlib.suppress(BaseException):
                    flush.result()
            if all(future.done() for _, future in waiting):  # else a second interrupt: a thread still writes to it
                os.close(out)
            raise
        flushed.append(flushing.submit(self._flush, out, shard))

    def _finish(self, waiting: deque[tuple[Job, Future[None]]], shard: Shard, number: int) -> int:
        job, future = waiting.popleft()
        future.result()
        self._advance(shard, number, job.size)
        return job.size

    def _work(self, job: Job, out: int) -> None:
        if self._stopping.is_set():
            return
        workspace: Workspace | None = getattr(self._own, "workspace", None)
        if workspace is None:
            workspace = self._own.workspace = Workspace()
        job.run(self.source, out, workspace)
        if self.effort.proof:
            wrong = job.prove(self.source, out, workspace)
            if wrong:
                raise error("QB403", wrong)

    def _flush(self, out: int, shard: Shard) -> None:
        """A finished shard to the disk, and then into the journal."""
        try:
            os.fsync(out)
            if self._is_large:
                self._forget_pages(out, shard)
        finally:
            os.close(out)
        self.stage.note(shard.name)

    @property
    def _is_large(self) -> bool:
        """Whether the output would push everything else out of the page cache."""
        try:
            memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, ValueError, OSError):
            return False
        return self._total > memory // 4

    def _forget_pages(self, out: int, shard: Shard) -> None:
        """Tell the page cache that a finished shard and what it was made of will not be read again."""
        if not hasattr(os, "posix_fadvise"):
            return
        with contextlib.suppress(OSError):
            os.posix_fadvise(out, 0, 0, os.POSIX_FADV_DONTNEED)
            for file in {tensor.shard for tensor in shard.tensors}:
                os.posix_fadvise(self.source.descriptor(file), 0, 0, os.POSIX_FADV_DONTNEED)

    def _advance(self, shard: Shard, number: int, size: int) -> None:
        self._done += size
        if self.progress:
            self.progress(Advance(self._done, self._total, shard.name, number, len(self.shards)))
