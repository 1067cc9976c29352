"""What tells a layer whose codes are lost from one that was never quantized: the layers of its name elsewhere."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from qbridge.architecture.architecture import Architecture

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")
_COUNTED = re.compile(r"(?:^|.*?\.)(\w+\.\d+\..+)")
# The names that a submodel has had before its layers: transformers 4.51 and 4.52, transformers 5, and engines.
_BEFORE = ("", "model.", "language_model.", "language_model.model.", "model.language_model.", "transformer.")


def family(module: str) -> str:
    """What all siblings of a module have in common: its name without numbers, `model.layers.*.mlp.down_proj`."""
    return _NUMBER.sub("*", module)


class Siblings:
    """The quantized modules by their families.

    A layer after the last that config.json counts is one for multi-token prediction: it has siblings among its like
    alone. A module that lost its codes lost them alone: a block of which nothing is quantized (an expert that no
    calibration reached, an MLP of the first layer) was left so. Where a module is the only one of its family, what is
    beside it in its block stands for siblings.
    """

    def __init__(self, modules: Iterable[str], quantized: Iterable[str], config: Mapping[str, Any]) -> None:
        """Sort the `modules` that own a matrix, and those of them that are quantized; `config` counts the layers."""
        self._layers = Architecture.of(config).layers
        self._sizes = Counter(self._family(module) for module in modules)
        self._blocks = Counter(module.rpartition(".")[0] for module in modules)
        self._of_family: dict[tuple[str, bool], str] = {}
        self._of_block: dict[str, str] = {}
        for module in quantized:
            self._of_family.setdefault(self._family(module), module)
            self._of_block.setdefault(module.rpartition(".")[0], module)

    def of(self, module: str) -> str | None:
        """A quantized module that shows how this one should be; None if there is none."""
        of_family, block = self._family(module), module.rpartition(".")[0]
        sibling, beside = self._of_family.get(of_family), self._of_block.get(block)
        if sibling is None:
            return beside if self._sizes[of_family] == 1 and _NUMBER.search(module) else None
        return sibling if beside or self._blocks[block] == 1 else None

    def _family(self, module: str) -> tuple[str, bool]:
        first = _NUMBER.search(module)
        after = bool(first and self._layers and len(first[0]) < 10 and int(first[0]) >= self._layers)
        return family(module), after


def names_elsewhere(module: str) -> tuple[str, ...]:
    """The names that a layer has under other releases of transformers; none for what is in no numbered block."""
    match = _COUNTED.fullmatch(module)
    return tuple(f"{before}{match[1]}" for before in _BEFORE) if match else ()
