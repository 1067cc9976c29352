"""Which packages of this environment differ from the pins: python tests/house/moved.py constraints.txt."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version


def pins(file: Path) -> dict[str, str]:
    """The version that a constraints file gives each package in this Python on this machine."""
    lines = (line.partition("#")[0].strip() for line in file.read_text().splitlines())
    wanted = [Requirement(line) for line in lines if line]
    return {
        canonicalize_name(each.name): next(iter(each.specifier)).version
        for each in wanted
        if each.marker is None or each.marker.evaluate()
    }


def environment(project: str, extra: str) -> dict[str, str]:
    """The installed version of every package that a project and its extra need, whatever asked for it."""
    seen: dict[str, str] = {}
    waiting = [(project, frozenset({extra}))]
    asked = set(waiting)
    while waiting:
        name, extras = waiting.pop()
        for need in _needs(name, extras):
            entry = canonicalize_name(need.name), frozenset(need.extras)
            if entry in asked:
                continue
            asked.add(entry)
            try:
                seen[entry[0]] = Version(version(need.name)).public
            except PackageNotFoundError:  # torch's packages for CUDA, which its CPU build does not bring
                continue
            waiting.append(entry)
    return {name: number for name, number in seen.items() if name != canonicalize_name(project)}


def _needs(name: str, extras: frozenset[str]) -> Iterator[Requirement]:
    for line in requires(name) or ():
        need = Requirement(line)
        if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield need


def moved(pinned: Mapping[str, str], installed: Mapping[str, str]) -> list[str]:
    """A line for each package that is not of the pinned version."""
    return [
        f"{name} {pinned.get(name, 'unpinned')} -> {number}"
        for name, number in sorted(installed.items())
        if pinned.get(name) != number
    ]


if __name__ == "__main__":
    lines = moved(pins(Path(sys.argv[1])), environment("qbridge-llm", "dev"))
    print("\n".join(lines) if lines else "nothing moved: every package is of its pinned version")
