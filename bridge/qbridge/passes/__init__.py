"""Exact rewrites of a layer that can be undone, one file each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, Any, Protocol

from qbridge.ir.dtypes import Array
from qbridge.ir.exactness import Exactness
from qbridge.ir.layer import Layer, Spec

if TYPE_CHECKING:
    from typing_extensions import Self  # typing has it from Python 3.11 on


class Residue(Protocol):
    """What was stored of one layer because a pass forgets it (`passes.residue` says of which kinds)."""

    def rows(self, kind: str, before: Spec, start: int) -> Array:
        """What there was of one kind, canonical, of a layer or of some output features of one (`before`).

        These begin at `start`. ValueError where it is not there any more.
        """


@dataclass(frozen=True, slots=True)
class Pass(ABC):
    """A frozen dataclass that predicts the next spec without data, rewrites a layer, and undoes it.

    What a subclass leaves out: every value stays the same, no part is touched, nothing can be refused, and each part
    of the result comes from itself alone. `qbridge.testing.check_pass` puts one to the laws.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """The pass's name in plans and manifests."""

    @property
    def exactness(self) -> Exactness:
        """What the pass keeps: the values, and undo must know the arguments and the spec before."""
        return Exactness.EQUAL

    @property
    def parts(self) -> frozenset[str]:
        """The parts it reads and rewrites; `apply` may be given a layer with only these."""
        return frozenset()

    @property
    def recorded_parts(self) -> frozenset[str]:
        """The parts whose bits a manifest must record, because undo cannot compute them."""
        return frozenset()

    @property
    def stored(self) -> frozenset[str]:
        """The kinds of residue (`passes.residue`) that undo reads, because it cannot compute them."""
        return frozenset()

    @property
    def unquantizes(self) -> bool:
        """Whether its weights stand among the unquantized tensors of a model, in whatever format the others are."""
        return False

    @property
    def is_final(self) -> bool:
        """Whether nothing undoes it, though it keeps every value: what `undo` would need is not recorded."""
        return False

    @property
    def whole(self) -> bool:
        """Whether it must be given all output features at once."""
        return False

    @property
    def changes_activations(self) -> bool:
        """Whether inputs are quantized otherwise after it; no pass changes weights by that."""
        return False

    def needs_values(self, spec: Spec) -> bool:
        """Whether `apply` may refuse a layer of this spec (ValueError), so that its parts must be read to know."""
        return False

    def decisive(self, spec: Spec) -> frozenset[str]:
        """The parts to read to know whether `apply` refuses: codes are large, and most passes cannot for them."""
        return self.parts if self.needs_values(spec) else self.parts - {"code"}

    def recodes(self, spec: Spec) -> bool:
        """Whether the codes of a layer of this spec change; zero weights around them are no change."""
        return "code" in self.parts

    def inputs(self, parts: frozenset[str]) -> frozenset[str]:
        """The parts that `apply` and `undo` must be given to yield these; any others may be left out."""
        return parts

    @abstractmethod
    def plan(self, spec: Spec) -> Spec:
        """The spec after the pass; ValueError if the pass means nothing for it."""

    @abstractmethod
    def apply(self, layer: Layer) -> Layer:
        """The layer after the pass, whose spec is plan(layer.spec); ValueError if its values do not allow it."""

    @abstractmethod
    def undo(self, layer: Layer, before: Spec) -> Layer:
        """The layer that `apply` was given, whose spec was `before`; ValueError if it cannot have been one."""

    def lossy(self) -> Pass | None:
        """The pass that rounds where this one refuses, for users who allow it (`--allow rounded`), or None."""
        return None

    def within(self, before: Spec, of: Callable[[Spec], Spec]) -> Pass:
        """The pass for some output features alone of a layer of spec `before`; `of` gives the spec of these."""
        return self

    @property
    def gives_back(self) -> bool:
        """Whether undo is to give identical tensors, because a person asked for it."""
        return False

    def with_residue(self, residue: Residue) -> Pass:
        """The pass that finds there what is `stored`."""
        return self

    def at(self, start: int) -> Pass:
        """The pass for the output features of `within`, where these begin at `start` of those that it was for."""
        return self

    def as_dict(self) -> dict[str, Any]:
        """Name and arguments as JSON, as a manifest records them: an argument that has its default is left out."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        changed = {f.name for f in fields(self) if f.default is MISSING or f.default != given[f.name]}
        return {"pass": self.name, **{name: value for name, value in given.items() if name in changed}}

    @classmethod
    def from_dict(cls, recorded: Mapping[str, Any], bits: Mapping[str, str]) -> Self:
        """The pass that `as_dict` described; `bits` are those of its `recorded_parts`, in hexadecimal.

        KeyError, TypeError or ValueError if it described none.
        """
        wanted = [field.name for field in fields(cls) if field.default is MISSING or field.name in recorded]
        return cls(**{name: recorded[name] for name in wanted})
