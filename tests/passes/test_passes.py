"""Widen, Regroup and a rounding Recast: what each keeps, what it refuses, and that it is undone."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import qbridge
from qbridge.ir.dtypes import DType, from_float64, to_float64
from qbridge.ir.exactness import Exactness
from qbridge.ir.layer import Layer, Spec, identical
from qbridge.ir.scheme import Granularity, WeightScheme
from qbridge.ir.values import dequantize
from qbridge.passes.broadcast import Broadcast
from qbridge.passes.recast import Recast
from qbridge.passes.regroup import Regroup
from qbridge.passes.widen import Widen
from qbridge.testing.strategies import grouped_layers, layers, random_layer
from support import ROOT, only_neighbours
from test_conversion import assert_same_tensors, config, tensors


def walk(layer, steps):
    """The layer after the passes, each of which keeps its laws, and back to where it began."""
    start, befores = layer, []
    for step in steps:
        befores.append(layer.spec)
        after = step.apply(layer)
        assert after.spec == step.plan(layer.spec) and after.complete == layer.complete
        assert dequantize(after).tobytes() == dequantize(layer).tobytes()
        layer = after
    end = layer
    for step, before in zip(reversed(steps), reversed(befores), strict=True):
        layer = step.undo(layer, before)
    assert identical(layer, start)
    return end


def spec(bits=4, size=32, symmetric=False, shape=(4, 128), dtype=DType.F16, **other):
    kind = Granularity.GROUP if size else Granularity.CHANNEL
    return Spec("m", *shape, WeightScheme(bits, kind, symmetric, group_size=size), dtype, **other)


# widen


@settings(suppress_health_check=[HealthCheck.filter_too_much])
@given(layers(), st.integers(1, 8))
def test_wider_codes_are_the_same_codes(layer, bits):
    assume(bits >= layer.spec.weight.bits and layer.spec.weight.type == "int")
    after = walk(layer, [Widen(bits)])
    assert after.spec.weight.bits == bits and after.arrays == layer.arrays
    assert not Widen(bits).needs_values(layer.spec) and Widen(bits).exactness is Exactness.EQUAL


@pytest.mark.parametrize("code", [4, -5, 7, -8])
def test_a_code_beyond_the_old_width_is_not_narrowed(code):
    layer = random_layer(spec(bits=3), 0)
    layer.arrays["code"][1, 2] = code
    with pytest.raises(ValueError, match="1 codes do not fit 3 bits"):
        Widen(4).undo(Layer(spec(bits=4), layer.arrays), spec(bits=3))


# regroup


@given(grouped_layers(), st.sampled_from([1, 2, 4, 8, 16]))
def test_groups_split_into_a_size_that_divides_them(layer, size):
    old = layer.spec.weight.group_size or layer.spec.in_features
    assume(old % size == 0)
    assert not Regroup(size).needs_values(layer.spec)
    assert walk(layer, [Regroup(size)]).spec.weight.group_size == size


@given(grouped_layers(g_idx=True), st.sampled_from([1, 2, 4, 8, 16]))
def test_groups_in_act_order_split_and_keep_every_weight(layer, size):
    assume((layer.spec.weight.group_size or layer.spec.in_features) % size == 0)
    after = walk(layer, [Regroup(size)])
    index = after.arrays["g_idx"]
    assert index.min() >= 0 and index.max() < after.spec.scale_shape[1]


def test_act_order_of_full_groups_splits_into_full_groups():
    layer = random_layer(spec(size=32, g_idx=True), 3)
    order = np.random.default_rng(3).permutation(128)
    layer.arrays["g_idx"][order] = np.arange(128) // 32
    after = walk(layer, [Regroup(8)])
    assert np.bincount(after.arrays["g_idx"]).tolist() == [8] * 16


def test_act_order_is_not_split_into_a_size_that_does_not_divide():
    with pytest.raises(ValueError, match="groups of 32 in act-order are not split into groups of 24"):
        Regroup(24).apply(random_layer(spec(g_idx=True), 0))


@given(grouped_layers())
def test_one_scale_per_channel_becomes_groups_and_comes_back(layer):
    channel = replace(layer.spec, weight=replace(layer.spec.weight, granularity=Granularity.CHANNEL, group_size=None))
    for size in (3, 16, 128, 1000):
        assert not Regroup(size).needs_values(channel)
        walk(random_layer(channel, 1), [Regroup(size)])


@pytest.mark.parametrize("size", [64, 48, 20, 128, None])
def test_neighbours_are_joined_only_where_they_are_equal(size):
    small = spec(size=32)
    assert Regroup(size).needs_values(small)
    one = random_layer(spec(size=None), 5)
    equal = Regroup(32).apply(one)
    joined = walk(equal, [Regroup(size)])
    assert joined.spec.weight.group_size == size and dequantize(joined).tobytes() == dequantize(one).tobytes()
    for part in ("scale", "zero"):
        changed = equal.arrays[part].copy()
        changed.view(f"u{changed.dtype.itemsize}")[2, 1] ^= 1
        with pytest.raises(ValueError, match=f"{part}: [12] groups of 32 differ from those they would join"):
            Regroup(size).apply(Layer(small, {**equal.arrays, part: changed}))


def test_how_many_groups_cannot_be_joined_is_said():
    layer = random_layer(spec(size=16), 0)
    with pytest.raises(ValueError, match="scale: 4 groups of 16 differ"):
        Regroup(32).apply(layer)
    with pytest.raises(ValueError, match="scale: 7 groups of 16 differ"):
        Regroup(None).apply(layer)


def test_zeros_that_differ_in_their_sign_are_not_joined():
    layer = random_layer(spec(size=64, symmetric=True), 0)
    layer.arrays["scale"][:] = 0.0
    layer.arrays["scale"][0, 1] = -0.0
    with pytest.raises(ValueError, match="scale: 1 groups of 64 differ"):
        Regroup(None).apply(layer)


@pytest.mark.parametrize("columns", [33, 70, 127, 130])
def test_a_last_group_that_is_cut_short_keeps_its_scale(columns):
    for size in (1, 8, 16, 32):
        walk(random_layer(spec(size=32, shape=(3, columns)), columns), [Regroup(size)])


def test_undo_refuses_groups_that_were_one_and_differ_now():
    before = spec(size=64)
    after = Regroup(32).apply(random_layer(before, 0))
    after.arrays["scale"][0, 1] *= 2
    with pytest.raises(ValueError, match="scale: 1 groups of 32 differ"):
        Regroup(32).undo(after, before)


def test_undo_refuses_act_order_groups_that_were_one_and_differ_now():
    before = spec(size=64, g_idx=True)
    after = Regroup(32).apply(random_layer(before, 0))
    after.arrays["scale"][0, 1] *= 2
    with pytest.raises(ValueError, match="differ"):
        Regroup(32).undo(after, before)


# one after the other


@given(grouped_layers(), st.permutations([Widen(8), Regroup(8), Recast(DType.F32), Regroup(4), Regroup(2)]))
def test_any_passes_after_each_other_keep_values_and_are_undone_in_reverse(layer, steps):
    sizes = [step.group_size for step in steps if isinstance(step, Regroup)]
    assume(sizes == sorted(sizes, reverse=True))
    old = layer.spec.weight.group_size or layer.spec.in_features
    assume(old % sizes[0] == 0)
    end = walk(layer, steps)
    assert (end.spec.weight.bits, end.spec.weight.group_size, end.spec.scale_dtype) == (8, 2, DType.F32)


@given(st.integers(0, 2**32 - 1), st.sampled_from([DType.F16, DType.BF16]))
def test_one_scale_per_tensor_becomes_groups_by_way_of_channels(seed, dtype):
    tensor = Spec("m", 6, 96, WeightScheme(3, Granularity.TENSOR, symmetric=False), dtype)
    walk(random_layer(tensor, seed), [Recast(DType.F32), Broadcast(), Regroup(32), Widen(4), Regroup(16)])


def test_passes_say_themselves_as_the_manifest_keeps_them():
    assert Widen(4).as_dict() == {"pass": "widen", "bits": 4}
    assert Regroup(None).as_dict() == {"pass": "regroup", "group_size": None}
    assert Recast(DType.F16).as_dict() == {"pass": "recast", "dtype": "F16"}
    assert Recast(DType.F16).lossy().as_dict() == {"pass": "recast", "dtype": "F16", "rounded": True}
    assert Widen(4).lossy() is None and Regroup(32).lossy() is None


# rounding


@given(st.integers(0, 2**32 - 1), st.sampled_from([DType.F16, DType.BF16]))
def test_rounding_gives_the_nearest_value_of_each_scale(seed, dtype):
    layer = random_layer(spec(dtype=DType.F32), seed)
    step = Recast(dtype, rounded=True)
    assert step.exactness is Exactness.ROUNDED and not step.needs_values(layer.spec)
    after = step.apply(layer)
    assert after.spec == step.plan(layer.spec)
    values, rounded = to_float64(layer.arrays["scale"], DType.F32), to_float64(after.arrays["scale"], dtype)
    bits = after.arrays["scale"].view(np.uint16)
    for other in (bits + np.uint16(1), bits - np.uint16(1)):
        neighbours = to_float64(other.view(dtype.numpy), dtype)
        assert (abs(values - rounded) <= abs(values - neighbours)).all()
    assert np.array_equal(after.arrays["code"], layer.arrays["code"])


@pytest.mark.parametrize("value", [1e5, -1e5, 1e-9, 65520.0])
def test_rounding_refuses_what_would_become_infinite_or_zero(value):
    layer = random_layer(spec(dtype=DType.F32), 0)
    layer.arrays["scale"][1, 2] = value
    with pytest.raises(ValueError, match="1 of 16 values have no exact F16"):
        Recast(DType.F16, rounded=True).apply(layer)


def with_scales(folder, **changes):
    """llama_w4a16 with float32 scales; `changes` are values of the first scale by the end of a layer's name."""
    shutil.copytree(ROOT / "fixtures/compressed_tensors/llama_w4a16/model", folder)
    file = folder / "model.safetensors"
    stored = load_file(file)
    for name in [name for name in stored if name.endswith("weight_scale")]:
        stored[name] = stored[name].float()
        for leaf, values in changes.items():
            if f".{leaf}." in name:
                stored[name].view(-1)[: len(values)] = stored[name].new_tensor(values)
    save_file(stored, file, metadata={"format": "pt"})
    return folder


