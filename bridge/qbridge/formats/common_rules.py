"""Rules that several formats share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from math import prod
from typing import Any

from qbridge.architecture.names import is_kv_scale
from qbridge.formats.rules import LayerRule, ModelRule, Problem, ValueRule, Values
from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.ir.scheme import GlobalScale, Granularity
from qbridge.passes.broadcast import Broadcast
from qbridge.passes.invert import Invert
from qbridge.passes.plain import PlainInputs
from qbridge.passes.recast import Recast


def drop_kv_scales(model: Model) -> Model:
    """The model without stored kv-cache scales."""
    tensors = {name: info for name, info in model.tensors.items() if not is_kv_scale(name)}
    return replace(model, tensors=tensors, kv_cache={})


def stored_kv_scales(model: Model) -> tuple[str, ...]:
    """The names of the kv cache's scales, in any spelling."""
    return tuple(name for name in model.tensors if is_kv_scale(name))


FLOAT8_CACHE: Mapping[str, Any] = {
    "num_bits": 8,
    "type": "float",
    "symmetric": True,
    "strategy": "tensor",
    "dynamic": False,
}


def float8_kv_scales(code: str, source: str, any_strategy: bool = False) -> ModelRule:
    """A quantized kv cache must be one of symmetric float8 (QB113 for a format, QB223 for an engine).

    Its scales are stored, one for a layer, unless `any_strategy` is understood.
    """
    keys = ("num_bits", "type", "symmetric", *(() if any_strategy else ("dynamic",)))

    def check(model: Model) -> Iterator[Problem]:
        if not model.kv_cache:
            return
        found = stored_kv_scales(model)
        scheme = {"symmetric": True, "dynamic": False, **model.kv_cache}
        if any(scheme.get(key) != FLOAT8_CACHE[key] for key in keys):
            kind = f"{scheme.get('type')}{scheme.get('num_bits')}"
            said = ", ".join([kind, *(key for key in ("symmetric", "dynamic") if scheme[key])])
            yield Problem((f"kv cache {said}: it takes float8, symmetric",), where=found or ("kv_cache_scheme",))
        several = tuple(name for name in found if prod(model.tensors[name].shape) != 1)
        if several and not any_strategy:
            yield Problem(("more than one scale of the kv cache for a layer",), where=several)

    return ModelRule(code, check, source, drop_kv_scales)


def no_kv_scales(source: str) -> ModelRule:
    """No quantized kv cache (QB113), for formats whose config cannot say what its scales are."""

    def check(model: Model) -> Iterator[Problem]:
        found = stored_kv_scales(model)
        if found:
            yield Problem((f"{len(found)} scales of the kv cache",), where=found)
        elif model.kv_cache:
            yield Problem(("kv cache declared quantized, and no scale is stored",), where=("kv_cache_scheme",))

    return ModelRule("QB113", check, source, drop_kv_scales)


def kv_scales_are_stored(source: str) -> ModelRule:
    """The scales of a static kv cache (QB113), for formats that have no value for one that is not stored."""

    def check(model: Model) -> Iterator[Problem]:
        static = model.kv_cache and not model.kv_cache.get("dynamic")
        if static and not stored_kv_scales(model):
            yield Problem(("kv cache declared static, and no scale is stored",), where=("kv_cache_scheme",))

    return ModelRule("QB113", check, source, drop_kv_scales)


def stored_scales(tool: str, dtype: DType, source: str, also: tuple[DType, ...] = ()) -> LayerRule:
    """Scales must be of `dtype` (QB301), to which they are cast, or of one in `also`."""

    def check(spec: Spec, model: Model) -> Problem | None:
        if spec.scale_dtype in (dtype, *also):
            return None
        return Problem((f"scales are {spec.scale_dtype}, {tool} stores {dtype}",))

    return LayerRule("QB301", check, source, lambda spec, model: Recast(dtype))


def plain_activations(tool: str, source: str) -> LayerRule:
    """Dynamic activations without a limit, their scales not rounded (QB116); both are dropped if allowed."""

    def check(spec: Spec, model: Model) -> Problem | None:
        acts = spec.activation
        if acts is None or (acts.limit is None and not acts.power_of_two):
            return None
        return Problem((f"activations {acts}: {tool} cannot say so",))

    return LayerRule("QB116", check, source, lambda spec, model: PlainInputs())


def scales_per_row(tool: str, source: str) -> LayerRule:
    """No scale for a whole tensor (QB110): it is repeated for each channel."""

    def check(spec: Spec, model: Model) -> Problem | None:
        if spec.weight.granularity is not Granularity.TENSOR:
            return None
        return Problem((f"weights {spec.weight}: {tool} has scales per channel or group",))

    return LayerRule("QB110", check, source, lambda spec, model: Broadcast())


def global_scales(tool: str, does: GlobalScale, source: str) -> LayerRule:
    """Global scales must multiply, or must divide (QB305): any others are inverted."""

    def check(spec: Spec, model: Model) -> Problem | None:
        found = {spec.weight.global_scale, spec.activation.global_scale if spec.activation else None} - {None}
        if found <= {does}:
            return None
        other = "divide" if does == "multiply" else "multiply"
        return Problem((f"its global scales {other}, those of {tool} {does}",))

    return LayerRule("QB305", check, source, lambda spec, model: Invert(does))


def zeros_fit(source: str, lowest: Callable[[Spec], int] = lambda spec: 0) -> ValueRule:
    """Every zero-point must be one of the 2**bits from `lowest(spec)` on, in the unsigned domain (QB111).

    GPTQ version 1 can say one that is not: 2**bits.
    """

    def check(model: Model, values: Values) -> Iterator[Problem]:
        for name, spec in model.specs.items():
            if spec.weight.symmetric or spec.weight.type != "int":
                continue
            half, zeros = 2 ** (spec.weight.bits - 1), values.part(name, "zero")
            low, high = int(zeros.min()) + half, int(zeros.max()) + half
            least, most = lowest(spec), 2 * half - 1 + lowest(spec)
            if low < least or high > most:
                ranges = f"zero-points from {low} to {high}", f"it holds {least} to {most}"
                yield Problem(ranges, where=(name,))

    return ValueRule("QB111", check, source)
