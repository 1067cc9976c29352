"""Limits of SGLang scheme by scheme, on both sides of each: what is refused, and what next to it is taken."""

from __future__ import annotations

from dataclasses import replace

import pytest

import qbridge
from qbridge.formats.rules import ValueRule, broken
from qbridge.ir.dtypes import DType
from qbridge.ir.scheme import ActivationScheme, Granularity, WeightScheme
from qbridge.targets.registry import find_target
from support import ROOT

SGLANG = find_target("sglang")
CHANNEL, GROUP, TENSOR = Granularity.CHANNEL, Granularity.GROUP, Granularity.TENSOR
STATIC_FP8 = ActivationScheme(8, TENSOR, False, True, type="e4m3fn")


def weight(bits, size=None, symmetric=True):
    return WeightScheme(bits, GROUP if size else CHANNEL, symmetric, group_size=size)


def codes_of(format_name, scheme, dims=(256, 256), activation=None, **changes):
    """The codes of its limits that a Llama breaks in a format, all linears of which have one scheme."""
    with qbridge.open(ROOT / "fixtures/compressed_tensors/llama_w4a16_g128/model") as opened:
        model = opened.model
    rows, columns = dims
    new = {"weight": scheme, "activation": activation, "out_features": rows, "in_features": columns, **changes}
    new |= {"input_scale_dtype": DType.F32} if activation else {}
    specs = {name: replace(spec, **new) for name, spec in model.specs.items()}
    choice = next(choice for choice in (*SGLANG.choices, *SGLANG.as_is) if format_name == choice.format.NAME)
    rules = [rule for rule in SGLANG.whole_limits(choice) if not isinstance(rule, ValueRule)]
    return {fault.rule.code for fault in broken(rules, replace(model, specs=specs, format=format_name))}


@pytest.mark.parametrize(
    ("format_name", "scheme", "dims", "code"),
    [
        ("compressed-tensors", weight(4, 128, symmetric=False), (256, 256), ""),
        ("compressed-tensors", weight(8, 128), (256, 256), ""),
        ("compressed-tensors", weight(8, 128, symmetric=False), (256, 256), "QB293"),
        ("compressed-tensors", weight(4, 32), (256, 256), ""),
        ("compressed-tensors", weight(4, 16), (256, 256), "QB293"),
        ("compressed-tensors", weight(5, 32), (256, 256), "QB293"),
        ("gptq", weight(8, 64), (256, 256), ""),
        ("gptq", weight(4, 64, symmetric=False), (256, 256), "QB298"),
        ("awq", weight(4, None, symmetric=False), (256, 256), ""),
        ("awq", weight(4, None, symmetric=False), (256, 192), "QB298"),
        ("awq", weight(4, None, symmetric=False), (288, 256), "QB298"),
        ("awq", weight(8, 128, symmetric=False), (256, 256), "QB298"),
    ],
    ids=str,
)
def test_integer_weights(format_name, scheme, dims, code):
    assert codes_of(format_name, scheme, dims) == ({code} if code else set())


def test_float8_of_modelopt_has_one_scale_and_stored_inputs():
    assert "QB298" not in codes_of("modelopt", WeightScheme(8, TENSOR, type="e4m3fn"), activation=STATIC_FP8)
    assert "QB298" in codes_of("modelopt", WeightScheme(8, CHANNEL, type="e4m3fn"), activation=STATIC_FP8)


@pytest.mark.parametrize(
    ("packing", "scheme", "refused"),
    [
        ("auto_round:auto_awq", weight(4, 128, symmetric=False), False),
        ("auto_round:auto_gptq", weight(4, 128, symmetric=False), True),
        ("auto_round:auto_gptq", weight(8, 128), False),
        ("auto_round:auto_awq", weight(8, 128), True),
    ],
)
def test_packings_of_auto_round(packing, scheme, refused):
    found = codes_of("auto-round", scheme, dialect=(("packing_format", packing),))
    assert bool(found & {"QB293", "QB298"}) is refused


@pytest.mark.parametrize(
    ("hidden", "intermediate", "refused"), [(256, 64, False), (192, 64, True), (256, 96, True), (320, 128, True)]
)
def test_experts_have_the_tiles_of_marlin(hidden, intermediate, refused):
    with qbridge.open(ROOT / "fixtures/gptq/qwen3_moe_v1_sym/model") as opened:
        model = opened.model
    specs = {
        name: replace(spec, out_features=dims[0], in_features=dims[1])
        for name, spec in model.specs.items()
        for dims in [(hidden, intermediate) if name.endswith("down_proj") else (intermediate, hidden)]
        if ".experts." in name
    }
    choice = next(choice for choice in SGLANG.choices if choice.format.NAME == "gptq")
    rules = [rule for rule in SGLANG.whole_limits(choice) if rule.code == "QB253"]
    assert specs and bool(list(broken(rules, replace(model, specs=specs)))) is refused
