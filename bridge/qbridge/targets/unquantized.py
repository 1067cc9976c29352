"""Linears that an engine builds without quantization, whatever the block says: routers of mixtures, mostly."""

from __future__ import annotations

from collections.abc import Callable

from qbridge.formats.rules import LayerRule, Problem
from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.passes import Pass
from qbridge.passes.dequantize import NAMES
from qbridge.passes.exactly import DequantizeExactly
from qbridge.targets.common import model_dtype
from qbridge.targets.float32 import Table, held


def built_unquantized(
    why: Callable[[Spec, Model], str], source: str, default: DType, float32: Table = ()
) -> LayerRule:
    """Codes where an engine has weights (QB281): `why` says so, or nothing; they become weights if these are exact.

    The dtype is that of the engine's parameter: float32 for those of `float32`, else the model dtype.
    """

    def check(spec: Spec, model: Model) -> Problem | None:
        fact = "" if spec.weight.is_dense else why(spec, model)
        return Problem((fact,)) if fact else None

    def fix(spec: Spec, model: Model) -> Pass | None:
        wide = held(float32, model.architecture)(f"{spec.name}.weight")
        dtype = DType.F32 if wide else model_dtype(model, default)
        return DequantizeExactly(dtype) if dtype in NAMES else None

    return LayerRule("QB281", check, source, fix, first=True)
