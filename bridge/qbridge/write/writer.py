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
from typing import Any, Protocol

from qbridge.findings.finding import error
from qbridge.plan.output_files import Shard, index_of, weights_of
from qbridge.plan.plan import Plan, Writers
from qbridge.source.json_text import json_text
from qbridge.source.reader import Source
from qbridge.source.storage import File
from qbridge.source.weight_files import INDEX
from qbridge.write.budget import Effort
from qbridge.write.executor import Executor, Threads
from qbridge.write.jobs import Job, jobs_of
from qbridge.write.links import link
from qbridge.write.output import FileOutput, Output
from qbridge.write.staging import Stage
from qbridge.write.workspace import Workspace

_LOG = logging.getLogger(__name__)

_DIRTY = 192 << 20  # bytes written before the disk is asked to take them
_SIDE = 1 << 20  # bytes of a side file that are copied at a time
_FLUSHING = 4  # finished shards that may wait for the disk

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


def copy_file(file: File, to: Path) -> None:
    """A side file as it is, flushed to the disk."""
    to.parent.mkdir(parents=True, exist_ok=True)
    with open(to, "wb") as stream:
        for block in file.blocks(_SIDE):
            stream.write(block.data)
        stream.flush()
        os.fsync(stream.fileno())


class Growing(Protocol):
    """A folder in which shards grow until they are whole."""

    folder: Path
    finished: frozenset[str]

    @property
    def home(self) -> Path:
        """A folder in which there is room for what is needed meanwhile."""

    def note(self, name: str) -> None:
        """Take note of a shard that is whole and flushed to the disk."""


def write_shards(
    stage: Growing,
    source: Source,
    plan: Writers,
    shards: Sequence[Shard],
    effort: Effort,
    progress: Progress | None = None,
) -> None:
    """Shards into a stage, each proved, flushed to the disk and noted; those that it has already are left.

    Raises QBridgeError (QB403) where a proof fails, and QB038 where the source changed meanwhile.
    """
    source.limit(effort.open_files)
    source.spool(stage.home, effort.fetched, effort.spooled)
    source.keep = effort.block
    writer = _Writer(stage, source, plan, shards, effort, progress)
    try:
        writer.run(Threads(effort.threads))
    finally:
        writer.close()
    source.check_unchanged()


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
    write_shards(stage, source, plan, [shard for shard in shards if shard.file is None], effort, progress)
    links = Counter(link(shard.file, stage.folder / shard.name) for shard in shards if shard.file is not None)
    source.check_unchanged()
    if plan.needs_index(len(weights_of(shards))):
        write_document(stage.folder / INDEX, index_of(shards))
    for name in sides:
        copy_file(source.file(name), stage.folder / name)
    for name, value in documents.items():
        write_document(stage.folder / name, value)
    return dict(links)


@dataclass(slots=True, eq=False)
class _File:
    """A shard that is being written: the jobs to come, how many are under way, the bytes since the last flush."""

    shard: Shard
    output: Output
    jobs: Iterator[Job]
    exhausted: bool = False
    pending: int = 0
    unflushed: int = 0


