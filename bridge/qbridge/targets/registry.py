"""Every target by name: engines at their versions, and formats by their own names."""

from __future__ import annotations

import copyreg
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from importlib import import_module
from operator import itemgetter
from typing import Any

from qbridge.findings.arguments import typed
from qbridge.findings.catalogue import complete_by, known
from qbridge.findings.catalogue.code import Code
from qbridge.findings.finding import Findings, QBridgeError, error
from qbridge.findings.hints import did_you_mean, folded
from qbridge.formats.common_rules import no_computed_weights, plain_activations
from qbridge.formats.registry import aliases, find, named, usable
from qbridge.formats.rules import LayerRule, Rule
from qbridge.targets.choice import Choice
from qbridge.targets.messages import Message
from qbridge.targets.plugins import load, plugins
from qbridge.targets.target import Target

# Modules beside this one, each with its TARGETS; those of other packages are entry points `qbridge.targets`.
BUILTIN = ("lmdeploy", "vllm", "sglang", "gptqmodel", "transformers", "llamacpp", "mlx")
# Formats under another name, with what their dialect must be.
_VARIANTS = (
    Target(
        "gptq-v1",
        "GPTQ with zero-points of version 1, as AutoGPTQ knows them",
        (Choice(named("gptq"), dialect=(("zeros", "v1"),)),),
    ),
    Target(
        "gptq-v2",
        "GPTQ with zero-points of version 2, symmetric ones included",
        (Choice(named("gptq"), dialect=(("zeros", "v2"),)),),
    ),
)


@cache
def builtin() -> tuple[Target, ...]:
    """The engines of this package, newest version of each first."""
    modules = (import_module(f"qbridge.targets.{name}") for name in BUILTIN)
    return tuple(target for module in modules for target in module.TARGETS)


def _codes_of_engines() -> Iterator[Code]:
    for target in builtin():
        yield from target.codes


complete_by(_codes_of_engines)


def _others(findings: Findings | None = None) -> list[Target]:
    """The engines of other packages that can be imported; a warning (QB035) for each that cannot."""
    engines: list[Target] = []
    taken = _taken() if plugins() else frozenset[str]()
    for name in plugins():
        try:
            engines += load(name, taken)
        except QBridgeError as fault:
            if findings is not None:
                findings.add("QB035", name, fault.findings[0].facts)
        taken |= {target.engine for target in engines}
    return engines


def _taken() -> frozenset[str]:
    """The names that no engine of another package may have."""
    return frozenset((*(target.engine for target in (*builtin(), *_VARIANTS)), *aliases()))


def report_unusable(findings: Findings) -> None:
    """A warning (QB035) for each third party's target that cannot be imported."""
    _others(findings)


def targets() -> list[Target]:
    """Every engine at every version in the table, then every format by its own name.

    A format that an engine has the name of is not there twice: by that name the engine is meant.
    """
    engines = [*builtin(), *_others()]
    taken = {engine.engine for engine in engines}
    return [*engines, *(of_format(name) for name in usable() if name not in taken), *_VARIANTS]


def codes() -> Mapping[str, Code]:
    """Every code: those of the catalogue, then those that targets bring along, of this package and of others."""
    _others()
    return known()


def messages() -> tuple[Message, ...]:
    """What engines print when they refuse a quantized checkpoint, of this package and of others."""
    return tuple(message for target in (*builtin(), *_others()) for message in target.messages)


def of_format(name: str) -> Target:
    """A format by its id as a target, without the limits of an engine, even one of its name."""
    return Target(name, find(name).SUMMARY, (Choice(named(name)),))


def _names() -> Iterator[str]:
    for target in (*builtin(), *_others()):
        yield target.engine
        yield target.name
    yield from (target.name for target in _VARIANTS)
    yield from aliases()


