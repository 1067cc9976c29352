"""Every tensor that a plan's layers and unquantized tensors become, slices of fused tensors brought together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from qbridge.findings.finding import Findings
from qbridge.ir.dtypes import Array, DType
from qbridge.ir.model import Model, Rearranged
from qbridge.passes import Pass
from qbridge.passes.pad import Pad
from qbridge.passes.undo import Undo
from qbridge.plan.plan import LayerPlan, OutputTensor, Woven
from qbridge.source.reader import Source


def rearranged_layers(model: Model) -> dict[str, LayerPlan]:
    """What happens to the unquantized linears that are written elsewhere: nothing but that, or other dims."""
    return {name: _rearranged(linear) for name, linear in model.rearranged.items()}


def _rearranged(linear: Rearranged) -> LayerPlan:
    before, (rows, columns) = linear.spec, linear.dims or linear.spec.dims
    after = replace(before, out_features=rows, in_features=columns)
    passes: tuple[Pass, ...] = ()
    if after.dims != before.dims:
        grows = rows >= before.out_features and columns >= before.in_features
        passes = (Pad(rows, columns) if grows else Undo(Pad(*before.dims), after),)
    return LayerPlan(before, after, passes, {"code": linear.read}, {"code": linear.write})


Slices = dict[int, list[tuple[str, str]]]  # by index, (layer, part) of each layer that has rows in a slice


def outputs_of(source: Source, model: Model, layers: Mapping[str, LayerPlan]) -> list[OutputTensor]:
    """Every tensor of the output, in the order of the source's shards.

    ValueError where the slices of a fused tensor are not all there or do not fit each other.
    """
    found, fused, common = [], dict[str, Slices](), dict[str, list[tuple[str, str]]]()
    layers = {**layers, **rearranged_layers(model)}
    made = {slot.tensor for layer in layers.values() if layer.unquantized for slot in layer.write.values()}
    for name, info in model.tensors.items():
        if name in made or info.stored in model.made:
            continue
        shard = source.tensors[info.stored].file
        grafted = info.stored in source.adopted
        found.append(OutputTensor(name, info.dtype, info.shape, shard, origin=info.stored, grafted=grafted))
    for name, layer in layers.items():
        home = source.tensors[layer.read["code"].tensor].file
        for part, slot in layer.write.items():
            if slot.codec.inside:
                continue
            if slot.slice:
                fused.setdefault(slot.slice.tensor, {}).setdefault(slot.slice.index, []).append((name, part))
                continue
            if not slot.codec.exclusive:
                common.setdefault(slot.tensor, []).append((name, part))
                continue
            origin = layer.read[part].tensor if layer.copied(part) else ""
            shard = source.tensors[layer.read[part].tensor].file if part in layer.read else home
            block = slot.codec.block
            found.append(OutputTensor(slot.tensor, slot.dtype, slot.shape, shard, origin, name, part, block=block))
    found += [_slice(source, members, layers) for members in common.values()]
    return [*found, *(_fused(source, name, slices, layers) for name, slices in fused.items())]


def computed_tensors(source: Source, arrays: Mapping[str, Array]) -> list[OutputTensor]:
    """Tensors of float32 that no source has: they follow from its config, and the source holds them from now on."""
    found = []
    for name, array in arrays.items():
        source.hold(name, array, DType.F32)
        found.append(OutputTensor(name, DType.F32, array.shape, source.tensors[name].file, origin=name))
    return found


def _fused(source: Source, name: str, slices: Slices, layers: Mapping[str, LayerPlan]) -> OutputTensor:
    """A tensor of slices, which lie in the order of their indices."""
    outputs = tuple(_slice(source, slices[index], layers) for index in sorted(slices))
    slots = [layers[output.layer].write[output.part] for output in outputs]
    kinds = {(slot.dtype, slot.shape, slot.slice.shape if slot.slice else (), slot.codec.block) for slot in slots}
    if len(kinds) != 1 or sorted(slices) != list(range(len(slices))):
        raise ValueError(f"{name}: its slices are not all there, or do not fit each other")
    ((dtype, _, shape, _),) = kinds
    block = outputs[0].block
    return OutputTensor(name, dtype, (len(slices), *shape), outputs[0].shard, slices=outputs, block=block)


def _slice(source: Source, members: Sequence[tuple[str, str]], layers: Mapping[str, LayerPlan]) -> OutputTensor:
    """One slice, or a tensor of all: the part of a layer, or of all layers that share it, in their order."""
    part = members[0][1]
    slots = {name: layers[name].write[own] for name, own in members}
    names = sorted(slots, key=lambda name: slots[name].codec.turn)
    slot, first, beside = slots[names[0]], layers[names[0]], tuple(names[1:])
    wanted = [slot] * len(names) if slot.codec.common else [replace(slot, codec=own) for own in slot.codec.turns]
    if [slots[name] for name in names] != wanted:
        raise ValueError(f"{slot.tensor}: the layers that share it are not all there, or do not fit each other")
    writer = Woven(tuple(layers[name] for name in names)) if beside else first
    origin = first.read[part].tensor if writer.copied(part) else ""
    shard = source.tensors[first.read["code"].tensor].file
    block = slot.codec.block
    return OutputTensor(slot.tensor, slot.dtype, slot.shape, shard, origin, names[0], part, beside, block=block)


def check_names(outputs: Sequence[OutputTensor], findings: Findings) -> None:
    """Two tensors of one name are a finding (QB033)."""
    seen: set[str] = set()
    for output in outputs:
        if output.name in seen:
            findings.add("QB033", output.name)
        seen.add(output.name)
