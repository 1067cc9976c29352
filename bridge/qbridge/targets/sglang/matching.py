"""Which linears SGLang builds quantized: its lists, matched by each of its methods, with its names.

Text models are built under the names that they have on disk, q, k, v and gate, up as qkv_proj and gate_up_proj; a
class that has no `packed_modules_mapping` looks for the latter alone in the lists of compressed-tensors and
w8a8_int8.
Source: sglang 0.5.23, srt/model_loader/loader.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from qbridge.architecture.architecture import Architecture
from qbridge.architecture.names import is_head, is_router
from qbridge.architecture.quantization_block import Block
from qbridge.formats.rules import Problem
from qbridge.ir.model import Model
from qbridge.targets.block_keys import without_block_size
from qbridge.targets.derivation import (
    Answer,
    Built,
    Derivation,
    Kind,
    deviations,
    seen,
    stored_linears,
    unseen,
)
from qbridge.targets.sglang.classes import THROUGH, THROUGH_TOWERS
from qbridge.targets.sglang.fusion import SGLANG, words
from qbridge.targets.sglang.methods import METHODS, Asked
from qbridge.targets.sglang.names import CLASSES, TEXT, Names

ENGINE = "SGLang 0.5.23"
PLACES = ("quantization_config", "compression_config")
_ROUTERS = re.compile(r"(?:^|\.)(?:gate|router|shared_expert_gate)$")
# What every class builds from the block; of others (mixers, indexers) it was not read.
_KNOWN = words("qkv_proj o_proj gate_up_proj down_proj experts fused_qkv_a_proj_with_mqa q_b_proj kv_b_proj lm_head")
# The methods under which each format lies that has one of them.
_OF_FORMAT: Mapping[str, tuple[str, ...]] = {
    "awq": ("awq",),
    "gptq": ("gptq",),
    "auto-round": ("auto-round",),
    "compressed-tensors": ("compressed-tensors",),
}


def derive(config: Mapping[str, Any], model: Model) -> Iterator[tuple[str, Problem]]:
    """Where SGLang would build something else of a config.json than what the tensors are."""
    yield from unseen(config, PLACES, ENGINE)
    block = seen(config, PLACES)
    if block is None:
        if model.slots and model.format != "modelopt":  # whose file beside config.json it reads
            fact = f"there is none: {ENGINE} takes the model for an unquantized one"
            yield "QB284", Problem((fact,), where=("quantization_config",))
        return
    yield from _method(block, model)
    method, architecture = METHODS.get(block.method), Architecture.of_model(model)
    if method is None or not (model.slots or model.specs):
        return
    names = CLASSES.get(architecture.name, TEXT)
    asked = Asked(block.raw, names, tuple(_built(model, architecture, names)))
    how, answer = method(asked)

    def of_known(unit: Built) -> Answer:
        said = False if names.is_plain(unit.name) else answer(unit)
        known = names.is_plain(unit.name) or _is_known(unit, architecture, names)
        listed = said is False and not unit.quantized  # unquantized whatever the class does
        return said if known or listed or isinstance(said, str) else None

    yield from deviations(asked.built, of_known, ENGINE, f"{how} (sglang 0.5.23, srt/layers/quantization)")


def _method(block: Block, model: Model) -> Iterator[tuple[str, Problem]]:
    """What it makes of a method: a format under another's name, or blocks without a size, which SGLang believes."""
    methods = _OF_FORMAT.get(model.format)
    if block.method == "fp8":
        yield from without_block_size(block, model, ENGINE)
    if block.method and methods and block.method not in methods:
        fact = f"{block.method!r}: the tensors are those of {model.format}, and {ENGINE} goes by the method"
        yield "QB284", Problem((fact,), where=(f"{block.key}.quant_method",))


def _is_known(unit: Built, architecture: Architecture, names: Names) -> bool:
    """Whether a class is known to build something from the block, if the lists let it."""
    if _is_text(unit, architecture):
        return unit.name.rpartition(".")[2] in _KNOWN
    return names.towers


def _built(model: Model, architecture: Architecture, names: Names) -> Iterator[Built]:
    """What is built of all linears; routers are built unquantized."""
    quantized, plain = stored_linears(model)
    groups = SGLANG.of(architecture.name)
    whole = architecture.name in THROUGH | THROUGH_TOWERS  # transformers' own modules are fused by nothing
    merged = {} if whole else {part: name for name, parts in groups.items() for part in parts}
    units: dict[tuple[str, Kind], tuple[list[str], list[str]]] = {}
    for side, stored in enumerate((quantized, plain)):
        for name in stored:
            if is_router(name) or _ROUTERS.search(name):
                continue
            called = names.renamed(name)
            parent, _, leaf = called.rpartition(".")
            kind: Kind = "head" if is_head(name) else "linear"
            unit = f"{parent}.{merged[leaf]}".lstrip(".") if leaf in merged else called
            if ".experts." in called:
                unit, kind = f"{called.partition('.experts.')[0]}.experts", "experts"
            elif names.experts and (stack := re.fullmatch(names.experts, called)):
                unit, kind = f"{stack[1]}.experts", "experts"
            units.setdefault((unit, kind), ([], []))[side].append(name)
    for (unit, kind), (codes, floats) in units.items():
        yield Built(unit, kind, tuple(codes), tuple(floats))


def _is_text(unit: Built, architecture: Architecture) -> bool:
    """Whether it is in the decoder, or its head: towers were not read."""
    return unit.kind == "head" or all(map(architecture.is_decoder, (*unit.quantized, *unit.plain)))


DERIVATION = Derivation(derive, ("QB280", "QB281", "QB282", "QB283", "QB284", "QB285"))
