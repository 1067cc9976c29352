"""How far padding lets the gated MLPs of a decoder grow, and the config that follows them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import gcd, lcm
from typing import Any

from qbridge.architecture.architecture import Architecture
from qbridge.architecture.drafts import with_draft_linears
from qbridge.architecture.expert_dtype import with_expert_dtype
from qbridge.architecture.experts import SINGLE, unquantized_experts, unrecognized_experts
from qbridge.architecture.mlps import Block, mlp_blocks
from qbridge.architecture.names import without_expert
from qbridge.architecture.quantization_block import NESTED
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.ir.scheme import MAX_SIZE
from qbridge.passes.pad import Pad

Multiple = Callable[[Spec, int], int]


@dataclass(frozen=True, slots=True)
class Growth:
    """The pass of every layer that grows, and why blocks that should grow cannot (block name to reason)."""

    passes: Mapping[str, Pad] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)


def growth(model: Model, sizes: tuple[int, ...], multiple: Multiple) -> Growth:
    """The smallest intermediate sizes at which every block is legal at all tensor-parallel `sizes`.

    `multiple(spec, tp)` is what the intermediate size must be a multiple of for a down projection, as a whole, or for
    the rows of blocks. Layers for multi-token prediction grow with the decoder, their unquantized linears
    (`draft_linears`) as well.
    """
    model = with_draft_linears(model)
    wanted: dict[str, int] = {}
    by_key: dict[str, list[Block]] = {}
    reasons: dict[str, dict[str, str]] = {}
    key_of, architecture = _keys(model), Architecture.of_model(model)
    for block in _blocks(model):
        known_as, copies = key_of(block)
        key = known_as or block.name
        by_key.setdefault(key, []).append(block)
        down = model.specs.get(block.down)
        if reason := _refusal(block, model, architecture, known_as):
            reasons.setdefault(key, {})[block.name] = reason
        if down is not None and not down.weight.is_dense:
            parts = [down, *(spec for spec in _sides(block, model) if spec.weight.block)]
            step = lcm(*(multiple(part, tp) for part in parts for tp in sizes))
            each = step // gcd(step, copies)  # so that all copies together are a multiple of it
            own = -(-down.in_features // (copies * each)) * each
            if own * copies > MAX_SIZE:
                reasons.setdefault(key, {})[block.name] = f"its size would be {own * copies}"
            wanted[key] = max(wanted.get(key, 0), own)
    for name, reason in _unread(model).items():
        key = architecture.intermediate_key(name) or name
        reasons.setdefault(key, {})[name] = reason
    passes: dict[str, Pad] = {}
    refused: dict[str, str] = {}
    for key, size in wanted.items():
        grown: dict[str, Pad] = {}
        needed = False
        for block in by_key[key]:
            own = size * key_of(block)[1]
            down = model.specs.get(block.down)
            needed |= down is not None and down.in_features != own
            grown |= _passes(block, model, own)
        unlike = _of_another_size(by_key[key], model, key_of, key)
        if needed and (faults := {**unlike, **reasons.get(key, {})}):
            refused |= faults  # blocks that share a size grow together or not at all
        else:
            passes |= grown
    return Growth(passes, refused)


def _of_another_size(
    blocks: Sequence[Block], model: Model, key_of: Callable[[Block], tuple[str | None, int]], key: str
) -> dict[str, str]:
    """The blocks of draft layers that are not as wide as the decoder's of the same key, and why they cannot grow."""
    architecture, widths = Architecture.of_model(model), dict[bool, dict[str, int]]()
    for block in blocks:
        if (down := model.specs.get(block.down)) is not None:
            each = down.in_features // key_of(block)[1]
            widths.setdefault(architecture.is_draft(block.name), {})[block.name] = each
    sizes = {*widths.get(False, {}).values()}
    reason = f"it is of another size than {key} of the decoder"
    return {name: reason for name, width in widths.get(True, {}).items() if sizes and width not in sizes}


def _unread(model: Model) -> dict[str, str]:
    """Experts in tensors that they share of which no block is made, by the name of the first, and why."""
    named = {name.partition(".experts.")[0] + ".experts" for name in model.specs if ".experts." in name}
    stacks = [name for name, experts in unquantized_experts(model).items() if experts.lies != SINGLE]
    return {
        f"{block}.0": "its experts are not quantized, or not as they are known"
        for block in (*stacks, *unrecognized_experts(model))
        if block not in named
    }


def _keys(model: Model) -> Callable[[Block], tuple[str | None, int]]:
    """(`intermediate_key`, `intermediate_copies`) of blocks, looked up once for all experts of a layer."""
    architecture = Architecture.of_model(model)
    found: dict[str, tuple[str | None, int]] = {}

    def key_of(block: Block) -> tuple[str | None, int]:
        where = without_expert(block.name)
        if where not in found:
            found[where] = architecture.intermediate_key(block.name), architecture.intermediate_copies(block.name)
        return found[where]

    return key_of


def _blocks(model: Model) -> list[Block]:
    """Every MLP, quantized or not, the draft layers' included."""
    return mlp_blocks([*model.specs, *_dense(model)])


def _passes(block: Block, model: Model, size: int) -> dict[str, Pad]:
    gate, up, down = (model.specs.get(name) for name in (block.gate, block.up, block.down))
    if gate is None or up is None or down is None or down.in_features == size or gate is up:
        return {}
    return {
        block.gate: Pad(size, gate.in_features),
        block.up: Pad(size, up.in_features),
        block.down: Pad(down.out_features, size),
    }


def _sides(block: Block, model: Model) -> list[Spec]:
    """gate and up, where they are quantized: their rows are the intermediate size, in blocks if they have any."""
    return [model.specs[name] for name in (block.gate, block.up) if name in model.specs]


def _refusal(block: Block, model: Model, architecture: Architecture, key: str | None) -> str:
    """Why a block, whose size `key` holds, cannot grow, or an empty string."""
    if not architecture.known:
        return f"{architecture.name or 'the architecture'} is not known to qbridge"
    if not architecture.gated:
        return f"the MLP of {architecture.name} is not known to be act(gate) * up with act(0) = 0"
    if block.gate == block.up:
        return "gate and up are one tensor"
    if key is None:
        return "it is no MLP of the decoder"
    parts = [model.specs.get(name) for name in (block.gate, block.up, block.down)]
    if None in parts:
        return "a part of it is not quantized"
    return ""


def _dense(model: Model) -> list[str]:
    return [name.removesuffix(".weight") for name in model.tensors if name.endswith(".weight")]


def follow(config: Mapping[str, Any], specs: Mapping[str, Spec]) -> dict[str, Any]:
    """The config with the intermediate sizes and the expert dtype that the layers have."""
    architecture = Architecture.of(config)
    sizes: dict[str, set[int]] = {}
    for block in mlp_blocks(name for name in specs if architecture.is_decoder(name)):
        key, down = architecture.intermediate_key(block.name), specs.get(block.down)
        if key and down:
            sizes.setdefault(key, set()).add(down.in_features // architecture.intermediate_copies(block.name))
    found = dict(config)
    for key, seen in sizes.items():
        if len(seen) != 1:
            continue
        for holder in (None, *NESTED):
            place = found if holder is None else found.get(holder)
            if isinstance(place, dict) and isinstance(place.get(key), int) and place[key] != next(iter(seen)):
                changed = {**place, key: next(iter(seen))}
                found = changed if holder is None else {**found, holder: changed}
    return with_expert_dtype(found, specs)
