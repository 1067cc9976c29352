"""Casts of MXFP4: every code under every exponent, at both edges of each window, by fractions and torch's float8."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from qbridge.ir.dtypes import DType, to_float64
from qbridge.ir.layer import Layer, Spec, identical
from qbridge.ir.scheme import Granularity, WeightScheme
from qbridge.ir.values import dequantize
from qbridge.passes import float4
from qbridge.passes.float4_to_float8 import Float4ToFloat8
from qbridge.passes.float4_to_integers import Float4ToIntegers
from qbridge.passes.float4_to_mxfp8 import Float4ToMxfp8
from qbridge.passes.float4_to_nvfp4 import Float4ToNvfp4
from qbridge.passes.integers_to_float8 import IntegersToFloat8
from qbridge.passes.powers import exact_range, exponents_of, powers_of
from qbridge.passes.residue import Held
from qbridge.passes.spread import UNITS, Outside, common
from qbridge.testing import check_pass, random_layer

E2M1 = [Fraction(value).limit_denominator(2) for value in (0, 0.5, 1, 1.5, 2, 3, 4, 6)]
CODES = range(16)
ALL_POWERS = range(-127, 128)
FLOAT8 = {
    (Fraction(value), bool(np.signbit(value))): byte
    for byte in range(256)
    for value in [torch.tensor([byte], dtype=torch.uint8).view(torch.float8_e4m3fn).double().item()]
    if np.isfinite(value)
}

OF_FLOAT8 = {byte: value for (value, _), byte in FLOAT8.items()}
MAGNITUDES = {value for value, _ in FLOAT8}


def worth(code):
    """The exact value of a code of e2m1."""
    return -E2M1[code - 8] if code & 8 else E2M1[code]


def power(exponent):
    return Fraction(2) ** exponent


def layer(codes, exponents):
    """A layer of MXFP4: codes by rows, an exponent for each group of 32 inputs."""
    codes = np.array(codes, np.uint8)
    scale = np.array(exponents, np.int16).reshape(len(codes), -1) + 127
    spec = Spec("m", *codes.shape, float4.MXFP4, DType.F8_E8M0)
    return Layer(spec, {"code": codes, "scale": scale.astype(np.uint8)})


def row(code, exponent, anchor_code=None, anchor=None):
    """One row: a group of one code, and one more of another if that is given."""
    groups = [(code, exponent)] if anchor is None else [(code, exponent), (anchor_code, anchor)]
    return layer([[each for each, _ in groups for _ in range(32)]], [[k for _, k in groups]])


def values(done):
    """The weights of a layer as fractions."""
    spec, arrays = done.spec, done.arrays
    found = {}
    scale = [[Fraction(float(s)) for s in line] for line in to_float64(arrays["scale"], spec.scale_dtype)]
    outer = Fraction(float(arrays["global_scale"][0])) if "global_scale" in arrays else 1
    for r, line in enumerate(arrays["code"].tolist()):
        for c, code in list(enumerate(line))[:: float4.GROUP]:  # a group has one code here
            if spec.weight.type == "int":
                value = Fraction(code)
            elif spec.weight.type == "e2m1":
                value = worth(code)
            else:
                value = OF_FLOAT8[code]
            block = spec.weight.block or (1, spec.weight.group_size or spec.in_features)
            s = scale[0][0] if spec.weight.granularity is Granularity.TENSOR else scale[r // block[0]][c // block[1]]
            found[r, c] = value * s * outer
    return found


@pytest.mark.parametrize("code", CODES)
def test_each_code_under_each_exponent_is_the_float8_that_torch_has_or_none(code):
    for difference in range(-255, 256):
        exact = worth(code) * power(difference)
        wanted = FLOAT8.get((exact, bool(code & 8)))
        index = np.array([[difference]], np.int16)
        (found,) = float4.recoded(np.array([[code]], np.uint8), float4.FLOAT8, index)[0]
        assert (None if found & 0x7F == float4.INVALID else found) == wanted
        if wanted is not None:
            back = float4.recoded(np.array([[wanted]], np.uint8), float4.FROM_FLOAT8, index)[0, 0]
            assert back == code


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("edge", ["top", "bottom"])
def test_all_pairs_at_both_edges_of_the_window_of_a_float8_scale(code, edge):
    """A row for each exponent: a group of the code beside one of 6s above it, or of halves below it."""
    step, anchor = Float4ToFloat8(Granularity.CHANNEL, codes=True), 7 if edge == "top" else 1
    rows = [
        (exponent, other)
        for exponent in ALL_POWERS
        for distance in (13, 14, 15, 16, 17, 18)
        for other in [exponent + distance if edge == "top" else exponent - distance]
        if other in ALL_POWERS
    ]
    made = layer([[code] * 32 + [anchor] * 32] * len(rows), rows)
    low, high = float4.float8_range(made.arrays["scale"], made.arrays["code"])
    chosen, outside = common(low, high, UNITS[Granularity.CHANNEL])
    wanted = np.array([fits([(worth(code), k), (worth(anchor), other)]) for k, other in rows])
    possible = (chosen >= low.max(axis=1, keepdims=True))[:, 0] & (chosen <= high.min(axis=1, keepdims=True))[:, 0]
    assert (possible == wanted).all() and outside == np.count_nonzero(~wanted) and wanted.any()
    assert outside or worth(code) == 0
    good = layer(made.arrays["code"][wanted], np.array(rows)[wanted])
    done = step.apply(good)
    assert (dequantize(done) == dequantize(good)).all()
    assert (done.arrays["code"] >> 7 == good.arrays["code"] >> 3).all()  # -0 is -0
    for k, other in np.array(rows)[~wanted][:: len(rows) // 40 + 1]:
        with pytest.raises(Outside):
            step.apply(row(code, k, anchor, other))


def fits(pairs):
    """Whether some power of two that a normal float32 holds brings every weight into float8, by trying each."""
    scales = [k for _, k in pairs]
    tried = range(max(min(scales) - 12, -126), min(max(scales) + 13, 128))
    return any(all(value * power(k - n) in MAGNITUDES for value, k in pairs) for n in tried)


@pytest.mark.parametrize("exponent", [-127, -126, -14, 0, 3, 126, 127])
def test_scales_alone_decide_where_fifteen_exponents_suffice(exponent):
    step = Float4ToFloat8(Granularity.CHANNEL)
    last = exponent - 14
    if last in ALL_POWERS:
        made = row(1, last, 7, exponent)
        assert values(step.apply(made)) == values(made)
    if last - 1 in ALL_POWERS:
        with pytest.raises(Outside, match=rf"1 of 1 output channels .*: 2\^{last - 1} to 2\^{exponent}"):
            step.apply(row(1, last - 1, 7, exponent))


def test_a_block_outside_is_refused_with_its_exponents_and_how_many_there_are():
    codes = np.full((256, 256), 7, np.uint8)
    exponents = np.zeros((256, 8), np.int16)
    exponents[3, 5], exponents[200, 0], exponents[201, 1] = -20, 17, -1
    with pytest.raises(Outside) as refused:
        Float4ToFloat8(Granularity.BLOCK, codes=True).apply(layer(codes, exponents))
    fault = refused.value
    assert (fault.count, fault.total, fault.least, fault.most) == (2, 4, -20, 0)
    codes[3, 160:192] = 8  # a group of -0 fits under any scale
    with pytest.raises(Outside, match="1 of 4 blocks of 128 x 128"):
        Float4ToFloat8(Granularity.BLOCK, codes=True).apply(layer(codes, exponents))


@pytest.mark.parametrize("code", CODES)
def test_all_pairs_at_both_edges_of_the_window_of_nvfp4(code):
    for exponent in ALL_POWERS:
        made = row(code, exponent)
        for difference in (-10, -9, 8, 9):
            chosen = exponent - difference
            if not -126 <= chosen <= 127:
                continue
            held = (power(difference), False) in FLOAT8
            assert held == (difference in (-9, 8))
            for zeros in (False, True):
                step = Float4ToNvfp4(chosen, zeros)
                if held or (zeros and worth(code) == 0):
                    done = step.apply(made)
                    assert values(done) == values(made)
                    assert zeros or identical(step.undo(done, made.spec), made)
                else:
                    with pytest.raises(ValueError, match="outside of what a float8 holds"):
                        step.apply(made)


def every_pair(exponents=ALL_POWERS):
    """A row for each exponent, a group for each code."""
    return layer([[code for code in CODES for _ in range(32)]] * len(exponents), [[k] * 16 for k in exponents])


def test_all_pairs_as_mxfp8():
    made = every_pair()
    done = Float4ToMxfp8().apply(made)
    assert (dequantize(done) == dequantize(made)).all()
    assert identical(Float4ToMxfp8().undo(done, made.spec), made)


@pytest.mark.parametrize("dtype", [DType.F16, DType.BF16, DType.F32])
def test_all_pairs_as_integers(dtype):
    kind = {DType.F16: torch.float16, DType.BF16: torch.bfloat16, DType.F32: torch.float32}[dtype]
    halves = torch.tensor([2.0 ** (k - 1) for k in ALL_POWERS], dtype=torch.float64)
    held = [k for k, yes in zip(ALL_POWERS, (halves.to(kind).double() == halves).tolist(), strict=True) if yes]
    made = every_pair(held)
    done = Float4ToIntegers(dtype).apply(made)
    assert (dequantize(done) == dequantize(made)).all()
    assert identical(Float4ToIntegers(dtype, kept=True).with_residue(Held(made)).undo(done, made.spec), made)
    for exponent in set(ALL_POWERS) - set(held):
        assert Float4ToIntegers(dtype).needs_values(made.spec)
        with pytest.raises(ValueError, match=f"16 scales are outside of what {dtype} holds"):
            Float4ToIntegers(dtype).apply(every_pair([exponent]))


def test_every_integer_of_five_bits_is_the_float8_that_torch_has():
    codes = np.arange(-16, 16, dtype=np.int8)[None]
    spec = Spec("m", 1, 32, WeightScheme(5, Granularity.CHANNEL), DType.F32)
    done = IntegersToFloat8().apply(Layer(spec, {"code": codes, "scale": np.ones((1, 1), np.float32)}))
    wanted = torch.from_numpy(codes).to(torch.float8_e4m3fn)
    assert (done.arrays["code"] == wanted.view(torch.uint8).numpy()).all()
    assert (wanted.double().numpy() == codes).all()
    with pytest.raises(ValueError, match="no symmetric integers of 5 bits"):
        IntegersToFloat8().plan(Spec("m", 1, 32, WeightScheme(6, Granularity.CHANNEL), DType.F32))


@pytest.mark.parametrize("dtype", [DType.F32, DType.BF16, DType.F16, DType.F8_E4M3, DType.F8_E8M0])
def test_powers_of_two_by_their_bits(dtype):
    low, high = exact_range(dtype)
    every = np.arange(low, high + 1).astype(np.int16)
    bits = powers_of(every, dtype)
    assert (to_float64(bits, dtype) == 2.0 ** every.astype(np.float64)).all()
    assert (exponents_of(bits, dtype) == every).all()
    for beyond in (low - 1, high + 1):
        with pytest.raises(ValueError, match="holds"):
            powers_of(np.array([beyond], np.int16), dtype)
    if dtype is not DType.F8_E8M0:
        three = np.array([3], np.float32).view(np.uint32) >> 16
        bits = {DType.BF16: three.astype(np.uint16), DType.F8_E4M3: np.array([0x44], np.uint8)}
        with pytest.raises(ValueError, match="not a power of two"):
            exponents_of(bits.get(dtype, np.array([3], dtype.numpy)), dtype)


SPEC = Spec("m", 160, 288, float4.MXFP4, DType.F8_E8M0, bias=DType.BF16)


def near(seed=0):
    """A random layer whose exponents are close to each other."""
    made = random_layer(SPEC, seed)
    scale = (made.arrays["scale"].astype(np.int16) % 12 + 118).astype(np.uint8)
    return Layer(SPEC, {**made.arrays, "scale": scale})


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize(
    "step",
    [
        Float4ToFloat8(Granularity.BLOCK),
        Float4ToFloat8(Granularity.BLOCK, codes=True, scale_dtype=DType.F8_E8M0),
        Float4ToFloat8(Granularity.CHANNEL),
        Float4ToFloat8(Granularity.TENSOR, exponent=-2),
        Float4ToNvfp4(-4),
        Float4ToNvfp4(-4, zeros=True),
        Float4ToMxfp8(),
        Float4ToIntegers(DType.BF16),
    ],
    ids=lambda step: f"{step.name}",
)
def test_casts_keep_the_laws(step, kept):
    assert check_pass(type(step).from_dict({**step.as_dict(), "kept": kept}, {}), near())


def test_the_cast_of_integers_keeps_the_laws():
    for bits in (2, 3, 4, 5):
        spec = Spec("m", 6, 64, WeightScheme(bits, Granularity.CHANNEL), DType.F16)
        assert check_pass(IntegersToFloat8(), random_layer(spec, 0))


def test_undo_refuses_what_was_edited_and_what_was_not_stored():
    made = near()
    step = Float4ToFloat8(Granularity.BLOCK, kept=True)
    done = step.apply(made)
    with pytest.raises(ValueError, match="its exponents were not stored"):
        step.undo(done, made.spec)
    edited = done.arrays["code"].copy()
    edited[0, 0] ^= 1
    with pytest.raises(ValueError, match="not the value of a code any more"):
        step.with_residue(Held(made)).undo(Layer(done.spec, {**done.arrays, "code": edited}), made.spec)
    assert identical(step.with_residue(Held(made)).undo(done, made.spec), made)
