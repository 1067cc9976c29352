"""A reader's layers put together into a model, every tensor accounted for."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from qbridge.architecture.names import canonical_tensor, module_of
from qbridge.architecture.quantization_block import NO_BLOCK, find_block
from qbridge.findings.finding import Findings
from qbridge.formats.mismatch import mismatch
from qbridge.formats.registry import _account, config_files
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model, TensorInfo
from qbridge.ir.slots import Slot
from qbridge.source.reader import SMALL, Source


def assemble(
    format_name: str,
    source: Source,
    config: Mapping[str, Any],
    layers: Mapping[str, tuple[Spec, Mapping[str, Slot]]],
    findings: Findings,
    kv_cache: Mapping[str, Any] | None = None,
    refused: Collection[str] = (),
) -> Model:
    """A Model from a reader's layers: checks every slot against its tensor and accounts for the others.

    `refused` are modules that the reader has a finding about already. Findings: QB010 no layer at all, QB015 missing
    tensors, QB016 wrong dtype or shape, QB028 too large, QB018 tensors that nobody claims, QB039 plain parameters.
    """
    _check_slots(source, layers, findings)
    claimed = {slot.tensor for _, slots in layers.values() for slot in slots.values()}
    rest: dict[str, TensorInfo] = {}
    for name, tensor in source.tensors.items():
        if name not in claimed:
            known_as = canonical_tensor(name)
            if known_as in rest:
                findings.add("QB033", name, (f"it and {rest[known_as].stored} are both {known_as}",))
            rest[known_as] = TensorInfo(tensor.dtype, tensor.shape, name)
    _account(rest, {module_of(tensor)[0] for tensor in claimed}, bool(kv_cache), refused, findings)
    if not layers and not findings.errors:
        findings.add("QB010", source.url, ("no module's weight is quantized",))
    specs = {name: spec for name, (spec, _) in layers.items()}
    slots_of = {name: slots for name, (_, slots) in layers.items()}
    stale = config_files().intersection(source.side_files)
    block = (find_block(source.config) or NO_BLOCK).raw
    return Model(
        format_name, config, specs, slots_of, rest, source.tokenizer(), kv_cache or {}, stale, block, format_name
    )


def _check_slots(source: Source, layers: Mapping[str, tuple[Spec, Mapping[str, Slot]]], findings: Findings) -> None:
    """Every slot against its tensor's header."""
    missing: dict[str, list[str]] = {}
    for _, slots in layers.values():
        stored = slots["code"].tensor.rpartition(".")[0]
        for part, slot in slots.items():
            tensor = source.tensors.get(slot.tensor)
            if tensor is None:
                missing.setdefault(slot.tensor.removeprefix(stored), []).append(stored)
            elif (tensor.dtype, tensor.shape) != (slot.dtype, slot.shape):
                leaf = slot.tensor.rpartition(".")[2]
                fact = mismatch(leaf, (tensor.dtype, tensor.shape), (slot.dtype, slot.shape))
                findings.add("QB016", slot.tensor, (fact,))
            elif part != "code" and not slot.codec.inside and tensor.end - tensor.begin > SMALL:
                findings.add("QB028", slot.tensor, (f"{tensor.end - tensor.begin} bytes",))
    for suffix, names in missing.items():
        findings.add("QB015", names, (f"{len(names)} of {len(layers)} quantized layers lack *{suffix}",))
