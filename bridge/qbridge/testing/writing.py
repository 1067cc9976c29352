"""The laws of outputs and executors, shipped so that those of another package test themselves; one of each kind.

from qbridge.testing import check_output, check_executor
def test_laws(tmp_path): check_output(MyOutput(tmp_path / "file")); check_executor(MyExecutor())"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import numpy as np

from qbridge.ir.dtypes import Array
from qbridge.write.executor import Executor, Task
from qbridge.write.output import Output


class MemoryOutput(Output):
    """A file in memory."""

    def __init__(self) -> None:
        """It is empty."""
        self.data, self._lock = bytearray(), threading.Lock()

    def write(self, data: bytes | memoryview, offset: int) -> None:
        """Write every byte at its place."""
        with self._lock:
            self._extend(offset + len(data))
            self.data[offset : offset + len(data)] = data

    def read_into(self, offset: int, buffer: Array) -> bool:
        """Fill `buffer` (bytes) from an offset; whether it has that many."""
        with self._lock:
            part = bytes(self.data[offset : offset + buffer.nbytes])
        if len(part) < buffer.nbytes:
            return False
        buffer[:] = np.frombuffer(part, np.uint8)
        return True

    def extend(self, size: int) -> None:
        """Have so many bytes at least."""
        with self._lock:
            self._extend(size)

    def _extend(self, size: int) -> None:
        self.data.extend(bytes(max(0, size - len(self.data))))

    def flush(self, whole: bool) -> None:
        """Nothing outlasts the process."""

    def close(self) -> None:
        """`data` stays."""


class Inline(Executor):
    """Does each task when it is asked for, in the thread that asks."""

    def run(self, tasks: Iterable[Task], work: Callable[[Task], None]) -> Iterator[Task]:
        """As `Executor.run`."""
        for task in tasks:
            work(task)
            yield task


def check_output(output: Output) -> None:
    """The laws of an output that is empty; AssertionError names the law that is broken. It is closed at the end.

    What several threads write at any places is there, byte for byte, before and after a flush; what nobody wrote
    below an end is zero, and what lies beyond the end is not read.
    """
    wanted = np.random.default_rng(1).integers(0, 256, 100_000, np.uint8)
    pieces = [(begin, min(begin + 777, wanted.size)) for begin in range(0, wanted.size, 777)]
    with ThreadPoolExecutor(4) as working:
        list(working.map(lambda piece: output.write(wanted[piece[0] : piece[1]].data, piece[0]), reversed(pieces)))
    for whole in (False, True):
        found = np.empty_like(wanted)
        _require(output.read_into(0, found) and np.array_equal(found, wanted), "what was written is not there")
        output.flush(whole)
    part = np.empty(10, np.uint8)
    _require(output.read_into(50, part) and np.array_equal(part, wanted[50:60]), "a range is not that of the file")
    _require(not output.read_into(wanted.size - 5, part), "a range beyond the end is read")
    output.extend(wanted.size + 10)
    _require(output.read_into(wanted.size, part) and not part.any(), "what nobody wrote is not zero")
    output.extend(5)
    _require(output.read_into(wanted.size, part), "extend() makes it shorter")
    output.close()


def check_executor(executor: Executor) -> None:
    """The laws of an executor; AssertionError names the law that is broken.

    Every task is done once before it is given, in the order of the tasks, which are taken as there is room. A fault
    is raised, and after it, or after `close`, no other task is begun.
    """
    done: list[int] = []
    taken: list[int] = []

    def tasks() -> Iterator[int]:
        for number in range(200):
            taken.append(number)
            yield number

    given = []
    for number in executor.run(tasks(), done.append):
        _require(number in done, "a task is given before it is done")
        given.append(number)
        _require(len(taken) <= len(given) + 100, "all tasks are taken at once")
    _require(given == list(range(200)) and sorted(done) == given, "a task is lost, done twice, or out of its turn")
    _require(list(executor.run(iter(()), done.append)) == [], "it gives a task where there is none")
    _check_ends(executor)


def _check_ends(executor: Executor) -> None:
    """What a fault and `close` do."""
    begun: list[int] = []

    def work(number: int) -> None:
        begun.append(number)
        if number == 3:
            raise ValueError(number)

    given: list[int] = []
    try:
        given.extend(executor.run(iter(range(1000)), work))
    except ValueError as fault:
        _require(fault.args == (3,), "another fault is raised")
    else:
        raise AssertionError("a fault is not raised")
    _require(len(begun) < 1000, "tasks are begun after a fault")
    ended, before = len(begun), threading.active_count()
    running = cast("Generator[int]", executor.run(iter(range(4, 1000)), begun.append))
    next(running)
    running.close()
    _require(len(begun) - ended < 900, "tasks are begun after it was closed")
    _require(threading.active_count() <= before, "work goes on after it was closed")


def _require(holds: bool, law: str) -> None:
    if not holds:
        raise AssertionError(law)
