"""What a command found and did, as data; `render` turns it into text."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qbridge.findings import Finding
from qbridge.ir import Model, Spec

if TYPE_CHECKING:
    from qbridge.checkpoint import Checkpoint
    from qbridge.plan import Plan
    from qbridge.shards import Shard

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a conversion, or of its plan with `dry_run`.

    `exactness` counts layers by class, `passes` layers by pass; `files` gives bytes by output file. `chosen` says why
    it is this format, where the target left a choice.
    """

    source: str
    destination: str
    source_format: str
    because: str
    target: str
    format: str
    chosen: str
    architecture: str
    layers: int
    tensors: int
    exactness: Mapping[str, int]
    passes: Mapping[str, int]
    files: Mapping[str, int]
    dry_run: bool
    seconds: float
    findings: Sequence[Finding] = ()
    command: str = "convert"

    @classmethod
    def of_plan(
        cls,
        src: Path,
        dst: Path,
        opened: Checkpoint,
        plan: Plan,
        shards: Sequence[Shard],
        dry_run: bool,
        start: float,
    ) -> Report:
        """The report of a plan that was carried out, or not (`dry_run`), since `start` (monotonic seconds)."""
        passes: dict[str, int] = {}
        for layer in plan.layers.values():
            for step in layer.passes:
                passes[step.name] = passes.get(step.name, 0) + 1
        return cls(
            source=str(src),
            destination=str(dst),
            source_format=opened.format,
            because=opened.because,
            target=plan.target.name,
            format=plan.format,
            chosen=plan.because,
            architecture=opened.model.architecture,
            layers=len(plan.layers),
            tensors=len(plan.outputs),
            exactness=plan.exactness,
            passes=passes,
            files={shard.name: shard.size for shard in shards},
            dry_run=dry_run,
            seconds=round(time.monotonic() - start, 3),
            findings=tuple(opened.findings),
        )

    def as_dict(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        own = ("command", "findings")
        return {
            "schema": SCHEMA,
            "command": self.command,
            **{name: getattr(self, name) for name in self.__dataclass_fields__ if name not in own},
            "findings": [f.as_dict() for f in self.findings],
        }


@dataclass(frozen=True, slots=True)
class Verification:
    """Whether two checkpoints are the same model.

    `identical` counts layers whose codes, scales and zero-points have the same bits, `equal` those of other bits
    and the same real values.
    """

    a: str
    b: str
    formats: tuple[str, str]
    identical: int
    equal: int
    tensors: int
    seconds: float
    findings: Sequence[Finding] = ()
    same: bool = field(default=False)

    def as_dict(self) -> dict[str, Any]:
        """The object that `verify --json` prints."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "findings"}
        return {
            "schema": SCHEMA,
            "command": "verify",
            **fields,
            "findings": [f.as_dict() for f in self.findings],
        }


def schemes(model: Model) -> dict[str, list[Spec]]:
    """The specs of a model by scheme in words."""
    found: dict[str, list[Spec]] = {}
    for spec in model.specs.values():
        found.setdefault(spec.scheme, []).append(spec)
    return found
