"""inspect: what a checkpoint is, from config and headers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qbridge.architecture.names import dense_linears
from qbridge.commands.checkpoint import PathLike, no_garbage, open_checkpoint
from qbridge.commands.report import schemes
from qbridge.commands.results import Result, as_json, counted
from qbridge.findings.arguments import checked
from qbridge.findings.finding import Finding


@dataclass(frozen=True, slots=True, repr=False)
class Inspection(Result):
    """A checkpoint described without reading its weights; sizes are in bytes."""

    path: str
    format: str
    because: str
    architecture: str
    schemes: Sequence[Mapping[str, Any]]
    unquantized_linears: Sequence[str]
    unquantized_tensors: int
    quantized_bytes: int
    unquantized_bytes: int
    shards: Mapping[str, int]
    side_files: Sequence[str]
    findings: Sequence[Finding] = ()

    @property
    def line(self) -> str:
        """The format and the model class."""
        layers = sum(scheme["layers"] for scheme in self.schemes)
        return f"{self.format}, {self.architecture or 'no architecture'}, {layers} layers{counted(self.findings)}"

    def as_dict(self) -> dict[str, Any]:
        """The object that `inspect --json` prints."""
        return as_json(self, "inspect")


@checked
@no_garbage()
def inspect(path: PathLike, source: str | None = None, *, allow: Iterable[str] = ()) -> Inspection:
    """Say what a checkpoint is. Raises QBridgeError where it cannot be read."""
    with open_checkpoint(path, source, allow) as opened:
        model, tensors = opened.model, opened.source.tensors
        sizes = {name: tensor.end - tensor.begin for name, tensor in tensors.items()}
        plain = sum(sizes[info.stored] for info in model.tensors.values())
        found = [
            {
                "scheme": scheme,
                "layers": len(specs),
                "scale_dtypes": sorted({str(spec.scale_dtype) for spec in specs}),
                "dims": sorted({(spec.out_features, spec.in_features) for spec in specs}),
                "example": specs[0].name,
            }
            for scheme, specs in schemes(model).items()
        ]
        return Inspection(
            path=str(Path(path)),
            format=opened.format,
            because=opened.because,
            architecture=model.architecture,
            schemes=found,
            unquantized_linears=dense_linears(model.tensors),
            unquantized_tensors=len(model.tensors),
            quantized_bytes=sum(sizes.values()) - plain,
            unquantized_bytes=plain,
            shards={name: opened.source.file(name).size for name in opened.source.shards},
            side_files=list(opened.source.side_files),
            findings=tuple(opened.findings),
        )
