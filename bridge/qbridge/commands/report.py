"""What a command found and did, as data; `render` turns it into text."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qbridge.architecture.architecture import Architecture
from qbridge.architecture.names import is_routed
from qbridge.commands.results import Result, as_json, counted
from qbridge.findings.finding import Finding
from qbridge.ir.dtypes import nbytes
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.source.addresses import served_name

if TYPE_CHECKING:
    from qbridge.commands.checkpoint import Checkpoint
    from qbridge.plan.output_files import Shard
    from qbridge.plan.plan import Plan


@dataclass(frozen=True, slots=True, repr=False)
class Report(Result):
    """The result of a conversion, or of its plan with `dry_run`.

    `exactness` counts layers by class, `passes` layers by pass; `files` gives bytes by output file. `before` and
    `after`: `tensor_bytes` is the size of all tensors, `weights` the number of quantized weights, `flops` what one
    token costs in their matmuls. `chosen` says why it is this format, where the target left a choice, `serve` is the
    command that serves the output, empty where the target has no server. `grafted` says what was taken from which
    original (numbers of `tensors` and `bytes`, `modules` by their outermost names), if anything was;
    `activations_changed` counts the layers whose inputs are quantized otherwise (no weight is); `links` counts
    the files that were linked, by the kind of link. `already_done`: the output stood there from an earlier run, was
    compared byte for byte, and nothing was written.
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
    tensor_bytes: Mapping[str, int]
    weights: Mapping[str, int]
    flops: Mapping[str, int]
    dry_run: bool
    seconds: float
    serve: str = ""
    already_done: bool = False
    grafted: Mapping[str, Any] = field(default_factory=dict)
    links: Mapping[str, int] = field(default_factory=dict)
    activations_changed: int = 0
    findings: Sequence[Finding] = ()
    command: str = "convert"

    @classmethod
    def of_plan(
        cls,
        src: str,
        dst: str | Path,
        opened: Checkpoint,
        plan: Plan,
        shards: Sequence[Shard],
        dry_run: bool,
        start: float,
        tp: int = 1,
    ) -> Report:
        """The report of a plan that was carried out, or not (`dry_run`), since `start` (monotonic seconds).

        `tp` is the tensor-parallel size to serve it at.
        """
        return cls(
            source=src,
            destination=str(dst),
            source_format=opened.format,
            because=opened.because,
            target=plan.target.name,
            format=plan.format.NAME,
            chosen=plan.because,
            architecture=opened.model.architecture,
            layers=len(plan.layers),
            tensors=len(plan.outputs),
            exactness=plan.exactness,
            passes=plan.pass_counts,
            activations_changed=sum(
                any(step.changes_activations for step in layer.passes) for layer in plan.layers.values()
            ),
            files={shard.name: shard.size for shard in shards},
            tensor_bytes=tensor_bytes(opened, plan),
            weights={side: sum(map(_weights, specs)) for side, specs in _sides(plan)},
            flops={side: _flops(specs, opened.model.config) for side, specs in _sides(plan)},
            dry_run=dry_run,
            seconds=round(time.monotonic() - start, 3),
            serve=plan.target.command(
                plan.result, plan.format.NAME, served_name(str(dst)), tp, shards[0].name if shards else ""
            ),
            findings=tuple(opened.findings),
        )

    @property
    def line(self) -> str:
        """Which formats, how many layers, and how exact."""
        done = "already done" if self.already_done else "planned" if self.dry_run else "written"
        kept = ", ".join(f"{count} {kind}" for kind, count in self.exactness.items()) or "no layers"
        return f"{self.source_format} to {self.target} ({self.format}), {kept}, {done}{counted(self.findings)}"

    def as_dict(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        return as_json(self, self.command)


def tensor_bytes(opened: Checkpoint, plan: Plan) -> dict[str, int]:
    """The bytes of all tensors before and after a plan is carried out."""
    stored, others = opened.source.tensors, opened.source.adopted | opened.source.slices
    return {
        "before": sum(tensor.end - tensor.begin for name, tensor in stored.items() if name not in others),
        "after": sum(nbytes(output.dtype, output.shape) for output in plan.outputs),
    }


def _sides(plan: Plan) -> list[tuple[str, list[Spec]]]:
    layers = plan.layers.values()
    return [("before", [layer.before for layer in layers]), ("after", [layer.after for layer in layers])]


def _weights(spec: Spec) -> int:
    return spec.out_features * spec.in_features


def _flops(specs: Sequence[Spec], config: Mapping[str, Any]) -> int:
    """A multiplication and an addition per weight that a token meets: of routed experts, those that are chosen."""
    chosen, experts = Architecture.of(config).routed
    routed_weights = sum(_weights(spec) for spec in specs if is_routed(spec.name))
    others = sum(map(_weights, specs)) - routed_weights
    return 2 * (others + routed_weights * chosen // experts)


@dataclass(frozen=True, slots=True, repr=False)
class Verification(Result):
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

    @property
    def ok(self) -> bool:
        """Whether they are the same model."""
        return self.same

    @property
    def line(self) -> str:
        """The verdict, and how many layers it is about."""
        verdict = "the same model" if self.same else "different"
        return f"{verdict}, {self.identical} layers identical, {self.equal} equal{counted(self.findings)}"

    def as_dict(self) -> dict[str, Any]:
        """The object that `verify --json` prints."""
        return as_json(self, "verify")


def schemes(model: Model) -> dict[str, list[Spec]]:
    """The specs of a model by scheme in words."""
    found: dict[str, list[Spec]] = {}
    for spec in model.specs.values():
        found.setdefault(spec.scheme, []).append(spec)
    return found
