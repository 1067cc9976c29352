"""What an engine builds from a quantization block, held against the tensors on disk.

Which linears an engine builds quantized follows from the block alone, by lists that it matches with its own names.
Where that differs from the tensors, it stops while it loads, or fills a layer with something else and says nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from qbridge.architecture.names import is_embedding
from qbridge.architecture.quantization_block import Block, find_block
from qbridge.formats.rules import Problem
from qbridge.ir.model import Model

Found = Iterable[tuple[str, Problem]]
# Whether an engine builds something quantized; the words with which it stops; None where that is not known.
Answer = bool | str | None

_LOOKUPS = re.compile(
    r"(?:^|\.)(?:\w*pos(?:ition)?_emb(?:ed(?:ding)?)?s?|embeddings?|\w*norm\w*|\w*tile_embedding|\w+_token)$"
)
# Experts of Granite and Step; other weights of three axes are convolutions.
STACKS = ("input_linear", "output_linear", ".moe.gate_proj", ".moe.up_proj", ".moe.down_proj")


@dataclass(frozen=True, slots=True)
class Derivation:
    """What an engine builds from a config.json.

    `check` gives (code, problem) of all that it would make otherwise than what the tensors of a model are; the config
    has its quantization block. A model without tensors is judged by the block alone. `codes` are those that it has.
    """

    check: Callable[[Mapping[str, Any], Model], Found]
    codes: tuple[str, ...]


Kind = Literal["linear", "experts", "head"]


@dataclass(frozen=True, slots=True)
class Built:
    """One thing that an engine builds: a linear, several that it fuses, the experts of a layer, or a head.

    `name` is what the engine calls it; `quantized` and `plain` are the linears on disk that it is built of, by their
    stored names.
    """

    name: str
    kind: Kind = "linear"
    quantized: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()


def stored_linears(model: Model) -> tuple[list[str], list[str]]:
    """(quantized modules, unquantized matrices and stacks of them) by their names on disk, lookup tables left out.

    A stack of experts has three axes and may have no last name of its own. A model without slots is one of
    config.json alone, whose linears would be stored under their names.
    """
    quantized = {slots["code"].tensor.rpartition(".")[0]: None for slots in model.slots.values() if "code" in slots}
    quantized = quantized if model.slots else dict.fromkeys(model.specs)
    plain: dict[str, None] = {}
    for info in model.tensors.values():
        module, _, leaf = info.stored.rpartition(".")
        if not info.dtype.is_float or leaf.endswith(("bias", "_scale", "_scale_inv", "_scale_2")):
            continue
        if leaf != "weight" and not (len(info.shape) == 3 and ".experts." in info.stored):
            continue
        name = module if leaf == "weight" else info.stored
        matrix = len(info.shape) == 2 or (len(info.shape) == 3 and (".experts" in name or name.endswith(STACKS)))
        if matrix and name not in quantized and not is_embedding(name) and not _LOOKUPS.search(name):
            plain[name] = None
    return list(quantized), list(plain)


def is_beyond(number: str, count: int | None) -> bool:
    """Whether a layer's number, as its name has it, is of no layer that a model of `count` builds."""
    return count is not None and number.isdecimal() and (len(number) >= 10 or int(number) >= count)


def deviations(
    built: Iterable[Built], answer: Callable[[Built], Answer], engine: str, how: str
) -> Iterator[tuple[str, Problem]]:
    """Where an engine builds something else than what is on disk; `how` says how it matches its lists."""
    wrong: dict[tuple[str, str], dict[str, None]] = {}
    for unit in built:
        builds = answer(unit)
        parts = (*unit.quantized, *unit.plain)
        if isinstance(builds, str):
            wrong.setdefault(("QB282", builds), {}).update(dict.fromkeys(parts))
        elif builds is None and unit.plain:
            wrong.setdefault(("QB285", ""), {}).update(dict.fromkeys(unit.plain))
        elif builds and unit.plain:
            wrong.setdefault(("QB280", ""), {}).update(dict.fromkeys(unit.plain))
        elif builds is False and unit.quantized:
            wrong.setdefault(("QB281", ""), {}).update(dict.fromkeys(unit.quantized))
    for (code, words), names in wrong.items():
        facts = {
            "QB280": f"{engine} builds {len(names)} linears quantized, and on disk they are not",
            "QB281": f"{engine} builds {len(names)} linears unquantized, and on disk they are quantized",
            "QB282": f"{engine} stops: {words}",
            "QB285": f"whether {engine} builds {len(names)} linears quantized is not known",
        }
        yield code, Problem((facts[code], how) if how else (facts[code],), where=tuple(names))


def unseen(config: Mapping[str, Any], keys: Iterable[str], engine: str) -> Iterator[tuple[str, Problem]]:
    """The quantization block, where it lies under none of the keys (paths with dots) that an engine looks at."""
    block = find_block(config)
    if block is None or seen(config, keys) is not None:
        return
    keys = tuple(keys)
    looks = f"it is {block.key}; {engine} looks at {', '.join(keys)}"
    fact = f"{block.key} is no JSON object" if block.key in keys else looks
    yield (
        "QB283",
        Problem((fact, f"{engine} takes the codes for weights, or stops at their names"), where=(block.key,)),
    )


def seen(config: Mapping[str, Any], keys: Iterable[str]) -> Block | None:
    """The block that an engine takes: the first under one of `keys`."""
    for key in keys:
        value: Any = config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if isinstance(value, dict):
            return Block(key, value)
    return None


def strings(value: Any) -> list[str]:
    """The strings of a list that may be absent, nested or no list at all."""
    found: list[str] = []
    for entry in value if isinstance(value, list) else ():
        if isinstance(entry, list):
            found += strings(entry)
        elif isinstance(entry, str):
            found.append(entry)
    return found
