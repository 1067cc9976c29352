"""Writing a checkpoint: every tensor at its planned place, on all cores, in bounded memory, proved on the way.

Threads take jobs in the order of the files; each reads, works and writes by itself. A shard whose jobs are done is
flushed to the disk and noted in the journal, while the next is being written. Documents and side files come last.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qbridge.findings.finding import error
from qbridge.plan.output_files import Shard, index_of
from qbridge.plan.plan import Plan
from qbridge.source.json_text import json_text
from qbridge.source.reader import Source
from qbridge.source.storage import File
from qbridge.source.weight_files import INDEX
from qbridge.write.budget import Effort
from qbridge.write.jobs import Job, jobs_of, write_all
from qbridge.write.links import link
from qbridge.write.staging import Stage
from qbridge.write.workspace import Workspace

_LOG = logging.getLogger(__name__)

_DIRTY = 192 << 20  # bytes written before the disk is asked to take them
_SIDE = 1 << 20  # bytes of a side file that are copied at a time
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


def text_of(value: Document) -> str:
    """A text as it is, anything else as indented JSON with a final newline."""
    return value if isinstance(value, str) else json_text(value, indent=2) + "\n"


def write_document(path: Path, value: Document) -> None:
    """The text of a document, flushed to the disk."""
    with open(path, "w", encoding="utf-8", newline="") as stream:
        stream.write(text_of(value))
        stream.flush()
        os.fsync(stream.fileno())


def _copy(file: File, to: Path) -> None:
    """A side file as it is, flushed to the disk."""
    to.parent.mkdir(parents=True, exist_ok=True)
    with open(to, "wb") as stream:
        for block in file.blocks(_SIDE):
            stream.write(block.data)
        stream.flush()
        os.fsync(stream.fileno())


def write_checkpoint(
    stage: Stage,
    source: Source,
    plan: Plan,
    shards: Sequence[Shard],
    documents: Mapping[str, Document],
    sides: Sequence[str],
    effort: Effort,
    progress: Progress | None = None,
) -> dict[str, int]:
    """Shards, index, side files (by name) and `documents` into a stage, each flushed to the disk.

    Shards that the stage has already are left as they are; those that are a file of the source are linked. How many
    were linked, by the kind of link. Raises QBridgeError (QB403) where a proof fails, QB326 where nothing can be
    linked, and QB038 where the source changed meanwhile.
    """
    source.limit(effort.open_files)
    source.spool(stage.home, effort.fetched, effort.spooled)
    source.keep = effort.block
    written = [shard for shard in shards if shard.file is None]
    writer = _Writer(stage, source, plan, written, effort, progress)
    try:
        writer.run()
    finally:
        writer.close()
    links = Counter(link(shard.file, stage.folder / shard.name) for shard in shards if shard.file is not None)
    source.check_unchanged()
    if len(shards) > 1 and not plan.metadata:
        write_document(stage.folder / INDEX, index_of(shards))
    for name in sides:
        _copy(source.file(name), stage.folder / name)
    for name, value in documents.items():
        write_document(stage.folder / name, value)
    return dict(links)


@dataclass(slots=True)
class _Output:
    """A shard that is being written: the jobs to come, how many are under way, the bytes since the last flush."""

    shard: Shard
    descriptor: int
    jobs: Iterator[Job]
    exhausted: bool = False
    pending: int = 0
    unflushed: int = 0


@dataclass(slots=True)
class _Writer:
    """The writing of the shards of one conversion."""

    stage: Stage
    source: Source
    plan: Plan
    shards: Sequence[Shard]
    effort: Effort
    progress: Progress | None
    _is_idle: bool = True
    _done: int = 0
    _written: int = 0
    _descriptors: list[int] = field(default_factory=list)
    _missing: deque[Shard] = field(default_factory=deque)
    _opened: deque[_Output] = field(default_factory=deque)
    _waiting: deque[tuple[_Output, Job, Future[None]]] = field(default_factory=deque)
    _flushed: deque[Future[None]] = field(default_factory=deque)
    _total: int = field(init=False)
    _own: threading.local = field(default_factory=threading.local)
    _stopping: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._total = sum(shard.data_size for shard in self.shards)

    def run(self) -> None:
        """Write what is missing.

        As many shards are open as there are threads, and jobs come from them in turn: two threads that write to one
        file wait for each other in the kernel.
        """
        for shard in self.shards:
            if shard.name in self.stage.finished:
                self._written += 1
                self._advance(shard, shard.data_size)
            else:
                self._missing.append(shard)
        threads = self.effort.threads
        working, flushing = ThreadPoolExecutor(threads, "qbridge"), ThreadPoolExecutor(1, "qbridge-flush")
        self._is_idle = False
        try:
            while self._submit(working, flushing) or self._waiting:
                self._take(flushing)
            while self._flushed:
                self._flushed.popleft().result()
        except BaseException:
            self._stopping.set()  # jobs that wait are not begun
            raise
        finally:
            working.shutdown()
            flushing.shutdown()
            self._is_idle = True

    def _submit(self, working: ThreadPoolExecutor, flushing: ThreadPoolExecutor) -> bool:
        """Keep two jobs waiting for each thread; whether any shard is open."""
        threads = self.effort.threads
        while len(self._waiting) < 2 * threads:
            while self._missing and len(self._opened) < threads:
                self._opened.append(self._open(self._missing.popleft()))
            if not self._opened:
                return False
            output = self._opened.popleft()
            job = next(output.jobs, None)
            if job is None:
                output.exhausted = True
                self._finish(output, flushing)
                continue
            output.pending += 1
            self._waiting.append((output, job, working.submit(self._work, job, output)))
            self._opened.append(output)
        return True

    def _take(self, flushing: ThreadPoolExecutor) -> None:
        """Wait for the job that was submitted first."""
        if self._waiting:
            output, job, future = self._waiting.popleft()
            future.result()
            output.pending -= 1
            output.unflushed += job.size
            self._advance(output.shard, job.size)
            self._finish(output, flushing)
        while len(self._flushed) > _FLUSHING:
            self._flushed.popleft().result()

    def _open(self, shard: Shard) -> _Output:
        out = os.open(self.stage.folder / shard.name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        self._descriptors.append(out)
        write_all(out, shard.header, 0)
        if shard.end:  # what lies between its tensors, and after the last, is zero
            os.ftruncate(out, shard.end)
        _LOG.debug("begun: %s, %d bytes, %d tensors", shard.name, shard.size, len(shard.tensors))
        self._advance(shard, 0)
        return _Output(shard, out, jobs_of(self.source, self.plan, shard, self.effort.block))

    def _finish(self, output: _Output, flushing: ThreadPoolExecutor) -> None:
        """To the disk with a shard that is whole, and now and then with what there is of one."""
        if output.exhausted and not output.pending:
            self._written += 1
            self._advance(output.shard, 0)
            self._flushed.append(flushing.submit(self._flush, output))
        elif output.unflushed > _DIRTY and (not self._flushed or self._flushed[-1].done()):
            output.unflushed = 0
            self._flushed.append(flushing.submit(_flush_data, output.descriptor))

    def _work(self, job: Job, output: _Output) -> None:
        if self._stopping.is_set():
            return
        workspace: Workspace | None = getattr(self._own, "workspace", None)
        if workspace is None:
            workspace = self._own.workspace = Workspace()
        job.run(self.source, output.descriptor, workspace)
        if self.effort.proof:
            wrong = job.prove(self.source, output.descriptor, workspace)
            if wrong:
                raise error("QB403", wrong)

    def _flush(self, output: _Output) -> None:
        """A finished shard to the disk, and then into the journal."""
        os.fsync(output.descriptor)
        if self._is_large:
            self._forget_pages(output.descriptor, output.shard)
        self._descriptors.remove(output.descriptor)
        os.close(output.descriptor)
        self.stage.note(output.shard.name)
        proved = "proved and " if self.effort.proof else ""
        _LOG.info("written, %sflushed: %s, %d bytes", proved, output.shard.name, output.shard.size)

    def close(self) -> None:
        """Close the files that a failure left open; not under threads that a second interrupt left at work."""
        while self._is_idle and self._descriptors:
            os.close(self._descriptors.pop())

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
                if (read := file.descriptor) is not None:
                    os.posix_fadvise(read, 0, 0, os.POSIX_FADV_DONTNEED)

    def _advance(self, shard: Shard, size: int) -> None:
        self._done += size
        if self.progress:
            self.progress(Advance(self._done, self._total, shard.name, self._written, len(self.shards)))
