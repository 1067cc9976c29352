"""Rules that several formats share, on specs made here."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qbridge.formats.common_rules import first_of, group_sizes, multiples, no_blocks, weights_only, widths
from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.ir.scheme import ActivationScheme, Granularity, WeightScheme
from qbridge.ir.slots import Slot, by_kind
from qbridge.passes.broadcast import Broadcast
from qbridge.passes.regroup import Regroup
from qbridge.passes.widen import Widen

GROUPS = WeightScheme(4, Granularity.GROUP, group_size=64)
SPEC = Spec("a", 256, 128, GROUPS, DType.F16)
MODEL = Model("none", {}, {"a": SPEC}, {}, {})
FLOATS = replace(GROUPS, type="e2m1")
BLOCKS = WeightScheme(8, Granularity.BLOCK, type="e4m3fn", block=(128, 128))
TENSOR = WeightScheme(4, Granularity.TENSOR)
CHANNEL = WeightScheme(4, Granularity.CHANNEL)
DYNAMIC = ActivationScheme(8, Granularity.TOKEN, dynamic=True)


def weighted(weight):
    return replace(SPEC, weight=weight)


def of(bits):
    return weighted(replace(GROUPS, bits=bits))


@pytest.mark.parametrize(
    ("spec", "broken"),
    [
        (SPEC, False),
        (of(3), False),
        (of(8), True),
        (weighted(FLOATS), True),
        (replace(SPEC, activation=DYNAMIC), True),
        (replace(SPEC, g_idx=True), True),
    ],
)
def test_weights_only(spec, broken):
    assert (weights_only("a tool", "4-bit", 4)(spec, MODEL) is not None) == broken


def test_wider_weights_are_excepted_where_a_format_says_so():
    check = weights_only("a tool", "4-bit", 4, unless=lambda spec: spec.name == "a")
    assert check(of(8), MODEL) is None
    assert check(replace(of(8), name="b"), MODEL) is not None
    assert check(replace(of(8), g_idx=True), MODEL) is not None


@pytest.mark.parametrize(("rows", "columns", "broken"), [(256, 128, False), (255, 128, True), (256, 127, True)])
def test_multiples(rows, columns, broken):
    spec = replace(SPEC, out_features=rows, in_features=columns, weight=CHANNEL)
    assert (multiples("a tool", 256, 128)(spec, MODEL) is not None) == broken


def test_blocks_are_refused():
    assert no_blocks("a tool")(weighted(BLOCKS), MODEL)
    assert no_blocks("a tool")(SPEC, MODEL) is None


def test_the_first_limit_alone_is_told():
    check = first_of(weights_only("a tool"), no_blocks("a tool"), multiples("a tool", 3, 3))
    assert "integer" in check(weighted(BLOCKS), MODEL).facts[0]
    assert "multiples of 3" in check(SPEC, MODEL).facts[0]


@pytest.mark.parametrize(("bits", "wider"), [(1, 2), (2, None), (3, None), (4, None), (5, 8), (7, 8), (8, None)])
def test_widths_are_widened_to_the_next(bits, wider):
    rule = widths("a tool", (2, 3, 4, 8), "a source")
    problem = rule.check(of(bits), MODEL)
    assert (problem is not None) == (wider is not None)
    if wider:
        assert problem.facts[0].endswith("has 2, 3, 4, 8 bits")
        assert rule.fix(of(bits), MODEL) == Widen(wider)


def test_widths_without_a_wider_one_are_left_to_other_rules():
    rule = widths("a tool", (4,), "a source", unless=lambda spec: spec.name == "b")
    assert rule.check(of(8), MODEL) is None
    assert rule.check(weighted(FLOATS), MODEL) is None
    assert rule.check(of(3), MODEL).facts[0].endswith("has 4 bits")
    assert rule.check(replace(of(3), name="b"), MODEL) is None


@pytest.mark.parametrize(
    ("weight", "channels", "fix"),
    [
        (GROUPS, False, None),
        (replace(GROUPS, group_size=128), False, Regroup(64)),
        (TENSOR, True, Broadcast()),
        (CHANNEL, False, Regroup(64)),
        (CHANNEL, True, None),
        (BLOCKS, False, None),
    ],
)
def test_group_sizes(weight, channels, fix):
    rule = group_sizes("a tool", lambda model: 64, "a source", "groups of 64", channels)
    assert (rule.check(weighted(weight), MODEL) is None) == (fix is None)
    assert fix is None or rule.fix(weighted(weight), MODEL) == fix


def test_a_layout_is_worked_out_once_for_a_kind():
    asked = []

    def slots(spec):
        asked.append(spec)
        return {"code": Slot(".weight", DType.I8, spec.dims)}

    layout = by_kind(slots)
    assert layout(SPEC) == {"code": Slot("a.weight", DType.I8, (256, 128))}
    assert layout(replace(SPEC, name="b")) == {"code": Slot("b.weight", DType.I8, (256, 128))}
    assert asked == [replace(SPEC, name="")]
