"""Every float of 8 and 4 bits against torch's own dtypes, and what layers of them are worth."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from qbridge.ir.dtypes import DType, from_float64, is_finite, one, survives, to_float64
from qbridge.ir.floats import VALUES, code_of
from qbridge.ir.layer import Layer, Spec
from qbridge.ir.scheme import ActivationScheme, Granularity, WeightScheme
from qbridge.ir.values import dequantize

TORCH = {"e4m3fn": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2, "e8m0": torch.float8_e8m0fnu}
DTYPES = {"e4m3fn": DType.F8_E4M3, "e5m2": DType.F8_E5M2, "e8m0": DType.F8_E8M0}
BYTES = np.arange(256, dtype=np.uint8)
NANS = {"e4m3fn": [0x7F, 0xFF], "e5m2": [0x7D, 0x7E, 0x7F, 0xFD, 0xFE, 0xFF], "e8m0": [0xFF]}


@pytest.mark.parametrize("kind", TORCH)
def test_every_byte_is_worth_what_torch_says(kind):
    theirs = torch.from_numpy(BYTES.copy()).view(TORCH[kind]).to(torch.float64).numpy()
    assert np.array_equal(VALUES[kind], theirs, equal_nan=True)
    number = ~np.isnan(theirs)
    assert np.array_equal(np.signbit(VALUES[kind][number]), np.signbit(theirs[number]))
    assert list(np.flatnonzero(np.isnan(VALUES[kind]))) == NANS[kind]
    assert np.array_equal(to_float64(BYTES, DTYPES[kind]), theirs, equal_nan=True)
    assert np.array_equal(is_finite(BYTES, DTYPES[kind]), np.isfinite(theirs))


def test_every_code_of_four_bits():
    positive = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    assert list(VALUES["e2m1"]) == [*positive, *(-value for value in positive)]
    assert np.signbit(VALUES["e2m1"]).tolist() == [False] * 8 + [True] * 8


@pytest.mark.parametrize(("kind", "code"), [("e4m3fn", 0x38), ("e5m2", 0x3C), ("e8m0", 127), ("e2m1", 2)])
def test_one_has_a_code(kind, code):
    assert code_of(1.0, kind) == code
    if kind in DTYPES:
        assert one(DTYPES[kind]) == code


def test_a_value_without_a_code_is_an_error():
    with pytest.raises(ValueError, match="has no exact e2m1"):
        code_of(5.0, "e2m1")


def between(values):
    """Values, what lies between any two of them (ties included), and between the last and what would be next."""
    values = np.unique(np.abs(values[np.isfinite(values)]))
    middle = (values[1:] + values[:-1]) / 2
    around = [np.nextafter(middle, 0), middle, np.nextafter(middle, np.inf)]
    last = values[-1] + (values[-1] - values[-2]) / 2
    return np.concatenate([values, *around, [np.nextafter(last, 0), last]])  # beyond it torch's releases differ


@pytest.mark.parametrize("kind", ["e4m3fn", "e5m2"])
def test_values_round_to_the_codes_that_torch_gives_them(kind):
    values = between(VALUES[kind])
    values = np.concatenate([values, -values, [np.nan]])
    # torch rounds by way of float32, which must not move the values
    values = values[np.isnan(values) | (values.astype(np.float32) == values)]
    theirs = torch.from_numpy(values).float().to(TORCH[kind]).view(torch.uint8).numpy()
    ours = from_float64(values, DTYPES[kind])
    number = np.isfinite(to_float64(theirs, DTYPES[kind]))
    assert np.array_equal(ours[number], theirs[number])
    worth = (to_float64(codes, DTYPES[kind]) for codes in (ours, theirs))
    assert np.array_equal(*worth, equal_nan=True)


@pytest.mark.parametrize("kind", TORCH)
def test_every_code_is_found_by_its_value(kind):
    values = VALUES[kind]
    found = from_float64(values, DTYPES[kind])
    assert np.array_equal(found[~np.isnan(values)], BYTES[~np.isnan(values)])
    assert np.isnan(to_float64(found[np.isnan(values)], DTYPES[kind])).all()


def test_beyond_the_range_is_no_number():
    for kind in DTYPES:
        found = from_float64(np.array([1e300, np.inf]), DTYPES[kind])
        assert not np.isfinite(to_float64(found, DTYPES[kind])).any()


def test_what_is_no_power_of_two_is_not_its_exponent():
    values = np.array([3.0, 0.0, -2.0, 2.0**130])
    back = to_float64(from_float64(values, DType.F8_E8M0), DType.F8_E8M0)
    assert not (back == values).any()


@pytest.mark.parametrize("before", DTYPES.values(), ids=str)
@pytest.mark.parametrize("after", [DType.F16, DType.BF16, DType.F32, DType.F64, *DTYPES.values()], ids=str)
def test_what_survives_a_cast_is_what_torch_keeps(before, after):
    kinds = {DType.F16: torch.float16, DType.BF16: torch.bfloat16, DType.F32: torch.float32, DType.F64: torch.float64}
    kinds |= {dtype: TORCH[kind] for kind, dtype in DTYPES.items()}
    values = torch.from_numpy(BYTES.copy()).view(kinds[before]).to(torch.float64)
    values = values[torch.isfinite(values)]
    kept = bool((values.to(kinds[after]).to(torch.float64) == values).all())
    assert not survives(before, after) or kept


def nvfp4(how, outer):
    weight = WeightScheme(4, Granularity.GROUP, type="e2m1", group_size=16, global_scale=how)
    spec = Spec("l", 2, 32, weight, DType.F8_E4M3)
    random = np.random.default_rng(0)
    arrays = {
        "code": random.integers(0, 16, (2, 32)).astype(np.uint8),
        "scale": random.integers(1, 0x7F, (2, 2)).astype(np.uint8),
        "global_scale": np.array([outer], np.float32),
    }
    return Layer(spec, arrays)


@pytest.mark.parametrize("outer", [0.75, 1.1, 3e-7])
def test_a_global_scale_multiplies_or_divides(outer):
    for how in ("multiply", "divide"):
        layer = nvfp4(how, outer)
        number = Fraction(float(np.float32(outer)))
        for (row, column), value in np.ndenumerate(dequantize(layer)):
            code = Fraction(VALUES["e2m1"][layer.arrays["code"][row, column]])
            scale = Fraction(VALUES["e4m3fn"][layer.arrays["scale"][row, column // 16]])
            exact = code * scale * (number if how == "multiply" else 1 / number)
            assert value == float(exact)


def test_schemes_without_meaning_are_refused():
    blocks = WeightScheme(8, Granularity.BLOCK, type="e4m3fn", block=(4, 4))
    for wrong in (
        lambda: Spec("l", 4, 4, blocks, DType.F32, g_idx=True),
        lambda: WeightScheme(8, Granularity.CHANNEL, type="e4m3fn", global_scale="multiply"),
        lambda: WeightScheme(8, Granularity.CHANNEL, symmetric=False, type="e4m3fn"),
        lambda: WeightScheme(8, Granularity.GROUP, type="e2m1", group_size=16),
        lambda: ActivationScheme(8, Granularity.TOKEN, dynamic=True, type="e4m3fn", global_scale="divide"),
    ):
        with pytest.raises(ValueError, match=r"scale|zero-points|bits|act-order"):
            wrong()
