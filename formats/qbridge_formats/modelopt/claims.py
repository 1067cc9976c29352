"""Which modules ModelOpt's config takes for quantized, and by which algorithm."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from qbridge.architecture.names import is_decoder_linear, is_router, is_vision
from qbridge.findings.finding import Findings
from qbridge.ir.dtypes import DType
from qbridge_formats._shared.modules import ModuleTensors
from qbridge_formats._shared.scope import WHOLE_MODEL, Scope
from qbridge_formats._shared.siblings import Siblings, names_elsewhere
from qbridge_formats.modelopt.config import MIXED, Excluded, Said

_SCALES = frozenset({"weight_scale", "weight_scale_inv", "weight_scale_2"})
_SIDE_TENSORS = ("pre_quant_scale", "svdquant_lora_a", "svdquant_lora_b")


class Claims:
    """What a config says of each module; `coded` are the modules whose weights are codes."""

    def __init__(
        self, said: Said, modules: Collection[str], coded: Collection[str], config: Mapping[str, Any]
    ) -> None:
        """Match the lists against the modules."""
        self._said = said
        self._scope = Scope.of(said.key, coded)
        self._siblings: Siblings | None = None
        self._modules, self._coded, self._config = modules, coded, config
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
        if self._siblings is None:
            self._siblings = Siblings(self._modules, self._coded, self._config)
        sibling = self._siblings.of(module)
        return f"{sibling} is quantized" if sibling else None

    def excluded_elsewhere(self, modules: Collection[str]) -> list[str]:
        """The modules that are excluded under the names of another release of transformers."""
        names = {module: names_elsewhere(module) for module in modules}
        every = dict.fromkeys(name for others in names.values() for name in others)
        excluded = Excluded(self._said.exclude or (), every, WHOLE_MODEL)
        return [module for module, others in names.items() if any(name in excluded for name in others)]


def is_quantized(own: ModuleTensors) -> bool:
    """Whether a module's weight is codes, or has a scale beside it."""
    return not _SCALES.isdisjoint(own) or not own["weight"].dtype.is_float


def algo_for(module: str, own: ModuleTensors, claims: Claims, findings: Findings) -> str | None:
    """The algorithm of a module whose weight is codes; None with a finding."""
    algo = claims.algo(module)
    if algo is None:
        algo = _shown(own)
        if algo is None:
            findings.add("QB013", module, ("its weight is quantized and quantized_layers does not name it",))
            return None
        findings.add("QB019", module, (f"quantized_layers does not name it: its tensors are those of {algo}",))
    elif module in claims.excluded:
        findings.add("QB019", module, ("the list of what is not quantized has it",))
    if own["weight"].dtype.is_float:
        findings.add("QB016", module, (f"weight is {own['weight'].dtype} beside a scale: it is not quantized",))
        return None
    found = [leaf for leaf in _SIDE_TENSORS if leaf in own]
    if found:
        findings.add("QB102", module, (f"{found[0]}: more mathematics than a weight and its scales",))
        return None
    return algo


def _shown(own: ModuleTensors) -> str | None:
    """The algorithm that tensors alone show; None where they do not fit one, or several."""
    weight, scale = own["weight"], own.get("weight_scale")
    if weight.dtype is DType.U8 and "weight_scale_2" in own and scale and scale.dtype is DType.F8_E4M3:
        return "NVFP4" if "input_scale" in own else "W4A16_NVFP4"
    if weight.dtype is not DType.F8_E4M3:
        return None
    if "weight_scale_inv" in own:
        return "FP8_PB_WO"
    if scale is None or (scale.dtype is DType.U8) == scale.dtype.is_float:
        return None
    rows = weight.shape[0]
    kinds = {
        "MXFP8": scale.dtype is DType.U8 and "input_scale" not in own,
        "FP8": scale.shape in ((), (1,)) and "input_scale" in own,
        "FP8_PER_CHANNEL_PER_TOKEN": rows > 1 and scale.shape in ((rows,), (rows, 1)) and "input_scale" not in own,
        "FP8_PB_WO": len(scale.shape) == 4,
    }
    return next((algo for algo, is_it in kinds.items() if is_it), None)


def judge_plain(modules: Mapping[str, ModuleTensors], claims: Claims, findings: Findings) -> None:
    """Float weights that the config takes for quantized: they lost their codes (QB015), or never had any (QB042)."""
    doubted, plain = {}, []
    for module, own in modules.items():
        if is_quantized(own) or not claims.takes_in(module):
            continue
        fact = claims.doubt(module)
        if fact:
            doubted[module] = f"weight is {own['weight'].dtype} and no weight_scale lies beside it: {fact}"
        else:
            plain.append(module)
    elsewhere = claims.excluded_elsewhere(doubted)
    for module, fact in doubted.items():
        if module not in elsewhere:
            findings.add("QB015", module, (fact,))
    if noted := [*plain, *elsewhere]:
        findings.add("QB042", noted)
