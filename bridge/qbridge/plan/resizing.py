"""Unquantized linears whose dims change: MLPs of draft layers that grow, and are cropped again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from qbridge.architecture.experts import Experts, unquantized_experts
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model, Rearranged, TensorInfo
from qbridge.ir.plain import as_layers, plain_spec
from qbridge.ir.slots import Slot
from qbridge.plan import experts as plan_experts
from qbridge.source.reader import Source

Dims = tuple[int, int]  # out_features, in_features
_GATES = ("gate_proj", "w1")  # whose dims are the sizes of experts


def resized(
    source: Source, model: Model, dims: Mapping[str, Dims], name_of: Callable[[str], str] = lambda name: name
) -> Model:
    """The model in which unquantized linears have other dims, by name: zeros are added, or they are cropped.

    `name_of` gives the name that a tensor is written under. KeyError for a linear that is not there.
    """
    if not dims:
        return model
    linears, tensors = dict(model.rearranged), dict(model.tensors)
    left = dict(dims)
    for block, experts in _stacks(model, dims).items():
        first = (left.get(f"{block}.0.{leaf}") for leaf in _GATES)
        grown = replace(experts, block=name_of(block), sizes=next(filter(None, first), experts.sizes))
        left = {name: new for name, new in left.items() if not name.startswith(f"{block}.")}
        plan_experts.slice_tensors(source, [slot for _, _, slot in experts.linears()])
        for (name, old, read), (_, new, write) in zip(experts.linears(), grown.linears(), strict=True):
            linears[name] = _resized(linears.get(name), plain_spec(name, old, experts.dtype), read, write, new)
        tensors = {name: info for name, info in tensors.items() if name not in experts.tensors()} | grown.tensors()
    moved = {linear.write.tensor: name for name, linear in linears.items()}
    for name, new in left.items():
        info = tensors.pop(f"{name}.weight")
        rows, columns = info.shape
        tensor, key = name_of(f"{name}.weight"), moved.get(info.stored, name)
        read, write = Slot(info.stored, info.dtype, info.shape), Slot(tensor, info.dtype, new)
        linears[key] = _resized(linears.get(key), plain_spec(name, (rows, columns), info.dtype), read, write, new)
        tensors[tensor] = TensorInfo(info.dtype, new, tensor)
    return replace(model, rearranged=linears, tensors=tensors)


def _resized(before: Rearranged | None, spec: Spec, read: Slot, write: Slot, dims: Dims) -> Rearranged:
    """A linear that is written with other dims, from where it lies already if it is moved, too."""
    if before is not None:
        return Rearranged(before.spec, before.read, write, dims)
    return Rearranged(spec, read, write, dims)


def as_resized(source: Source, model: Model, names: Collection[str]) -> Model:
    """The model in which these linears, as far as they are unquantized and there, are layers."""
    wanted = [name for name in names if name not in model.specs]
    stacks = [*_stacks(model, wanted).values()]
    return as_layers(plan_experts.as_layers(source, model, stacks), wanted)


def _stacks(model: Model, names: Collection[str]) -> dict[str, Experts]:
    """The unquantized experts in tensors that they share of which linears are named."""
    held = {name.partition(".experts.")[0] + ".experts" for name in names if ".experts." in name}
    single = {f"{name}.weight" for name in names}
    found = unquantized_experts(model)
    return {
        block: experts for block, experts in found.items() if block in held and single.isdisjoint(experts.tensors())
    }