def errors(source, out, **options):
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.convert(source, out, "awq", **options)
    return [f for f in refused.value.findings if f.severity == "error"]


def test_scales_that_would_move_are_counted_and_the_worst_layer_is_named(tmp_path):
    model = with_scales(tmp_path / "model", q_proj=[1 / 3], up_proj=[1 / 3, 1 / 7, 1 / 9])
    (finding,) = errors(model, tmp_path / "out")
    places = [f"model.layers.0.{leaf}" for leaf in ("mlp.up_proj", "self_attn.q_proj")]
    assert finding.code == "QB301" and sorted(finding.where) == places
    assert finding.facts[-1] == f"4 values in 2 places; worst: {places[0]}, 3"
    assert "--allow rounded" in finding.help
    only_neighbours(tmp_path, "model")


def test_rounding_is_allowed_layer_by_layer_and_never_undone(tmp_path):
    model = with_scales(tmp_path / "model", q_proj=[1 / 3])
    report = qbridge.convert(model, tmp_path / "out", "awq", allow=["rounded"])
    assert report.exactness == {"rounded": 1, "reversible": 6}
    assert [f.severity for f in report.findings if f.code == "QB301"] == ["warning"]
    before, after = tensors(model), tensors(tmp_path / "out")
    name = "model.layers.0.self_attn.q_proj"
    assert (after[f"{name}.scales"] == before[f"{name}.weight_scale"].half().T).all()
    checked = qbridge.verify(model, tmp_path / "out")
    assert not checked.same and checked.equal == 6
    assert [(f.code, f.where, f.facts) for f in checked.findings if f.severity == "error"] == [
        ("QB501", (name,), ("scales",))
    ]
    qbridge.convert(tmp_path / "out", tmp_path / "back", "compressed-tensors")
    back = tensors(tmp_path / "back")
    assert {key: str(back[key].dtype) for key in back if "q_proj.weight_scale" in key} == {
        f"{name}.weight_scale": "torch.float16"
    }
    assert qbridge.verify(tmp_path / "out", tmp_path / "back").same


