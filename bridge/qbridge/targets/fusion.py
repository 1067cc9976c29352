"""Which linears an engine builds as one: a matter of the engine, and of the model class."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from qbridge.architecture.names import FUSED, fused_siblings, module_of
from qbridge.formats.rules import Problem
from qbridge.ir.model import Model

Groups = Mapping[str, tuple[str, ...]]  # last names of linears that become one, by the last name of that


@dataclass(frozen=True, slots=True)
class Fusion:
    """The linears that an engine builds as one, `groups` in any model class that has them, `by_class` in some.

    A linear that is in several groups belongs to the one that is named last.
    """

    groups: Groups
    by_class: tuple[tuple[frozenset[str], Groups], ...] = ()

    def of(self, architecture: str) -> Groups:
        """The groups of a model class, or those of any class for one that no row names."""
        more = [groups for classes, groups in self.by_class if architecture in classes]
        return {name: parts for groups in (self.groups, *more) for name, parts in groups.items()}

    def parts(self, architecture: str) -> frozenset[str]:
        """The last names of all linears that are in a group of a model class."""
        return frozenset(part for parts in self.of(architecture).values() for part in parts)

    def siblings(self, model: Model, modules: Iterable[str]) -> list[list[str]]:
        """The modules that become one linear, of those that are given, by full names; groups of one are left out."""
        return fused_siblings(modules, self.of(model.architecture))


COMMON = Fusion(FUSED)  # q, k, v and gate, up


def unlike_siblings(fused: Fusion) -> Callable[[Model], Iterator[Problem]]:
    """Linears that become one, as q, k and v do, have one scheme or none."""

    def check(model: Model) -> Iterator[Problem]:
        parts = fused.parts(model.architecture)
        modules = (module_of(name)[0] for name in model.tensors if name.endswith(".weight"))
        dense = [module for module in modules if module_of(module)[1] in parts]
        for names in fused.siblings(model, [*model.specs, *dense]):
            schemes = {model.specs[name].scheme if name in model.specs else "not quantized" for name in names}
            if len(schemes) > 1:
                yield Problem(tuple(sorted(schemes)), where=tuple(names))

    return check
