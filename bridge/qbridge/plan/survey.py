"""The survey: the small values that rules and passes ask for, read before anything is written."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qbridge.findings.finding import Findings
from qbridge.ir.dtypes import Array, DType, is_finite
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.ir.slots import Slot
from qbridge.passes import Pass
from qbridge.plan.plan import LayerPlan
from qbridge.source.ggml_types import TYPES
from qbridge.source.reader import Source

_LOG = logging.getLogger(__name__)

CHUNK_BYTES = 8 << 20  # bytes or codes that are looked at at a time; a multiple of every item size


@dataclass(frozen=True, slots=True)
class SourceValues:
    """The values of a source, for rules that ask: as they are, or after the passes of each layer."""

    source: Source
    model: Model
    passes: Mapping[str, tuple[Pass, ...]] = field(default_factory=dict)

    def part(self, layer: str, part: str) -> Array:
        """A canonical part of a layer."""
        return self._run(layer, part, self.passes.get(layer, ()))

    def _run(self, layer: str, part: str, passes: tuple[Pass, ...]) -> Array:
        spec, slots = self.model.specs[layer], self.model.slots[layer]
        return LayerPlan(spec, spec, passes, slots, {}).run(self.source, frozenset({part})).arrays[part]

    def once(self, key: Hashable, find: Callable[[], Any]) -> Any:
        """What `find` gives of the unquantized tensors, asked once while a conversion is planned."""
        return self.source.once(key, find)

    def blocks(self, tensor: str) -> Iterator[Array]:
        """An unquantized tensor in blocks, as flat arrays of its dtype; one that a layer's codes become in one."""
        layer = tensor.removesuffix(".weight")
        if tensor not in self.model.tensors and layer in self.model.specs:
            asked = tuple(each.lossy() or each for each in self.passes.get(layer, ()))  # before a person allows it
            yield self._run(layer, "code", asked).ravel()
            return
        dtype = self.model.tensors[tensor].dtype
        for stored in self.model.stored_in(tensor):
            for block in self.source.blocks(stored, CHUNK_BYTES):
                yield block.view(dtype.numpy)


def survey(source: Source, model: Model, findings: Findings, layers: Collection[str] | None = None) -> None:
    """Read every scale once: one that is NaN or infinite, or zero and divides, is a finding (QB017).

    So is a tensor that the scheme fixes and that holds something else (QB016, QB020). With `layers` these alone are
    looked at.
    """
    values = SourceValues(source, model)
    _LOG.info("reading the small values of %d layers", len(model.specs if layers is None else layers))
    for name, spec in model.specs.items():
        if layers is not None and name not in layers:
            continue
        for part, slot in model.slots[name].items():
            if spec.weight.is_computed and part == "code":
                _check_finite(_factors(source, slot), slot, DType.F16, findings)
            if part in ("scale", "offset", "input_scale", "global_scale", "input_global_scale"):
                found = _in_windows(values, name, part) if slot.codec.inside else _as_stored(source, slot, spec, part)
                _check_finite(found, slot, spec.parts()[part][0], findings)
            scheme = {"global_scale": spec.weight, "input_global_scale": spec.activation}.get(part)
            if scheme is not None and scheme.global_scale == "divide" and not values.part(name, part).any():
                findings.add("QB017", slot.tensor, ("it is zero, and divides",))
            try:
                if slot.codec.redundant:
                    values.part(name, part)
                elif slot.codec.fixed:
                    beside = {other: values.part(name, other) for other in slot.codec.needs}
                    slot.codec.decode(source.read(slot.tensor), slot.dtype, slot.shape, beside)
            except ValueError as fault:
                findings.add(_code_of(part, slot), slot.tensor, (str(fault),))


def _as_stored(source: Source, slot: Slot, spec: Spec, part: str) -> Iterator[Array]:
    """A part that is stored as it is, in blocks."""
    dtype = spec.parts()[part][0].numpy
    return (block.view(dtype) for block in source.blocks(slot.tensor, CHUNK_BYTES))


def _factors(source: Source, slot: Slot) -> Iterator[Array]:
    """The scales and minima of blocks, some whole blocks at a time."""
    size = TYPES[slot.codec.block].size
    return (slot.codec.factors(block) for block in source.blocks(slot.tensor, CHUNK_BYTES // size * size))


def _in_windows(values: SourceValues, layer: str, part: str) -> Iterator[Array]:
    """A part that lies in the blocks of another, some output features at a time."""
    spec, slots = values.model.specs[layer], values.model.slots[layer]
    plan = LayerPlan(spec, spec, (), slots, slots)
    for window in plan.windows(CHUNK_BYTES):
        yield plan.run(values.source, frozenset({part}), window).arrays[part].reshape(-1)


def _check_finite(blocks: Iterator[Array], slot: Slot, dtype: DType, findings: Findings) -> None:
    count, first, done = 0, 0, 0
    for values in blocks:
        bad = np.flatnonzero(~is_finite(values, dtype))
        first = first if count or not bad.size else done + int(bad[0])
        count += bad.size
        done += values.size
    if count:
        findings.add("QB017", slot.tensor, (f"{count} of them, the first at index {first}",))


def _code_of(part: str, slot: Slot) -> str:
    """What it means that a tensor cannot be decoded."""
    if slot.codec.needs:
        return "QB025"
    return "QB020" if part == "zero" and slot.codec.fixed else "QB016"
