"""qbridge.residue beside a manifest: what casts forget, by layer and kind, in a safetensors file of another name.

tensor                    dtype  shape                          meaning (N = out_features, K = in_features)
<L>.exponents             uint8  [N, ceil(K / 32)]              the scales that groups of MXFP4 had, e8m0
<L>.negative_zeros        uint8  [N, ceil(K / 8)]               a bit for each code, the first in the lowest: it is -0

No engine looks for weights in a file of this name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from qbridge.codecs.bits import BitPacked
from qbridge.ir.dtypes import Array, DType
from qbridge.ir.layer import Spec
from qbridge.ir.slots import Slot
from qbridge.passes.residue import STORED
from qbridge.plan.output_files import Shard, shard_of
from qbridge.plan.plan import LayerPlan, OutputTensor
from qbridge.plan.windows import Window, read_layer
from qbridge.source.opening import RESIDUE
from qbridge.source.reader import Source
from qbridge.source.safetensors import HeaderError, read_header

_BITS = BitPacked(1, 1, 0)


def residue_layers(layers: Mapping[str, LayerPlan]) -> dict[str, LayerPlan]:
    """By the names of their tensors, what makes the residue of each layer."""
    return {slot.tensor: layer for name, plan in layers.items() for slot, layer in _of_layer(name, plan)}


def _of_layer(name: str, plan: LayerPlan) -> Iterator[tuple[Slot, LayerPlan]]:
    for number, step in enumerate(plan.passes):
        for kind in sorted(step.stored):
            more, part = STORED[kind]
            passes = (*plan.passes[:number], *more)
            after = plan.before
            for each in passes:
                after = each.plan(after)
            slot = _slot(name, kind, after)
            yield slot, LayerPlan(plan.before, after, passes, plan.read, {part: slot})


def _slot(name: str, kind: str, spec: Spec) -> Slot:
    """Where what is stored of a layer lies; `spec` is that of what is stored."""
    tensor = f"{name}.{kind}"
    if STORED[kind][1] == "scale":
        return Slot(tensor, DType.U8, spec.scale_shape)
    return Slot(tensor, DType.U8, _BITS.stored_shape(spec.dims, 8), _BITS)


def residue_shard(source: Source, layers: Mapping[str, LayerPlan]) -> Shard | None:
    """The file of the residue; None where nothing is stored."""
    outputs = []
    for name, layer in layers.items():
        ((part, slot),) = layer.write.items()
        origin = layer.read[part].tensor if layer.copied(part) else ""
        home = source.tensors[layer.read["code"].tensor].file
        outputs.append(OutputTensor(name, slot.dtype, slot.shape, home, origin, name, part))
    return shard_of(RESIDUE, outputs) if outputs else None


@dataclass(frozen=True, slots=True, eq=False)
class StoredResidue:
    """What was stored of one layer, read some output features at a time."""

    source: Source
    layer: str

    def rows(self, kind: str, before: Spec, start: int) -> Array:
        """What there was of the output features of `before`, the first of which is `start`; ValueError if lost."""
        passes, part = STORED[kind]
        tensor = self.source.tensors.get(f"{self.layer}.{kind}")
        if tensor is None or not tensor.shape:
            raise ValueError(f"{RESIDUE} has no {kind} of it")
        spec = replace(before, out_features=max(1, tensor.shape[0]))
        for step in passes:
            spec = step.plan(spec)
        slot = _slot(self.layer, kind, spec)
        if (tensor.dtype, tensor.shape) != (slot.dtype, slot.shape) or start + before.out_features > slot.shape[0]:
            raise ValueError(f"{RESIDUE} has {kind} of other dims")
        return read_layer(self.source, spec, {part: slot}, Window(start, start + before.out_features)).arrays[part]


def open_residue(source: Source) -> Source:
    """The residue beside a checkpoint as a source; it has no tensors where there is none that can be read."""
    file = source.file(RESIDUE)
    try:
        tensors = read_header(file) if source.storage.has(RESIDUE) else {}
    except (HeaderError, OSError):
        tensors = {}
    return Source(source.storage, {}, tensors, [RESIDUE] if tensors else [], [])
