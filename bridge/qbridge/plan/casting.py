"""`--cast`: which pass brings a layer into another number format, by its scales or also by its codes.

Everything is exact or a finding: QB311 where no cast keeps every weight, QB312 where the values of a layer do not
fit, QB313 where inputs are quantized otherwise for it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeVar

from qbridge.architecture.config import compute_dtype
from qbridge.findings.finding import Findings
from qbridge.ir.dtypes import Array, DType
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.ir.scheme import Granularity, WeightScheme
from qbridge.passes import Pass, float4
from qbridge.passes.cast_inputs import CastInputs
from qbridge.passes.float4_to_float8 import Float4ToFloat8
from qbridge.passes.float4_to_integers import Float4ToIntegers
from qbridge.passes.float4_to_mxfp8 import Float4ToMxfp8
from qbridge.passes.float4_to_nvfp4 import Float4ToNvfp4
from qbridge.passes.integers_to_float8 import MOST_BITS, IntegersToFloat8
from qbridge.passes.powers import normal_range
from qbridge.passes.spread import BLOCK, UNITS, Outside
from qbridge.passes.unquantized_inputs import UnquantizedInputs
from qbridge.plan.plan import LayerPlan
from qbridge.plan.repair import Rewritten
from qbridge.source.reader import Source

FP8, NVFP4, MXFP8, INT8 = "fp8", "nvfp4", "mxfp8", "int8"
_UNITS = {f"{FP8}-{kind}": kind for kind in UNITS}  # fp8-block, fp8-channel, fp8-tensor
CASTS = (FP8, NVFP4, MXFP8, INT8, *_UNITS)
_WINDOW = 1 << 20  # codes that are looked at at a time
_HELD = {  # what a format holds of MXFP4, for whom its values do not fit
    FP8: "under one scale e4m3 holds all codes of MXFP4 at 15 exponents, more where only some of them occur",
    NVFP4: "under one scale of the tensor e4m3 holds 18 powers of two as scales of groups",
}
_Answer = TypeVar("_Answer")
_RangeOf = Callable[[Array, "Array | None"], tuple[float4.Integers, float4.Integers]]


@dataclass(frozen=True, slots=True)
class Casting:
    """A cast as it is tried: to what, for float8 under scales of which unit, and whether inputs follow.

    `kept`: what it forgets is stored beside the manifest.
    """

    to: str
    unit: Granularity | None = None
    inputs: bool = False
    kept: bool = False


def castings(cast: str, kept: bool) -> tuple[Casting | None, ...]:
    """The casts to try for a word of `--cast`, the finest scales and inputs as they are first; None without one."""
    if not cast:
        return (None,)
    units = (_UNITS[cast],) if cast in _UNITS else tuple(UNITS) if cast == FP8 else (None,)
    return tuple(Casting(cast.partition("-")[0], unit, inputs, kept) for inputs in (False, True) for unit in units)


def applicable(specs: Iterable[Spec]) -> tuple[str, ...]:
    """The words of `--cast` that the schemes of some layers leave open; values may refuse them."""
    weights = [(float4.is_mxfp4(spec), spec.weight) for spec in specs]
    if any(is_float4 for is_float4, _ in weights):
        return (FP8, NVFP4, MXFP8, INT8)
    return (FP8,) if any(each.type == "int" and not _refused_integers(each) for _, each in weights) else ()


_FREE = normal_range(DType.F32)


class Range(NamedTuple):
    """The lowest and the highest exponent that the one scale of a tensor may have; `codes` were looked at for it."""

    low: int = _FREE[0]
    high: int = _FREE[1]
    codes: bool = False

    @property
    def exponent(self) -> int:
        """The lowest; 0 where all is zero."""
        return 0 if (self.low, self.high) == _FREE else self.low

    def within(self, others: Iterable[Range]) -> Range | None:
        """What is in all of several ranges, by what was looked at for this one; None where nothing is."""
        low, high = max(each.low for each in others), min(each.high for each in others)
        return Range(low, high, self.codes) if low <= high else None


@dataclass(slots=True)
class Caster:
    """Casts the layers of one model; without a `source` its values count as ones that fit."""

    casting: Casting
    model: Model
    source: Source | None
    dialect: tuple[tuple[str, str], ...] = ()
    _ranges: dict[str, Range] = field(default_factory=dict)
    _unfit: dict[str, list[tuple[str, Outside]]] = field(default_factory=dict)

    def run(self, starts: Mapping[str, Rewritten], findings: Findings) -> dict[str, Rewritten]:
        """Every layer after its cast; what cannot be done becomes a finding."""
        found, changed = dict(starts), []
        refused: dict[str, list[str]] = {}
        if self.casting.to == NVFP4 or self.casting.unit is Granularity.TENSOR:
            self._find_ranges(starts)
        some = any(float4.is_mxfp4(start.spec) for start in starts.values())  # beside them float8 stays what it is
        for name, start in starts.items():
            if some and self.casting.to != FP8 and not float4.is_mxfp4(start.spec):
                continue
            if why := self._refusal(start.spec):
                refused.setdefault(why, []).append(name)
            elif not self._is_there(start.spec):
                found[name] = self._cast(name, start, findings)
                changed += [name] if any(step.changes_activations for step in found[name].passes) else []
        for why, where in refused.items():
            findings.add("QB311", where, (why,))
        if not refused and all(map(self._is_there, (start.spec for start in starts.values()))):
            findings.add("QB311", tuple(starts)[:1], (f"every layer is {self.casting.to} already",))
        self._note_unfit(findings)
        if changed:
            findings.add("QB313", changed, (f"they are {found[changed[0]].spec.activation or 'not quantized'}",))
        return found

    def _is_there(self, spec: Spec) -> bool:
        """Whether weights have the number format already, so that they stay as they are."""
        weight = spec.weight
        if self.casting.to == FP8:
            return weight.type in ("e4m3fn", "e5m2") and weight.granularity is not Granularity.GROUP
        if self.casting.to == NVFP4:
            return weight.type == "e2m1" and weight.global_scale is not None
        if self.casting.to == MXFP8:
            return weight.type == "e4m3fn" and spec.scale_dtype is DType.F8_E8M0
        return weight.type == "int" and weight.bits == 8

    def _refusal(self, spec: Spec) -> str:
        """Why weights of a scheme have no exact cast; empty where they may have one, or are there already."""
        if float4.is_mxfp4(spec) or self._is_there(spec):
            return ""
        if self.casting.to == FP8:
            if spec.weight.type == "int":
                return _refused_integers(spec.weight)
            if spec.weight.type == "e2m1":
                return f"weights {spec.weight}: a code times its scale has more significant bits than a float8, 4"
        return f"weights {spec.weight}: only MXFP4 is cast to {self.casting.to}"

    def _cast(self, name: str, start: Rewritten, findings: Findings) -> Rewritten:
        """A layer after its cast, and inputs as this needs them."""
        spec, passes = start
        if any(name == other for faults in self._unfit.values() for other, _ in faults):
            return start
        inputs = self._inputs(spec) if self.casting.inputs else None
        if inputs is not None:
            spec, passes = inputs.plan(spec), (*passes, inputs)
        try:
            step = self._step(name, Rewritten(spec, passes))
            after = replace(step.plan(spec), dialect=self.dialect)
        except Outside as fault:
            self._unfit.setdefault(fault.what, []).append((name, fault))
            return start
        except ValueError as fault:
            findings.add("QB310", name, (f"cast to {self.casting.to}: {fault}",))
            return start
        return Rewritten(after, (*passes, step))

    def _inputs(self, spec: Spec) -> Pass | None:
        """What makes the inputs those that the format is served with; None where they are."""
        if self.casting.to in (NVFP4, INT8):
            return UnquantizedInputs() if spec.activation else None
        size = {MXFP8: float4.GROUP, FP8: BLOCK if self.casting.unit is Granularity.BLOCK else None}[self.casting.to]
        step = CastInputs(group_size=size)
        return None if step.plan(spec).activation == spec.activation else step

    def _step(self, name: str, start: Rewritten) -> Pass:
        """The cast of a layer; ValueError where its values do not fit."""
        spec, kept = start.spec, self.casting.kept
        if spec.weight.type == "int":
            return IntegersToFloat8(kept=kept)
        if self.casting.to == MXFP8:
            return Float4ToMxfp8(kept=kept)
        if self.casting.to == INT8:
            return self._tried(name, start, Float4ToIntegers(_scale_dtype(self.model), kept=kept))
        if self.casting.to == NVFP4:
            found = self._ranges[name]
            return Float4ToNvfp4(found.exponent, found.codes, kept=kept)
        if self.casting.unit is Granularity.TENSOR:
            found = self._ranges[name]
            return Float4ToFloat8(Granularity.TENSOR, found.codes, found.exponent, kept=kept)
        unit = self.casting.unit or Granularity.BLOCK
        try:
            return self._tried(name, start, Float4ToFloat8(unit, kept=kept))
        except Outside:
            return self._tried(name, start, Float4ToFloat8(unit, codes=True, kept=kept))

    def _tried(self, name: str, start: Rewritten, step: Pass) -> Pass:
        """A pass that a layer's values allow; ValueError with why they do not."""
        fault = self._once((name, start, step), lambda source: self._fault(source, name, start, step))
        if fault is not None:
            raise fault
        return step

    def _fault(self, source: Source, name: str, start: Rewritten, step: Pass) -> ValueError | None:
        parts = step.decisive(start.spec)
        plan = self._plan(name, (*start.passes, step))
        faults: list[Outside] = []
        for window in plan.windows(_WINDOW):
            try:
                plan.run(source, parts, window)
            except Outside as fault:
                faults.append(fault)
            except ValueError as fault:
                return fault
        return Outside.of_all(faults) if faults else None

    def _find_ranges(self, starts: Mapping[str, Rewritten]) -> None:
        """The range of the one scale of each tensor: the same for the model, or for a module, where one fits all.

        Engines hold several linears of a module as one, and have one such scale for it.
        """
        range_of = float4.scale_range if self.casting.to == NVFP4 else float4.float8_range
        by_module: dict[str, list[str]] = {}
        for name, start in starts.items():
            if float4.is_mxfp4(start.spec):
                self._note_range(name, self._known_range(name, start, range_of))
        for name in self._ranges:
            by_module.setdefault(name.rpartition(".")[0], []).append(name)
        for names in ([*self._ranges], *by_module.values()):
            together = {name: self._ranges[name].within([self._ranges[each] for each in names]) for name in names}
            if all(together.values()):
                self._ranges |= {name: found for name, found in together.items() if found}
                if len(names) == len(self._ranges):
                    return

    def _known_range(self, name: str, start: Rewritten, range_of: _RangeOf) -> Range | Outside | None:
        return self._once((name, start, range_of), lambda source: self._range(source, name, start, range_of))

    def _note_range(self, name: str, found: Range | Outside | None) -> None:
        if isinstance(found, Outside):
            self._unfit.setdefault(found.what, []).append((name, found))
        else:
            self._ranges[name] = found or Range()

    def _range(self, source: Source, name: str, start: Rewritten, range_of: _RangeOf) -> Range | Outside:
        plan, unit = self._plan(name, start.passes), UNITS[Granularity.TENSOR]
        faults: list[Outside] = []
        for codes in (False, True):
            found: Range | None = Range(codes=codes)
            parts = frozenset({"scale", "code"} if codes else {"scale"})
            faults = []
            for window in plan.windows(_WINDOW):
                arrays = plan.run(source, parts, window).arrays
                lows, highs = range_of(arrays["scale"], arrays.get("code") if codes else None)
                found = found and found.within([found, Range(int(lows.max()), int(highs.min()))])
                faults.append(Outside.of(arrays["scale"], lows, highs, unit))
            if found:
                return found
        return Outside(1, 1, min(f.least for f in faults), max(f.most for f in faults), unit.word)

    def _plan(self, name: str, passes: Sequence[Pass]) -> LayerPlan:
        spec, slots = self.model.specs[name], self.model.slots[name]
        return LayerPlan(spec, spec, tuple(passes), slots, slots)

    def _once(self, key: Hashable, find: Callable[[Source], _Answer]) -> _Answer | None:
        """What values tell, asked once while a conversion is planned; None where none are read."""
        source = self.source
        return None if source is None else source.once(("cast", key), lambda: find(source))

    def _note_unfit(self, findings: Findings) -> None:
        """One finding for all layers whose groups are too far apart."""
        for what, faults in self._unfit.items():
            every = Outside.of_all([fault for _, fault in faults])
            facts = (
                f"{every.count} of {every.total} {what}",
                f"the widest has 2^{every.least} to 2^{every.most}",
                _HELD[self.casting.to],
            )
            findings.add("QB312", [name for name, _ in faults], facts)


def _refused_integers(weight: WeightScheme) -> str:
    """Why integers have no exact float8; empty where they have."""
    if weight.bits > MOST_BITS:
        return f"weights {weight}: a float8 has 4 significant bits, so that it holds integers up to 16 alone"
    return "" if weight.symmetric else f"weights {weight}: codes minus their zero-points need a bit more"


def _scale_dtype(model: Model) -> DType:
    """The dtype of scales of integers: the model's, where that is one of 16 bits."""
    found = compute_dtype(model.config, DType.BF16)
    return found if found in (DType.F16, DType.BF16) else DType.F32
