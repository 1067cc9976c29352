"""Modules of other packages, found by entry points: whatever one of them raises becomes an error that names it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import entry_points

from qbridge.findings.finding import QBridgeError, error


def installed(group: str) -> Mapping[str, str]:
    """The names of a group's entry points to the modules that they name; of two of a name, the first."""
    modules: dict[str, str] = {}
    for point in entry_points(group=group):
        modules.setdefault(point.name, point.value)
    return modules


def clashes(group: str, taken: Collection[str]) -> Iterator[tuple[str, str]]:
    """(name, module) of a group's entry points that are never asked, because another has their name."""
    seen = dict.fromkeys(taken, "")
    for point in entry_points(group=group):
        if seen.setdefault(point.name, point.value) != point.value:
            yield point.name, point.value


@contextmanager
def blamed(name: str, module: str, *passed: type[Exception]) -> Iterator[None]:
    """Turn whatever a plugin's module raises into a QBridgeError (QB032) with its name; those of `passed` stay."""
    harmless: tuple[type[Exception], ...] = (QBridgeError, *passed)
    try:
        yield
    except harmless:
        raise
    except (Exception, SystemExit) as fault:
        raise error("QB032", name, (module, f"{type(fault).__name__}: {fault}")) from fault
