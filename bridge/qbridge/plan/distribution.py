"""What is installed: this project's version, and another project whose files may lie among its own.

The distribution is called qbridge-llm, for `qbridge` on PyPI is another project, whose import package has the same
name (qbridge 0.5.1: qbridge/__init__.py and folders beside it).
"""

from __future__ import annotations

from importlib.metadata import Distribution, PackageNotFoundError, distribution, version
from pathlib import Path

NAME = "qbridge-llm"
NAMESAKE = "qbridge"


def qbridge_version() -> str:
    """The installed version."""
    try:
        return version(NAME)
    except PackageNotFoundError:
        return "unknown"


def namesake() -> str:
    """The version of the other project, if its files lie in this package's folder; otherwise an empty string."""
    try:
        other = distribution(NAMESAKE)
    except PackageNotFoundError:
        return ""
    return other.version if _lies_here(other) else ""


def _lies_here(other: Distribution) -> bool:
    """Whether the other project installed files into the folder of this one."""
    if not any(file.parts[0] == NAMESAKE for file in other.files or ()):
        return False
    there = Path(str(other.locate_file(NAMESAKE)))
    return there.resolve() == Path(__file__).resolve().parent.parent
