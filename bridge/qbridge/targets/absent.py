"""Packages that an engine's modules import and that are not installed: every name is there, and no function.

Loaded by path from provers, in the engine's own Python; it uses the standard library alone.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import types
from collections.abc import Sequence
from typing import Any


class _Absent(type):
    """Any attribute of an absent package is one of these: it can be subclassed and named, not used."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Absent(name, (), {})


class AbsentPackages(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds packages that are not there: their modules have every name, and no function."""

    def __init__(self, packages: Sequence[str]) -> None:
        """Stand in for packages, and all modules below them."""
        self.packages = tuple(packages)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """The spec of a module of theirs; None for any other."""
        if not f"{name}.".startswith(tuple(f"{package}." for package in self.packages)):
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: Any) -> types.ModuleType:
        """A module of which every attribute is there."""
        module = types.ModuleType(spec.name)
        made: dict[str, Any] = {"__version__": "0.28.0"}

        def attribute(name: str) -> Any:
            if name.startswith("__") and name not in made:
                raise AttributeError(name)
            return made.setdefault(name, _Absent(name, (), {}))

        module.__dict__["__getattr__"] = attribute
        module.__dict__["__version__"] = "0.28.0"
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing to run."""
