"""Which modules ModelOpt's config takes for quantized, and by which algorithm."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from qbridge.architecture.names import is_decoder_linear, is_router, is_vision
from qbridge_formats._shared.scope import WHOLE_MODEL, Scope
from qbridge_formats._shared.siblings import Siblings, names_elsewhere
from qbridge_formats.modelopt.config import MIXED, Excluded, Said


class Claims:
    """What a config says of each module; `coded` are the modules whose weights are codes."""

    def __init__(
        self, said: Said, modules: Collection[str], coded: Collection[str], config: Mapping[str, Any]
    ) -> None:
        """Match the lists against the modules."""
        self._said = said
        self._scope = Scope.of(said.key, coded)
        self._siblings = Siblings(modules, coded, config)
        self.excluded = Excluded(said.exclude or (), modules, self._scope)

    def algo(self, module: str) -> str | None:
        """The algorithm of a module; None where algorithms are mixed and no entry has it or what it is a part of."""
        if self._said.algo != MIXED:
            return self._said.algo
        return next((algo for name in self._scope.names(module) if (algo := self._listed(name))), None)

    def _listed(self, name: str) -> str | None:
        while name and name not in self._layers:
            name = name.rpartition(".")[0]
        return self._layers.get(name)

    @property
    def _layers(self) -> Mapping[str, str]:
        return self._said.layers or {}

    def takes_in(self, module: str) -> bool:
        """Whether a module whose weight is a float matrix is one that the config takes for quantized."""
        if self._said.algo == MIXED:
            return self.algo(module) is not None and not self.excluded.loosely(module)
        left_alone = self.excluded.loosely(module) or is_router(module) or is_vision(module)
        return is_decoder_linear(module) and self._scope.covers(module) and not left_alone

    def doubt(self, module: str) -> str | None:
        """Why a float matrix that is taken for quantized must have lost its codes; None if it never had any."""
        if self._said.algo == MIXED and any(name in self._layers for name in self._scope.names(module)):
            return "quantized_layers has it"
        sibling = self._siblings.of(module)
        return f"{sibling} is quantized" if sibling else None

    def excluded_elsewhere(self, modules: Collection[str]) -> list[str]:
        """The modules that are excluded under the names of another release of transformers."""
        names = {module: names_elsewhere(module) for module in modules}
        every = dict.fromkeys(name for others in names.values() for name in others)
        excluded = Excluded(self._said.exclude or (), every, WHOLE_MODEL)
        return [module for module, others in names.items() if any(name in excluded for name in others)]
