"""Packages that an engine imports and that are not installed: their modules have every name, and no function.

An engine imports the class of a multimodal model with all that its images need, also where none is ever read. This
module is loaded by path and uses the standard library alone, as proving.py does.
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
    """Finds the modules of packages that are not there; it is put into `sys.meta_path`."""

    def __init__(self, packages: Sequence[str]) -> None:
        """Find the modules of these packages, and no others."""
        self.packages = tuple(packages)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """The spec of a module that lies in one of the packages; None for any other."""
        if not f"{name}.".startswith(tuple(f"{package}." for package in self.packages)):
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: Any) -> types.ModuleType:
        """A module that has any name that is asked of it."""
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
