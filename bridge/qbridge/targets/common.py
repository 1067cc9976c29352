"""What several engines do alike when they load: cast to the model dtype, and keep one of several input scales."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import sqrt

import numpy as np
import numpy.typing as npt

from qbridge.architecture.config import compute_dtype
from qbridge.architecture.names import is_kv_scale, is_mask
from qbridge.formats.rules import Problem, ValueRule, Values
from qbridge.ir.dtypes import Array, DType, from_float64, survives, to_float64
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.targets.float32 import Table, held
from qbridge.targets.fusion import Fusion

START = "start the server with LMDeploy's option --backend {}"  # pytorch or turbomind


def model_dtype(model: Model, default: DType) -> DType:
    """The dtype that an engine computes in when asked for none: config.json's, else its own default."""
    return compute_dtype(model.config, default)


def model_dtype_name(model: Model) -> str:
    """The dtype that activations have: float16 or bfloat16, whichever config.json names, as kernels see it."""
    return "bfloat16" if model_dtype(model, DType.F16) is DType.BF16 else "float16"


def unlike_parts(
    fusion: Fusion, *parts: str, of: Callable[[Spec], bool] = lambda spec: True
) -> Callable[[Model, Values], Iterator[Problem]]:
    """Small parts that differ among the linears that an engine builds as one, which has one slot for them."""

    def check(model: Model, values: Values) -> Iterator[Problem]:
        for names in fusion.siblings(model, model.specs):
            for part in parts:
                stored = [name for name in names if part in model.specs[name].parts() and of(model.specs[name])]
                found = {np.asarray(values.part(name, part)).tobytes() for name in stored}
                if len(found) > 1:
                    yield Problem((f"{len(found)} different values of {part}",), where=tuple(names))

    return check


def stacked(spec: Spec) -> str:
    """How a layer shares tensors with all experts of its block: "columns", "rows", or "apart", one for each linear.

    An empty string for one that has tensors of its own.
    """
    dialect = dict(spec.dialect)
    lies = dialect.get("experts", "")
    code = dialect.get("experts.weight_packed", dialect.get("experts.weight", ""))
    return "apart" if lies and code.startswith(".") and "experts.module" not in dialect else lies


def misnamed(spec: Spec) -> Problem | None:
    """An expert that is numbered last on disk, which no engine knows and every conversion mends."""
    stored = dict(spec.dialect).get("stored_as", "")
    if not stored.rpartition(".")[2].isdigit():
        return None
    return Problem((f"it is stored as {stored}, a name that no engine has",))


NEGLIGIBLE = 2.0**-12  # of a tensor's norm: a few float16 that are off by one place, not a bfloat16 tensor rounded


@dataclass(frozen=True, slots=True)
class Cast:
    """What a cast does to the values of a tensor.

    `moved` values change, of them `lost` ones become zero and `infinite` ones overflow; `largest` is the largest
    change of one that does not overflow, `relative` the root of the sum of squared changes through that of squares.
    """

    moved: int = 0
    lost: int = 0
    infinite: int = 0
    largest: float = 0.0
    relative: float = 0.0


def cast(blocks: Iterable[Array], before: DType, after: DType) -> Cast:
    """The effect of a cast on a tensor in blocks of raw values, in float64; NaN stays what it is."""
    moved, lost, infinite, largest, change, norm = 0, 0, 0, 0.0, 0.0, 0.0
    for raw, times in _distinct(blocks, before):
        values = to_float64(raw, before)
        back = to_float64(from_float64(values, after), after)
        norm += float(np.dot(np.square(np.where(np.isfinite(values), values, 0.0)), times))
        differs = np.flatnonzero((back != values) & ~np.isnan(values))
        old, new, count = values[differs], back[differs], times[differs]
        over = np.isinf(new)
        moved += int(count.sum())
        lost += int(count[new == 0].sum())
        infinite += int(count[over].sum())
        deltas = np.abs(new - old)[~over]
        largest = max(largest, float(deltas.max(initial=0.0)))
        change += float(np.dot(np.square(deltas), count[~over]))
    return Cast(moved, lost, infinite, largest, sqrt(change / norm) if norm else 0.0)


