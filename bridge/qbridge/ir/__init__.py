"""What a checkpoint means, whatever its bytes: dtypes, schemes, layers, models, and the slots of their parts."""

from __future__ import annotations

from qbridge.ir.layer import Layer, Spec, identical
from qbridge.ir.model import Model, TensorInfo
from qbridge.ir.scheme import ActivationScheme, Granularity, WeightScheme

__all__ = [
    "ActivationScheme",
    "Granularity",
    "Layer",
    "Model",
    "Spec",
    "TensorInfo",
    "WeightScheme",
    "identical",
]
