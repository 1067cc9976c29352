"""Targets: what a checkpoint is converted for. A format by its own name, or an engine at a version.

Every rule cites the package, version and file that it was read from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from qbridge.findings import error
from qbridge.formats import aliases, did_you_mean, find, registry
from qbridge.rules import Rule
from qbridge.targets import lmdeploy, transformers, vllm


@dataclass(frozen=True, slots=True)
class Target:
    """A choice of formats with the limits of who will read them.

    The first format that can hold every layer is written; if none can, the first says why.

    `transformers` are the major versions of transformers that may parse the config.
    """

    name: str
    summary: str
    formats: tuple[str, ...]
    rules: tuple[Rule, ...] = ()
    transformers: tuple[int, ...] = (4, 5)

    @property
    def engine(self) -> str:
        """The name before `@`."""
        return self.name.partition("@")[0]

    @property
    def version(self) -> str:
        """The version after `@`, or an empty string for a format."""
        return self.name.partition("@")[2]


# Newest version of each engine first; `engine` alone means that one.
_ENGINES = (
    Target(
        "lmdeploy@0.18.0",
        "LMDeploy's PyTorch engine; W8A8 as smooth-quant, W4A16 as AWQ",
        ("smooth-quant", "awq"),
        lmdeploy.rules("0.18.0"),
        lmdeploy.TRANSFORMERS,
    ),
    Target(
        "lmdeploy@0.6.2",
        "LMDeploy's PyTorch engine of November 2024; W8A8 as smooth-quant",
        ("smooth-quant",),
        lmdeploy.rules("0.6.2"),
        lmdeploy.TRANSFORMERS,
    ),
    Target("vllm@0.33.0", "vLLM; W8A8 and W4A8 as compressed-tensors", ("compressed-tensors",), vllm.RULES),
    Target(
        "transformers@5.17.0",
        "transformers with compressed-tensors installed",
        ("compressed-tensors",),
        transformers.RULES,
    ),
)


def targets() -> list[Target]:
    """Every engine at every version in the table, then every format by its own name."""
    return [*_ENGINES, *(Target(name, find(name).SUMMARY, (name,)) for name in registry())]


def _names() -> Iterator[str]:
    for target in _ENGINES:
        yield target.engine
        yield target.name
    yield from aliases()


def find_target(name: str) -> Target:
    """A target by name; `engine@X.Y` is its newest patch in the table. QBridgeError (QB030) otherwise."""
    engine, at, version = name.partition("@")
    for target in _ENGINES:
        if target.engine == engine and (not at or f"{target.version}.".startswith(f"{version}.")):
            return target
    if not at and name in aliases():
        known = aliases()[name]
        return Target(known, find(known).SUMMARY, (known,))
    raise error("QB030", name, help=did_you_mean(name, sorted(set(_names()))))


def source_formats(name: str) -> tuple[str, ...]:
    """The formats that --from NAME means: one, or those of an engine."""
    for target in _ENGINES:
        if target.engine == name:
            return target.formats
    return (find(name).NAME,)


def rules_of(target: Target, format_name: str) -> tuple[Rule, ...]:
    """The format's own limits, then the engine's."""
    return (*find(format_name).RULES, *target.rules)
