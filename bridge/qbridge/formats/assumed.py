"""A model from config.json alone, in the words of its format: which linears are quantized, and how.

A format may have a function `assumed(config, names)`: what it makes of a config.json, by the names of all linears;
None if the quantization block is not its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qbridge.architecture.from_config import assumed_linears, config_alone
from qbridge.architecture.from_config import assumed_model as by_bits
from qbridge.findings.finding import error
from qbridge.formats.registry import load, usable
from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.ir.scheme import ActivationScheme, WeightScheme
from qbridge.source.storage import Storage


@dataclass(frozen=True, slots=True)
class Assumed:
    """The scheme of a linear as far as a config says; its scales have the usual dtype of the format."""

    weight: WeightScheme
    activation: ActivationScheme | None = None
    scale: DType = DType.F32

    def spec(self, name: str, dims: tuple[int, int]) -> Spec:
        """The linear of a name, (out_features, in_features)."""
        stored = DType.F32 if self.activation is not None and self.activation.is_stored else None
        return Spec(name, *dims, self.weight, self.scale, self.activation, stored)


def assumed_model(storage: Storage) -> Model:
    """The model of a place that has config.json and no weights; QBridgeError (QB262) if that says too little.

    A linear that the format leaves unquantized is in no part of the model.
    """
    config, dims = assumed_linears(storage)
    for name in usable():
        reader = load(name)
        find = getattr(reader, "assumed", None)
        if find is None:
            continue
        alone = config_alone(storage, getattr(reader, "CONFIG_FILES", ()))
        found: Mapping[str, Assumed] | None = find(alone, list(dims))
        if found:
            try:
                specs = {module: entry.spec(module, dims[module]) for module, entry in found.items()}
            except ValueError as fault:
                raise error("QB262", storage.url, (str(fault),)) from fault
            return Model(reader.NAME, config, specs, {}, {})
    return by_bits(storage)
