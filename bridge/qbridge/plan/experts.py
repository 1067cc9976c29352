"""Unquantized experts that are stored otherwise, fused or one by one: as was asked (`--experts`), or a target needs.

No value changes, so that the way back needs nothing but how they lay, which the manifest records by block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from qbridge.architecture.experts import (
    FUSED,
    Experts,
    rearrangements,
    unquantized_experts,
    unrecognized_experts,
)
from qbridge.architecture.names import is_routed
from qbridge.findings.finding import Findings
from qbridge.ir.model import Model, Rearranged
from qbridge.ir.plain import plain_spec
from qbridge.ir.slots import Slot
from qbridge.plan.options import Options
from qbridge.plan.plan import Plan
from qbridge.source.reader import Source
from qbridge.targets.choice import Choice
from qbridge.targets.target import Target


def rearrange(
    source: Source, model: Model, target: Target, choice: Choice, options: Options, findings: Findings
) -> Model:
    """The model with its unquantized experts as they were asked for, or as the target needs them in one format.

    Finding: QB335 where that was asked for and is not known.
    """
    if options.experts:
        for block in unrecognized_experts(model):
            findings.add("QB335", block, ("its tensors are no whole, unquantized experts of one kind",))
    pairs: dict[str, tuple[Experts, Experts]] = {}
    asked = rearrangements(model, lambda lies: options.experts or target.arrangement(choice, model, lies))
    for block, (experts, wanted) in asked.items():
        if isinstance(wanted, Experts):
            pairs[block] = experts, wanted
        elif options.experts:
            findings.add("QB335", block, (wanted,))
    return moved(source, model, pairs)


def restored(
    source: Source, model: Model, recorded: Mapping[str, Any], name_of: Callable[[str], str]
) -> tuple[Model, list[str]]:
    """The model with its experts as a manifest records them, and the blocks that are not there any more.

    LookupError, TypeError, ValueError or AttributeError for a record that is none.
    """
    there = unquantized_experts(model)
    pairs = {b: (there[b], there[b].back(recorded[b], name_of)) for b in recorded.keys() & there.keys()}
    return moved(source, model, pairs), sorted(recorded.keys() - there.keys())


def moved(source: Source, model: Model, pairs: Mapping[str, tuple[Experts, Experts]]) -> Model:
    """The model with experts, by block, that lie as the first of each pair written as the second."""
    if not pairs:
        return model
    linears: dict[str, Rearranged] = {}
    tensors = dict(model.tensors)
    for old, new in pairs.values():
        for name in old.tensors():
            del tensors[name]
        for (name, dims, read), (_, _, write) in zip(old.linears(), new.linears(), strict=True):
            linears[name] = Rearranged(plain_spec(name, dims, old.dtype), read, write)
    for _, new in pairs.values():
        tensors |= new.tensors()
    slice_tensors(source, [linear.read for linear in linears.values()])
    record = {block: old.as_dict() for block, (old, _) in pairs.items()}
    return replace(model, tensors=tensors, rearranged=linears, arrangement=record)


def as_layers(source: Source, model: Model, blocks: Sequence[Experts]) -> Model:
    """The model with unquantized experts among its layers, each by itself, instead of among its tensors."""
    if not blocks:
        return model
    gone = {name for experts in blocks for name in experts.tensors()}
    linears = [
        (name, plain_spec(name, dims, own.dtype), slot) for own in blocks for name, dims, slot in own.linears()
    ]
    slice_tensors(source, [slot for _, _, slot in linears])
    return replace(
        model,
        specs={**model.specs, **{name: spec for name, spec, _ in linears}},
        slots={**model.slots, **{name: {"code": slot} for name, _, slot in linears}},
        tensors={name: info for name, info in model.tensors.items() if name not in gone},
    )


def slice_tensors(source: Source, slots: list[Slot]) -> None:
    """Have the slices of tensors that slots read among those of the source."""
    inner = (slot.slice for slot in slots if slot.slice and slot.tensor not in source.tensors)
    source.split({own.tensor: own.shape for own in inner}, whole=True)


def check_experts(plan: Plan, options: Options, findings: Findings) -> None:
    """QB335 for quantized experts that the format stores otherwise than was asked for."""
    if not options.experts:
        return
    routed = {name: layer.write["code"].slice is not None for name, layer in plan.layers.items() if is_routed(name)}
    if not routed and not unquantized_experts(plan.model):
        findings.add("QB335", "config.json", ("the model has no experts",))
    wrong = [name for name, fused in routed.items() if fused != (options.experts == FUSED)]
    if wrong:
        how = "in tensors that they share" if routed[wrong[0]] else "one by one"
        findings.add("QB335", wrong, (f"{plan.format.NAME} stores quantized experts of this model {how}",))
