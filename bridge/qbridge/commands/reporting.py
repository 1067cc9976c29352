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
from qbridge.findings.extras import imported
from qbridge.findings.finding import QBridgeError, error, io_as_finding

P = ParamSpec("P")
R = TypeVar("R", bound=Result)

# How a report begins, by the ending of its file, so that no other file is replaced.
PAGE, IMAGE = b"<!doctype html>", b"\x89PNG\r\n\x1a\n"
_IMAGE_ENDING = ".png"


def with_report(subject: str, written: str = "") -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Give a command the argument `report`, the file of a page, which is written anew where it is a page already.

    FILE.png gets the map of the layers as an image instead, which Pillow draws.

    `subject` is the argument that names the checkpoint which is drawn; what was `written` at another one is drawn
    instead. Raises QBridgeError before anything is done: QB804 where no page can be written there, QB603
    without Pillow.
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
            image = file.suffix.lower() == _IMAGE_ENDING
            _check_writable(file, IMAGE if image else PAGE)
            if image:
                imported("PIL", "image", "it draws FILE.png of --report")
            shown = display().image if image else display().page
            opening: tuple[Any, ...] = (asked[subject], asked.get("source"), asked["allow"])
            try:
                result = command(*args, **kwargs)
            except QBridgeError as fault:
                write(file, shown(fault, command.__name__, *opening))
                raise
            if written and not asked.get("dry_run"):
                opening = (asked[written], None, ())
            write(file, shown(result, command.__name__, *opening))
            return result

        return run

    return decorated


def _check_writable(file: Path, beginning: bytes) -> None:
    """QB804 where a report cannot be written, or would take the place of something else."""
    with io_as_finding(str(file)):
        if not file.parent.is_dir():
            raise error("QB804", str(file), (f"{file.parent} is no folder",))
        if not file.exists():
            return
        if not file.is_file() or file.read_bytes()[: len(beginning)] != beginning:
            kind = "image" if beginning == IMAGE else "page"
            raise error("QB804", str(file), (f"it exists, and is no {kind}",))


def write(file: Path, page: bytes) -> None:
    """A report in the place of the one before it; never half of one."""
    part = file.with_name(f".{file.name}.{os.getpid()}")
    with io_as_finding(str(file)):
        try:
            part.write_bytes(page)
            part.replace(file)
        finally:
            with suppress(FileNotFoundError):
                part.unlink()
