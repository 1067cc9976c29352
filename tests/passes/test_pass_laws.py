"""The laws of a pass: our own keep them, a toy of another package keeps them, and each broken one is caught."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qbridge.ir.dtypes import DType, survives
from qbridge.ir.exactness import Exactness
from qbridge.ir.layer import Layer, Spec
from qbridge.ir.scheme import ActivationScheme, Granularity, WeightScheme
from qbridge.passes import Pass
from qbridge.passes.broadcast import Broadcast
from qbridge.passes.dequantize import Dequantize
from qbridge.passes.dynamic_inputs import DynamicInputs
from qbridge.passes.fold_zeros import FoldZeros
from qbridge.passes.invert import Invert
from qbridge.passes.pad import Pad
from qbridge.passes.plain import PlainInputs
from qbridge.passes.recast import Recast
from qbridge.passes.recorded import from_dict, is_final
from qbridge.passes.regroup import Regroup
from qbridge.passes.symmetrize import Symmetrize
from qbridge.passes.undo import Undo
from qbridge.passes.unquantized_inputs import UnquantizedInputs
from qbridge.passes.widen import Widen
from qbridge.testing import check_pass, layers, random_layer
from qbridge.testing.strategies import NVFP4, NVFP4_INPUTS


def spec(*dims, bits=4, group=16, symmetric=True, scale=DType.F16, **other):
    kind = Granularity.GROUP if group else Granularity.CHANNEL
    weight = WeightScheme(bits, kind, symmetric, group_size=group)
    return Spec("m", *(dims or (6, 64)), weight, scale, bias=DType.F16, **other)


ZEROS = spec(symmetric=False)
TENSOR = Spec("m", 4, 8, WeightScheme(8, Granularity.TENSOR, symmetric=False), DType.F32)
GLOBAL = Spec("m", 4, 32, NVFP4, DType.F8_E4M3, activation=NVFP4_INPUTS, input_scale_dtype=DType.F32)
LIMITED = ActivationScheme(8, Granularity.TOKEN, dynamic=True, limit=4.0)
STATIC = ActivationScheme(8, Granularity.TENSOR, dynamic=False, symmetric=False)
MEANT = [
    (Broadcast(), TENSOR),
    (DynamicInputs(allowed=True), spec(bits=8, group=None, activation=STATIC, input_scale_dtype=DType.F32)),
    (DynamicInputs(allowed=True), spec(bits=8, group=None, activation=STATIC, input_scale_dtype=DType.BF16)),
    (Dequantize(DType.BF16), spec()),
    (FoldZeros(5), ZEROS),
    (Pad(8, 96), spec()),
    (Pad(8, 80), ZEROS),
    (PlainInputs(allowed=True), spec(bits=8, group=None, activation=LIMITED)),
    (Recast(DType.F32), spec()),
    (Recast(DType.F16, rounded=True), spec(scale=DType.F32)),
    (Regroup(8), ZEROS),
    (Regroup(8), spec(g_idx=True)),
    (UnquantizedInputs(), spec(bits=8, group=None, activation=STATIC, input_scale_dtype=DType.F32)),
    (UnquantizedInputs(), spec(bits=8, group=None, activation=LIMITED)),
    (UnquantizedInputs(), GLOBAL),
    (Widen(8), spec()),
    (Undo(Widen(8), spec()), spec(bits=8)),
]


@pytest.mark.parametrize(("step", "meant"), MEANT, ids=lambda value: getattr(value, "name", ""))
def test_a_pass_keeps_the_laws_and_is_recorded(step, meant):
    layer = random_layer(meant, 0)
    if isinstance(step, Undo):  # codes that fit the old width
        layer = step.step.apply(random_layer(step.before, 0))
    assert check_pass(step, layer)
    recorded = json.loads(json.dumps(step.as_dict()))
    if not is_final(recorded) and step.exactness is not Exactness.DEQUANTIZED:
        assert from_dict(recorded, {}) == step


@pytest.mark.parametrize(
    ("step", "meant"),
    [
        (Symmetrize(), ZEROS),
        (Regroup(None), spec()),
        (FoldZeros(4), ZEROS),
        (PlainInputs(), spec()),
        (Invert("divide"), GLOBAL),
        (DynamicInputs(), spec(bits=8, group=None, activation=STATIC, input_scale_dtype=DType.F16)),
    ],
)
def test_a_pass_that_values_decide_refuses_or_keeps_the_laws(step, meant):
    meant = replace(meant, weight=replace(meant.weight, global_scale="multiply")) if step.name == "invert" else meant
    refused = random_layer(meant, 0)
    assert not check_pass(step, refused)
    if step.name in ("plain-inputs", "dynamic-inputs"):
        return
    arrays = {part: np.zeros_like(a) if part == "zero" else a for part, a in refused.arrays.items()}
    arrays["scale"] = np.repeat(arrays["scale"][:, :1], arrays["scale"].shape[1], axis=1)
    arrays |= {part: np.full_like(a, 4.0) for part, a in arrays.items() if "global" in part}
    assert check_pass(step, Layer(meant, arrays))


def test_rounded_reciprocals_come_back_by_their_recorded_bits():
    meant = replace(GLOBAL, weight=replace(GLOBAL.weight, global_scale="multiply"))
    assert check_pass(Invert("divide", rounded=True), random_layer(meant, 3))
    assert Invert("divide", rounded=True).recorded_parts == {"global_scale", "input_global_scale"}
    assert Invert("divide").recorded_parts == frozenset()


@given(layers(), st.sampled_from([Recast(DType.F32), Recast(DType.BF16), PlainInputs(allowed=True), Widen(8)]))
def test_passes_keep_the_laws_on_any_layer(layer, step):
    if step.name == "recast" and not layer.spec.scale_dtype.is_float:
        return
    if step.name == "recast" and survives(layer.spec.scale_dtype, step.dtype):
        assert check_pass(step, layer)
    elif step.name != "widen" or layer.spec.weight.type == "int":
        check_pass(step, layer)


@pytest.mark.parametrize(
    ("recorded", "step"),
    [
        ({"pass": "widen", "bits": 8}, Widen(8)),
        ({"pass": "regroup", "group_size": None}, Regroup(None)),
        ({"pass": "pad", "out_features": 8, "in_features": 96}, Pad(8, 96)),
        ({"pass": "recast", "dtype": "F32"}, Recast(DType.F32)),
        ({"pass": "broadcast"}, Broadcast()),
        ({"pass": "symmetrize"}, Symmetrize()),
        ({"pass": "plain-inputs"}, PlainInputs(allowed=True)),
        ({"pass": "invert", "to": "divide"}, Invert("divide")),
        (
            {"pass": "invert", "to": "divide", "rounded": True},
            Invert("divide", True, (("global_scale", "3f800000"),)),
        ),
    ],
)
def test_what_manifests_record_since_the_first_version_is_read(recorded, step):
    bits = dict(step.kept) if isinstance(step, Invert) else {}
    assert step.as_dict() == recorded and from_dict(recorded, bits) == step


@pytest.mark.parametrize(
    ("recorded", "fault"),
    [
        ({"pass": "dequantize", "dtype": "F16"}, KeyError),
        ({"pass": "no such"}, KeyError),
        ({"pass": "widen"}, KeyError),
        ({"pass": "recast", "dtype": "F99"}, ValueError),
        ({"pass": ["widen"]}, TypeError),
    ],
)
def test_what_is_no_pass_is_not_read(recorded, fault):
    with pytest.raises(fault):
        from_dict(recorded, {})


def test_a_rounding_is_final_unless_its_bits_are_recorded():
    final = [Recast(DType.F16, rounded=True), Undo(Widen(8), ZEROS), Undo(Invert("divide", True), GLOBAL)]
    assert all(is_final(step.as_dict()) for step in final)
    assert not any(is_final(step.as_dict()) for step in (Recast(DType.F16), Widen(8), Invert("divide", True)))


@dataclass(frozen=True, slots=True)
class Doubled(Pass):
    """Half the scale and twice the codes: a toy of another package."""

    name = "doubled"
    parts = frozenset({"code", "scale"})

    def needs_values(self, spec: Spec) -> bool:
        return True

    def plan(self, spec: Spec) -> Spec:
        return spec

    def apply(self, layer: Layer) -> Layer:
        codes = {p: a * 2 for p, a in layer.arrays.items() if p == "code"}
        if any((a // 2 != layer.arrays[p]).any() for p, a in codes.items()):
            raise ValueError("codes have no room")
        return Layer(layer.spec, {**layer.arrays, **codes, **self._scaled(layer, 0.5)})

    def undo(self, layer: Layer, before: Spec) -> Layer:
        codes = {p: a // 2 for p, a in layer.arrays.items() if p == "code"}
        return Layer(before, {**layer.arrays, **codes, **self._scaled(layer, 2)})

    def _scaled(self, layer: Layer, factor: float) -> dict[str, np.ndarray]:
        return {p: (a * factor).astype(a.dtype) for p, a in layer.arrays.items() if p == "scale"}


def small(bits=8):
    layer = random_layer(spec(bits=bits, scale=DType.F32), 0)
    return Layer(layer.spec, {**layer.arrays, "code": layer.arrays["code"] // 4})


def test_a_toy_pass_keeps_the_laws_with_two_methods_of_its_own():
    assert check_pass(Doubled(), small())
    assert not check_pass(Doubled(), random_layer(spec(bits=8, scale=DType.F32), 0))
    assert Doubled().as_dict() == {"pass": "doubled"} and Doubled().exactness is Exactness.EQUAL
    assert Doubled().lossy() is None and Doubled().recodes(spec()) and not Widen(8).recodes(spec())


def broken(**members):
    """The toy with other members."""
    return dataclass(frozen=True, slots=True)(type("Broken", (Doubled,), {"__module__": __name__, **members}))()


BROKEN = {
    "plan predicts": {"plan": lambda self, spec: replace(spec, weight=replace(spec.weight, bits=4))},
    "plan renames": {"plan": lambda self, spec: replace(spec, name="other")},
    "needs_values says that it cannot": {"needs_values": lambda self, spec: False},
    "is none of its parts": {"parts": frozenset({"code"})},
    "another value": {"_scaled": lambda self, layer, factor: {}},
    "undo does not give back": {"undo": lambda self, layer, before: Layer(before, layer.arrays)},
    "as_dict is not JSON": {"as_dict": lambda self: {"pass": self.name, "sizes": (1, 2)}},
    "does not name the pass": {"as_dict": lambda self: {"step": self.name}},
    "parts are missing": {
        "apply": lambda self, layer: Layer(layer.spec, {p: a for p, a in layer.arrays.items() if p != "bias"})
    },
}


@pytest.mark.parametrize("law", BROKEN)
def test_a_broken_pass_is_caught(law):
    layer = small() if law != "needs_values says that it cannot" else random_layer(spec(bits=8, scale=DType.F32), 0)
    with pytest.raises(AssertionError, match=law):
        check_pass(broken(**BROKEN[law]), layer)


def test_a_pass_that_forgets_its_inputs_is_caught():
    @dataclass(frozen=True, slots=True)
    class Forgetful(Pad):
        def inputs(self, parts):
            return parts

    layer = random_layer(spec(6, 60, symmetric=False), 0)
    with pytest.raises(AssertionError, match="code is another where only its inputs are given"):
        check_pass(Forgetful(6, 72), layer)


def test_a_pass_that_is_wrong_about_some_output_features_is_caught():
    @dataclass(frozen=True, slots=True)
    class Whole(Pad):
        def within(self, before, of):
            return self

    with pytest.raises(AssertionError, match="the first 3 output features alone become others"):
        check_pass(Whole(8, 96), random_layer(spec(), 0))
