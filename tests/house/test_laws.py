"""Laws over the whole registry, and the passes on their own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import qbridge
from qbridge.ir.dtypes import DType, from_float64, survives, to_float64
from qbridge.ir.floats import VALUES
from qbridge.ir.layer import Layer, Spec, identical
from qbridge.ir.scheme import Granularity, WeightScheme
from qbridge.ir.values import code_values, dequantize
from qbridge.passes.broadcast import Broadcast
from qbridge.passes.recast import Recast, cast
from qbridge.passes.symmetrize import Symmetrize
from qbridge.testing.laws import check_pairs, same_values
from qbridge.testing.strategies import layers, random_layer

TORCH = {DType.F16: torch.float16, DType.BF16: torch.bfloat16, DType.F32: torch.float32}


W8A8 = {"compressed-tensors", "smooth-quant", "w8a8"}
FLOATS = {"compressed-tensors", "fp8", "modelopt", "quark", "smooth-quant", "w8a8"}
GPT_OSS = {"compressed-tensors", "mxfp4", "quark"}
WRITTEN_ONLY = {"dense"}
WEIGHTS_ONLY = {"auto-round", "awq", "compressed-tensors", "gptq", "marlin", "quark"}
FROM_GGUF = {*WEIGHTS_ONLY, "mxfp4", "gguf"}
TO_GGUF = {*FROM_GGUF, "smooth-quant", "w8a8"}
FROM_MLX = {*FROM_GGUF, "mlx"}
TO_MLX = {*TO_GGUF, "mlx", "modelopt"}


def test_there_and_back_between_any_two_formats_that_share_a_scheme():
    shared = {(a, b) for family in (W8A8, FLOATS, GPT_OSS, WEIGHTS_ONLY) for a in family for b in family}
    shared |= {("gguf", other) for other in FROM_GGUF} | {(other, "gguf") for other in TO_GGUF}
    shared |= {("mlx", other) for other in FROM_MLX} | {(other, "mlx") for other in TO_MLX}
    assert check_pairs() == shared
    assert {name for pair in shared for name in pair} == set(qbridge.list_formats()) - WRITTEN_ONLY


@given(layers())
def test_identical_is_of_bytes(layer):
    copied = Layer(layer.spec, {part: array.copy() for part, array in layer.arrays.items()})
    assert identical(layer, copied)
    scale = copied.arrays["scale"].view(np.uint8).copy()
    scale.flat[0] ^= 1
    changed = {**copied.arrays, "scale": scale.view(layer.arrays["scale"].dtype)}
    assert not identical(layer, Layer(layer.spec, changed))


@pytest.mark.parametrize("dtype", [DType.F16, DType.BF16])
def test_every_16_bit_float_has_the_value_that_torch_gives_it(dtype):
    bits = np.arange(2**16, dtype=np.uint16)
    values = to_float64(bits.view(dtype.numpy), dtype)
    expected = torch.from_numpy(bits.view(np.int16)).view(TORCH[dtype]).double().numpy()
    assert np.array_equal(values, expected, equal_nan=True)


@given(arrays.arrays(np.float32, 64, elements=st.floats(width=32)))
@pytest.mark.parametrize("dtype", [DType.F16, DType.BF16])
def test_float32_rounds_to_16_bits_as_in_torch(dtype, values):
    ours = to_float64(from_float64(values.astype(np.float64), dtype), dtype)
    theirs = torch.from_numpy(values).to(TORCH[dtype]).double().numpy()
    assert np.array_equal(ours, theirs, equal_nan=True)


@pytest.mark.parametrize("dtype", [DType.F16, DType.BF16])
def test_ties_round_to_even_as_in_torch(dtype):
    half = 2.0 ** (-11 if dtype is DType.F16 else -8)
    ties = np.array([sign * (1 + (2 * step + 1) * half) for step in range(64) for sign in (1, -1)])
    theirs = torch.from_numpy(ties).to(torch.float32).to(TORCH[dtype]).double().numpy()
    assert np.array_equal(to_float64(from_float64(ties, dtype), dtype), theirs)


def test_bfloat16_rounds_once_and_not_by_way_of_float32():
    # a hair above the tie between two bfloat16, which float32 rounds down to the tie itself
    value = 1.0 + 2.0**-8 + 2.0**-40
    assert to_float64(from_float64(np.array([value]), DType.BF16), DType.BF16)[0] == 1.0 + 2.0**-7


@pytest.mark.parametrize(("kind", "dtype"), [("e4m3fn", torch.float8_e4m3fn), ("e5m2", torch.float8_e5m2)])
def test_every_float8_code_has_the_value_that_torch_gives_it(kind, dtype):
    codes = np.arange(256, dtype=np.uint8)
    expected = torch.from_numpy(codes).view(dtype).double().numpy()
    ours = code_values(codes, kind)
    assert np.array_equal(ours, expected, equal_nan=True)
    assert np.array_equal(np.signbit(ours[ours == 0]), np.signbit(expected[expected == 0]))


@pytest.mark.parametrize("before", TORCH)
@pytest.mark.parametrize("after", TORCH)
def test_survives_is_true_of_every_value(before, after):
    bits = np.arange(2**16, dtype=np.uint16)
    values = bits.view(before.numpy) if before.itemsize == 2 else (bits.astype(np.uint32) << 13).view(np.float32)
    finite = values[np.isfinite(to_float64(values, before))]
    if survives(before, after):
        assert np.array_equal(to_float64(cast(finite, before, after), after), to_float64(finite, before))
    else:
        with pytest.raises(ValueError, match="have no exact"):
            cast(finite, before, after)


@given(layers(), st.sampled_from([Broadcast(), Recast(DType.F32), Symmetrize()]))
def test_passes_keep_values_predict_specs_and_undo(layer, step):
    needed = layer.spec.weight.granularity is Granularity.TENSOR
    if isinstance(step, Recast) and not survives(layer.spec.scale_dtype, step.dtype):
        return
    if (isinstance(step, Broadcast) and not needed) or (isinstance(step, Symmetrize) and "zero" not in layer.arrays):
        return
    if isinstance(step, Symmetrize):
        layer = Layer(layer.spec, {**layer.arrays, "zero": np.zeros_like(layer.arrays["zero"])})
    after = step.apply(layer)
    assert after.spec == step.plan(layer.spec) and after.complete == layer.complete
    assert same_values(after, layer)
    assert identical(step.undo(after, layer.spec), layer)


def test_passes_refuse_what_they_cannot_keep():
    spec = Spec("m", 4, 8, WeightScheme(8, Granularity.CHANNEL, symmetric=False), DType.F32)
    layer = random_layer(spec, 0)
    with pytest.raises(ValueError, match="zero-points are not zero"):
        Symmetrize().apply(layer)
    with pytest.raises(ValueError, match="no exact F16"):
        Recast(DType.F16).apply(Layer(spec, {**layer.arrays, "scale": np.full((4, 1), 0.1, np.float32)}))
    tensor = Spec("m", 4, 8, WeightScheme(8, Granularity.TENSOR), DType.F32)
    uneven = random_layer(Broadcast().plan(tensor), 1)
    with pytest.raises(ValueError, match="rows of scale differ"):
        Broadcast().undo(uneven, tensor)


@given(layers())
def test_values_are_those_of_the_definition(layer):
    spec = layer.spec
    scale = to_float64(layer.arrays["scale"], spec.scale_dtype)
    zero = layer.arrays.get("zero", np.zeros(spec.scale_shape, np.int16))
    outer = layer.arrays.get("global_scale", np.ones(1, np.float32))[0]
    values, block = dequantize(layer), spec.weight.block or (1, 1)
    for o, i in [
        (0, 0),
        (spec.out_features - 1, spec.in_features - 1),
        (spec.out_features // 2, spec.in_features // 2),
    ]:
        row = 0 if spec.weight.granularity is Granularity.TENSOR else o // block[0]
        column = i // block[1] if spec.weight.block else 0
        if spec.g_idx:
            column = int(layer.arrays["g_idx"][i])
        elif spec.weight.group_size:
            column = i // spec.weight.group_size
        code = layer.arrays["code"][o, i]
        number = float(code) if spec.weight.type == "int" else float(VALUES[spec.weight.type][code])
        expected = (number - float(zero[row, column])) * scale[row, column]
        if spec.weight.global_scale:
            expected = expected / float(outer) if spec.weight.global_scale == "divide" else expected * float(outer)
        assert values[o, i] == expected or (np.isnan(values[o, i]) and np.isnan(expected))
