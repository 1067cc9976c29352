"""A target: the formats that may be written for a reader, with its limits on each."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from qbridge.architecture.config import ANY_READER, Reader
from qbridge.formats.rules import Rule
from qbridge.ir.model import Model
from qbridge.targets.choice import Choice
from qbridge.targets.parallel import ANY, Parallel


@dataclass(frozen=True, slots=True)
class Target:
    """The formats that may be written for a reader, with its limits on each.

    The first that can hold the model is written, unless `keeps` and the source's own can; if none can, the one with
    the fewest problems says why. `reader` is what parses config.json, `parallel` the limits on what a rank holds;
    `single_first` says that it reads model.safetensors before any index.
    """

    name: str
    summary: str
    choices: tuple[Choice, ...]
    reader: Reader = ANY_READER
    keeps: bool = False
    parallel: Parallel = ANY
    single_first: bool = False

    @property
    def engine(self) -> str:
        """The name before `@`."""
        return self.name.partition("@")[0]

    @property
    def version(self) -> str:
        """The version after `@`, or an empty string for a format."""
        return self.name.partition("@")[2]

    @property
    def formats(self) -> tuple[str, ...]:
        """The formats of its choices."""
        return tuple(choice.format for choice in self.choices)

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The engine's limits on any of its formats, as wholes and split over ranks."""
        return tuple(rule for choice in self.choices for rule in self.limits(choice, (1, 2)))

    def limits(self, choice: Choice, sizes: tuple[int, ...]) -> tuple[Rule, ...]:
        """The engine's limits on one of its formats, as a whole and split over ranks at some sizes."""
        return (*choice.rules, *(choice.parallel or self.parallel).rules(choice.format, sizes))

    def command(self, model: Model, format_name: str, path: str, tp: int) -> str:
        """The command that serves a checkpoint of one of its formats, empty where it has no server."""
        serve = next((choice.serve for choice in self.choices if choice.format == format_name), None)
        return serve(model, shlex.quote(path), tp) if serve else ""

    def in_order(self, source_format: str) -> list[Choice]:
        """Its choices, best first for a source of some format."""
        own = [choice for choice in self.choices if self.keeps and choice.format == source_format]
        return [*own, *(choice for choice in self.choices if choice not in own)]
