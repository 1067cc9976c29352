"""What a command found and did, as data; `render` turns it into text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qbridge.findings import Finding
from qbridge.ir import Model, Spec

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

    def as_dict(self) -> dict[str, Any]:
        """The object that `convert --json` prints."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "findings"}
        return {
            "schema": SCHEMA,
            "command": "convert",
            **fields,
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
