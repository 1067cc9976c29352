"""What a checkpoint lacks, taken unquantized from the original (`--graft`), once it is proved to be the original."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Collection, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from qbridge.architecture.architecture import Architecture
from qbridge.architecture.config import with_draft_layers
from qbridge.architecture.counterparts import Places, outermost
from qbridge.architecture.names import canonical_tensor, is_head, is_kv_scale, module_of, natural
from qbridge.findings.finding import Findings
from qbridge.ir.dtypes import DType, nbytes
from qbridge.ir.model import Model, TensorInfo
from qbridge.source.opening import open_source, storage_of
from qbridge.source.reader import Source
from qbridge.source.weight_files import is_draft

BLOCK = 1 << 20  # bytes that are compared, or digested, at a time
_PLAIN = frozenset({DType.BF16, DType.F16, DType.F32, DType.F64, DType.BOOL, DType.I64})
_LAYER = re.compile(r"(.+?\.\d+)\.")


@dataclass(frozen=True, slots=True)
class Graft:
    """What was taken from an original: its path as it was given, the tensors, their bytes, and where they lie."""

    original: str = ""
    tensors: tuple[str, ...] = ()
    size: int = 0
    modules: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The graft as a report has it; empty if there is none."""
        if not self.original:
            return {}
        return {
            "original": self.original,
            "tensors": len(self.tensors),
            "bytes": self.size,
            "modules": list(self.modules),
        }


def graft(source: Source, model: Model, original: str, findings: Findings) -> tuple[Model, Graft]:
    """The model with what `source` lacks of the original, whose tensors `source` adopts.

    The original may be quantized, where what is taken of it is not. QBridgeError with the findings QB321 (what would
    be taken is quantized, or it is the source itself), QB322 (nothing to take) and QB323 (it is not proved that it is
    the original); nothing is adopted then.
    """
    findings_there = Findings(findings.allow)
    with closing(open_source(storage_of(original), findings_there)) as other:
        if other.storage.identity == source.storage.identity:
            findings.add("QB321", original, ("it is SRC itself",))
        findings.stop_on_errors()
        lacking, common = compare_names(model, other)
        _check_unquantized(lacking, other, original, findings)
        if not lacking:
            findings.add("QB322", original, (f"{len(common)} tensors are in both, and it has no others",))
        findings.stop_on_errors()
        if faults := unproved(source, model, other, common):
            findings.add("QB323", original, faults)
        findings.stop_on_errors()
        source.adopt(other, lacking)
        drafts = any(is_draft(name, other.config) for name in lacking)
        config, key = with_draft_layers(model.config, other.config if drafts else {})
    taken = {canonical_tensor(name): _info(source, name) for name in lacking}
    size = sum(nbytes(info.dtype, info.shape) for info in taken.values())
    held = (name for name in source.tensors if name not in source.adopted)
    modules = tuple(natural(outermost(lacking, held)))
    if key:
        findings.add("QB324", key, (f"it is {Architecture.of(config).draft_layers}, as in {original}",))
    grown = replace(model, config=config, tensors={**model.tensors, **taken})
    return grown, Graft(original, tuple(lacking), size, modules)


def _check_unquantized(lacking: Collection[str], other: Source, original: str, findings: Findings) -> None:
    """A finding for what is lacking and is quantized in the original, with the way to what can be taken."""
    coded = {module_of(name)[0] for name in other.tensors if _is_coded(other, name)}
    strange = [name for name in lacking if _is_coded(other, name) or module_of(name)[0] in coded]
    if strange:
        modules = natural({module_of(name)[0] for name in strange})
        dense = f"{original.rstrip('/')}-dense"
        help = (
            f"qbridge convert {shlex.quote(original)} {shlex.quote(dense)} --to dense",
            f"--graft {shlex.quote(dense)} then takes them, each weight rounded once",
        )
        findings.add("QB321", modules, (f"SRC lacks {len(modules)} modules that {original} has quantized",), help)


