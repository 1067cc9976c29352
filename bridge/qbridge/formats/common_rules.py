"""Rules that several formats share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from math import prod
from typing import Any

from qbridge.architecture.config import compute_dtype
from qbridge.architecture.names import KV_BOTH, is_kv_scale, module_of
from qbridge.formats.rules import LayerRule, ModelRule, Problem, ValueRule, Values
from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.ir.scheme import GlobalScale, Granularity
from qbridge.passes import Pass
from qbridge.passes.broadcast import Broadcast
from qbridge.passes.dequantize import NAMES
from qbridge.passes.fold_zeros import FoldZeros
from qbridge.passes.invert import Invert
from qbridge.passes.plain import PlainInputs
from qbridge.passes.recast import Recast
from qbridge.passes.regroup import Regroup
from qbridge.passes.unquantize import Unquantize
from qbridge.passes.widen import Widen

_MOST_ZEROS = 90_000_000  # zero-points that a manifest records: 60 MB of those of 4 bits


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


def kv_scales_apart(source: str) -> ModelRule:
    """No scale of keys and values alike (QB113), for formats that have one of each."""

    def check(model: Model) -> Iterator[Problem]:
        both = tuple(name for name in stored_kv_scales(model) if module_of(name)[1] == KV_BOTH)
        if both:
            yield Problem(("one scale for keys and values alike: it has k_scale and v_scale",), where=both)

    return ModelRule("QB113", check, source, drop_kv_scales)


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


def no_computed_weights(source: str) -> LayerRule:
    """Codes with one scale each (QB119); weights that have none are rounded to the model's dtype where allowed."""

    def check(spec: Spec, model: Model) -> Problem | None:
        return Problem((f"weights {spec.weight.blocks}",)) if spec.weight.is_computed else None

    def fix(spec: Spec, model: Model) -> Pass | None:
        dtype = compute_dtype(model.config, DType.BF16)
        return Unquantize(dtype) if dtype in NAMES else None

    return LayerRule("QB119", check, source, fix, first=True)


def folded_zeros(model: Model, bits: int) -> FoldZeros:
    """Zero-points folded into codes of `bits` bits, and recorded where a manifest holds those of the whole model."""
    asymmetric = (spec for spec in model.specs.values() if not spec.weight.symmetric)
    count = model.once("zero-points", lambda: sum(prod(spec.scale_shape) for spec in asymmetric))
    return FoldZeros(bits, recorded=count <= _MOST_ZEROS)


def stacked_alike(
    model: Model, kind: Callable[[Spec], str], place: Callable[[str], tuple[str, int] | None]
) -> Iterator[Problem]:
    """The experts of a stack must all be there, and of one kind; `place` gives the stack and number of a module's."""
    stacks: dict[str, dict[int, tuple[str, str]]] = {}
    modules = {name: kind(spec) for name, spec in model.specs.items()}
    modules |= {module_of(name)[0]: str(info.dtype) for name, info in model.tensors.items()}
    for module, its_kind in modules.items():
        if there := place(module):
            stack, number = there
            stacks.setdefault(stack, {})[number] = its_kind, module
    for stack, experts in stacks.items():
        kinds = {its_kind for its_kind, _ in experts.values()}
        if len(kinds) > 1 or sorted(experts) != list(range(len(experts))):
            fact = f"{stack} is one tensor of all experts: {', '.join(sorted(kinds))}"
            yield Problem((fact,), where=tuple(module for _, module in experts.values()))


Check = Callable[[Spec, Model], Problem | None]


def first_of(*checks: Check) -> Check:
    """One problem of a layer: of several limits that no pass can mend, the first that it breaks."""
    return lambda spec, model: next((found for check in checks if (found := check(spec, model))), None)


def weights_only(
    tool: str, kind: str = "integer", most: int = 8, unless: Callable[[Spec], bool] | None = None
) -> Check:
    """Integer weights of at most `most` bits, in the order of their inputs; activations are not quantized.

    `kind` is what they are called; layers of which `unless` holds may be wider.
    """

    def check(spec: Spec, model: Model) -> Problem | None:
        weight = spec.weight
        wide = weight.bits > most and not (unless and unless(spec))
        if weight.type == "int" and not wide and spec.activation is None and not spec.g_idx:
            return None
        return Problem((f"{spec.scheme}: {tool} has {kind} weights alone, in their own order",))

    return check


