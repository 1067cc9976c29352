"""Keys of a quantization block that an engine must find, and the values that it takes for them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from qbridge.architecture.quantization_block import Block
from qbridge.formats.rules import Problem
from qbridge.ir.model import Model
from qbridge.ir.scheme import Granularity

Found = Iterator[tuple[str, Problem]]
_GEMM, _BLOCK_SIZE = "gemm", "weight_block_size"


@dataclass(frozen=True, slots=True)
class Key:
    """A key under any of its `names`, the first of which is the one to write.

    `values` are those that the engine takes, any where there are none; a `needed` key must be there, `otherwise` is
    what the engine does without it or with another value.
    """

    names: tuple[str, ...]
    values: tuple[Any, ...] = ()
    needed: bool = False
    otherwise: str = "stops"

    def fault(self, block: Block, engine: str) -> Problem | None:
        """What is wrong with the key in a block (the place is its path)."""
        name = next((name for name in self.names if name in block.raw), None)
        if name is None:
            wanted = f"; it takes {self._taken}" if self.values else ""
            fact = f"there is none: {engine} {self.otherwise}{wanted}"
            return Problem((fact,), where=(f"{block.key}.{self.names[0]}",)) if self.needed else None
        value = block.raw[name]
        if not self.values or any(type(value) is type(taken) and value == taken for taken in self.values):
            return None
        fact = f"{value!r}: {engine} {self.otherwise}; it takes {self._taken}"
        return Problem((fact,), where=(f"{block.key}.{name}",))

    @property
    def _taken(self) -> str:
        return " or ".join(map(repr, self.values))


def unread(block: Block, keys: Iterable[Key], engine: str) -> Found:
    """QB284 for each key of a block that an engine does not find, or whose value it does not take."""
    faults = (key.fault(block, engine) for key in keys)
    yield from (("QB284", fault) for fault in faults if fault)


def without_block_size(block: Block, model: Model, engine: str) -> Found:
    """QB284 where scales are per block and the block of float8 gives no size: an engine takes them for a tensor's."""
    stored = any(spec.weight.granularity is Granularity.BLOCK for spec in model.specs.values())
    if stored and block.raw.get(_BLOCK_SIZE) is None:
        fact = f"there is none: {engine} takes the scales of blocks for those of whole tensors"
        yield "QB284", Problem((fact,), where=(f"{block.key}.{_BLOCK_SIZE}",))


def other_layouts(block: Block, model: Model, engine: str) -> Found:
    """QB284 for AWQ in another layout than AutoAWQ's GEMM, as which an engine takes it whatever `version` says."""
    found = {dict(spec.dialect).get("version", _GEMM) for spec in model.specs.values()} - {_GEMM}
    if block.method == "awq" and found:
        fact = f"the tensors lie as {' and '.join(sorted(found))} has them: {engine} takes them for {_GEMM}"
        yield "QB284", Problem((fact,), where=(f"{block.key}.version",))