def _is_coded(source: Source, name: str) -> bool:
    """Whether a tensor holds codes, or scales in a dtype of their own, as no unquantized checkpoint does."""
    return source.tensors[name].dtype not in _PLAIN


def _info(source: Source, name: str) -> TensorInfo:
    tensor = source.tensors[name]
    return TensorInfo(tensor.dtype, tensor.shape, name)


def compare_names(model: Model, other: Source) -> tuple[list[str], list[str]]:
    """(what a model lacks of another checkpoint, unquantized tensors of both), by their names there.

    Scales of a key-value cache belong to the quantization of that checkpoint: they are neither.
    """
    stored = (dict(spec.dialect).get("stored_as") for spec in model.specs.values())
    places = Places([*model.specs, *(name for name in stored if name)], model.tensors)
    tied = Architecture.of_model(model).tied
    lacking, common = [], []
    for name in natural(other.tensors):
        if is_kv_scale(name):
            continue
        if canonical_tensor(name) in model.tensors:
            common += [] if _is_coded(other, name) else [name]
        elif not places.take(name) and not (tied and is_head(module_of(name)[0])):
            lacking.append(name)
    return lacking, common


def unproved(source: Source, model: Model, other: Source, common: Collection[str]) -> tuple[str, ...]:
    """Why it is not proved that a model was made of another checkpoint; nothing if it is.

    Every unquantized tensor of both has the same bytes; one norm of each quantized layer, and one matrix, are among
    them. The first difference ends the search.
    """
    norms, matrices, compared = set[str](), 0, 0
    for name in common:
        info = model.tensors[canonical_tensor(name)]
        if difference := differing(source, info.stored, other, name):
            return (f"{name}: {difference}", f"{compared} tensors before it are the same")
        compared += 1
        if name.endswith(".weight"):
            layer = _LAYER.match(name)
            norms |= {layer[1]} if layer and len(info.shape) == 1 else set()
            matrices += len(info.shape) > 1 and min(info.shape) > 1
    layers = {match[1] for name in model.specs if (match := _LAYER.match(name))}
    faults = []
    if unseen := natural(layers - norms):
        more = f" and of {len(unseen) - 1} more layers" if len(unseen) > 1 else ""
        faults.append(f"no norm of {unseen[0]}{more} is in both")
    if not matrices:
        faults.append("no unquantized matrix is in both")
    return tuple([*faults, f"the {compared} tensors of both are the same"] if faults else faults)


def differing(source: Source, here: str, other: Source, there: str) -> str:
    """How two tensors differ: in dtype, shape or bytes; empty if they do not."""
    first, second = source.tensors[here], other.tensors[there]
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return f"{first.dtype}{list(first.shape)}, and {second.dtype}{list(second.shape)} in the original"
    done = 0
    for one, two in zip(source.blocks(here, BLOCK), other.blocks(there, BLOCK), strict=True):
        if one.tobytes() != two.tobytes():
            return f"its values differ from byte {done + int((one != two).argmax())} on"
        done += one.nbytes
    return ""


def digest(source: Source, name: str) -> str:
    """sha256 of a tensor's bytes."""
    found = hashlib.sha256()
    for block in source.blocks(name, BLOCK):
        found.update(block.data)
    return found.hexdigest()


def record(source: Source, taken: Graft) -> dict[str, Any]:
    """The graft as the manifest records it: where the tensors are from, and sha256 of each."""
    return {"from": taken.original, "tensors": {name: digest(source, name) for name in taken.tensors}}


def recorded(manifest: Mapping[str, Any] | None) -> tuple[str, dict[str, str]]:
    """(path of the original, sha256 by tensor) that a manifest records; nothing for one that records no graft."""
    try:
        entry = (manifest or {})["source"]["grafted"]
        return str(entry["from"]), {str(name): str(value) for name, value in entry["tensors"].items()}
    except (LookupError, TypeError, AttributeError):
        return "", {}


def without(model: Model, names: Iterable[str]) -> Model:
    """The model without tensors that were grafted."""
    gone = frozenset(names)
    return replace(model, tensors={name: info for name, info in model.tensors.items() if info.stored not in gone})
