"""The gated MLPs of a decoder: their modules, and the config key of their size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from qbridge.architecture.decoder import SHARED_COUNTS, is_decoder_module, is_draft_module, size_of

_SHARED_SIZE = "moe_shared_expert_intermediate_size"  # of all shared experts together (Nemotron-H)


@dataclass(frozen=True, slots=True)
class Block:
    """The modules of one gated MLP; gate and up are the same module where the checkpoint has them fused."""

    name: str
    gate: str
    up: str
    down: str


_GATED = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"), ("gate_up_proj", "gate_up_proj", "down_proj"))


def mlp_blocks(modules: Iterable[str]) -> list[Block]:
    """The gated MLPs of decoder and draft layers that are there whole, in the modules' order.

    Dense MLPs, each routed expert and shared experts.
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
                and (is_decoder_module(module, {}) or is_draft_module(module, {}))
            ):
                found.setdefault(name, Block(name, module, f"{name}.{up}", f"{name}.{down}"))
    return list(found.values())


def intermediate_key(block_name: str, text: Mapping[str, Any]) -> str | None:
    """The key of a text config that holds the size of a block, None if it has none."""
    parent, _, last = block_name.rpartition(".")
    keys = ["intermediate_size_mlp", "intermediate_size", "ffn_hidden_size", "ffn_dim", "n_inner"]
    if last == "shared_mlp":
        keys = ["shared_intermediate_size"]
    if last in ("shared_expert", "shared_experts") or parent.endswith("experts"):
        keys = ["moe_intermediate_size", "intermediate_size"]
        if last == "shared_expert":
            keys.insert(0, "shared_expert_intermediate_size")
        elif last == "shared_experts":
            keys.insert(0, _SHARED_SIZE)
    return next((key for key in keys if size_of(text, key)), None)


def intermediate_copies(block_name: str, text: Mapping[str, Any]) -> int:
    """How many times its `intermediate_key` a block is wide: the number of shared experts that are one module."""
    if block_name.rpartition(".")[2] != "shared_experts" or size_of(text, _SHARED_SIZE):
        return 1
    return next((size_of(text, key) for key in SHARED_COUNTS if size_of(text, key)), 1)
