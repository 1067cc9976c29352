"""What several engines do alike when they load: cast to the model dtype, and keep one of several input scales."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from qbridge.dtypes import Array, DType, from_float64, survives, to_float64
from qbridge.hf_config import compute_dtype
from qbridge.ir import Model, Spec
from qbridge.rules import Problem, ValueRule, Values
from qbridge.topology import fused_siblings, is_kv_scale

START = "start the server with LMDeploy's option --backend {}"  # pytorch or turbomind


def model_dtype(model: Model, default: DType) -> DType:
    """The dtype that an engine computes in when asked for none: config.json's, else its own default."""
    return compute_dtype(model.config, default)


def model_dtype_name(model: Model) -> str:
    """The dtype that activations have: float16 or bfloat16, whichever config.json names, as kernels see it."""
    return "bfloat16" if model_dtype(model, DType.F16) is DType.BF16 else "float16"


def unlike_parts(
    *parts: str, of: Callable[[Spec], bool] = lambda spec: True
) -> Callable[[Model, Values], Iterator[Problem]]:
    """Small parts that differ among the linears that an engine builds as one, which has one slot for them."""

    def check(model: Model, values: Values) -> Iterator[Problem]:
        for names in fused_siblings(list(model.specs)):
            for part in parts:
                stored = [name for name in names if part in model.specs[name].parts() and of(model.specs[name])]
                found = {np.asarray(values.part(name, part)).tobytes() for name in stored}
                if len(found) > 1:
                    yield Problem((f"{len(found)} different values of {part}",), where=tuple(names))

    return check


def moved(array: Array, before: DType, after: DType) -> int:
    """How many values a cast would change."""
    values = to_float64(array, before)
    back = to_float64(from_float64(values, after), after)
    return int(np.count_nonzero((back != values) & ~(np.isnan(back) & np.isnan(values))))


def unquantized_tensors(
    default: DType, source: str, forced: DType | None = None, kv_scales: bool = True
) -> ValueRule:
    """Every unquantized tensor must survive the cast to the model dtype (QB302).

    `forced` is the dtype that the engine takes whatever the config says. Unless `kv_scales`, those of the kv cache
    are not cast.
    """

    def check(model: Model, values: Values) -> Iterator[Problem]:
        dtype = forced or model_dtype(model, default)
        found: dict[str, int] = {}
        for name, info in model.tensors.items():
            cast = kv_scales or not is_kv_scale(name)
            if cast and info.dtype.is_float and not survives(info.dtype, dtype):
                count = sum(moved(block, info.dtype, dtype) for block in values.blocks(name))
                if count:
                    found[name] = count
        if found:
            yield _problem(found, dtype)

    return ValueRule("QB302", check, source)


def weight_scales(default: DType, source: str, weight_only: bool = False) -> ValueRule:
    """Every weight scale must survive the cast to the model dtype (QB302).

    `weight_only` leaves out layers whose activations are quantized, and float codes, whose scales are not cast.
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
