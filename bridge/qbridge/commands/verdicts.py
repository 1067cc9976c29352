"""What check answers, as data: at one tensor-parallel size, or for several of them as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qbridge.commands.remedies import Remedy
from qbridge.commands.results import Result, as_json, counted
from qbridge.findings.finding import Finding
from qbridge.targets.rank_weights import RankWeights
from qbridge.targets.serving import Served


@dataclass(frozen=True, slots=True)
class BackendVerdict:
    """What one of the engines that a target chooses among makes of a checkpoint.

    `codes` stop it, `reason` says in words what the first of them is about; `serve` starts the server with it.
    """

    backend: str
    ok: bool
    codes: Sequence[str]
    reason: str
    serve: str

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True, slots=True, repr=False)
class Check(Result):
    """The answer for one target at one tensor-parallel size.

    `kernels` are the kinds of layers and what would serve each; `needs_values` the codes of rules that only a
    conversion can walk, because they look at values, `needs_tensors` of those that ask for tensors, where there are
    none. `assumed` says that the dims come from config.json alone, so that `ok` says no more than that it shows no
    problem; `serve` is the command that serves the checkpoint as it is, empty unless `ok`. `releases` are those that
    stood in for a version of which there is no table; `known` is False where these differ and nothing else stops it.
    `backends` has a verdict for each engine that the target chooses among.
    """

    source: str
    target: str
    tp: int
    gpu: str
    format: str
    architecture: str
    layers: int
    assumed: bool
    ok: bool
    kernels: Sequence[Served]
    needs_values: Sequence[str]
    seconds: float
    serve: str = ""
    needs_tensors: Sequence[str] = ()
    releases: Sequence[str] = ()
    known: bool = True
    backends: Sequence[BackendVerdict] = ()
    findings: Sequence[Finding] = ()

    @property
    def line(self) -> str:
        """The answer, the target and the size."""
        return f"{_answer(self)}, for {self.target}, tp {self.tp}, {self.gpu}{counted(self.findings)}"

    def as_dict(self) -> dict[str, Any]:
        """The object that `check --json` prints."""
        return as_json(self, "check")


@dataclass(frozen=True, slots=True)
class SizeVerdict:
    """One row of the table: the answer at a tensor-parallel size, with the fields of `Check` of the same names.

    `weights` is what each GPU holds of them, None where the model cannot be split so; `fits` whether that is less
    than the GPU's memory, None where one of the two is unknown; `remedy` is the cheapest exact conversion that makes
    it a yes, None where none is needed or known. `codes` are those of its errors.
    """

    tp: int
    ok: bool
    known: bool
    codes: Sequence[str]
    weights: RankWeights | None
    fits: bool | None
    remedy: Remedy | None
    serve: str
    kernels: Sequence[Served] = ()
    backends: Sequence[BackendVerdict] = ()

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        plain = {name: getattr(self, name) for name in ("tp", "ok", "known", "codes", "fits", "serve")}
        return {
            **plain,
            "weights": self.weights and self.weights.as_dict(),
            "remedy": self.remedy and self.remedy.as_dict(),
            "kernels": [kind.as_dict() for kind in self.kernels],
            "backends": [verdict.as_dict() for verdict in self.backends],
        }


@dataclass(frozen=True, slots=True, repr=False)
class CheckTable(Result):
    """The answers for one target at several tensor-parallel sizes, in the order asked for, with what is found of all.

    `ok` says that each size is. The other fields are those of `Check`.
    """

    source: str
    target: str
    gpu: str
    format: str
    architecture: str
    layers: int
    assumed: bool
    ok: bool
    needs_values: Sequence[str]
    needs_tensors: Sequence[str]
    releases: Sequence[str]
    seconds: float
    sizes: Sequence[SizeVerdict]
    findings: Sequence[Finding] = ()

    @property
    def serve(self) -> str:
        """The command that serves it: of the sizes that are a yes the first whose GPUs hold it, else the last."""
        good = [size for size in self.sizes if size.serve]
        return next((size.serve for size in good if size.fits), good[-1].serve if good else "")

    @property
    def by_tp(self) -> Mapping[int, SizeVerdict]:
        """The rows by size."""
        return {size.tp: size for size in self.sizes}

    @property
    def line(self) -> str:
        """The answer at each size."""
        sizes = ", ".join(f"tp {size.tp} {'yes' if size.ok else 'no'}" for size in self.sizes)
        return f"{sizes}, for {self.target}, {self.gpu}{counted(self.findings)}"

    def as_dict(self) -> dict[str, Any]:
        """The object that `check --json` prints for several sizes."""
        return {**as_json(self, "check"), "serve": self.serve}


def _answer(done: Check) -> str:
    if not done.known:
        return "not known"
    return ("maybe" if done.assumed else "yes") if done.ok else "no"
