"""Conversions that are cut, interrupted or failed at their n-th step: every call that changes a disk is a step."""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
from pathlib import Path

DIED = 9
STEPS = [
    "rename",
    "unlink",
    "rmdir",
    "mkdir",
    "fsync",
    "fdatasync",
    "pwrite",
    "write",
    "ftruncate",
    "copy_file_range",
]


@contextlib.contextmanager
def stepping(number, act, after=False, names=STEPS):
    """Call `act` instead of the step with this number, or after it; the list of steps taken, which grows."""
    taken, real = [], {name: getattr(os, name) for name in names if hasattr(os, name)}

    def counted(name):
        def call(*arguments, **options):
            taken.append(name)
            now = len(taken) == number
            if now and not after:
                act()
            found = real[name](*arguments, **options)
            if now and after:
                act()
            return found

        return call

    for name in real:
        setattr(os, name, counted(name))
    try:
        yield taken
    finally:
        for name, function in real.items():
            setattr(os, name, function)


def forked(function):
    """What a child that is this process's copy ends with: DIED where it was cut, else what `function` returns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads of the test runner do not matter to the child
        child = os.fork()
    if not child:
        code = 77
        try:
            code = function()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die():
    os._exit(DIED)


def own(folder, name):
    """What of qbridge's own lies beside or inside a destination."""
    inside = folder / name
    places = [folder, inside] if inside.is_dir() else [folder]
    return [entry for place in places for entry in place.iterdir() if entry.name.startswith(f".{name}.qbridge-")]


def clear(dst):
    for entry in [dst, *own(dst.parent, dst.name)]:
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.exists():
            entry.unlink()


def visible(dst):
    """What a loader sees at a destination: every file by name, or None for nothing at all."""
    if not dst.exists():
        return None
    files = [file for file in dst.rglob("*") if file.is_file()]
    found = {str(file.relative_to(dst)): file.read_bytes() for file in files}
    return {name: data for name, data in found.items() if not name.startswith(f".{Path(dst).name}.qbridge-")}
