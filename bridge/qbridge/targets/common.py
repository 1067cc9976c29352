"""What several engines do alike when they load: cast to the model dtype, and choke on kv-cache scales."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from qbridge.dtypes import Array, DType, from_float64, survives, to_float64
from qbridge.ir import Model
from qbridge.rules import Problem, ValueRule, Values

_NAMES = {"float16": DType.F16, "bfloat16": DType.BF16, "float32": DType.F32, "float": DType.F32, "half": DType.F16}


def model_dtype(model: Model, default: DType) -> DType:
    """The dtype that an engine computes in when asked for none: config.json's, else its own default."""
    config = model.config
    nested = config.get("text_config")
    for holder in (config, nested if isinstance(nested, dict) else {}):
        for key in ("dtype", "torch_dtype"):
            if isinstance(holder.get(key), str):
                return _NAMES.get(str(holder[key]).removeprefix("torch."), default)
    return default


def model_dtype_name(model: Model) -> str:
    """The dtype that activations have: float16 or bfloat16, whichever config.json names, as kernels see it."""
    return "bfloat16" if model_dtype(model, DType.F16) is DType.BF16 else "float16"


def moved(array: Array, before: DType, after: DType) -> int:
    """How many values a cast would change."""
    values = to_float64(array, before)
    back = to_float64(from_float64(values, after), after)
    return int(np.count_nonzero((back != values) & ~(np.isnan(back) & np.isnan(values))))


def unquantized_tensors(default: DType, source: str, forced: DType | None = None) -> ValueRule:
    """Every unquantized tensor must survive the cast to the model dtype (QB302).

    `forced` is the dtype that the engine takes whatever the config says.
    """

    def check(model: Model, values: Values) -> Iterator[Problem]:
        dtype = forced or model_dtype(model, default)
        found: dict[str, int] = {}
        for name, info in model.tensors.items():
            if info.dtype.is_float and not survives(info.dtype, dtype):
                count = sum(moved(block, info.dtype, dtype) for block in values.blocks(name))
                if count:
                    found[name] = count
        if found:
            yield _problem(found, dtype)

    return ValueRule("QB302", check, source)


def weight_scales(default: DType, source: str, weight_only: bool = False) -> ValueRule:
    """Every weight scale must survive the cast to the model dtype (QB302).

    `weight_only` leaves out layers whose activations are quantized, and those of float codes.
    """

    def check(model: Model, values: Values) -> Iterator[Problem]:
        dtype = model_dtype(model, default)
        found: dict[str, int] = {}
        for name, spec in model.specs.items():
            if weight_only and (spec.activation is not None or spec.weight.type != "int"):
                continue
            if not survives(spec.scale_dtype, dtype):
                count = moved(values.part(name, "scale"), spec.scale_dtype, dtype)
                if count:
                    found[f"{name}.weight_scale"] = count
        if found:
            yield _problem(found, dtype)

    return ValueRule("QB302", check, source)


def _problem(found: dict[str, int], dtype: DType) -> Problem:
    worst = max(found, key=found.__getitem__)
    fact = (
        f"{sum(found.values())} values in {len(found)} tensors have no exact {dtype}; worst: {worst}, {found[worst]}"
    )
    return Problem((fact,), where=tuple(found))
