"""Progress on stderr: a bar on a terminal, lines of JSON for pipelines, and the word that kernels are compiled."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    Task,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from qbridge.codecs import compiling
from qbridge.write.writer import Advance

_COMPILING = "compiling kernels for this processor: once, a few seconds"


class _Amount(DownloadColumn):
    """How much is done, once it is known of how much."""

    def render(self, task: Task) -> Text:
        """Nothing while there is no plan."""
        return super().render(task) if task.total is not None else Text()


class _Speed(TransferSpeedColumn):
    """The rate, once there is one."""

    def render(self, task: Task) -> Text:
        """Nothing at first."""
        return super().render(task) if task.finished_speed or task.speed else Text()


class _Remaining(TimeRemainingColumn):
    """The time that is left, once there is a rate to tell it by."""

    def render(self, task: Task) -> Text:
        """Nothing at first."""
        return super().render(task) if task.time_remaining is not None else Text()


@contextmanager
def progress(kind: str, console: Console) -> Iterator[Callable[[Advance], None] | None]:
    """What to call as a conversion advances, for one of `PROGRESS`; auto is a bar if the console is a terminal."""
    if kind == "json":
        with compiling.announced(lambda: _write_line({"event": "compiling"})):
            yield _json_lines()
    elif kind == "auto" and console.is_terminal:
        text = TextColumn("{task.description}")
        columns = (text, BarColumn(), _Amount(), _Speed(), _Remaining())
        with Progress(*columns, console=console, transient=True) as bar, compiling_shown(bar.console):
            task = bar.add_task("planning", total=None)
            yield lambda at: bar.update(
                task,
                completed=at.bytes_done,
                total=at.bytes_total,
                description=f"shard {min(at.shards_done + 1, at.shards_total)} of {at.shards_total}",
            )
    else:
        yield None


@contextmanager
def compiling_shown(console: Console) -> Iterator[None]:
    """Say on a terminal that kernels are being compiled, when they are."""

    def show() -> None:
        if console.is_terminal:
            console.print(_COMPILING)

    with compiling.announced(show):
        yield


def _json_lines() -> Callable[[Advance], None]:
    """A line for every shard that is begun or done, and ten in a second between, with rate and remaining time."""
    start, last, shards = time.monotonic(), -1.0, -1
    resumed: int | None = None  # bytes that an earlier run has written

    def advance(at: Advance) -> None:
        nonlocal last, shards, resumed
        now = time.monotonic()
        if resumed is None:
            resumed = at.bytes_done
        if now - last < 0.1 and at.bytes_done < at.bytes_total and at.shards_done == shards:
            return
        last, shards = now, at.shards_done
        rate = (at.bytes_done - resumed) / (now - start) if at.bytes_done > resumed and now > start else None
        left = round((at.bytes_total - at.bytes_done) / rate, 1) if rate else None
        fields = {name: getattr(at, name) for name in at.__dataclass_fields__}
        speed = round(rate) if rate else None
        _write_line({"event": "progress", **fields, "bytes_per_second": speed, "seconds_left": left})

    return advance


def _write_line(event: dict[str, Any]) -> None:
    sys.stderr.write(json.dumps(event) + "\n")
