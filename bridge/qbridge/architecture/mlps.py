"""The gated MLPs of a decoder: their modules, the config key of their size, and how far padding lets them grow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import gcd, lcm
from typing import Any

from qbridge.architecture.decoder import family, is_decoder_module, place, size_of, text_config
from qbridge.architecture.families import Family
from qbridge.architecture.quantization_block import NESTED
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.ir.scheme import MAX_SIZE, Granularity
from qbridge.passes.pad import Pad


@dataclass(frozen=True, slots=True)
class Block:
    """The modules of one gated MLP; gate and up are the same module where the checkpoint has them fused."""

    name: str
    gate: str
    up: str
    down: str


_GATED = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"), ("gate_up_proj", "gate_up_proj", "down_proj"))


def mlp_blocks(modules: Iterable[str]) -> list[Block]:
    """The gated MLPs of decoder layers that are there whole, in the modules' order.

    Dense MLPs, each routed expert and shared experts. A layer of multi-token prediction that is numbered like the
    decoder's (DeepSeek) is among them; `intermediate_key` has none for it.
    """
    known = dict.fromkeys(modules)
    found: dict[str, Block] = {}
    for module in known:
        name, _, leaf = module.rpartition(".")
        for gate, up, down in _GATED:
            if (
                leaf == gate
                and f"{name}.{up}" in known
                and f"{name}.{down}" in known
                and is_decoder_module(module, {})
            ):
                found.setdefault(name, Block(name, module, f"{name}.{up}", f"{name}.{down}"))
    return list(found.values())


def intermediate_key(block_name: str, config: Mapping[str, Any]) -> str | None:
    """The key of config.json that holds the size of a block of `mlp_blocks`, in the text config if that is nested.

    None if the architecture is unknown, for vision towers and for multi-token prediction. A key may be shared by
    blocks: shared experts of DeepSeek are `intermediate_copies` times as wide as one routed expert.
    """
    text = text_config(config)
    if family(config) is None or not is_decoder_module(block_name, text):
        return None
    return text_intermediate_key(block_name, text)


def text_intermediate_key(block_name: str, text: Mapping[str, Any]) -> str | None:
    """The key of a text config that holds the size of a block, None if it has none."""
    parent, _, last = block_name.rpartition(".")
    keys = ["intermediate_size_mlp", "intermediate_size", "ffn_hidden_size"]
    if last in ("shared_expert", "shared_experts") or parent.endswith("experts"):
        keys = ["moe_intermediate_size", "intermediate_size"]
        if last == "shared_expert":
            keys.insert(0, "shared_expert_intermediate_size")
    return next((key for key in keys if size_of(text, key)), None)


def intermediate_copies(block_name: str, config: Mapping[str, Any]) -> int:
    """How many times its `intermediate_key` a block is wide: the number of shared experts that are one module."""
    text = text_config(config)
    if block_name.rpartition(".")[2] != "shared_experts":
        return 1
    return size_of(text, "n_shared_experts") or size_of(text, "moe_num_shared_experts") or 1


Multiple = Callable[[Spec, int], int]


@dataclass(frozen=True, slots=True)
class Growth:
    """The pass of every layer that grows, and why blocks that should grow cannot (block name to reason)."""

    passes: Mapping[str, Pad] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)


def growth(model: Model, sizes: tuple[int, ...], multiple: Multiple) -> Growth:
    """The smallest intermediate sizes at which every block is legal at all tensor-parallel `sizes`.

    `multiple(spec, tp)` is what the intermediate size must be a multiple of for a down projection, as a whole.
    """
    wanted: dict[str, int] = {}
    by_key: dict[str, list[Block]] = {}
    reasons: dict[str, dict[str, str]] = {}
    key_of, known = _keys(model), family(model.config)
    for block in _blocks(model):
        known_as, copies = key_of(block)
        key = known_as or block.name
        by_key.setdefault(key, []).append(block)
        down = model.specs.get(block.down)
        if reason := _refusal(block, model, known, known_as):
            reasons.setdefault(key, {})[block.name] = reason
        if down is not None:
            step = lcm(*(multiple(down, tp) for tp in sizes))
            each = step // gcd(step, copies)  # so that all copies together are a multiple of it
            own = -(-down.in_features // (copies * each)) * each
            if own * copies > MAX_SIZE:
                reasons.setdefault(key, {})[block.name] = f"its size would be {own * copies}"
            wanted[key] = max(wanted.get(key, 0), own)
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
        if needed and reasons.get(key):
            refused |= reasons[key]  # blocks that share a size grow together or not at all
        else:
            passes |= grown
    return Growth(passes, refused)


def _keys(model: Model) -> Callable[[Block], tuple[str | None, int]]:
    """(`intermediate_key`, `intermediate_copies`) of blocks, looked up once for all experts of a layer."""
    found: dict[str, tuple[str | None, int]] = {}

    def key_of(block: Block) -> tuple[str | None, int]:
        where = place(block.name)
        if where not in found:
            name, config = block.name, model.config
            found[where] = intermediate_key(name, config), intermediate_copies(name, config)
        return found[where]

    return key_of


def _blocks(model: Model) -> list[Block]:
    """Every MLP, quantized or not; those of MTP blocks are listed as well, for they share the decoder's sizes."""
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


def _refusal(block: Block, model: Model, known: Family | None, key: str | None) -> str:
    """Why a block, whose size `key` holds, cannot grow, or an empty string."""
    if known is None:
        return f"{model.architecture or 'the architecture'} is not known to qbridge"
    if not known.gated:
        return f"the MLP of {model.architecture} is not known to be act(gate) * up with act(0) = 0"
    if block.gate == block.up:
        return "gate and up are one tensor"
    if key is None:
        return "it is no MLP of the decoder"
    parts = [model.specs.get(name) for name in (block.gate, block.up, block.down)]
    if None in parts:
        return "a part of it is not quantized"
    if any(spec and spec.weight.granularity is Granularity.BLOCK for spec in parts):
        return "its scales are for blocks"
    return ""


def _dense(model: Model) -> list[str]:
    return [name.removesuffix(".weight") for name in model.tensors if name.endswith(".weight")]


def follow(config: Mapping[str, Any], specs: Mapping[str, Spec]) -> dict[str, Any]:
    """The config with the intermediate sizes that the layers have, wherever its keys for them lie."""
    sizes: dict[str, set[int]] = {}
    for block in mlp_blocks(specs):
        key, down = intermediate_key(block.name, config), specs.get(block.down)
        if key and down:
            sizes.setdefault(key, set()).add(down.in_features // intermediate_copies(block.name, config))
    found = dict(config)
    for key, seen in sizes.items():
        if len(seen) != 1:
            continue
        for holder in (None, *NESTED):
            place = found if holder is None else found.get(holder)
            if isinstance(place, dict) and isinstance(place.get(key), int) and place[key] != next(iter(seen)):
                changed = {**place, key: next(iter(seen))}
                found = changed if holder is None else {**found, holder: changed}
    return found