def find_target(name: str) -> Target:
    """A target by name, in letters of any case; `engine@X.Y` is its newest patch in the table. Else QB030.

    Where an engine and a format have the same name it is the engine's.

    Those of other packages are imported only if none of this one has the name; QB032 if the one asked for fails.
    """
    typed("target", name, str)
    engine, at, _ = name.partition("@")
    if target := _newest(builtin(), name):
        return target
    if not at and folded(name) in {folded(each) for each in aliases()}:
        return _newest(builtin(), find(name).NAME) or of_format(find(name).NAME)
    if target := next((target for target in _VARIANTS if target.name == folded(name)), None):
        return target
    if target := _newest(_others(), name):
        return target
    if plugin := next((each for each in plugins() if folded(each) == folded(engine)), None):
        load(plugin, _taken())
    raise error("QB030", name, help=did_you_mean(name, sorted(set(_names())), "`qbridge targets`"))


def _newest(targets: Iterable[Target], name: str) -> Target | None:
    engine, at, version = folded(name).partition("@")
    for target in targets:
        if folded(target.engine) == engine and (not at or f"{target.version}.".startswith(f"{version}.")):
            return target
    return None


def neighbours(name: str) -> tuple[Target, Target] | None:
    """The releases of our tables on both sides of a version that is in none, the older one first.

    None for a name that `find_target` knows, and for a version that is older or newer than all of its engine.
    """
    engine, _, version = folded(name).partition("@")
    wanted = _numbers(version)
    if wanted is None or _newest(builtin(), name):
        return None
    releases = [
        (number, each)
        for each in builtin()
        if folded(each.engine) == engine
        for number in [_numbers(each.version)]
        if number
    ]
    older = [entry for entry in releases if entry[0] < wanted]
    newer = [entry for entry in releases if entry[0] > wanted]
    if not older or not newer:
        return None
    return max(older, key=itemgetter(0))[1], min(newer, key=itemgetter(0))[1]


def nearer(version: str, releases: tuple[Target, Target]) -> Target:
    """Which of two releases a version is nearer to, the first numbers weighing most; of equals the older one."""

    def place(text: str) -> int:
        numbers = (*(_numbers(text) or ()), 0, 0, 0, 0)
        return sum(number * 10 ** (9 * power) for number, power in zip(numbers, (3, 2, 1, 0), strict=False))

    return min(releases, key=lambda target: abs(place(version) - place(target.version)))


def _numbers(version: str) -> tuple[int, ...] | None:
    """A version as numbers; None for one that is none."""
    return tuple(map(int, version.split("."))) if re.fullmatch(r"\d{1,9}(?:\.\d{1,9})*", version) else None


def source_formats(name: str) -> tuple[str, ...]:
    """The formats that --from NAME means: one, or those of an engine."""
    wanted = folded(name)
    others = _others() if wanted not in map(folded, (*_taken(), *(each.name for each in builtin()))) else []
    for target in (*builtin(), *_VARIANTS, *others):
        if wanted in (folded(target.engine), folded(target.name)):
            return target.formats
    return (find(name).NAME,)


def rules_of(target: Target, choice: Choice, sizes: tuple[int, ...] = (1,)) -> tuple[Rule, ...]:
    """The format's own limits, then the engine's, then those of a rank at some tensor-parallel sizes.

    A format that does not say `KEEPS_INPUT_DETAILS` has no word for a limit of inputs, or for how scales are rounded;
    one that does not say `TAKES_COMPUTED_WEIGHTS` has codes with one scale each.
    """
    format_ = choice.format
    page = f"docs/formats, the page of {format_.NAME}"
    plain: tuple[Rule, ...] = ()
    if not getattr(format_, "TAKES_COMPUTED_WEIGHTS", False):
        plain = (no_computed_weights(page),)
    if not getattr(format_, "KEEPS_INPUT_DETAILS", False):
        plain = (*plain, plain_activations(format_.NAME, page))
    rules = (*plain, *format_.RULES, *target.limits(choice, sizes))
    return tuple(sorted(rules, key=lambda rule: not (isinstance(rule, LayerRule) and rule.first)))


def _by_name(target: Target) -> str | tuple[Callable[..., Any], tuple[Any, ...]]:
    """How a target is pickled: by its name where that finds it again, because rules may be closures."""
    for named_by in (of_format, find_target):
        with suppress(QBridgeError):  # a name that is in no table
            if named_by(target.name) == target:
                return named_by, (target.name,)
    return target.__reduce_ex__(2)


copyreg.pickle(Target, _by_name)
