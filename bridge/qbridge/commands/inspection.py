"""inspect: what a checkpoint is, from config and headers."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qbridge.architecture.names import dense_linears
from qbridge.commands.checkpoint import PathLike, no_garbage, open_checkpoint
from qbridge.commands.report import schemes
from qbridge.commands.reporting import with_report
from qbridge.commands.results import Result, as_json, counted
from qbridge.findings.arguments import checked, typed
from qbridge.findings.finding import Finding, Findings, io_as_finding
from qbridge.formats.detection import CONTAINER_FORMAT
from qbridge.plan.options import allowed
from qbridge.source.ggml_types import TYPES
from qbridge.source.gguf_files import Gguf, GgufStorage, gguf_path, open_gguf
from qbridge.source.stored import StoredTensor


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
@with_report("path")
@no_garbage()
def inspect(
    path: PathLike, source: str | None = None, *, allow: Iterable[str] = (), report: PathLike | None = None
) -> Inspection:
    """Say what a checkpoint is; `report` is the file of a page. Raises QBridgeError where it cannot be read.

    >>> inspect("fixtures/awq/llama_gemm/model")
    <Inspection: awq, LlamaForCausalLM, 7 layers>
    """
    typed("path", path, str, os.PathLike)
    if gguf_path(Path(path)):
        return _inspect_gguf(Path(path), allow)
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
            path=opened.source.url,
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


def _inspect_gguf(path: Path, allow: Iterable[str]) -> Inspection:
    """What a GGUF file is, with its splits, by its headers alone: any model, and any type of ggml."""
    findings = Findings(allowed(allow))
    storage = GgufStorage(path)
    with io_as_finding(str(path)):
        opened = open_gguf(storage, storage.first, findings)
        shards = {file.name: file.size for file in opened.files}
    coded, plain = _by_type(opened)
    linears = [name.removesuffix(".weight") for name, tensor in plain.items() if len(tensor.shape) > 1]
    return Inspection(
        path=str(path),
        format=CONTAINER_FORMAT,
        because=f"it is a GGUF file of version {opened.version}",
        architecture=str(opened.metadata.get("general.architecture", "")),
        schemes=[_scheme(kind, tensors) for kind, tensors in coded.items()],
        unquantized_linears=linears,
        unquantized_tensors=len(plain),
        quantized_bytes=sum(_bytes(tensor) for tensors in coded.values() for tensor in tensors),
        unquantized_bytes=sum(map(_bytes, plain.values())),
        shards=shards,
        side_files=[],
        findings=tuple(findings),
    )


def _by_type(opened: Gguf) -> tuple[dict[str, list[StoredTensor]], dict[str, StoredTensor]]:
    """(tensors in blocks by their type, the others by name)."""
    coded: dict[str, list[StoredTensor]] = {}
    for tensor in opened.tensors.values():
        if TYPES[tensor.kind].dtype is None:
            coded.setdefault(tensor.kind, []).append(tensor)
    return coded, {n: tensor for n, tensor in opened.tensors.items() if tensor.kind not in coded}


def _scheme(kind: str, tensors: Sequence[StoredTensor]) -> dict[str, Any]:
    """One type of ggml as a row of `Inspection.schemes`; stacked experts count as one layer."""
    type_ = TYPES[kind]
    shapes = [type_.shape(tensor.shape) for tensor in tensors]
    width = 8 * type_.size / type_.elements
    return {
        "scheme": f"{kind}, {type_.elements} weights in {type_.size} bytes ({width:g} bits each)",
        "layers": len(tensors),
        "scale_dtypes": [],
        "dims": sorted({(shape[-2] if len(shape) > 1 else 1, shape[-1]) for shape in shapes}),
        "example": tensors[0].name.removesuffix(".weight"),
    }


def _bytes(tensor: StoredTensor) -> int:
    return tensor.end - tensor.begin
