"""Which linears vLLM builds quantized: its lists, matched as each of its methods matches them, with its names.

Where the block may lie: vllm 0.33.0, transformers_utils/model_arch_config_convertor.py (get_quantization_config).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from qbridge.architecture.architecture import Architecture
from qbridge.architecture.names import is_head, tied_head
from qbridge.formats.rules import Problem
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.targets.derivation import (
    Answer,
    Built,
    Derivation,
    Kind,
    deviations,
    is_beyond,
    seen,
    stored_linears,
    unseen,
)
from qbridge.targets.vllm import block_keys
from qbridge.targets.vllm.methods import METHODS, Question
from qbridge.targets.vllm.names import CLASSES, TEXT, TIES, Names

ENGINE = "vLLM 0.33.0"
PLACES = (
    "quantization_config",
    "compression_config",
    "text_config.quantization_config",
    "text_config.compression_config",
)
_FILES = {
    "gptq": "auto_gptq.py",
    "awq": "auto_awq.py",
    "compressed-tensors": "compressed_tensors.py",
    "auto-round": "inc/config_parser.py",
    "quark": "quark/utils.py",
    **dict.fromkeys(["modelopt", "modelopt_fp4", "modelopt_mixed"], "modelopt.py"),
}


def derive(config: Mapping[str, Any], model: Model) -> Iterator[tuple[str, Problem]]:
    """Where vLLM would build something else of a config.json than what the tensors are."""
    yield from unseen(config, PLACES, ENGINE)
    block = seen(config, PLACES)
    if block is not None:
        yield from block_keys.faults(block, model, ENGINE)
    method = METHODS.get("" if block is None else block.method.replace("_", "-"))
    architecture = Architecture.of_model(model)
    if block is None or method is None or not (model.slots or model.specs):
        return
    names = CLASSES.get(architecture.name)
    question = _question(block.raw, names or TEXT, model, architecture)
    known = _known(names, architecture)
    how, answer = method(question)

    def asked(unit: Built) -> Answer:
        if (names or TEXT).is_plain(unit.name, block.method) or _is_small(unit.name, block.method, config):
            return False
        said = answer(unit)
        return said if said is False or known(unit) else None

    yield from deviations(question.built, asked, ENGINE, f"{how} (vllm 0.33.0, {_FILES.get(block.method, 'fp8.py')})")


def _known(names: Names | None, architecture: Architecture) -> Callable[[Built], bool]:
    """Whether what vLLM builds of a unit is known: of classes in the table, and of towers where they were read."""

    def known(unit: Built) -> bool:
        if names is None or names.towers or unit.kind == "head":
            return names is not None
        return all(architecture.is_decoder(part) for part in (*unit.quantized, *unit.plain))

    return known


def _is_small(name: str, method: str, config: Mapping[str, Any]) -> bool:
    """SigLIP's MLPs of no whole multiples of 64 are quantized by no method but compressed-tensors (siglip.py)."""
    vision = config.get("vision_config")
    if (
        method == "compressed-tensors"
        or not isinstance(vision, dict)
        or name.rpartition(".")[2] not in ("fc1", "fc2")
    ):
        return False
    sizes = (vision.get("hidden_size"), vision.get("intermediate_size"))
    return "siglip" in str(vision.get("model_type")) and any(type(size) is int and size % 64 for size in sizes)


def _question(block: Mapping[str, Any], names: Names, model: Model, architecture: Architecture) -> Question:
    quantized, plain = stored_linears(model)
    units: dict[str, tuple[Kind, list[str], list[str]]] = {}  # the kind, what is quantized, what is plain
    called = {stored: names.renamed(stored) for stored in (*quantized, *plain)}
    present = set(called.values())
    heads = tied_head(model.config)

    def maps_to_vocabulary(name: str) -> bool:
        return is_head(name) or name in heads

    unit: str
    kind: Kind
    for stored, coded in (*((name, True) for name in quantized), *((name, False) for name in plain)):
        if is_draft(stored, architecture):
            continue
        name = called[stored]
        if names.either and re.search(names.either, name):
            continue
        parent, _, leaf = name.rpartition(".")
        unit, kind = name, "head" if maps_to_vocabulary(stored) or is_head(name) else "linear"
        if experts := names.experts_of(name):
            unit, kind = experts, "experts"
        elif (merged := names.merges(parent, leaf)) and sum(f"{parent}.{n}" in present for n in merged[1]) > 1:
            unit = f"{parent}.{merged[0]}"
        _, codes, floats = units.setdefault(unit, (kind, [], []))
        (codes if coded else floats).append(stored)
    if architecture.tied and architecture.name in TIES and not any(map(maps_to_vocabulary, called)):
        units[names.renamed(heads[-1])] = "head", [], [heads[-1]]
    built = tuple(Built(unit, kind, tuple(codes), tuple(floats)) for unit, (kind, codes, floats) in units.items())
    modules = dict.fromkeys(info.stored.rpartition(".")[0] for info in model.tensors.values())
    return Question(block, names, tuple(quantized), tuple(modules), built)


def is_draft(stored: str, architecture: Architecture) -> bool:
    """Layers for multi-token prediction, which are loaded as another model, and only if they are asked for."""
    parts = stored.split(".")
    if "mtp" in parts or "talker" in parts or "token2wav" in parts:
        return True
    number = next((parts[i + 1] for i, part in enumerate(parts[:-1]) if part == "layers"), "")
    count = architecture.layers
    return is_beyond(number, count) and _is_text(parts) and not architecture.is_decoder(stored)


EMBEDDING = "embed_tokens"
# Classes whose embedding is told its name, without which no group of a block is its own: model_executor/models.
NAMED_EMBEDDINGS = frozenset({"Qwen2ForCausalLM", "Qwen3ForCausalLM", "Qwen3MoeForCausalLM"})


def unquantizable(method: str) -> Callable[[Spec, Model], str]:
    """Says of a quantized linear that its class hands it no block of a method, so that no list can make it so."""

    def why(spec: Spec, model: Model) -> str:
        architecture = Architecture.of_model(model)
        if spec.name.endswith(EMBEDDING):
            named = method == "compressed-tensors" and architecture.name in NAMED_EMBEDDINGS
            return (
                "" if named and not architecture.tied else f"{ENGINE} builds the embedding unquantized in this class"
            )
        names = CLASSES.get(architecture.name)
        if names is None:
            return ""
        stored = dict(spec.dialect).get("stored_as") or spec.name
        called = names.renamed(stored)
        if not names.is_plain(called, method) or is_draft(stored, architecture):
            return ""
        if names.either and re.search(names.either, called):
            return ""
        return f"{ENGINE} builds them unquantized in {architecture.name}, whatever the block says"

    return why


def _is_text(parts: list[str]) -> bool:
    return not any("vision" in part or "visual" in part or "audio" in part or part == "vpm" for part in parts)


DERIVATION = Derivation(derive, ("QB280", "QB281", "QB282", "QB283", "QB284", "QB285"))
