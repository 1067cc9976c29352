"""How far a comparison of two checkpoints is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from qbridge.commands.checkpoint import Checkpoint
from qbridge.ir.model import Model
from qbridge.write.writer import Advance, Progress


@dataclass(slots=True)
class Advancing:
    """How far a comparison is, in the tensors of the first checkpoint."""

    left: Checkpoint
    names: Sequence[str]
    progress: Progress | None
    _total: int = 0
    _done: int = 0
    _left: Counter[str] = field(default_factory=Counter)
    _sizes: dict[str, tuple[str, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.names if self.progress else ():
            tensors = [self.left.source.tensors[stored] for stored in stored_as(self.left.model, name)]
            self._sizes[name] = tensors[0].file.name, sum(tensor.end - tensor.begin for tensor in tensors)
            self._left[tensors[0].file.name] += 1
        self._total = sum(size for _, size in self._sizes.values())

    def past(self, name: str) -> None:
        """Say that a layer or tensor was compared."""
        if not self.progress:
            return
        shard, size = self._sizes[name]
        self._done += size
        self._left[shard] -= 1
        done = sum(count == 0 for count in self._left.values())
        self.progress(Advance(self._done, self._total, shard, done, len(self._left)))


def stored_as(model: Model, name: str) -> list[str]:
    """The tensors on disk of a layer, or of an unquantized tensor."""
    if name in model.tensors:
        return [model.tensors[name].stored]
    return [slot.tensor for slot in model.slots[name].values()]
