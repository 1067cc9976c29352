"""The layers of a checkpoint as a grid: a row for each block, a column for each kind of module."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from qbridge.architecture.names import natural
from qbridge.ir.dtypes import nbytes
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model

UNQUANTIZED = "unquantized"
AS_STORED = "as stored"
COLUMNS = 32  # kinds that have a column of their own; what is beyond is counted
ROWS = 200  # blocks that have a row; a model of more shows the first of them
_BLOCK = re.compile(r"^(.*?(?:^|\.)(?:layers|blocks|h|block|layer)\.)(\d+)\.(.+)$")
_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


@dataclass(slots=True)
class Cell:
    """What one block has of one kind of module: the number of linears (or tensors), their bytes and their schemes.

    `exactness` is the class that a conversion gave them, `as stored` where there was none.
    """

    modules: int = 0
    bytes: int = 0
    schemes: set[str] = field(default_factory=set)
    exactness: set[str] = field(default_factory=set)
    different: int = 0


@dataclass(frozen=True, slots=True)
class LayerMap:
    """Cells by (row, column), and how many blocks have no row."""

    rows: Sequence[str]
    columns: Sequence[str]
    cells: Mapping[tuple[str, str], Cell]
    left_out: int = 0

    @property
    def schemes(self) -> list[str]:
        """The schemes that occur, unquantized last."""
        found = {name: None for cell in self.cells.values() for name in sorted(cell.schemes)}
        return sorted(found, key=lambda name: name == UNQUANTIZED)

    @property
    def exactness(self) -> list[str]:
        """The classes of exactness that occur."""
        return sorted({name for cell in self.cells.values() for name in cell.exactness})

    @property
    def largest(self) -> int:
        """The bytes of the largest cell."""
        return max((cell.bytes for cell in self.cells.values()), default=0)


def position(module: str) -> tuple[str, str]:
    """(block, kind) of a module; the block is empty for what stands outside of all, experts are one kind."""
    matched = _BLOCK.match(module)
    if not matched:
        return "", _NUMBER.sub("*", module)
    return f"{matched[1]}{matched[2]}", _NUMBER.sub("*", matched[3])


def kind_of(spec: Spec) -> str:
    """The kind of module that a layer is, wherever it stands."""
    return position(spec.name)[1]


def layer_map(
    model: Model, exactness: Mapping[str, str] | None = None, different: Collection[str] = frozenset()
) -> LayerMap:
    """The grid of a model; `exactness` is what a conversion kept, by layer, `different` are layers that differ."""
    cells: dict[tuple[str, str], Cell] = {}
    known, other = exactness or {}, frozenset(different)
    for name, scheme, size in _parts(model):
        cell = cells.setdefault(position(name), Cell())
        cell.modules += 1
        cell.bytes += size
        cell.schemes.add(scheme)
        if scheme != UNQUANTIZED:
            cell.exactness.add(known.get(name, AS_STORED))
        cell.different += name in other
    rows = natural({row for row, _ in cells})
    return _limited(LayerMap(rows, _columns(cells), cells))


def _parts(model: Model) -> Iterator[tuple[str, str, int]]:
    """(module, scheme, bytes) of every layer and of every unquantized matrix."""
    for name, spec in model.specs.items():
        slots = model.slots.get(name, {})
        stored = {slot.tensor: nbytes(slot.dtype, slot.shape) for slot in slots.values()}
        size = sum(stored.values()) or spec.out_features * spec.in_features * spec.weight.bits // 8
        yield name, spec.scheme, size
    for name, info in model.tensors.items():
        if len(info.shape) > 1:
            yield name.removesuffix(".weight"), UNQUANTIZED, nbytes(info.dtype, info.shape)


def _columns(cells: Collection[tuple[str, str]]) -> list[str]:
    """The kinds in the order of the first block that has them."""
    return list(dict.fromkeys(column for row, column in sorted(cells, key=lambda each: not each[0])))


def _limited(grid: LayerMap) -> LayerMap:
    """A grid that a page can hold, whatever names a checkpoint has."""
    columns = grid.columns[:COLUMNS]
    rows = list(grid.rows[:ROWS])
    cells = {place: cell for place, cell in grid.cells.items() if place[0] in set(rows) and place[1] in set(columns)}
    filled = {row for row, _ in cells}
    left_out = len(grid.rows) - len(rows) + len(grid.columns) - len(columns)
    return LayerMap([row for row in rows if row in filled], columns, cells, left_out)
