"""Packages that an engine imports and that are not installed: their modules have every name, and no function.

An engine imports the class of a multimodal model with all that its images need, and compiled kernels, also where none
is ever called. Any name in an absent package can be subclassed, called, used as a decorator or added up, and does
nothing. This module is loaded by path and uses the standard library alone, as proving.py does.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import types
from collections.abc import Iterator, Sequence
from typing import Any

_OPERATORS = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "or", "and", "xor", "lshift", "rshift")


class _Names(type):
    """Gives a class for every name that is asked for, so that a class may have several of them as its bases."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Names(name, (Nothing,), {})

    def __getitem__(cls, item: Any) -> Any:
        return cls

    def __iter__(cls) -> Iterator[Any]:
        return iter(())  # members of an enum: without this, __getitem__ gives one after another for ever


class Nothing(metaclass=_Names):
    """Any class, function, decorator or constant of an absent package."""

    def __init__(self, *args: Any, **options: Any) -> None:
        """Take anything."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        """What it decorates, or itself."""
        return args[0] if len(args) == 1 and callable(args[0]) else self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Nothing()


def _itself(self: Any, other: Any) -> Any:
    return Nothing


for _operator in _OPERATORS:
    for _method in (f"__{_operator}__", f"__r{_operator}__"):
        setattr(_Names, _method, _itself)
        setattr(Nothing, _method, _itself)


def is_absent(value: Any) -> bool:
    """Whether something is a name of an absent package."""
    return isinstance(value, Nothing) or (isinstance(value, type) and issubclass(value, Nothing))


class AbsentPackages(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the modules of packages that are not there; it is put into `sys.meta_path`."""

    def __init__(self, packages: Sequence[str], version: str = "0.28.0", replaced: Sequence[str] = ()) -> None:
        """Find the modules of these packages, and no others.

        All say that they are of a `version`. Modules whose names end as `replaced` have no name: an engine has its
        own where it cannot import one.
        """
        self.packages = tuple(f"{package}." for package in packages)
        self.version, self.replaced = version, tuple(replaced)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """The spec of a module that lies in one of the packages; None for any other."""
        if not f"{name}.".startswith(self.packages):
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: Any) -> types.ModuleType:
        """A module that has any name that is asked of it."""
        module = types.ModuleType(spec.name)
        made: dict[str, Any] = {}

        def attribute(name: str) -> Any:
            if name.startswith("__") or spec.name.endswith(self.replaced or "\0"):
                raise AttributeError(name)
            return made.setdefault(name, getattr(Nothing, name))

        module.__path__ = []
        module.__dict__["__getattr__"] = attribute
        module.__dict__["__version__"] = self.version
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing to run."""
