"""What changes which tensors a checkpoint has, and their names, before anything is planned: `--graft`, prefixes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from qbridge.commands.checkpoint import Checkpoint
from qbridge.plan.graft import Graft, graft, record
from qbridge.plan.options import Options
from qbridge.plan.renaming import Renaming, rename
from qbridge.source.reader import Source


@dataclass(frozen=True, slots=True)
class Changes:
    """What was done to a source, whose adopted tensors are the grafted ones."""

    source: Source
    graft: Graft = field(default_factory=Graft)
    renaming: Renaming = field(default_factory=Renaming)

    def record(self) -> dict[str, Any]:
        """The changes as the manifest records them, which reads the grafted tensors; empty if there are none."""
        found: dict[str, Any] = {}
        if self.renaming.pairs:
            found["prefixes"] = self.renaming.as_dict()
        if self.graft.original:
            found["grafted"] = record(self.source, self.graft)
        return found


def restructured(opened: Checkpoint, options: Options) -> tuple[Checkpoint, Changes]:
    """The checkpoint under the names that were asked for, then with what was grafted, whose names are the new ones.

    Its source is changed. Raises QBridgeError.
    """
    source, model = opened.source, opened.model
    renaming, taken = Renaming(), Graft()
    if options.rename_prefix:
        model, renaming = rename(source, model, options.rename_prefix, opened.findings)
    if options.graft:
        model, taken = graft(source, model, options.graft, opened.findings)
    return replace(opened, model=model), Changes(source, taken, renaming)