@pytest.mark.parametrize("value", [1e6, 1e-9])
def test_rounding_that_would_lose_a_scale_is_refused_even_where_it_is_allowed(value, tmp_path):
    model = with_scales(tmp_path / "model", q_proj=[1 / 3], k_proj=[value, 1 / 3])
    (finding,) = errors(model, tmp_path / "out", allow=["rounded"])
    assert finding.code == "QB303" and finding.where == ("model.layers.0.self_attn.k_proj",)
    assert finding.facts[-1].startswith("1 values in 1 places")
    only_neighbours(tmp_path, "model")


# between checkpoints


def test_codes_edited_beyond_their_old_width_have_no_way_back(tmp_path):
    source = ROOT / "fixtures/gptq/llama_3bit/model"
    qbridge.convert(source, tmp_path / "there", "awq")
    stored = load_file(tmp_path / "there/model.safetensors")
    stored["model.layers.0.mlp.down_proj.qweight"][0, 0] = -1  # eight codes of 15
    save_file(stored, tmp_path / "there/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.convert(tmp_path / "there", tmp_path / "back", "gptq")
    (finding,) = refused.value.findings
    assert (finding.code, finding.where) == ("QB304", ("model.layers.0.mlp.down_proj",))
    assert finding.facts == ("8 codes do not fit 3 bits",)
    only_neighbours(tmp_path, "there")
    (tmp_path / "there/qbridge.json").unlink()
    qbridge.convert(tmp_path / "there", tmp_path / "back", "gptq")
    assert qbridge.verify(tmp_path / "there", tmp_path / "back").same


def test_groups_edited_apart_are_not_joined_on_the_way_back(tmp_path):
    source = ROOT / "fixtures/gptq/llama_channel/model"
    assert qbridge.convert(source, tmp_path / "there", "lmdeploy").passes == {"regroup": 7}
    manifest = json.loads((tmp_path / "there/qbridge.json").read_text())
    assert [step["passes"] for step in manifest["steps"]] == [[{"pass": "regroup", "group_size": 128}]]
    qbridge.convert(tmp_path / "there", tmp_path / "same", "gptq")
    assert_same_tensors(source, tmp_path / "same")
    stored = load_file(tmp_path / "there/model.safetensors")
    stored["model.layers.0.mlp.down_proj.scales"][0, 0] *= 2
    save_file(stored, tmp_path / "there/model.safetensors", metadata={"format": "pt"})
    qbridge.convert(tmp_path / "there", tmp_path / "back", "gptq")
    assert qbridge.verify(tmp_path / "there", tmp_path / "back").same
    dynamic = config(tmp_path / "back")["quantization_config"]["dynamic"]
    assert {keys["group_size"] for keys in dynamic.values()} == {128}


def test_groups_that_an_engine_splits_come_back_as_they_were(tmp_path):
    source = ROOT / "fixtures/awq/qwen2_gemm_skipped/model"
    assert qbridge.convert(source, tmp_path / "there", "lmdeploy-turbomind").passes == {"regroup": 6}
    assert qbridge.verify(source, tmp_path / "there").same
    qbridge.convert(tmp_path / "there", tmp_path / "back", "awq")
    assert_same_tensors(source, tmp_path / "back")


def test_scales_are_cast_from_float64_once():
    assert from_float64(np.array([1 + 2.0**-11 + 2.0**-40]), DType.F16)[0] == np.float16(1 + 2.0**-10)
