"""What prove answers, as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qbridge.commands.results import Result, as_json, counted
from qbridge.findings.finding import Finding

Verdict = Literal["loads", "does not load", "cannot be proved here"]


@dataclass(frozen=True, slots=True, repr=False)
class Proof(Result):
    """What an engine's own loader makes of a checkpoint.

    `version` is that of the engine in `python`, None where it is not installed; `emulated` the compute capability
    that stubs answer with, None where nothing is stubbed. `config` is what the engine parsed: class, method,
    quantization, dtype. `model` is the class that it builds, `backend` the engine that LMDeploy takes. `quantized`
    and `unquantized` count modules of the checkpoint by what the engine makes of them; `otherwise` are those that it
    has quantized otherwise than what `compared_with` says: "source", "manifest" or "tensors".
    `missing` are parameters that nothing was written to, `unfilled` those written in part, `unexpected` tensors that
    no parameter takes, `misshapen` those of another shape, `left_out` those that the engine leaves out by design.
    `error` is what it raised, None where nothing.
    """

    destination: str
    engine: str
    version: str | None
    python: str
    tp: int
    emulated: str | None
    verdict: Verdict
    model: str | None
    backend: str | None
    config: Mapping[str, Any] | None
    quantized: int
    unquantized: int
    compared_with: str
    otherwise: Sequence[Mapping[str, Any]]
    missing: Sequence[str]
    unfilled: Sequence[Mapping[str, Any]]
    unexpected: Sequence[str]
    misshapen: Sequence[Mapping[str, Any]]
    left_out: Sequence[str]
    error: Mapping[str, Any] | None
    stubs: Sequence[str]
    seconds: float
    findings: Sequence[Finding] = ()

    @property
    def ok(self) -> bool:
        """Whether the engine loads it."""
        return self.verdict == "loads"

    @property
    def line(self) -> str:
        """The verdict and the engine."""
        return f"{self.verdict}, in {self.engine} {self.version or ''}, tp {self.tp}{counted(self.findings)}"

    def as_dict(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        return {**as_json(self, "prove"), "ok": self.ok}
