"""A target: the formats that may be written for a reader, with its limits on each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from qbridge.architecture.config import ANY_READER, Reader
from qbridge.findings.catalogue.code import Code
from qbridge.findings.hints import one_line, word_of_command
from qbridge.formats.rules import Rule
from qbridge.ir.model import Model
from qbridge.targets.choice import Arrange, Choice
from qbridge.targets.derivation import Derivation
from qbridge.targets.experts import as_named, as_taken
from qbridge.targets.fusion import Groups
from qbridge.targets.messages import Message
from qbridge.targets.parallel import ANY, Parallel
from qbridge.targets.serving import Served

# What serves each kind of linear of a model: by version, tensor-parallel size and compute capability (80 for 8.0).
Kernels = Callable[[Model, str, int, int], Sequence[Served]]


@dataclass(frozen=True, slots=True, repr=False)
class Target:
    """The formats that may be written for a reader, with its limits on each.

    The first that can hold the model is written, unless `keeps` and the source's own can; if none can, the one with
    the fewest problems says why. `reader` is what parses config.json, `parallel` the limits on what a rank holds;
    `single_first` says that it reads model.safetensors before any index; `as_is` are formats that it loads too, and
    that are never written for it. `kernels` says which kernel serves each kind of linear, None where nobody knows.
    `derivation` says what it builds from a config.json, None where nobody has read that.
    `codes` are the catalogue entries of the findings that its rules alone have.
    `messages` are what any of its releases prints when it refuses a quantized checkpoint, with cause and cure; the
    newest brings them. `prover` is the path of a script that is run by the Python of the engine's own environment,
    and proves that the engine loads a folder; None where there is none; `prover_options` are what it is run with for
    this target. `experts` says how unquantized experts that
    lie in some way must be stored instead; None where any way will do. `renames` are classes whose loader takes
    linears of experts under either of the names that classes have for them; a reader may take the names that they
    have `in_memory`. `towers_by_index` are classes that it builds a tower of only where the index names tensors of
    one, so that a single file needs an index. `backends` are the engines among which it chooses by itself, by the
    word that names one, each with its own limits.
    """

    name: str
    summary: str
    choices: tuple[Choice, ...]
    reader: Reader = ANY_READER
    keeps: bool = False
    parallel: Parallel = ANY
    single_first: bool = False
    as_is: tuple[Choice, ...] = ()
    kernels: Kernels | None = None
    codes: tuple[Code, ...] = ()
    derivation: Derivation | None = None
    messages: tuple[Message, ...] = ()
    prover: Path | None = None
    prover_options: tuple[str, ...] = ()
    experts: Arrange | None = None
    renames: frozenset[str] = frozenset()
    in_memory: bool = False
    towers_by_index: frozenset[str] = frozenset()
    backends: Mapping[str, Target] = field(default_factory=dict)

    def __repr__(self) -> str:
        return one_line(self, f"{self.name}, {', '.join(dict.fromkeys(self.formats))}")

    @property
    def engine(self) -> str:
        """The name before `@`."""
        return self.name.partition("@")[0]

    @property
    def version(self) -> str:
        """The version after `@`, or an empty string for a format."""
        return self.name.partition("@")[2]

    @property
    def is_format(self) -> bool:
        """Whether it is a format by its own name, and no engine."""
        return not self.version

    @property
    def is_called_as_format(self) -> bool:
        """Whether its name is that of a format, which for an engine of the same name is meant as well."""
        return self.is_format or self.engine in self.formats

    def fused(self, architecture: str) -> Groups:
        """The last names of the linears that it builds as one in a model class, by the name of what it builds."""
        return self.parallel.fused.of(architecture)

    @property
    def formats(self) -> tuple[str, ...]:
        """The formats of its choices, by their ids."""
        return tuple(choice.format.NAME for choice in self.choices)

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The engine's limits on any of its formats, as wholes and split over ranks."""
        return tuple(rule for choice in (*self.choices, *self.as_is) for rule in self.limits(choice, (1, 2)))

    def arrangement(self, choice: Choice, model: Model, lies: str) -> str:
        """How unquantized experts that lie in some way must be stored in one of its formats; empty: as they are."""
        arrange = choice.experts or self.experts or getattr(choice.format, "experts", None)
        return arrange(model, lies) if arrange else ""

    def limits(self, choice: Choice, sizes: tuple[int, ...]) -> tuple[Rule, ...]:
        """The engine's limits on one of its formats, as a whole and split over ranks at some sizes."""
        return (*self.whole_limits(choice), *self.rank_limits(choice, sizes))

    def whole_limits(self, choice: Choice) -> tuple[Rule, ...]:
        """Of these limits those that no size changes: the format's, how experts are stored, and their names."""
        arrange, source = choice.experts or self.experts, f"{self.name}, its loaders of experts"
        experts = (as_taken(arrange, source), as_named(self.renames, source, self.in_memory)) if arrange else ()
        return (*choice.rules, *experts)

    def rank_limits(self, choice: Choice, sizes: tuple[int, ...]) -> tuple[Rule, ...]:
        """Of these limits those that depend on how ranks share the model."""
        return (choice.parallel or self.parallel).rules(choice.format.NAME, sizes)

    def command(self, model: Model, format_name: str, path: str, tp: int, first: str = "") -> str:
        """The command that serves a checkpoint of one of its formats, empty where it has no server.

        `path` is its folder, or its file; `first` the name of the first file of its weights.
        """
        choice = self.choice_of(format_name)
        if not choice or not choice.serve:
            return ""
        if choice.served_file and not path.endswith(first):
            path = f"{path.rstrip('/')}/{first}"
        return choice.serve(model, word_of_command(path), tp)

    def choice_of(self, format_name: str) -> Choice | None:
        """Its first choice of a format, None if it does not load the format."""
        both = (*self.choices, *self.as_is)
        return next((choice for choice in both if format_name == choice.format.NAME), None)

    def in_order(self, source_format: str) -> list[Choice]:
        """Its choices, best first for a source of some format."""
        spare = [choice for choice in self.choices if choice.spare]
        usual = [choice for choice in self.choices if not choice.spare]
        own = [choice for choice in usual if self.keeps and source_format == choice.format.NAME]
        return [*own, *(choice for choice in usual if choice not in own), *spare]

    def serving(self, model: Model, tp: int, capability: int) -> Sequence[Served]:
        """What serves each kind of linear on a GPU; nothing where its kernels are in no table."""
        return self.kernels(model, self.version, tp, capability) if self.kernels else ()
