"""A model from config.json alone, in the words of its format: which linears are quantized, and how.

A format may have a function `assumed(config, names)`: what it makes of a config.json, by the names of all linears;
None if the quantization block is not its own, ValueError if it does not say enough. The head is among the names where
`CONFIG_SAYS_HEAD` tells that the block says whether it is quantized.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qbridge.architecture.config import compute_dtype
from qbridge.architecture.from_config import assumed_head, assumed_linears, config_alone
from qbridge.architecture.from_config import assumed_model as by_bits
from qbridge.architecture.quantization_block import NO_BLOCK, find_block
from qbridge.findings.finding import error
from qbridge.formats.registry import load, usable
from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model, TensorInfo
from qbridge.ir.scheme import ActivationScheme, WeightScheme
from qbridge.source.storage import Storage


@dataclass(frozen=True, slots=True)
class Assumed:
    """The scheme of a linear as far as a config says; its scales have the usual dtype of the format."""

    weight: WeightScheme
    activation: ActivationScheme | None = None
    scale: DType = DType.F32
    g_idx: bool = False
    dialect: tuple[tuple[str, str], ...] = ()

    def spec(self, name: str, dims: tuple[int, int]) -> Spec:
        """The linear of a name, (out_features, in_features)."""
        stored = DType.F32 if self.activation is not None and self.activation.is_stored else None
        return Spec(
            name, *dims, self.weight, self.scale, self.activation, stored, g_idx=self.g_idx, dialect=self.dialect
        )


def assumed_model(storage: Storage) -> Model:
    """The model of a place that has config.json and no weights; QBridgeError (QB262) if that says too little.

    A linear that the format leaves unquantized is among the tensors, as the checkpoint would have it.
    """
    config, decoder = assumed_linears(storage)
    for name in usable():
        reader = load(name)
        find = getattr(reader, "assumed", None)
        if find is None:
            continue
        alone = config_alone(storage, getattr(reader, "CONFIG_FILES", ()))
        dims = {**decoder, **(assumed_head(config) if getattr(reader, "CONFIG_SAYS_HEAD", False) else {})}
        try:
            found: Mapping[str, Assumed] | None = find(alone, list(dims))
            specs = {module: entry.spec(module, dims[module]) for module, entry in (found or {}).items()}
        except ValueError as fault:
            raise error("QB262", storage.url, (str(fault),)) from fault
        if specs:
            return Model(reader.NAME, config, specs, {}, _unquantized(config, dims, specs), kv_cache=_kv_cache(alone))
    return by_bits(storage)


def _unquantized(
    config: Mapping[str, Any], dims: Mapping[str, tuple[int, int]], specs: Mapping[str, Spec]
) -> dict[str, TensorInfo]:
    """The weights of the linears that are not quantized, in the dtype that the config names."""
    dtype = compute_dtype(config, DType.BF16)
    names = {module: f"{module}.weight" for module in dims if module not in specs}
    return {name: TensorInfo(dtype, dims[module], name) for module, name in names.items()}


def _kv_cache(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The scheme of the kv cache that the quantization block declares; empty where it declares none."""
    scheme = (find_block(config) or NO_BLOCK).raw.get("kv_cache_scheme")
    return scheme if isinstance(scheme, dict) else {}