def _distinct(blocks: Iterable[Array], dtype: DType) -> Iterator[tuple[Array, npt.NDArray[np.float64]]]:
    """Flat values and how many there are of each; of 16 bits only the patterns that occur, each a single time."""
    if dtype.itemsize != 2:
        for block in blocks:
            yield block.ravel(), np.ones(block.size)
        return
    counts = np.zeros(1 << 16, np.int64)
    for block in blocks:
        counts += np.bincount(block.ravel().view(np.uint16), minlength=1 << 16)
    there = np.flatnonzero(counts)
    yield there.astype(np.uint16).view(dtype.numpy), counts[there].astype(np.float64)


def unquantized_tensors(
    default: DType, source: str, forced: DType | None = None, kv_scales: bool = True, float32: Table = ()
) -> ValueRule:
    """Every unquantized tensor must survive the cast to the model dtype (QB302), or change negligibly (a warning).

    Negligible is a change of at most `NEGLIGIBLE` of the tensor's norm, in which no value overflows, no element of a
    tensor of one axis becomes zero, and no scale changes. `forced` is the dtype that the engine takes whatever the
    config says. Unless `kv_scales`, those of the kv cache are not cast; the parameters of `float32` never are.
    """

    def check(model: Model, values: Values) -> Iterator[Problem]:
        dtype, wide = forced or model_dtype(model, default), held(float32, model.architecture)
        wrong: dict[str, Cast] = {}
        small: dict[str, Cast] = {}
        for name, info in model.tensors.items():
            scale = is_kv_scale(name)
            if not info.dtype.is_float or (scale and not kv_scales) or is_mask(name):
                continue
            after = DType.F32 if wide(name) else dtype
            if not survives(info.dtype, after):
                effect = _cast_of(values, name, info.dtype, after)
                if effect.moved:
                    bad = scale or _matters(effect, len(info.shape))
                    (wrong if bad else small)[name] = effect
        for effects, mild in ((wrong, False), (small, True)):
            if effects:
                yield _problem(effects, dtype, source, mild)

    return ValueRule("QB302", check, source, casts=True)


def _cast_of(values: Values, name: str, before: DType, after: DType) -> Cast:
    """The effect of a cast on an unquantized tensor, which every format of a target asks for again."""
    found: Cast = values.once((cast, name, after), lambda: cast(values.blocks(name), before, after))
    return found


def _matters(effect: Cast, axes: int) -> bool:
    return bool(effect.infinite or effect.relative > NEGLIGIBLE or (axes < 2 and effect.lost))


def weight_scales(default: DType, source: str, casts: Callable[[Spec], bool] | None = None) -> ValueRule:
    """Weight scales must survive the cast to the model dtype (QB302), of layers whose scales an engine `casts`."""

    def check(model: Model, values: Values) -> Iterator[Problem]:
        dtype = model_dtype(model, default)
        effects: dict[str, Cast] = {}
        for name, spec in model.specs.items():
            if casts is not None and not casts(spec):
                continue
            if not survives(spec.scale_dtype, dtype):
                effect = cast([values.part(name, "scale")], spec.scale_dtype, dtype)
                if effect.moved:
                    effects[f"{name}.weight_scale"] = effect
        if effects:
            yield _problem(effects, dtype, source)

    return ValueRule("QB302", check, source, casts=True)


def _problem(effects: Mapping[str, Cast], dtype: DType, source: str, mild: bool = False) -> Problem:
    """How many values change, who casts them, and by how much."""
    most = max(effects, key=lambda name: effects[name].moved)
    worst = max(effects, key=lambda name: effects[name].relative)
    counts = (
        f"{sum(effect.moved for effect in effects.values())} values in {len(effects)} tensors have no exact {dtype}; "
        f"worst: {most}, {effects[most].moved}"
    )
    largest = max(effect.largest for effect in effects.values())
    sizes = (
        f"{source.partition(',')[0]} casts them when it loads: by {largest:.2g} at most, "
        f"a tensor by {effects[worst].relative:.2g} of its norm ({worst})"
    )
    lost, infinite = sum(e.lost for e in effects.values()), sum(e.infinite for e in effects.values())
    ends = [f"{lost} of them become zero"] if lost else []
    ends += [f"{infinite} of them become infinite"] if infinite else []
    return Problem((counts, sizes, *ends), where=tuple(effects), mild=mild)
