"""`report=FILE` of a command: a page of its result, or of what stopped it, beside what it answers."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from qbridge.commands.results import Result, display
from qbridge.findings.finding import QBridgeError, error, io_as_finding

P = ParamSpec("P")
R = TypeVar("R", bound=Result)

PAGE = b"<!doctype html>"  # how a page begins, so that no other file is replaced


def with_report(subject: str, written: str = "") -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Give a command the argument `report`, the file of a page, which is written anew where it is a page already.

    `subject` is the argument that names the checkpoint which is drawn; what was `written` at another one is drawn
    instead. Raises QBridgeError: QB804 before anything is done where no page can be written there.
    """

    def decorated(command: Callable[P, R]) -> Callable[P, R]:
        called = signature(command)

        @wraps(command)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            given = called.bind(*args, **kwargs)
            given.apply_defaults()
            asked = given.arguments
            if asked["report"] is None:
                return command(*args, **kwargs)
            file = Path(asked["report"])
            _check_writable(file)
            opening: tuple[Any, ...] = (asked[subject], asked.get("source"), asked["allow"])
            try:
                result = command(*args, **kwargs)
            except QBridgeError as fault:
                write(file, display().refusal_page(command.__name__, fault, *opening))
                raise
            if written and not asked.get("dry_run"):
                opening = (asked[written], None, ())
            write(file, display().page(result, *opening))
            return result

        return run

    return decorated


def _check_writable(file: Path) -> None:
    """QB804 where a page cannot be written, or would take the place of something else."""
    with io_as_finding(str(file)):
        if not file.parent.is_dir():
            raise error("QB804", str(file), (f"{file.parent} is no folder",))
        if not file.exists():
            return
        if not file.is_file() or file.read_bytes()[: len(PAGE)] != PAGE:
            raise error("QB804", str(file), ("it exists, and is no page",))


def write(file: Path, page: str) -> None:
    """A page in the place of the one before it; never half of one."""
    part = file.with_name(f".{file.name}.{os.getpid()}")
    with io_as_finding(str(file)):
        try:
            part.write_text(page, "utf-8")
            part.replace(file)
        finally:
            with suppress(FileNotFoundError):
                part.unlink()
