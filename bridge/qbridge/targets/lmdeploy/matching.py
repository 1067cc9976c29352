"""What LMDeploy builds from the quantization block: where it looks for it, and how it matches its list.

Sources: lmdeploy 0.18.0, pytorch/config.py (QuantizationConfig), pytorch/models/utils/model.py (update_quant_config),
pytorch/models/qwen3.py and qwen3_moe.py (prefixes); turbomind/converter.py (search_nested_config).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from qbridge.architecture.architecture import Architecture
from qbridge.architecture.quantization_block import Block, find_block
from qbridge.formats.rules import Problem
from qbridge.ir.model import Model
from qbridge.targets.block_keys import Key, other_layouts, unread, without_block_size
from qbridge.targets.derivation import Answer, Built, Derivation, deviations, seen, stored_linears, strings, unseen
from qbridge.targets.lmdeploy.classes import TURBOMIND_ARCHITECTURES

_PYTORCH = "LMDeploy 0.18.0's PyTorch engine"
_TURBOMIND = "LMDeploy 0.18.0's TurboMind engine"
# turbomind/converter.py of 0.18.0 and turbomind/deploy/converter.py of 0.6.2: assertions, in these letters.
_UNSUPPORTED = "stops: unsupported quant config"
_KEYS: Mapping[str, tuple[Key, ...]] = {
    "awq": (Key(("version",), ("gemm",), needed=True, otherwise=_UNSUPPORTED),),
    "gptq": (
        Key(("desc_act",), (False,), otherwise=_UNSUPPORTED),
        Key(("sym",), (True,), otherwise=_UNSUPPORTED),
    ),
}
_PLACES = ("quantization_config", "llm_config.quantization_config", "text_config.quantization_config")
_FMTS = ("e4m3", "e5m2")
# Classes that hand their linears the names that lists are matched with, as they are on disk.
_PREFIXED = frozenset({"Qwen3ForCausalLM", "Qwen3MoeForCausalLM"})
_MERGED = {"q_proj": "qkv_proj", "k_proj": "qkv_proj", "v_proj": "qkv_proj"} | dict.fromkeys(
    ["gate_proj", "up_proj"], "gate_up_proj"
)
_SERVED = ("awq", "smooth_quant", "fp8")
# Linears that classes of the PyTorch engine build without the block (pytorch/models, quant_config of build_...).
_EXPERTS, _MIXER = r"\.mlp\.experts\.", r"\.linear_attn\."
_WITHOUT_BLOCK: Mapping[str, str] = {
    **dict.fromkeys(["DeepseekForCausalLM", "Qwen2MoeForCausalLM"], _EXPERTS),
    **dict.fromkeys(["PhiMoEForCausalLM", "PhimoeForCausalLM"], r"\.block_sparse_moe\.experts\."),
    "Llama4ForConditionalGeneration": r"\.(?:self_attn|feed_forward|mlp)\.(?!experts)",
    "MiniCPM3ForCausalLM": r"\.self_attn\.",
    "Qwen3NextForCausalLM": _MIXER,
    **dict.fromkeys(
        [
            *("Qwen3_5ForCausalLM", "Qwen3_5ForConditionalGeneration", "Qwen3_5MoeForCausalLM"),
            "Qwen3_5MoeForConditionalGeneration",
        ],
        rf"{_MIXER}in_proj_(?:ba|a|b)$",
    ),
}


def derive(
    config: Mapping[str, Any], model: Model, turbomind: frozenset[str] = TURBOMIND_ARCHITECTURES
) -> Iterator[tuple[str, Problem]]:
    """Where LMDeploy, by the engine that loads the model, would build something else than what the tensors are.

    `turbomind` are the classes that TurboMind may load instead.
    """
    block = seen(config, _PLACES)
    if block is None:
        yield from _elsewhere(config, model, turbomind)
        return
    if block.method == "fp8" and block.raw.get("fmt", "e4m3") not in _FMTS:
        fact = f"{block.raw['fmt']!r}: {_PYTORCH} stops: Unsupported fp8 fmt"
        yield "QB284", Problem((fact,), where=(f"{block.key}.fmt",))
    yield from _without_format(block)
    if model.architecture in turbomind:
        yield from unread(block, _KEYS.get(block.method, ()), _TURBOMIND)
    yield from other_layouts(block, model, "LMDeploy 0.18.0")
    if block.method == "fp8":
        yield from without_block_size(block, model, "LMDeploy 0.18.0")
    yield from _without_block(block, model, turbomind)
    if (model.slots or model.specs) and block.method in _SERVED and Architecture.of_model(model).name in _PREFIXED:
        yield from _lists(block, model)


def _without_block(block: Block, model: Model, other_engine: frozenset[str]) -> Iterator[tuple[str, Problem]]:
    """Quantized linears that the class builds unquantized, where TurboMind does not load the model instead."""
    pattern = _WITHOUT_BLOCK.get(model.architecture)
    turbomind = block.method != "smooth_quant" and model.architecture in other_engine
    if pattern is None or turbomind or block.method not in _SERVED:
        return
    where = tuple(name for name in stored_linears(model)[0] if re.search(pattern, name))
    if where:
        fact = f"{_PYTORCH} builds {len(where)} linears of {model.architecture} unquantized, whatever the block says"
        yield "QB281", Problem((fact,), where=where)


def derive_turbomind(config: Mapping[str, Any], model: Model) -> Iterator[tuple[str, Problem]]:
    """Where TurboMind, which finds `quantization_config` at any depth, would see no block at all."""
    block = find_block(config)
    if block is not None and not block.key.endswith("quantization_config"):
        yield from unseen(config, _PLACES, _TURBOMIND)
    elif block is not None:
        yield from _without_format(block)
        yield from unread(block, _KEYS.get(block.method, ()), _TURBOMIND)
        yield from other_layouts(block, model, _TURBOMIND)


def derive_old(config: Mapping[str, Any], model: Model) -> Iterator[tuple[str, Problem]]:
    """What 0.6.2 does not take of a block: its TurboMind engine, which it prefers, asks for the same words."""
    block = find_block(config)
    if block is not None and model.architecture in TURBOMIND_ARCHITECTURES:
        yield from unread(block, _KEYS.get(block.method, ()), "LMDeploy 0.6.2's TurboMind engine")
    if block is not None:
        yield from other_layouts(block, model, "LMDeploy 0.6.2")


def _without_format(block: Block) -> Iterator[tuple[str, Problem]]:
    """TurboMind, which alone loads compressed-tensors here, asks the group for its format (get_tm_config)."""
    groups = block.raw.get("config_groups")
    group = groups.get("group_0") if isinstance(groups, dict) else None
    if block.method == "compressed-tensors" and isinstance(group, dict) and "format" not in group:
        fact = f"there is none: {_TURBOMIND} stops: KeyError: 'format'"
        yield "QB284", Problem((fact,), where=(f"{block.key}.config_groups.group_0.format",))


def _elsewhere(
    config: Mapping[str, Any], model: Model, other_engine: frozenset[str]
) -> Iterator[tuple[str, Problem]]:
    """A block that the PyTorch engine does not see; TurboMind may."""
    block = find_block(config)
    turbomind = block is not None and block.key.endswith("quantization_config")
    if not turbomind or model.architecture not in other_engine:
        yield from unseen(config, _PLACES, _PYTORCH)


def _lists(block: Block, model: Model) -> Iterator[tuple[str, Problem]]:
    """An entry leaves out what is built, where that is a part of the entry: whole names and longer ones alone do."""
    entries = strings(block.raw.get("ignored_layers")) or strings(block.raw.get("modules_to_not_convert"))
    for entry in tuple(entries):
        if ".experts" in entry and (".gate_proj" in entry or ".down_proj" in entry):
            entries.append(f"{entry.split('.experts', 1)[0]}.experts")
        else:
            entries += [entry.replace(".q_proj", ".qkv_proj"), entry.replace(".gate_proj", ".gate_up_proj")]
    architecture = Architecture.of_model(model)
    units: dict[str, tuple[list[str], list[str]]] = {}
    for side, names in enumerate(stored_linears(model)):
        for name in names:
            if architecture.is_decoder(name) and not architecture.is_router(name):
                units.setdefault(_unit(name), ([], []))[side].append(name)

    def answer(built: Built) -> Answer:
        return not any(built.name in entry for entry in entries)

    built = (Built(name, quantized=tuple(q), plain=tuple(p)) for name, (q, p) in units.items())
    yield from deviations(built, answer, _PYTORCH, "it leaves out what an entry of its list contains the name of")


def _unit(name: str) -> str:
    """What it builds of a linear: q, k, v and gate, up are one, and so are all experts of a layer."""
    if ".experts." in name:
        return f"{name.split('.experts.', 1)[0]}.experts"
    parent, _, leaf = name.rpartition(".")
    return f"{parent}.{_MERGED.get(leaf, leaf)}"


PYTORCH = Derivation(derive, ("QB280", "QB281", "QB283", "QB284"))
PYTORCH_ALONE = Derivation(partial(derive, turbomind=frozenset()), PYTORCH.codes)
TURBOMIND = Derivation(derive_turbomind, ("QB283", "QB284"))
OLD = Derivation(derive_old, ("QB284",))
