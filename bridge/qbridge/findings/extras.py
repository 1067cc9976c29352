"""Packages that only some commands need: what to install where one is missing."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from qbridge.findings.finding import error


def install(extra: str) -> str:
    """The sentence that says how an extra of this distribution is installed."""
    return f"Install it: pip install 'qbridge-llm[{extra}]'"


def imported(package: str, extra: str, purpose: str) -> ModuleType:
    """A package that the base installation lacks; `purpose` says what it is needed for.

    Raises QBridgeError (QB603) with the extra to install where it cannot be imported.
    """
    try:
        return import_module(package)
    except ImportError as fault:
        absent = (
            isinstance(fault, ModuleNotFoundError)
            and (fault.name or "").partition(".")[0] == package.partition(".")[0]
        )
        fact = "it is not installed" if absent else f"it cannot be imported: {fault}"
        raise error("QB603", package, (f"{fact}; {purpose}",), fix=install(extra)) from None