def no_blocks(tool: str, sizes: str = "") -> Check:
    """No scales of blocks of weights; `sizes` says which groups there are, where that is not any."""

    def check(spec: Spec, model: Model) -> Problem | None:
        if spec.weight.granularity is not Granularity.BLOCK:
            return None
        return Problem((f"weights {spec.weight}: {tool} has scales per channel or group{sizes}",))

    return check


def multiples(tool: str, outputs: int, inputs: int) -> Check:
    """out_features and in_features must be whole multiples, which are packed together."""
    wanted = str(outputs) if outputs == inputs else f"{outputs} x {inputs}"

    def check(spec: Spec, model: Model) -> Problem | None:
        if spec.out_features % outputs == 0 and spec.in_features % inputs == 0:
            return None
        return Problem((f"{spec.out_features} x {spec.in_features}: {tool} packs multiples of {wanted}",))

    return check


def widths(tool: str, bits: Sequence[int], source: str, unless: Callable[[Spec], bool] | None = None) -> LayerRule:
    """Integer codes must be of one of some widths (QB110), to the next of which they are widened.

    Those wider than all have no pass: `weights_only` says so. Layers of which `unless` holds may have any width.
    """
    steps = [low + 1 == high for low, high in pairwise(bits)]
    listed = f"{bits[0]} to {bits[-1]}" if len(steps) > 1 and all(steps) else ", ".join(map(str, bits))

    def check(spec: Spec, model: Model) -> Problem | None:
        weight = spec.weight
        if weight.type != "int" or weight.bits in bits or weight.bits > max(bits) or (unless and unless(spec)):
            return None
        return Problem((f"weights {weight}: {tool} has {listed} bits",))

    def fix(spec: Spec, model: Model) -> Pass:
        return Widen(min(width for width in bits if width >= spec.weight.bits))

    return LayerRule("QB110", check, source, fix)


def group_sizes(
    tool: str, size: Callable[[Model], int | None], source: str, wanted: str, channels: bool = False
) -> LayerRule:
    """Groups must be of the one size that `size` gives for a model (QB110); `wanted` says which that is.

    With `channels` scales per channel may stand instead. A scale of a whole tensor is repeated, other groups are
    split. Scales of blocks are `no_blocks`'s to refuse.
    """

    def check(spec: Spec, model: Model) -> Problem | None:
        kind = spec.weight.granularity
        if kind is Granularity.TENSOR:
            return Problem((f"weights {spec.weight}: {tool} has scales per channel or group",))
        allowed = kind is Granularity.BLOCK or (channels and kind is Granularity.CHANNEL)
        if allowed or spec.weight.group_size == size(model):
            return None
        return Problem((f"weights {spec.weight}: {tool} has {wanted}",))

    def fix(spec: Spec, model: Model) -> Pass:
        return Broadcast() if spec.weight.granularity is Granularity.TENSOR else Regroup(size(model))

    return LayerRule("QB110", check, source, fix)


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
        outside: dict[tuple[int, int], dict[str, tuple[int, int]]] = {}
        for name, spec in model.specs.items():
            if spec.weight.symmetric or spec.weight.type != "int":
                continue
            half, zeros = 2 ** (spec.weight.bits - 1), values.part(name, "zero")
            low, high = int(zeros.min()) + half, int(zeros.max()) + half
            least, most = lowest(spec), 2 * half - 1 + lowest(spec)
            if low < least or high > most:
                outside.setdefault((least, most), {})[name] = low, high
        for (least, most), layers in outside.items():
            low, high = min(low for low, _ in layers.values()), max(high for _, high in layers.values())
            yield Problem((f"zero-points from {low} to {high}", f"it holds {least} to {most}"), where=tuple(layers))

    return ValueRule("QB111", check, source)
