"""What was asked for of a conversion, whichever way its output goes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from time import monotonic

from qbridge.commands.checkpoint import PathLike
from qbridge.plan.options import Options
from qbridge.source.storage import Storage
from qbridge.targets.target import Target
from qbridge.write.budget import Effort
from qbridge.write.writer import Progress


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """Everything but the destination; each field as in `convert`, `start` in seconds of a clock of its own."""

    src: PathLike | Storage
    target: Target
    source: str | None
    allow: Iterable[str]
    dry_run: bool
    overwrite: bool
    max_shard_size: int | None
    options: Options
    progress: Progress | None
    start: float = field(default_factory=monotonic)

    @property
    def effort(self) -> Effort:
        """Threads and memory that it may take, and whether what it writes is read back."""
        return Effort.of(self.options)

    @property
    def ranks(self) -> int:
        """The most ranks that it is for."""
        return max(self.options.tp)