@dataclass(slots=True)
class _Writer:
    """The writing of the shards of one conversion."""

    stage: Growing
    source: Source
    plan: Writers
    shards: Sequence[Shard]
    effort: Effort
    progress: Progress | None
    _is_idle: bool = True
    _done: int = 0
    _written: int = 0
    _outputs: list[Output] = field(default_factory=list)
    _missing: deque[Shard] = field(default_factory=deque)
    _flushed: deque[Future[None]] = field(default_factory=deque)
    _total: int = field(init=False)
    _own: threading.local = field(default_factory=threading.local)

    def __post_init__(self) -> None:
        self._total = sum(shard.data_size for shard in self.shards)

    def run(self, executor: Executor) -> None:
        """Write what is missing."""
        for shard in self.shards:
            if shard.name in self.stage.finished:
                self._written += 1
                self._advance(shard, shard.data_size)
            else:
                self._missing.append(shard)
        flushing = ThreadPoolExecutor(1, "qbridge-flush")
        self._is_idle = False
        try:
            running = executor.run(self._tasks(flushing), self._work)
            with contextlib.closing(running):  # type: ignore[type-var]
                for file, job in running:
                    file.pending -= 1
                    file.unflushed += job.size
                    self._advance(file.shard, job.size)
                    self._finish(file, flushing)
                    while len(self._flushed) > _FLUSHING:
                        self._flushed.popleft().result()
            while self._flushed:
                self._flushed.popleft().result()
        finally:
            flushing.shutdown()
            self._is_idle = True

    def _tasks(self, flushing: ThreadPoolExecutor) -> Iterator[tuple[_File, Job]]:
        """The jobs of all shards.

        As many shards are open as there are threads, and jobs come from them in turn: two threads that write to one
        file wait for each other in the kernel.
        """
        files: deque[_File] = deque()
        while True:
            while self._missing and len(files) < self.effort.threads:
                files.append(self._open(self._missing.popleft()))
            if not files:
                return
            file = files.popleft()
            job = next(file.jobs, None)
            if job is None:
                file.exhausted = True
                self._finish(file, flushing)
                continue
            file.pending += 1
            files.append(file)
            yield file, job

    def _open(self, shard: Shard) -> _File:
        output = FileOutput.new(self.stage.folder / shard.name)
        self._outputs.append(output)
        output.write(shard.header, 0)
        if shard.end:  # what lies between its tensors, and after the last, is zero
            output.extend(shard.end)
        _LOG.debug("begun: %s, %d bytes, %d tensors", shard.name, shard.size, len(shard.tensors))
        self._advance(shard, 0)
        return _File(shard, output, jobs_of(self.source, self.plan, shard, self.effort.block))

    def _finish(self, file: _File, flushing: ThreadPoolExecutor) -> None:
        """To the disk with a shard that is whole, and now and then with what there is of one."""
        if file.exhausted and not file.pending:
            self._written += 1
            self._advance(file.shard, 0)
            self._flushed.append(flushing.submit(self._flush, file))
        elif file.unflushed > _DIRTY and (not self._flushed or self._flushed[-1].done()):
            file.unflushed = 0
            self._flushed.append(flushing.submit(file.output.flush, whole=False))

    def _work(self, task: tuple[_File, Job]) -> None:
        file, job = task
        workspace: Workspace | None = getattr(self._own, "workspace", None)
        if workspace is None:
            workspace = self._own.workspace = Workspace()
        job.run(self.source, file.output, workspace)
        if self.effort.proof:
            wrong = job.prove(self.source, file.output, workspace)
            if wrong:
                raise error("QB403", wrong)

    def _flush(self, file: _File) -> None:
        """A finished shard to the disk, and then into the journal."""
        file.output.flush(whole=True)
        if self._is_large:
            self._forget_pages(file)
        self._outputs.remove(file.output)
        file.output.close()
        self.stage.note(file.shard.name)
        proved = "proved and " if self.effort.proof else ""
        _LOG.info("written, %sflushed: %s, %d bytes", proved, file.shard.name, file.shard.size)

    def close(self) -> None:
        """Close the files that a failure left open; not under threads that a second interrupt left at work."""
        while self._is_idle and self._outputs:
            self._outputs.pop().close()

    @property
    def _is_large(self) -> bool:
        """Whether the output would push everything else out of the page cache."""
        try:
            memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, ValueError, OSError):
            return False
        return self._total > memory // 4

    def _forget_pages(self, written: _File) -> None:
        """Tell the page cache that a finished shard and what it was made of will not be read again."""
        if not hasattr(os, "posix_fadvise"):
            return
        files: list[File | Output] = [written.output, *{tensor.shard for tensor in written.shard.tensors}]
        with contextlib.suppress(OSError):
            for file in files:
                if (descriptor := file.descriptor) is not None:
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def _advance(self, shard: Shard, size: int) -> None:
        self._done += size
        if self.progress:
            self.progress(Advance(self._done, self._total, shard.name, self._written, len(self.shards)))
