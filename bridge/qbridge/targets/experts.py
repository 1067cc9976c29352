"""Experts as an engine takes them: unquantized ones one by one or in shared tensors, single ones by their names."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from qbridge.architecture.architecture import Architecture
from qbridge.architecture.experts import LIES, Experts, is_of_other_block, rearrangements, under_class_name
from qbridge.architecture.names import is_routed
from qbridge.formats.rules import LayerRule, ModelRule, Problem
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.targets.choice import Arrange

_NUMBER = re.compile(r"\.\d+(?=\.|$)")


def as_taken(arrange: Arrange, source: str) -> ModelRule:
    """Unquantized experts must lie as an engine takes those of the class (QB336)."""

    def check(model: Model) -> Iterator[Problem]:
        alike: dict[tuple[str, str], list[str]] = {}
        for block, (experts, wanted) in rearrangements(model, lambda lies: arrange(model, lies)).items():
            if isinstance(wanted, Experts):
                alike.setdefault((experts.lies, wanted.lies), []).append(block)
        for (lies, how), blocks in alike.items():
            fact = f"they are stored {LIES[lies]}: it takes those of {model.architecture} {LIES[how]}"
            yield Problem((fact,), where=tuple(blocks))

    return ModelRule("QB336", check, source)


def as_named(renames: Collection[str], source: str, in_memory: bool = False) -> LayerRule:
    """Single experts must have the names of the model's class (QB337), or those of its modules `in_memory`.

    Loaders of the classes in `renames` know the linears by either of the names that classes have for them.
    """

    def check(spec: Spec, model: Model) -> Problem | None:
        dialect = dict(spec.dialect)
        if not is_routed(spec.name) or "experts" in dialect:
            return None
        stored, architecture = dialect.get("stored_as", spec.name), Architecture.of_model(model)
        wrong = stored.rpartition(".")[2].isdigit() or (not in_memory and is_of_other_block(stored, architecture))
        if model.architecture not in renames:
            wrong = wrong or under_class_name(stored, architecture) != stored
        block, _, leaf = _NUMBER.sub(".*", stored).rpartition(".experts.")
        known_as = f"{block.rpartition('.')[2]}.experts.{leaf}"
        return Problem((f"it is stored as {known_as}, a name that no engine has",)) if wrong else None

    return LayerRule("QB337", check, source)
