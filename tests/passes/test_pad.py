"""Pad: old weights stay, new ones are exactly zero, and undo crops no other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from padding import (
    assert_padded,
    spec,
)
from qbridge.ir.dtypes import DType
from qbridge.ir.exactness import Exactness
from qbridge.ir.layer import Layer, Spec, identical
from qbridge.ir.scheme import Granularity, WeightScheme
from qbridge.ir.values import dequantize
from qbridge.passes.broadcast import Broadcast
from qbridge.passes.pad import Pad
from qbridge.passes.recast import Recast
from qbridge.passes.regroup import Regroup
from qbridge.passes.widen import Widen
from qbridge.testing.strategies import grouped_layers, layers, random_layer


def grow(layer, rows, columns):
    """The layer padded by so many features, after it has kept every law."""
    step = Pad(layer.spec.out_features + rows, layer.spec.in_features + columns)
    after = step.apply(layer)
    assert after.spec == step.plan(layer.spec) and after.complete
    assert_padded(after, layer)
    assert identical(step.undo(after, layer.spec), layer)
    return after


def walk(layer, steps):
    """The layer after the passes, and back in reverse order to where it began."""
    start, befores = layer, []
    for step in steps:
        befores.append(layer.spec)
        layer = step.apply(layer)
        assert layer.spec == step.plan(befores[-1]) and layer.complete
        assert_padded(layer, start)
    end = layer
    for step, before in zip(reversed(steps), reversed(befores), strict=True):
        layer = step.undo(layer, before)
    assert identical(layer, start)
    return end


FEW = st.integers(0, 70)


@given(layers(), FEW, FEW)
def test_old_weights_stay_and_new_ones_are_zero(layer, rows, columns):
    grow(layer, rows, columns)


@given(st.booleans().flatmap(lambda g_idx: grouped_layers(g_idx=g_idx)), FEW, FEW)
def test_groups_channels_and_act_order_grow(layer, rows, columns):
    after = grow(layer, rows, columns)
    if layer.spec.g_idx:
        added = after.arrays["g_idx"][layer.spec.in_features :]
        size = layer.spec.weight.group_size or after.spec.in_features
        assert added.tolist() == [i // size for i in range(layer.spec.in_features, after.spec.in_features)]


@pytest.mark.parametrize("columns", [1, 31, 32, 33, 127, 129])
@pytest.mark.parametrize("size", [None, 32, 128])
@pytest.mark.parametrize("symmetric", [True, False])
def test_inputs_that_fall_into_an_old_group_take_its_zero_point_for_a_code(columns, size, symmetric):
    layer = random_layer(spec(size=size, symmetric=symmetric, shape=(5, columns)), columns)
    after = grow(layer, 3, 256 - columns)
    joined = min(256, -(-columns // (size or 256)) * (size or 256))
    added = after.arrays["code"][:5, columns:joined]
    zeros = np.zeros((5, 1)) if symmetric else layer.arrays["zero"][:, -1:]
    assert (added == zeros).all()
    assert (after.arrays["code"][5:] == 0).all() and (after.arrays["code"][:, joined:] == 0).all()


@pytest.mark.parametrize(("rows", "columns"), [(3, 0), (0, 7), (3, 7)])
def test_one_zero_point_for_the_whole_tensor_is_the_code_of_all_that_is_new(rows, columns):
    layer = random_layer(Spec("m", 6, 40, WeightScheme(8, Granularity.TENSOR, symmetric=False), DType.F16), 3)
    for zero in (-128, -1, 5, 127):
        layer.arrays["zero"][0, 0] = zero
        assert (grow(layer, rows, columns).arrays["code"][6:] == zero).all()
    layer.arrays["zero"][0, 0] = 128
    assert Pad(9, 47).needs_values(layer.spec) and Pad(9, 40).needs_values(layer.spec)
    with pytest.raises(ValueError, match="no code"):
        Pad(9, 40).apply(layer)


@pytest.mark.parametrize("kind", ["e4m3fn", "e5m2"])
def test_float8_weights_grow(kind):
    for granularity in (Granularity.TENSOR, Granularity.CHANNEL):
        made = Spec("m", 6, 40, WeightScheme(8, granularity, type=kind), DType.F32, bias=DType.BF16)
        grow(random_layer(made, 1), 10, 24)


@given(layers(), FEW, FEW)
def test_a_pad_says_what_it_keeps_and_when_it_must_see_values(layer, rows, columns):
    step = Pad(layer.spec.out_features + rows, layer.spec.in_features + columns)
    size = layer.spec.weight.group_size
    joins = columns > 0 and (size is None or layer.spec.in_features % size != 0)
    joins |= rows > 0 and layer.spec.weight.granularity in (Granularity.TENSOR, Granularity.BLOCK)
    assert step.needs_values(layer.spec) == (joins and not layer.spec.weight.symmetric)
    assert step.exactness is Exactness.EQUAL and step.lossy() is None and step.name == "pad"
    dims = {"out_features": step.out_features, "in_features": step.in_features}
    assert step.as_dict() == {"pass": "pad", **dims}


def test_parts_alone_are_padded_like_the_whole():
    layer = random_layer(spec(shape=(5, 70), bias=DType.F16, g_idx=True), 2)
    step = Pad(9, 150)
    whole = step.apply(layer)
    for part in layer.spec.parts():
        wanted = step.inputs(frozenset({part})) & layer.arrays.keys()
        alone = step.apply(Layer(layer.spec, {name: layer.arrays[name] for name in wanted}))
        assert alone.arrays[part].tobytes() == whole.arrays[part].tobytes(), part


def with_offsets(columns):
    scheme = WeightScheme(4, Granularity.GROUP, type="affine", group_size=32)
    layer = random_layer(Spec("m", 4, columns, scheme, DType.F32), 3)
    layer.arrays["offset"][:] = np.float32(-0.375).view(layer.arrays["offset"].dtype)
    return layer


@pytest.mark.parametrize("dims", [(9, 64), (4, 96), (9, 160)])
def test_groups_with_offsets_are_padded_by_whole_groups(dims):
    layer, step = with_offsets(64), Pad(*dims)
    after = step.apply(layer)
    assert_padded(after, layer)
    assert not step.needs_values(layer.spec)
    assert identical(step.undo(after, layer.spec), layer)
    after.arrays["offset"][-1, -1] = np.float32(1).view(layer.arrays["offset"].dtype)
    with pytest.raises(ValueError, match="are not zero"):
        step.undo(after, layer.spec)


def test_new_inputs_in_a_group_with_an_offset_are_refused():
    layer, step = with_offsets(80), Pad(4, 96)
    assert step.needs_values(layer.spec)
    with pytest.raises(ValueError, match="groups with an offset"):
        step.apply(layer)


@pytest.mark.parametrize(("zero", "bits"), [(8, 4), (-9, 4), (16, 4), (128, 8)])
def test_a_zero_point_that_is_no_code_cannot_be_a_weight_of_zero(zero, bits):
    layer = random_layer(spec(bits, size=32, shape=(4, 80)), 0)
    layer.arrays["zero"][1:3, 2] = zero
    step = Pad(4, 96)
    assert step.needs_values(layer.spec)
    with pytest.raises(ValueError, match="zero-points are no codes, so no code has the value 0"):
        step.apply(layer)


def test_a_zero_point_that_is_no_code_does_not_matter_where_nothing_joins_it():
    layer = random_layer(spec(size=32, shape=(4, 80)), 0)
    layer.arrays["zero"][1:3, 0] = 8
    grow(layer, 5, 100)
    grow(random_layer(layer.spec, 1), 5, 0)
    layer = random_layer(spec(size=32, shape=(4, 96)), 0)
    layer.arrays["zero"][:] = 8
    grow(layer, 5, 100)
    channel = random_layer(spec(size=None, shape=(4, 96)), 0)
    channel.arrays["zero"][:] = -9
    grow(channel, 5, 0)
    with pytest.raises(ValueError, match="4 zero-points are no codes"):
        Pad(4, 97).apply(channel)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    ("place", "message"),
    [
        ((5, 0), "1 weights of the padded output features are not zero"),
        ((8, 95), "1 weights of the padded (output|input) features are not zero"),
        ((0, 70), "1 weights of the padded input features are not zero"),
        ((4, 95), "1 weights of the padded input features are not zero"),
    ],
)
def test_undo_refuses_a_weight_of_the_padding_that_is_not_zero(place, message, symmetric):
    before = spec(shape=(5, 70), symmetric=symmetric)
    after = Pad(9, 96).apply(random_layer(before, 7))
    after.arrays["code"][place] ^= 1
    with pytest.raises(ValueError, match=message):
        Pad(9, 96).undo(after, before)


def test_undo_refuses_zero_points_of_the_padding_that_no_longer_are_its_codes():
    before = spec(shape=(5, 70))
    after = Pad(9, 200).apply(random_layer(before, 7))
    for place in ((8, 1), (2, 5)):
        zeros = after.arrays["zero"].copy()
        zeros[place] += 1
        with pytest.raises(ValueError, match="are not zero"):
            Pad(9, 200).undo(Layer(after.spec, {**after.arrays, "zero": zeros}), before)


def test_undo_refuses_a_bias_of_the_padding():
    before = spec(shape=(5, 64), bias=DType.F16)
    after = Pad(9, 64).apply(random_layer(before, 7))
    after.arrays["bias"][8] = 0.25
    with pytest.raises(ValueError, match="a bias of the padding is not zero"):
        Pad(9, 64).undo(after, before)


@given(
    st.booleans().flatmap(lambda g_idx: grouped_layers(g_idx=g_idx)),
    FEW,
    FEW,
    st.permutations([Widen(8), Regroup(8), Recast(DType.F32), "pad"]),
)
def test_padding_between_other_passes_is_undone_in_reverse(layer, rows, columns, steps):
    whole = layer.spec.weight.group_size
    assume(whole or (layer.spec.in_features % 8 == 0 and columns % 8 == 0))
    step = Pad(layer.spec.out_features + rows, layer.spec.in_features + columns)
    end = walk(layer, [step if other == "pad" else other for other in steps])
    assert (end.spec.weight.bits, end.spec.weight.group_size, end.spec.scale_dtype) == (8, 8, DType.F32)
    assert (end.spec.out_features, end.spec.in_features) == (step.out_features, step.in_features)


@given(layers(), st.lists(st.tuples(FEW, FEW), min_size=2, max_size=3))
def test_padding_twice_is_padding(layer, amounts):
    steps, rows, columns = [], layer.spec.out_features, layer.spec.in_features
    for more in amounts:
        rows, columns = rows + more[0], columns + more[1]
        steps.append(Pad(rows, columns))
    assert dequantize(walk(layer, steps)).tobytes() == dequantize(steps[-1].apply(layer)).tobytes()


@given(st.integers(0, 2**32 - 1))
def test_one_scale_per_tensor_grows_before_and_after_it_is_repeated(seed):
    tensor = Spec("m", 6, 90, WeightScheme(3, Granularity.TENSOR), DType.BF16)
    walk(random_layer(tensor, seed), [Pad(8, 96), Recast(DType.F32), Broadcast(), Pad(10, 128), Regroup(32)])
