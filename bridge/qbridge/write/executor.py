"""Who does the jobs of a conversion: a seam, of which the threads of this process are the first kind."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Protocol, TypeVar

Task = TypeVar("Task")

WAITING = 2  # tasks for each thread that are taken before they are done


class Executor(Protocol):
    """Works on tasks, each independent of all others."""

    def run(self, tasks: Iterable[Task], work: Callable[[Task], None]) -> Iterator[Task]:
        """Work on every task, and give each in turn once it is done.

        Tasks are taken in this thread, few at a time, and given in the order in which they were taken. The first
        fault of `work` is raised in place of its task, and no other task is begun then, nor where the caller stops
        asking (`close`). Whatever ends it, no work goes on afterwards.
        """


class Threads(Executor):
    """Threads of this process."""

    def __init__(self, count: int) -> None:
        """So many at a time."""
        self._count = count

    def run(self, tasks: Iterable[Task], work: Callable[[Task], None]) -> Iterator[Task]:
        """As `Executor.run`; two tasks wait for each thread."""
        waiting: deque[tuple[Task, Future[None]]] = deque()
        stopping, left = threading.Event(), iter(tasks)

        def begun(task: Task) -> None:
            if not stopping.is_set():
                work(task)

        working = ThreadPoolExecutor(self._count, "qbridge")
        try:
            while True:
                for task in islice(left, WAITING * self._count - len(waiting)):
                    waiting.append((task, working.submit(begun, task)))
                if not waiting:
                    return
                task, future = waiting.popleft()
                future.result()
                yield task
        except BaseException:
            stopping.set()  # tasks that wait are not begun
            raise
        finally:
            working.shutdown()
