"""DequantizeExactly: weights instead of codes where a dtype holds each of them, and the codes back from these."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given

from qbridge.ir.dtypes import DType, from_float64, to_float64
from qbridge.ir.layer import Layer, Spec
from qbridge.ir.scheme import Granularity, WeightScheme
from qbridge.ir.values import dequantize
from qbridge.passes.counted import Counted
from qbridge.passes.exactly import DequantizeExactly
from qbridge.testing import check_pass, layers, random_layer

POWERS = 2.0 ** np.arange(-6, 2)
GROUPS = WeightScheme(4, Granularity.GROUP, group_size=16)


def of_powers(layer):
    """The layer with scales of powers of two, under which every code of its own dtype stays what it is."""
    scales = np.resize(POWERS, layer.arrays["scale"].shape)
    codes = layer.arrays["code"]
    if layer.spec.weight.type == "e4m3fn":
        codes = np.where(codes & 0x7F == 0x7F, np.uint8(0x80), codes)  # -0 for NaN, which is no weight
    scales = from_float64(scales, layer.spec.scale_dtype)
    return Layer(layer.spec, layer.arrays | {"code": codes, "scale": scales})


@given(layers())
def test_any_layer_keeps_the_laws_or_is_refused(layer):
    check_pass(DequantizeExactly(DType.F32), layer)


@pytest.mark.parametrize("dtype", [DType.F16, DType.BF16, DType.F32])
@pytest.mark.parametrize(
    "weight",
    [
        GROUPS,
        replace(GROUPS, symmetric=False),
        WeightScheme(3, Granularity.CHANNEL),
        WeightScheme(8, Granularity.TENSOR),
        WeightScheme(8, Granularity.CHANNEL, type="e4m3fn"),
        WeightScheme(8, Granularity.BLOCK, type="e4m3fn", block=(4, 32)),
    ],
    ids=str,
)
def test_codes_under_powers_of_two_are_exact_in_every_dtype_and_come_back(weight, dtype):
    layer = of_powers(random_layer(Spec("m", 6, 64, weight, DType.F32, bias=DType.F16), 5))
    assert check_pass(DequantizeExactly(dtype), layer)


def test_act_order_comes_back():
    layer = of_powers(random_layer(Spec("m", 6, 64, GROUPS, DType.F16, g_idx=True), 1))
    assert check_pass(DequantizeExactly(DType.F16), layer)


def test_weights_that_a_dtype_has_not_are_counted():
    layer = random_layer(Spec("m", 6, 64, GROUPS, DType.F16), 0)
    rounded = to_float64(from_float64(dequantize(layer), DType.BF16), DType.BF16)
    with pytest.raises(Counted, match="weights are no bfloat16") as fault:
        DequantizeExactly(DType.BF16).apply(layer)
    assert fault.value.count == np.count_nonzero(rounded != dequantize(layer))


def test_codes_under_a_scale_of_zero_could_not_be_told_apart():
    layer = random_layer(Spec("m", 6, 64, GROUPS, DType.F16), 0)
    layer.arrays["scale"][3] = 0
    with pytest.raises(ValueError, match="a scale is zero"):
        DequantizeExactly(DType.F32).apply(layer)


def test_an_edited_weight_is_no_code():
    layer = of_powers(random_layer(Spec("m", 6, 64, GROUPS, DType.F16), 0))
    dense = DequantizeExactly(DType.F32).apply(layer)
    dense.arrays["code"][2, 3] = 0.3
    with pytest.raises(ValueError, match="not recorded"):
        DequantizeExactly(DType.F32).undo(dense, layer.spec)
