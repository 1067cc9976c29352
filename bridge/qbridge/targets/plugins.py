"""Targets of other packages: the entry points `qbridge.targets`, each of which names a module with `TARGETS`.

A module brings engines of its own, each as `engine@version`. The codes of its rules are ours (QB...) or its own,
which begin with the engine's name: `TOY-001` of an engine `toy`. What its rules raise is its error (QB032).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import cache
from importlib import import_module
from typing import Any

from qbridge.findings.catalogue import known, register
from qbridge.findings.catalogue.code import ALLOW, Code
from qbridge.formats.plugins import blamed, installed
from qbridge.formats.rules import LayerRule, ModelRule, Rule
from qbridge.targets.choice import Choice
from qbridge.targets.messages import fault
from qbridge.targets.target import Target


@cache
def plugins() -> Mapping[str, str]:
    """The modules of other packages by the names of their entry points."""
    return installed("qbridge.targets")


@cache
def load(name: str, taken: frozenset[str]) -> tuple[Target, ...]:
    """The targets that an entry point brings, none of whose engines may be `taken`; QBridgeError (QB032) if not."""
    module = plugins()[name]
    with blamed(name, module):
        targets = import_module(module).TARGETS
        fault = next(iter(faults(targets, taken)), None)
        if fault:
            raise ValueError(fault)
        for target in targets:
            register(target.codes)
        return tuple(_guarded(target, name, module) for target in targets)


def faults(targets: Any, taken: Collection[str] = ()) -> list[str]:
    """What is wrong with a module's `TARGETS`, as far as it shows without a model.

    Codes that are registered already may be used, and brought by whoever registered them.
    """
    if not isinstance(targets, tuple) or not targets or not all(isinstance(target, Target) for target in targets):
        return ["TARGETS is not a tuple of qbridge.targets.Target"]
    engines = {target.engine for target in targets}
    codes = {entry.code for target in targets for entry in target.codes} | known().keys()
    wrong = [
        f"{target.name!r} is not engine@version" for target in targets if not target.engine or not target.version
    ]
    wrong += [f"{engine} is the name of another target or format" for engine in sorted(engines & set(taken))]
    for target in targets:
        wrong += [why for entry in target.codes if (why := _code_fault(entry, engines))]
        wrong += [why for message in target.messages if (why := fault(message))]
        fired = {rule.code for rule in target.rules}
        wrong += [f"no entry of its codes explains {code}" for code in sorted(fired - codes)]
    return wrong


def _code_fault(entry: Code, engines: Collection[str]) -> str:
    """Why a code cannot be a target's own, or an empty string."""
    ours = known().get(entry.code) is entry  # an engine of this package
    if not ours and not any(re.fullmatch(rf"{re.escape(engine.upper())}-\d+", entry.code) for engine in engines):
        return f"{entry.code} is not a code of its own, such as {min(engines).upper()}-001"
    if entry.allow is not None and entry.allow not in ALLOW:
        return f"{entry.code}: no word of --allow is {entry.allow}"
    return ""


def _guarded(target: Target, name: str, module: str) -> Target:
    """A target whose exceptions are findings that name it."""

    def rule(one: Rule) -> Rule:
        if isinstance(one, LayerRule):
            return replace(one, check=_call(one.check, name, module), fix=_call(one.fix, name, module))
        if isinstance(one, ModelRule):
            drop = _call(one.drop, name, module) if one.drop else None
            return replace(one, check=_call(one.check, name, module, list), drop=drop)
        return replace(one, check=_call(one.check, name, module, list, OSError))  # it reads the source

    def choice(one: Choice) -> Choice:
        serve = _call(one.serve, name, module) if one.serve else None
        return replace(one, rules=tuple(map(rule, one.rules)), serve=serve)

    kernels = _call(target.kernels, name, module, list) if target.kernels else None
    messages = tuple(replace(one, derive=_call(one.derive, name, module)) for one in target.messages)
    return replace(target, choices=tuple(map(choice, target.choices)), kernels=kernels, messages=messages)


def _call(
    function: Callable[..., Any],
    name: str,
    module: str,
    whole: Callable[[Any], Any] = lambda result: result,
    *passed: type[Exception],
) -> Callable[..., Any]:
    """A function that blames its plugin; `whole` runs a generator to its end while it can be blamed."""

    def guarded(*arguments: Any) -> Any:
        with blamed(name, module, *passed):
            return whole(function(*arguments))

    return guarded
