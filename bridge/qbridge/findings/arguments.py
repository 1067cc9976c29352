"""Arguments of public calls: a value of another type is said (QB802), never taken for something else."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import wraps
from inspect import signature
from typing import ParamSpec, TypeVar

from qbridge.findings.finding import ArgumentTypeError, Findings

P = ParamSpec("P")
R = TypeVar("R")

_NONE = type(None)
_PATH = (str, os.PathLike)
# By parameter; those of `Options` are checked by it.
KINDS: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(("src", "dst", "a", "b", "graft", "original"), _PATH),
    **dict.fromkeys(("source", "format"), (str, _NONE)),
    **dict.fromkeys(("target", "gpu", "text", "engine", "python", "emulate", "executor"), (str,)),
    **dict.fromkeys(("dry_run", "overwrite", "public", "pr", "link", "strict", "plans", "values"), (bool,)),
    "max_shard_size": (int, _NONE),
    "report": (*_PATH, _NONE),
}


def typed(name: str, value: object, *kinds: type) -> None:
    """QBridgeError (QB802), a TypeError too, for an argument that is none of some types; True is no number."""
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join("None" if kind is _NONE else kind.__name__ for kind in kinds)
        raise wrong_type(f"{name} is {value!r}, not {wanted}")


def wrong_type(fact: str) -> ArgumentTypeError:
    """The error for an argument of another type."""
    findings = Findings()
    findings.add("QB802", facts=(fact,))
    return ArgumentTypeError(findings)


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """A public function that checks the types of its arguments before anything is read."""
    called = signature(function)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        for name, value in called.bind(*args, **kwargs).arguments.items():
            if value is None and called.parameters[name].default is None:
                continue
            if name in KINDS:
                typed(name, value, *KINDS[name])
            elif name == "progress" and not callable(value):
                raise wrong_type(f"progress is {value!r}, no function of an Advance")
        return function(*args, **kwargs)

    return call
