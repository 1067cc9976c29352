"""One format that a target may be given."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass

from qbridge.formats.protocol import Format
from qbridge.formats.rules import Rule
from qbridge.ir.model import Model
from qbridge.ir.scheme import Dialect
from qbridge.targets.parallel import Parallel

# The command that starts an engine's server on a folder (a quoted path) at a tensor-parallel size.
Serve = Callable[[Model, str, int], str]

# Of a model, and how the unquantized experts of a layer lie: FUSED or SEPARATE of `architecture.experts`, or nothing.
Arrange = Callable[[Model, str], str]


def python_path(path: str) -> str:
    """A path that is quoted for a shell as a literal of Python."""
    return repr(shlex.split(path)[0])


@dataclass(frozen=True, slots=True)
class Choice:
    """A format with the engine's limits on it.

    `format` is one as `qbridge.formats.registry.named` gives it, which imports nothing before it is asked. `dialect`
    is what the format shall choose where it leaves a choice, `dtype` the one that config.json must name. What is
    found of the codes of `avoided` lets the target's other formats be tried first. `parallel` stands for the target's
    limits on what a rank holds where another of its engines loads the format. `serve` gives the command that serves
    the checkpoint, or two lines of Python where there is no server. `experts` stands for what the target says of
    unquantized experts. A `spare` one is written only where no other can hold the model, also where it is the
    source's own format. `served_file`: `serve` is given the first file of the weights, not their folder.
    """

    format: Format
    rules: tuple[Rule, ...] = ()
    dialect: Dialect = ()
    dtype: str = ""
    avoided: frozenset[str] = frozenset()
    parallel: Parallel | None = None
    serve: Serve | None = None
    spare: bool = False
    experts: Arrange | None = None
    served_file: bool = False
