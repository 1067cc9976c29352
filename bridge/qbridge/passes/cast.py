"""What the casts of one number format into another share: `--cast`, exact or refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from qbridge.codecs.lookups import Bytes, translated
from qbridge.ir.dtypes import Array
from qbridge.ir.exactness import Exactness
from qbridge.ir.layer import Layer, Spec
from qbridge.passes import Pass, Residue

if TYPE_CHECKING:
    from typing_extensions import Self  # typing has it from Python 3.11 on

_NOT_RECORDED = ("residue", "start")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cast(Pass):
    """Codes and scales in another number format, every weight of the same value.

    `kept` says that what the cast forgets is stored (`--keep-undo`). Undo reads that from `residue`, of the output
    features from `start` on.
    """

    kept: bool = False
    residue: Residue | None = field(default=None, compare=False, repr=False)
    start: int = field(default=0, compare=False)

    @property
    def exactness(self) -> Exactness:
        """The values stay; with what is stored undo gives identical tensors."""
        return Exactness.REVERSIBLE if self.kept else Exactness.EQUAL

    @property
    def parts(self) -> frozenset[str]:
        """Codes and scales."""
        return frozenset({"code", "scale"})

    @property
    def forgets(self) -> frozenset[str]:
        """The kinds of residue that the result does not hold."""
        return frozenset()

    @property
    def gives_back(self) -> bool:
        """Where what it forgets is stored."""
        return self.kept

    @property
    def stored(self) -> frozenset[str]:
        """The kinds of residue that undo reads."""
        return self.forgets if self.kept else frozenset()

    @property
    def is_final(self) -> bool:
        """Whether something is forgotten and not stored."""
        return bool(self.forgets) and not self.kept

    def inputs(self, parts: frozenset[str]) -> frozenset[str]:
        """Codes depend on the scales that they had."""
        return parts | {"scale"} if "code" in parts else parts

    def at(self, start: int) -> Self:
        """The pass for the output features from `start` on."""
        return replace(self, start=self.start + start)

    def with_residue(self, residue: Residue) -> Self:
        """The pass that finds there what it forgot."""
        return replace(self, residue=residue)

    def remembered(self, kind: str, before: Spec) -> Array:
        """What was stored of the layer before the pass; ValueError where nothing is."""
        if self.residue is None:
            raise ValueError(f"its {kind.replace('_', ' ')} were not stored (--keep-undo)")
        return self.residue.rows(kind, before, self.start)

    def as_dict(self) -> dict[str, Any]:
        """Name and arguments; the residue lies elsewhere."""
        given = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in _NOT_RECORDED}
        defaults = {each.name: each.default for each in fields(self)}
        return {"pass": self.name, **{name: value for name, value in given.items() if value != defaults[name]}}

    @classmethod
    def from_dict(cls, recorded: Mapping[str, Any], bits: Mapping[str, str]) -> Self:
        """The pass of these arguments."""
        names = {each.name for each in fields(cls)} - set(_NOT_RECORDED)
        return cls(**{name: recorded[name] for name in names & recorded.keys()})


@dataclass(frozen=True, slots=True, kw_only=True)
class CodesCast(Cast):
    """A cast of each code by itself, under the scales as they are."""

    @property
    def parts(self) -> frozenset[str]:
        """Codes alone."""
        return frozenset({"code"})

    def inputs(self, parts: frozenset[str]) -> frozenset[str]:
        """Every part comes from itself."""
        return parts


def by_table(layer: Layer, table: Bytes) -> dict[str, Array]:
    """The parts of a layer with its codes, where they are there, as a table of 256 bytes has them."""
    arrays = dict(layer.arrays)
    if "code" in arrays:
        arrays["code"] = translated(arrays["code"], table)
    return arrays
