"""Blocks of ggml without one scale to a code, against the formulas of ggml-quants.c and exact fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from ggml_reference import SIZES, reference
from qbridge.codecs.ggml_values import VALUE_STRUCTS, BlockValues
from qbridge.ir.dtypes import DType, to_float64
from qbridge.ir.layer import Layer, Spec
from qbridge.ir.scheme import Granularity, WeightScheme
from qbridge.ir.slots import Slot
from qbridge.passes.dequantize import Dequantize
from qbridge.source.ggml_types import TYPES


def blocks(kind, rows=6, columns=2, seed=0, halves=None):
    """Rows of random blocks, under float16 factors that are `halves` or normal numbers of any size."""
    rng, size = np.random.default_rng(seed), SIZES[kind]
    stored = rng.integers(0, 256, (rows, columns, size), np.uint8)
    for at in VALUE_STRUCTS[kind].factors:
        wide = rng.standard_normal((rows, columns)) * 2.0 ** rng.integers(-24, 4, (rows, columns))
        chosen = wide.astype("<f2") if halves is None else np.full((rows, columns), halves, "<f2")
        stored[:, :, at : at + 2] = chosen[..., None].view(np.uint8)
    return stored.reshape(rows, -1)


@pytest.mark.parametrize("kind", VALUE_STRUCTS)
def test_any_bytes_have_the_value_that_ggml_gives_them(kind):
    stored, size = blocks(kind), SIZES[kind]
    shape = TYPES[kind].shape(stored.shape)
    values = BlockValues(kind).decode(stored, DType.F64, shape)
    wanted = [[v for block in row.reshape(-1, size) for v in reference(kind, block)] for row in stored]
    assert values.dtype == np.float64 and values.shape == shape
    assert (values == np.array(wanted)).all()


def exactly(kind, stored):
    """The weights as fractions."""
    return [[v for b in row.reshape(-1, SIZES[kind]) for v in reference(kind, b, Fraction)] for row in stored]


@pytest.mark.parametrize("half", [65504.0, -65504.0, 2.0**-24, 1.0009765625])
@pytest.mark.parametrize("kind", VALUE_STRUCTS)
def test_no_weight_is_rounded_in_float64(kind, half):
    stored = blocks(kind, rows=2, columns=1, halves=half)
    last = VALUE_STRUCTS[kind].factors[-1]
    if len(VALUE_STRUCTS[kind].factors) > 1:  # the exponents of scale and minimum as far apart as they can be
        stored[:, last : last + 2] = np.array([2.0**-24], "<f2").view(np.uint8)
    values = BlockValues(kind).decode(stored, DType.F64, TYPES[kind].shape(stored.shape))
    for row, wanted in zip(values, exactly(kind, stored), strict=True):
        assert [Fraction(float(value)) for value in row] == wanted


def nearest_even(value, bits, least):
    """A fraction rounded to `bits` significant bits, to nearest even; 2^least is the smallest step."""
    if value == 0:
        return value
    exponent = max(abs(value).numerator.bit_length() - abs(value).denominator.bit_length() - bits, least - 1)
    while abs(value) >= Fraction(2) ** (exponent + bits):
        exponent += 1
    step = Fraction(2) ** max(exponent, least)
    return round(value / step) * step  # round() of a Fraction is to nearest even


@pytest.mark.parametrize(
    ("dtype", "bits", "least"), [(DType.F16, 11, -24), (DType.BF16, 8, -133), (DType.F32, 24, -149)]
)
@pytest.mark.parametrize("kind", VALUE_STRUCTS)
def test_dense_weights_are_the_exact_ones_rounded_once(kind, dtype, bits, least):
    stored = blocks(kind, rows=3, seed=7)
    shape = TYPES[kind].shape(stored.shape)
    scheme = WeightScheme(64, Granularity.TENSOR, type="float64", blocks=kind)
    spec = Spec("a", *shape, scheme, DType.F64)
    layer = Layer(spec, {"code": BlockValues(kind).decode(stored, DType.F64, shape)})
    found = to_float64(Dequantize(dtype).apply(layer).arrays["code"], dtype)
    wanted = [[float(nearest_even(v, bits, least)) for v in row] for row in exactly(kind, stored)]
    assert (found == np.array(wanted)).all()


def test_weights_beyond_the_dtype_are_refused():
    stored = blocks("Q6_K", halves=65504.0)
    shape = TYPES["Q6_K"].shape(stored.shape)
    spec = Spec("a", *shape, WeightScheme(64, Granularity.TENSOR, type="float64", blocks="Q6_K"), DType.F64)
    layer = Layer(spec, {"code": BlockValues("Q6_K").decode(stored, DType.F64, shape)})
    with pytest.raises(ValueError, match="beyond the range"):
        Dequantize(DType.F16).apply(layer)


def test_they_are_not_written():
    with pytest.raises(ValueError, match="Q4_K"):
        BlockValues("Q4_K").encode(np.zeros((1, 256)), Slot("a", DType.U8, (1, 144)))
    with pytest.raises(ValueError, match="whole blocks"):
        BlockValues("Q4_K").stored_size((1, 128), 1)


def test_factors_are_scales_and_minima():
    found = BlockValues("Q4_K").factors(blocks("Q4_K", rows=3, halves=0.5))
    assert found.dtype == np.float16 and found.size == 2 * 2 * 3 and (found == 0.5).all()


def test_float64_goes_with_blocks():
    with pytest.raises(ValueError, match="blocks"):
        WeightScheme(64, Granularity.TENSOR, type="float64")
    with pytest.raises(ValueError, match="blocks"):
        WeightScheme(4, Granularity.TENSOR, blocks="Q4_K")
