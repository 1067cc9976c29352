"""Padding: Pad as a pass, then MLPs of real checkpoints that grow to be legal on every rank, and what may not."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from math import lcm

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import qbridge
from goldens import ALLOW
from qbridge.architecture.architecture import Architecture
from qbridge.architecture.growth import follow, growth
from qbridge.formats.registry import find
from qbridge.ir.dtypes import DType
from qbridge.ir.exactness import Exactness
from qbridge.ir.layer import Layer, Spec, identical
from qbridge.ir.model import Model, TensorInfo
from qbridge.ir.scheme import Granularity, WeightScheme
from qbridge.ir.values import dequantize
from qbridge.passes.broadcast import Broadcast
from qbridge.passes.pad import Pad
from qbridge.passes.recast import Recast
from qbridge.passes.regroup import Regroup
from qbridge.passes.widen import Widen
from qbridge.targets.parallel import ANY, Parallel
from qbridge.testing.laws import write_model
from qbridge.testing.strategies import grouped_layers, layers, random_layer
from support import ROOT, cli, copy_fixture, edit_json, edit_quantization, facts, only_neighbours, refusal
from test_conversion import assert_same_tensors, config, tensors

MLP = ("gate_proj", "up_proj", "down_proj")
DOWN = "model.layers.0.mlp.down_proj"


def fixture(case):
    return ROOT / "fixtures" / case / "model"


def spec(bits=4, size=32, symmetric=False, shape=(4, 128), dtype=DType.F16, **other):
    kind = Granularity.GROUP if size else Granularity.CHANNEL
    return Spec("m", *shape, WeightScheme(bits, kind, symmetric, group_size=size), dtype, **other)


def assert_padded(after, before):
    """Old weights and biases bit for bit, all others exactly zero."""
    values, old = dequantize(after), dequantize(before)
    inner = tuple(slice(length) for length in old.shape)
    assert values[inner].tobytes() == old.tobytes()
    values[inner] = 0
    assert not values.any(), "a weight of the padding is not zero"
    if "bias" in before.arrays:
        bias, length = after.arrays["bias"], before.spec.out_features
        assert bias[:length].tobytes() == before.arrays["bias"].tobytes() and not bias[length:].any()


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


def assert_sizes_agree(opened):
    """Every MLP has the size that an engine reads in config.json."""
    architecture = Architecture.of_model(opened.model)
    for block in architecture.mlps(opened.specs):
        size = opened.model.config[architecture.intermediate_key(block.name)]
        size *= architecture.intermediate_copies(block.name)
        found = [opened.specs[name] for name in (block.gate, block.up, block.down)]
        assert [found[0].out_features, found[1].out_features, found[2].in_features] == [size] * 3, block.name


# the pass

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
        wanted = step.inputs(frozenset({part}))
        alone = step.apply(Layer(layer.spec, {name: layer.arrays[name] for name in wanted}))
        assert alone.arrays[part].tobytes() == whole.arrays[part].tobytes(), part


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


# how much


def mlp(name, hidden, size, group=32, leaves=MLP):
    """The specs of one gated MLP."""
    shapes = {"down_proj": (hidden, size), "gate_up_proj": (2 * size, hidden)}
    found = {}
    for leaf in leaves:
        shape = shapes.get(leaf, (size, hidden))
        found[f"{name}.{leaf}"] = replace(spec(4, group, True, shape), name=f"{name}.{leaf}")
    return found


def model(specs, dense=(), **keys):
    """A Llama of some layers; `dense` are linears that are not quantized."""
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 16, "num_key_value_heads": 16, "hidden_size": 256}
    others = {f"{name}.weight": TensorInfo(DType.F16, shape, f"{name}.weight") for name, shape in dense}
    settings = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **sizes, "hidden_act": "silu", **keys}
    return Model("gptq", settings, specs, {}, others)


def sizes(found):
    return {name.removeprefix("model.layers."): (step.out_features, step.in_features) for name, step in found.items()}


@given(st.integers(1, 2000), st.sampled_from([None, 16, 32, 64, 128]), st.sets(st.sampled_from([1, 2, 3, 4, 6, 8])))
def test_an_mlp_grows_to_the_smallest_size_that_is_legal_at_every_tensor_parallel_size(size, group, ranks):
    ranks = tuple(sorted(ranks)) or (2, 4, 8)
    legal = (n for n in range(size, 100 * size + 9000) if all(n % (lcm(group or 1, 32) * tp) == 0 for tp in ranks))
    smallest = next(legal)
    found = growth(model(mlp("model.layers.0.mlp", 256, size, group), intermediate_size=size), ranks, ANY.multiple)
    wanted = {
        "0.mlp.gate_proj": (smallest, 256),
        "0.mlp.up_proj": (smallest, 256),
        "0.mlp.down_proj": (256, smallest),
    }
    assert sizes(found.passes) == ({} if smallest == size else wanted) and not found.refused


def test_qwen2_72b_grows_as_little_as_it_can():
    def grown(*ranks):
        found = growth(
            model(mlp("model.layers.0.mlp", 8192, 29568, 128), intermediate_size=29568), ranks, ANY.multiple
        )
        return found.passes[DOWN].in_features

    assert (grown(2), grown(4), grown(8), grown(2, 4, 8), grown(16)) == (29696, 29696, 29696, 29696, 30720)


def test_all_layers_of_one_key_grow_alike_and_experts_by_their_own():
    settings = {"architectures": ["Qwen2MoeForCausalLM"], "intermediate_size": 320, "num_experts": 2}
    settings |= {"moe_intermediate_size": 96, "shared_expert_intermediate_size": 160}
    specs = mlp("model.layers.0.mlp", 256, 320) | mlp("model.layers.1.mlp.shared_expert", 256, 160)
    for expert in (0, 1):
        specs |= mlp(f"model.layers.1.mlp.experts.{expert}", 256, 96)
    made = model(specs, **settings)
    found = growth(made, (2, 4), ANY.multiple)
    downs = {name: after for name, (_, after) in sizes(found.passes).items() if name.endswith("down_proj")}
    assert downs == {
        "0.mlp.down_proj": 384,
        "1.mlp.shared_expert.down_proj": 256,
        **{f"1.mlp.experts.{expert}.down_proj": 128 for expert in (0, 1)},
    }
    after = follow(made.config, {name: found.passes[name].plan(spec) for name, spec in specs.items()})
    named = ("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size")
    assert [after[key] for key in named] == [384, 128, 256]


def deepseek(size, copies):
    """Two routed experts and shared ones that are one module, `copies` times as wide."""
    keys = {"architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "n_routed_experts": 2}
    keys |= {"moe_intermediate_size": size, "n_shared_experts": copies, "first_k_dense_replace": 0}
    specs = mlp("model.layers.0.mlp.shared_experts", 256, size * copies)
    for expert in (0, 1):
        specs |= mlp(f"model.layers.0.mlp.experts.{expert}", 256, size)
    return model(specs, **keys)


@pytest.mark.parametrize("copies", [1, 2, 3])
def test_experts_that_are_legal_do_not_grow_because_shared_ones_are_wider(copies):
    found = growth(deepseek(128, copies), (2, 4), ANY.multiple)
    assert (sizes(found.passes), found.refused) == ({}, {})


@pytest.mark.parametrize("copies", [1, 2, 3])
def test_shared_experts_stay_a_multiple_of_routed_ones(copies):
    made = deepseek(96, copies)
    found = growth(made, (2,), ANY.multiple)
    downs = {name: after for name, (_, after) in sizes(found.passes).items() if name.endswith("down_proj")}
    assert downs == {
        "0.mlp.shared_experts.down_proj": 128 * copies,
        **{f"0.mlp.experts.{expert}.down_proj": 128 for expert in (0, 1)},
    }
    after = follow(made.config, {name: found.passes[name].plan(spec) for name, spec in made.specs.items()})
    assert after["moe_intermediate_size"] == 128


def test_sizes_in_a_nested_config_follow():
    specs = mlp("model.layers.0.mlp", 256, 320)
    text = {
        "model_type": "qwen2_vl_text",
        "num_attention_heads": 16,
        "num_hidden_layers": 1,
        "intermediate_size": 320,
    }
    keys = {"architectures": ["Qwen2VLForConditionalGeneration"], "text_config": text, "vision_config": {"depth": 1}}
    for outer in ({}, {"intermediate_size": 320}):
        settings = {**keys, **outer}
        made = Model("gptq", settings, specs, {}, {})
        found = growth(made, (4,), ANY.multiple)
        after = follow(settings, {name: found.passes[name].plan(spec) for name, spec in specs.items()})
        assert after == {**settings, "text_config": {**text, "intermediate_size": 384}, **dict.fromkeys(outer, 384)}


def dense_of(name, leaves=MLP, hidden=256, size=320):
    return [(f"{name}.{leaf}", (hidden, size) if leaf == "down_proj" else (size, hidden)) for leaf in leaves]


@pytest.mark.parametrize("dense", [(leaf,) for leaf in MLP] + [("gate_proj", "up_proj"), MLP], ids="+".join)
def test_no_mlp_grows_that_shares_its_size_with_one_that_cannot(dense):
    first, second = "model.layers.0.mlp", "model.layers.1.mlp"
    quantized = [leaf for leaf in MLP if leaf not in dense]
    specs = mlp(first, 256, 320, 128) | mlp(second, 256, 320, None, quantized)
    found = growth(model(specs, dense_of(second, dense), intermediate_size=320), (2,), ANY.multiple)
    assert set(found.refused) == {second}, "layers of one size in config.json would have two"


def test_an_mlp_whose_gate_and_up_are_one_linear_is_not_padded_behind_both():
    keys = {"architectures": ["Phi3ForCausalLM"], "intermediate_size": 320}
    made = model(mlp("model.layers.0.mlp", 256, 320, 128, ("gate_up_proj", "down_proj")), **keys)
    found = growth(made, (2,), ANY.multiple)
    assert not found.passes and "gate and up are one" in found.refused["model.layers.0.mlp"]


# conversions


def assert_same_model_in_more_features(source, out, allow=()):
    """Every weight of `source` in `out` bit for bit, zeros beyond; how many layers grew."""
    grown = 0
    with qbridge.open(source, allow=allow) as before, qbridge.open(out, allow=allow) as after:
        assert before.specs.keys() == after.specs.keys()
        for name in before.specs:
            old, new = before.layer(name), after.layer(name)
            assert_padded(new, old)
            grown += (old.spec.out_features, old.spec.in_features) != (new.spec.out_features, new.spec.in_features)
        assert_sizes_agree(after)
    checked = qbridge.verify(source, out, allow=allow)
    assert checked.same and not [f for f in checked.findings if f.severity == "error"]
    back = qbridge.verify(out, source, allow=allow)
    assert (back.same, back.identical, back.equal) == (True, checked.identical, checked.equal)
    assert checked.equal >= grown and checked.identical + checked.equal == len(before.specs)
    return grown


def to_480(monkeypatch):
    """Every engine wants intermediate sizes that no fixture has."""
    monkeypatch.setattr(Parallel, "multiple", lambda self, spec, tp: lcm(spec.weight.group_size or 1, 480))


TARGETS = ["gptq", "awq", "compressed-tensors", "auto-round", "vllm", "vllm-gptq", "lmdeploy"]


@pytest.mark.parametrize("target", TARGETS)
def test_groups_that_two_ranks_would_cut_are_filled_up(target, tmp_path):
    source, out = fixture("gptq/llama_640"), tmp_path / "out"
    report = qbridge.convert(source, out, target, tp=2, pad=True)
    assert report.passes == {"pad": 3} and report.exactness == {"equal": 3, "reversible": 4}
    assert config(out)["intermediate_size"] == 768 and config(source)["intermediate_size"] == 640
    assert assert_same_model_in_more_features(source, out) == 3
    with qbridge.open(out) as opened:
        assert {spec.weight.group_size for spec in opened.specs.values()} == {128}
    steps = json.loads((out / "qbridge.json").read_text())["steps"]
    assert {tuple(step["dims"][0]): tuple(step["dims"][1]) for step in steps if step["passes"]} == {
        (640, 256): (768, 256),
        (256, 640): (256, 768),
    }


@pytest.mark.parametrize("target", TARGETS)
def test_a_short_group_is_filled_up_and_attention_is_split(target, tmp_path):
    """o_proj has one group of 128, so that each of two ranks has half of one, which no padding mends."""
    source, out = fixture("gptq/llama_short_group"), tmp_path / "out"
    report = qbridge.convert(source, out, target, tp=2, pad=True)
    alike = target in ("awq", "lmdeploy")  # formats in which all groups have one size
    assert report.passes == {"pad": 3, "regroup": 7 if alike else 1}
    assert config(out)["intermediate_size"] % (64 * 2 if alike else 128 * 2) == 0
    assert assert_same_model_in_more_features(source, out) == 3


ALL = sorted(path.parent for path in ROOT.glob("fixtures/*/*/model"))
# What padding makes of a fixture in its own format where it is not padded.
NOT_GROWN = {
    "auto_round/llama_regex": "QB254",  # up_proj is not quantized
    "awq/llama_gptqmodel_8bit": "QB110",
    "compressed_tensors/llama_fp8_block": "QB254",
    "compressed_tensors/llama_fp8_block_edges": "QB254",
    "compressed_tensors/llama_mxfp6a16": "QB101",
    "compressed_tensors/llama_w4a16_g_idx": "QB110",
    "fp8/llama_blocks": "QB254",
    "fp8/llama_blocks_ue8m0": "QB254",
    "fp8/llama_lmdeploy_block": "QB254",
    "marlin/llama_autoawq": "QB110",
    "marlin/llama_autogptq": "QB110",
    "marlin/llama_autogptq_channel": "QB110",
    "marlin/llama_checkpoint_format": "QB110",
    "modelopt/llama_fp8_block": "QB254",  # scales of blocks
    "mxfp4/gpt_oss": "QB254",  # its MLP adds one to up
}
DENSE_DOWN = ("compressed_tensors/llama_partial", "compressed_tensors/qwen3_partial")


@pytest.mark.parametrize("case", ALL, ids=lambda case: f"{case.parent.name}/{case.name}")
def test_every_fixture_grows_in_its_own_format(case, tmp_path, monkeypatch):
    to_480(monkeypatch)
    name, allow = f"{case.parent.name}/{case.name}", ALLOW.get(case.name, ())
    source, own = case / "model", case.parent.name.replace("_", "-")
    if name in NOT_GROWN:
        with pytest.raises(qbridge.QBridgeError, match=NOT_GROWN[name]):
            qbridge.convert(source, tmp_path / "out", own, pad=True, allow=allow)
        only_neighbours(tmp_path)
        return
    report = qbridge.convert(source, tmp_path / "out", own, pad=True, allow=allow)
    if name in DENSE_DOWN:
        assert not report.passes
        return
    assert report.passes["pad"] % 3 == 0 and report.exactness["equal"] >= report.passes["pad"]
    assert assert_same_model_in_more_features(source, tmp_path / "out", allow) == report.passes["pad"]
    before, after = config(source), config(tmp_path / "out")
    key = "moe_intermediate_size" if "moe" in name else "intermediate_size"
    with qbridge.open(tmp_path / "out", allow=allow) as opened:
        downs = {spec.in_features for n, spec in opened.specs.items() if n.rpartition(".")[2] in ("down_proj", "w2")}
        groups = {spec.weight.group_size or 1 for spec in opened.specs.values()}
    assert downs == {after[key]} and after[key] > before[key] and after[key] % 480 == 0
    assert after[key] < before[key] + lcm(480, *groups)
    assert {k for k in before.keys() & after.keys() if before[k] != after[k]} <= {key, "quantization_config"}


@pytest.mark.parametrize(
    ("case", "target", "key"),
    [
        ("gptq/qwen3_moe_v1_sym", "vllm", "moe_intermediate_size"),
        ("compressed_tensors/qwen3_moe_w4a16", "gptq", "moe_intermediate_size"),
        ("compressed_tensors/mixtral_w8a8_w123", "lmdeploy", "intermediate_size"),
        ("compressed_tensors/qwen3_moe_w8a8", "smooth-quant", "moe_intermediate_size"),
    ],
)
def test_all_experts_grow_and_the_router_does_not(case, target, key, tmp_path):
    edit_heads = copy_fixture(tmp_path, case)
    edit_json(edit_heads / "config.json", lambda keys: keys.update(num_attention_heads=4, num_key_value_heads=4))
    report = qbridge.convert(edit_heads, tmp_path / "out", target, tp=(2, 4), pad=True)
    assert report.passes["pad"] == 12 * config(edit_heads)["num_hidden_layers"]
    assert config(tmp_path / "out")[key] == 128 and config(edit_heads)[key] == 64
    assert assert_same_model_in_more_features(edit_heads, tmp_path / "out") == report.passes["pad"]
    routers = {name: value for name, value in tensors(tmp_path / "out").items() if name.endswith(".gate.weight")}
    assert routers and all((value == tensors(edit_heads)[name]).all() for name, value in routers.items())


def biased(tmp_path):
    """A checkpoint whose linears all have biases that are not zero."""
    source = copy_fixture(tmp_path, "gptq/llama_autogptq_sym")
    file = next(source.glob("*.safetensors"))
    stored, random = load_file(file), np.random.default_rng(1)
    for name in [name for name in stored if name.endswith(".bias")]:
        stored[name] = random.normal(size=stored[name].shape).astype(np.float16)
    save_file(stored, file, metadata={"format": "pt"})
    return source


@pytest.mark.parametrize("target", ["gptq", "compressed-tensors", "vllm-gptq"])
def test_biases_grow_with_zeros_and_only_where_outputs_do(target, tmp_path, monkeypatch):
    to_480(monkeypatch)
    source = biased(tmp_path)
    qbridge.convert(source, tmp_path / "out", target, pad=True)
    assert assert_same_model_in_more_features(source, tmp_path / "out") == 3
    before, after = tensors(source), tensors(tmp_path / "out")
    for leaf, length in zip(MLP, (480, 480, 128), strict=True):
        was, bias = (found[f"model.layers.0.mlp.{leaf}.bias"].numpy() for found in (before, after))
        assert bias.shape == (length,) and bias[: was.size].tobytes() == was.tobytes() and not bias[was.size :].any()


def edited(folder, name, fn):
    file = folder / "model.safetensors"
    stored = load_file(file)
    fn(stored[name])
    save_file(stored, file, metadata={"format": "pt"})


def flip(place):
    def change(array):
        array[place] ^= 1

    return change


def put(place, value):
    def change(array):
        array[place] = value

    return change


@pytest.mark.parametrize(
    ("case", "target", "tensor", "change"),
    [
        ("gptq/llama_short_group", "gptq", f"{DOWN}.qweight", flip((-1, 0))),
        ("gptq/llama_short_group", "gptq", f"{DOWN}.qweight", flip((40, 5))),  # the first of the padding
        ("gptq/llama_short_group", "gptq", "model.layers.0.mlp.up_proj.qweight", flip((0, -1))),
        ("gptq/llama_short_group", "awq", "model.layers.0.mlp.gate_proj.qweight", flip((3, -1))),
        ("gptq/llama_short_group", "compressed-tensors", f"{DOWN}.weight_packed", flip((3, -1))),
        ("gptq/llama_short_group", "gptq", f"{DOWN}.qzeros", flip((-1, 0))),
        ("compressed_tensors/llama_w8a8", "compressed-tensors", f"{DOWN}.weight", put((0, -1), -1)),
        ("compressed_tensors/llama_w8a8", "lmdeploy", f"{DOWN}.weight", put((0, 704), 1)),
        ("compressed_tensors/llama_w8a8", "lmdeploy", "model.layers.1.mlp.up_proj.weight", put((-1, 0), 1)),
    ],
)
def test_a_weight_of_the_padding_that_is_not_zero_makes_another_model(case, target, tensor, change, tmp_path):
    ranks = (2, 4) if "w8a8" in case else 2
    qbridge.convert(fixture(case), tmp_path / "out", target, tp=ranks, pad=True)
    assert qbridge.verify(fixture(case), tmp_path / "out").same
    edited(tmp_path / "out", tensor, change)
    for pair in ((fixture(case), tmp_path / "out"), (tmp_path / "out", fixture(case))):
        checked = qbridge.verify(*pair)
        errors = [f for f in checked.findings if f.severity == "error"]
        if "qzeros" in tensor:
            assert not checked.same  # symmetric: zero-points are fixed
            continue
        assert not checked.same and {f.code for f in errors} == {"QB501"}
        assert [f.where for f in errors] == [(tensor.rpartition(".")[0],)]
        assert "of the padded" in facts(errors)


def test_an_old_weight_that_was_edited_after_padding_makes_another_model(tmp_path):
    source = fixture("gptq/llama_short_group")
    for name, change in ((f"{DOWN}.qweight", flip((0, 0))), (f"{DOWN}.scales", put((0, 0), 1.0))):
        out = tmp_path / name
        qbridge.convert(source, out, "gptq", tp=2, pad=True)
        edited(out, name, change)
        assert not qbridge.verify(source, out).same


def test_a_scale_of_the_padding_that_is_not_finite_makes_another_model(tmp_path):
    """0 times infinity is no number: the engine's down_proj would be NaN throughout."""
    source = fixture("gptq/llama_short_group")
    qbridge.convert(source, tmp_path / "out", "gptq", tp=2, pad=True)
    edited(tmp_path / "out", f"{DOWN}.scales", put((3, 0), np.inf))
    assert not qbridge.verify(source, tmp_path / "out").same


def test_a_bias_of_the_padding_that_is_not_zero_makes_another_model(tmp_path, monkeypatch):
    to_480(monkeypatch)
    source = biased(tmp_path)
    qbridge.convert(source, tmp_path / "out", "gptq", pad=True)
    edited(tmp_path / "out", "model.layers.0.mlp.up_proj.bias", put(-1, 0.5))
    assert not qbridge.verify(source, tmp_path / "out").same


@pytest.mark.parametrize("size", [320, 384, 999])
def test_a_config_that_does_not_follow_the_padding_is_another_model(size, tmp_path):
    source = fixture("gptq/llama_short_group")
    qbridge.convert(source, tmp_path / "out", "gptq", tp=2, pad=True)
    edit_json(tmp_path / "out/config.json", lambda keys: keys.update(intermediate_size=size))
    checked = qbridge.verify(source, tmp_path / "out")
    assert not checked.same, "an engine would build MLPs of another size than the layers have"
    assert {f.code for f in checked.findings if f.severity == "error"} == {"QB504"}


def test_without_a_manifest_a_padded_layer_is_just_another_one(tmp_path):
    source = fixture("gptq/llama_short_group")
    qbridge.convert(source, tmp_path / "out", "gptq", tp=2, pad=True)
    (tmp_path / "out/qbridge.json").unlink()
    checked = qbridge.verify(source, tmp_path / "out")
    assert not checked.same and "dims" in facts([f for f in checked.findings if f.code == "QB501"])


def test_two_paddings_of_one_model_are_the_same_model(tmp_path, monkeypatch):
    source = fixture("gptq/llama_640")
    qbridge.convert(source, tmp_path / "some", "gptq", tp=2, pad=True)
    to_480(monkeypatch)
    qbridge.convert(source, tmp_path / "more", "awq", tp=2, pad=True)
    found = [config(tmp_path / name)["intermediate_size"] for name in ("some", "more")]
    assert found == [768, 1920]
    assert qbridge.verify(tmp_path / "some", tmp_path / "more").same


# what must not grow


def test_padding_that_is_not_asked_for_never_happens():
    for case in ALL:
        for target in (case.parent.name.replace("_", "-"), "vllm"):
            try:
                report = qbridge.convert(
                    case / "model", ROOT / "none", target, tp=2, dry_run=True, allow=ALLOW.get(case.name, ())
                )
            except qbridge.QBridgeError as fault:
                assert "QB254" not in str(fault)
                continue
            assert "pad" not in report.passes, (case, target)


@pytest.mark.parametrize("case", ["gptq/llama_g128", "gptq/llama_v1_sym", "compressed_tensors/llama_w8a8"])
def test_padding_that_is_not_needed_never_happens(case, tmp_path):
    for target in ("vllm", "lmdeploy", case.partition("/")[0].replace("_", "-")):
        plain = qbridge.convert(fixture(case), tmp_path / "out", target, tp=2, dry_run=True)
        asked = qbridge.convert(fixture(case), tmp_path / "out", target, tp=2, pad=True, dry_run=True)
        assert plain.passes == asked.passes and "pad" not in asked.passes


def cut(tmp_path, **keys):
    source = copy_fixture(tmp_path, "gptq/llama_640")
    edit_json(source / "config.json", lambda found: found.update(keys))
    return source


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"architectures": ["MysteryForCausalLM"]}, "MysteryForCausalLM is not known to qbridge"),
        ({"architectures": []}, "the architecture is not known to qbridge"),
        ({"hidden_act": "sigmoid"}, "is not known to be act(gate) * up with act(0) = 0"),
        ({"architectures": ["GptOssForCausalLM"]}, "the MLP of GptOssForCausalLM is not known to be act(gate) * up"),
        ({"architectures": ["NemotronForCausalLM"]}, "the MLP of NemotronForCausalLM is not known to be"),
    ],
    ids=["unknown", "none", "sigmoid", "gpt-oss", "nemotron"],
)
def test_an_mlp_that_would_not_stay_the_same_is_refused(keys, reason, tmp_path):
    found = refusal(cut(tmp_path, **keys), 1, "QB254", "gptq", tp=2, pad=True, allow=["incomplete"])["QB254"]
    assert reason in facts(found) and [f.where for f in found] == [("model.layers.0.mlp",)]


def test_an_activation_that_keeps_zero_may_grow(tmp_path):
    source = cut(tmp_path, hidden_act="gelu_pytorch_tanh")
    assert qbridge.convert(source, tmp_path / "out", "gptq", tp=2, pad=True).passes == {"pad": 3}


def test_zero_points_that_are_no_codes_are_refused(tmp_path):
    source, wanted = cut(tmp_path), {"tp": 2, "pad": True, "allow": ["v1-zeros-add"]}
    with open(ROOT / "fixtures/gptq/llama_autogptq_zero0/model/config.json") as stream:
        block = json.load(stream)["quantization_config"]  # of AutoGPTQ, whose zero-points go up to 16
    edit_json(source / "config.json", lambda keys: keys.update(quantization_config={**block, "group_size": 256}))
    (source / "quantize_config.json").unlink()
    stored = load_file(source / "model.safetensors")
    for name in list(stored):
        if name.endswith((".scales", ".qzeros")):
            stored[name] = np.ascontiguousarray(stored[name][::2])
        elif name.endswith(".g_idx"):
            stored[name] //= 2
    stored[f"{DOWN}.qzeros"][2] = -1
    save_file(stored, source / "model.safetensors", metadata={"format": "pt"})
    found = refusal(source, 1, "QB111 QB254", "gptq", **wanted)["QB254"]
    assert "zero-points are no codes" in facts(found) and found[0].where == (DOWN,)
    edited(source, f"{DOWN}.qzeros", put((2, slice(None)), 0x77777777))
    qbridge.convert(source, tmp_path / "out", "gptq", **wanted)
    assert config(tmp_path / "out")["intermediate_size"] == 1024
    assert assert_same_model_in_more_features(source, tmp_path / "out", ["v1-zeros-add"]) == 3


def partly_dense(tmp_path, leaves):
    """W8A8 of intermediate size 320, some linears of the second MLP as float16."""
    source = copy_fixture(tmp_path)
    names = [f"model.layers.1.mlp.{leaf}" for leaf in leaves]
    with qbridge.open(source) as opened:
        dense = {f"{name}.weight": dequantize(opened.layer(name)).astype(np.float16) for name in names}
    stored = load_file(source / "model.safetensors")
    for name in names:
        del stored[f"{name}.weight_scale"]
    save_file({**stored, **dense}, source / "model.safetensors", metadata={"format": "pt"})
    edit_quantization(source, lambda block: block["ignore"].extend(names))
    return source


@pytest.mark.parametrize("leaves", [("gate_proj",), ("up_proj",), ("gate_proj", "up_proj"), ("down_proj",), MLP])
def test_a_part_that_is_not_quantized_keeps_all_mlps_from_growing(leaves, tmp_path):
    source = partly_dense(tmp_path, leaves)
    found = refusal(source, 1, "QB254", "compressed-tensors", tp=4, pad=True)["QB254"]
    assert "model.layers.1.mlp" in {place for f in found for place in f.where}
    assert "not quantized" in facts(found)


def test_shared_experts_of_their_own_width_are_written_as_the_config_says(tmp_path):
    made = deepseek(96, 2)
    written = [random_layer(spec, number) for number, spec in enumerate(made.specs.values())]
    write_model(
        tmp_path / "src", find("compressed-tensors"), written, {"lm_head.weight": np.ones((4, 4), np.float16)}
    )
    edit_json(tmp_path / "src/config.json", lambda keys: keys.update(made.config))
    allow = ["incomplete"]  # MLPs alone
    qbridge.convert(tmp_path / "src", tmp_path / "out", "compressed-tensors", tp=2, pad=True, allow=allow)
    width = config(tmp_path / "out")["moe_intermediate_size"]
    after = tensors(tmp_path / "out")
    for name, copies in (("experts.0", 1), ("experts.1", 1), ("shared_experts", 2)):
        shape = after[f"model.layers.0.mlp.{name}.up_proj.weight_packed"].shape
        assert shape[0] == copies * width, "the engine would build another size"
    assert assert_same_model_in_more_features(tmp_path / "src", tmp_path / "out", allow) == 9


def test_gate_and_up_in_one_linear_are_refused(tmp_path):
    specs = mlp("model.layers.0.mlp", 256, 320, 128, ("gate_up_proj", "down_proj"))
    written = [random_layer(spec, number) for number, spec in enumerate(specs.values())]
    write_model(tmp_path / "src", find("gptq"), written, {"lm_head.weight": np.ones((4, 4), np.float16)})
    keys = model(specs, architectures=["Phi3ForCausalLM"], intermediate_size=320).config
    edit_json(tmp_path / "src/config.json", lambda found: found.update(keys))
    refusal(tmp_path / "src", 1, "QB254", "gptq", tp=2, pad=True, allow=["incomplete"])


# other wishes


def test_a_dry_run_says_what_would_be_done(tmp_path):
    wanted = {"tp": 2, "pad": True}
    source = fixture("gptq/llama_short_group")
    planned = qbridge.convert(source, tmp_path / "out", "gptq", dry_run=True, **wanted)
    only_neighbours(tmp_path)
    done = qbridge.convert(source, tmp_path / "out", "gptq", **wanted)
    assert (planned.passes, planned.exactness, planned.files) == (done.passes, done.exactness, done.files)


def test_groups_are_split_for_two_ranks_without_being_asked(tmp_path):
    report = qbridge.convert(fixture("gptq/llama_640"), tmp_path / "out", "vllm", tp=2)
    assert report.passes == {"regroup": 1} and report.format == "gptq"
    assert_same_model_in_more_features(fixture("gptq/llama_640"), tmp_path / "out")
    assert config(tmp_path / "out")["intermediate_size"] == 640


@pytest.mark.parametrize(
    ("case", "target", "wanted", "code"),
    [
        ("gptq/llama_640", "vllm", {"tp": 2}, "QB251"),
        ("gptq/llama_3bit", "awq", {}, "QB110"),
        ("gptq/llama_channel", "lmdeploy", {}, "QB215"),
        ("compressed_tensors/llama_tensor", "lmdeploy", {}, "QB212"),
    ],
)
def test_without_passes_what_would_need_one_is_refused(case, target, wanted, code, tmp_path):
    assert qbridge.convert(fixture(case), tmp_path / "with", target, **wanted).passes
    with pytest.raises(qbridge.QBridgeError, match=code):
        qbridge.convert(fixture(case), tmp_path / "without", target, passes=False, **wanted)
    only_neighbours(tmp_path, "with")


def test_without_passes_a_change_of_layout_is_done(tmp_path):
    report = qbridge.convert(fixture("gptq/llama_v1_sym"), tmp_path / "out", "awq", passes=False)
    assert report.passes == {} and report.exactness == {"reversible": 7}
    assert qbridge.verify(fixture("gptq/llama_v1_sym"), tmp_path / "out").same


@pytest.mark.parametrize(
    ("case", "target"),
    [
        ("gptq/llama_v1_sym", "gptq"),
        ("gptq/llama_v1_asym", "gptq"),
        ("gptq/llama_2bit", "gptq"),
        ("gptq/llama_v2_zero0", "compressed-tensors"),
        ("compressed_tensors/llama_w3a16_asym", "compressed-tensors"),
        ("awq/llama_gemm", "compressed-tensors"),
        ("auto_round/llama_5bit_asym", "auto-round"),
    ],
)
def test_codes_are_widened_to_eight_bits(case, target, tmp_path):
    report = qbridge.convert(fixture(case), tmp_path / "out", target, bits=8)
    assert report.passes["widen"] == report.layers == report.exactness["equal"]
    with qbridge.open(tmp_path / "out") as opened:
        assert {spec.weight.bits for spec in opened.specs.values()} == {8}
    assert assert_same_model_in_more_features(fixture(case), tmp_path / "out") == 0


def test_codes_are_not_narrowed(tmp_path):
    report = qbridge.convert(fixture("gptq/llama_8bit"), tmp_path / "out", "gptq", bits=4, dry_run=True)
    assert report.passes == {}
    refusal(copy_fixture(tmp_path, "gptq/llama_v1_sym"), 1, "QB110", "awq", bits=8)


@pytest.mark.parametrize("target", ["gptq", "awq", "compressed-tensors", "vllm"])
@pytest.mark.parametrize("case", ["gptq/llama_g128", "gptq/llama_short_group", "awq/llama_gemm_g128"])
def test_groups_of_32_are_exact(case, target, tmp_path):
    report = qbridge.convert(fixture(case), tmp_path / "out", target, regroup=32)
    assert report.passes["regroup"] == report.layers
    with qbridge.open(tmp_path / "out") as opened:
        assert {spec.weight.group_size for spec in opened.specs.values()} == {32}
    assert assert_same_model_in_more_features(fixture(case), tmp_path / "out") == 0


def test_act_order_is_split_into_smaller_groups(tmp_path):
    source = fixture("gptq/llama_desc_act")
    assert qbridge.convert(source, tmp_path / "out", "gptq", regroup=16).passes == {"regroup": 7}
    assert_same_model_in_more_features(source, tmp_path / "out")


def test_groups_of_256_are_refused_where_neighbours_differ_and_done_where_they_are_equal(tmp_path):
    source = copy_fixture(tmp_path, "gptq/llama_g128")
    found = refusal(source, 1, "QB310", "gptq", regroup=256)["QB310"]
    assert len({place for f in found for place in f.where}) == 7 and "groups of 128 differ" in facts(found)
    stored = load_file(source / "model.safetensors")
    for name in [name for name in stored if name.endswith(".scales")]:
        stored[name] = np.repeat(stored[name][::2], 2, axis=0)
    save_file(stored, source / "model.safetensors", metadata={"format": "pt"})
    report = qbridge.convert(source, tmp_path / "out", "gptq", regroup=256)
    assert report.passes == {"regroup": 7}
    with qbridge.open(tmp_path / "out") as opened:
        assert {spec.weight.group_size for spec in opened.specs.values()} == {256}
    assert assert_same_model_in_more_features(source, tmp_path / "out") == 0
    edited(source, f"{DOWN}.scales", put((3, 7), 1.0))
    found = refusal(source, 1, "QB310", "gptq", regroup=256, overwrite=True)["QB310"]
    assert [f.where for f in found] == [(DOWN,)]


def test_regrouped_and_padded_and_widened_at_once(tmp_path):
    source = fixture("gptq/llama_short_group")
    wanted = {"tp": 2, "pad": True, "bits": 8, "regroup": 64}
    report = qbridge.convert(source, tmp_path / "out", "gptq", **wanted)
    assert report.passes == {"widen": 7, "regroup": 7, "pad": 3}
    assert config(tmp_path / "out")["intermediate_size"] == 384  # smaller groups, less padding
    assert assert_same_model_in_more_features(source, tmp_path / "out") == 3


def test_converting_back_crops_what_was_added(tmp_path):
    source = fixture("gptq/llama_short_group")
    qbridge.convert(source, tmp_path / "there", "awq", tp=2, pad=True)
    qbridge.convert(tmp_path / "there", tmp_path / "back", "gptq")
    assert_same_tensors(source, tmp_path / "back")
    assert config(tmp_path / "back")["intermediate_size"] == 320
    assert qbridge.verify(source, tmp_path / "back").same


@pytest.mark.parametrize("leaf", MLP)
def test_after_an_edit_of_the_padding_no_mlp_is_cropped_by_half(leaf, tmp_path):
    qbridge.convert(fixture("gptq/llama_640"), tmp_path / "there", "awq", tp=2, pad=True)
    edited(tmp_path / "there", f"model.layers.0.mlp.{leaf}.qweight", flip((-1, -1)))
    try:
        qbridge.convert(tmp_path / "there", tmp_path / "back", "gptq")
    except qbridge.QBridgeError as fault:
        assert "QB304" in str(fault)
        only_neighbours(tmp_path, "there")
        return
    with qbridge.open(tmp_path / "back") as opened:
        assert_sizes_agree(opened)
    assert qbridge.verify(tmp_path / "there", tmp_path / "back").same


def test_what_was_padded_is_padded_again_for_more_ranks(tmp_path):
    source = fixture("gptq/llama_640")
    qbridge.convert(source, tmp_path / "two", "gptq", tp=2, pad=True)
    report = qbridge.convert(tmp_path / "two", tmp_path / "four", "gptq", tp=4, pad=True)
    assert config(tmp_path / "four")["intermediate_size"] == 1024
    assert report.passes["pad"] == 3 and report.passes["undo pad"] == 3
    assert assert_same_model_in_more_features(tmp_path / "two", tmp_path / "four") == 3


# the command line


def test_the_command_line_pads_for_several_sizes(tmp_path):
    source = cut(tmp_path)
    done = cli("convert", source, tmp_path / "out", "--to", "gptq", "--tp", "2,4", "--pad", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["passes"], report["exactness"]) == ({"pad": 3, "regroup": 1}, {"equal": 4, "reversible": 3})
    assert config(tmp_path / "out")["intermediate_size"] == 1024
    assert cli("verify", source, tmp_path / "out").returncode == 0
    edited(tmp_path / "out", f"{DOWN}.qweight", flip((-1, 0)))
    assert cli("verify", source, tmp_path / "out").returncode == 1


def test_the_command_line_plans_without_writing(tmp_path):
    done = cli("convert", fixture("gptq/llama_640"), tmp_path / "out", "--to", "vllm", "--tp", "2", "--dry-run")
    assert done.returncode == 0 and "regroup x 1" in done.stdout
    only_neighbours(tmp_path)


def test_the_command_line_names_the_ways_out(tmp_path):
    done = cli("convert", fixture("gptq/llama_640"), tmp_path / "out", "--to", "vllm", "--tp", "2", "--no-passes")
    assert done.returncode == 1 and "QB251" in done.stderr
    said = " ".join(done.stderr.split())
    assert "per rank 320 = 2.5 groups of 128 (tp 2)" in said
    assert "--regroup 64 # exact" in said and "--pad # exact: 640 -> 768, +20.00 %" in said and "--tp 1" in said
    only_neighbours(tmp_path)


@pytest.mark.parametrize("option", [("--regroup", "64"), ("--pad",)])
def test_the_ways_out_are_ways_out(option, tmp_path):
    words = ("convert", fixture("gptq/llama_640"), tmp_path / "out", "--to", "vllm", "--tp", "2")
    assert cli(*words, *option).returncode == 0
    assert qbridge.verify(fixture("gptq/llama_640"), tmp_path / "out").same


@pytest.mark.parametrize("words", [("--tp", "0"), ("--tp", "two"), ("--no-passes", "--pad")], ids=" ".join)
def test_numbers_that_mean_nothing_are_usage(words, tmp_path):
    done = cli("convert", fixture("gptq/llama_640"), tmp_path / "out", "--to", "gptq", *words)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    only_neighbours(tmp_path)


@pytest.mark.parametrize(
    "wanted",
    [
        {"tp": 0},
        {"tp": ()},
        {"tp": (2, -1)},
        {"bits": 5},
        {"bits": 0},
        {"regroup": 4},
        {"regroup": -1},
        {"passes": False, "pad": True},
        {"passes": False, "bits": 8},
        {"passes": False, "regroup": 32},
    ],
    ids=str,
)
def test_numbers_that_mean_nothing_are_value_errors(wanted, tmp_path):
    with pytest.raises(ValueError):
        qbridge.convert(fixture("gptq/llama_640"), tmp_path / "out", "gptq", **wanted)
    only_neighbours(tmp_path)


# a real width

SIZE, HIDDEN, GROUP = 29568, 8192, 128  # Qwen2-72B
CONVERT = """
import sys, time, qbridge
start, ranks, pad = time.monotonic(), tuple(map(int, sys.argv[3].split(","))), sys.argv[4] == "pad"
qbridge.convert(sys.argv[1], sys.argv[2], "gptq", tp=ranks, pad=pad, allow=["incomplete"])
seconds = time.monotonic() - start
(peak,) = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(seconds, 1024 * int(peak))
"""


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """One MLP of Qwen2-72B, its codes and scales random, as GPTQ stores it."""
    folder, random = tmp_path_factory.mktemp("wide") / "src", np.random.default_rng(72)
    stored = {"lm_head.weight": np.ones((8, 8), np.float16)}
    for leaf, (rows, columns) in {
        "gate_proj": (SIZE, HIDDEN),
        "up_proj": (SIZE, HIDDEN),
        "down_proj": (HIDDEN, SIZE),
    }.items():
        name, groups = f"model.layers.0.mlp.{leaf}", columns // GROUP
        stored[f"{name}.qweight"] = random.integers(-(2**31), 2**31, (columns // 8, rows), np.int32)
        stored[f"{name}.scales"] = random.uniform(0.001, 0.01, (groups, rows)).astype(np.float16)
        stored[f"{name}.qzeros"] = np.full((groups, rows // 8), 0x77777777, np.int32)
        stored[f"{name}.g_idx"] = np.arange(columns, dtype=np.int32) // GROUP
    folder.mkdir()
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    block = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": True, "desc_act": False, "lm_head": False}
    keys = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": HIDDEN,
        "torch_dtype": "float16",
    }
    keys |= {"intermediate_size": SIZE, "num_attention_heads": 64, "num_key_value_heads": 8, "num_hidden_layers": 1}
    keys |= {"hidden_act": "silu", "vocab_size": 8, "quantization_config": {**block, "checkpoint_format": "gptq"}}
    (folder / "config.json").write_text(json.dumps(keys))
    yield folder, stored
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(("ranks", "how", "group"), [("2,8", "pad", 128), ("2", "split", 64), ("8", "split", 16)])
def test_a_real_width_is_made_legal_in_the_memory_and_time_that_a_laptop_has(ranks, how, group, wide, tmp_path):
    source, before = wide
    words = [sys.executable, "-c", CONVERT, source, tmp_path / "out", ranks, how]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    seconds, peak = map(float, done.stdout.split())
    print(f"tp {ranks}, {how}: {seconds:.1f} s, {peak / 1e6:.0f} MB")
    file = tmp_path / "out/model.safetensors"
    after, size = load_file(file), 29696 if how == "pad" else SIZE
    file.unlink()
    assert config(tmp_path / "out")["intermediate_size"] == size
    for leaf in MLP:
        name, ratio = f"model.layers.0.mlp.{leaf}", GROUP // group if how == "pad" or leaf == "down_proj" else 1
        codes, scales = after[f"{name}.qweight"], after[f"{name}.scales"]
        was = before[f"{name}.qweight"]
        assert (codes[: was.shape[0], : was.shape[1]] == was).all()
        assert codes.shape == ((size // 8, HIDDEN) if leaf == "down_proj" else (HIDDEN // 8, size))
        assert (codes[was.shape[0] :].view(np.uint32) == 0x88888888).all()
        assert (codes[:, was.shape[1] :].view(np.uint32) == 0x88888888).all()
        wanted = np.repeat(before[f"{name}.scales"], ratio, axis=0)
        assert (scales[: wanted.shape[0], : wanted.shape[1]] == wanted).all()
        assert (
            np.isfinite(scales.astype(np.float32)).all()
            and math.prod(scales.shape) * GROUP // ratio == codes.size * 8
        )
    assert seconds < 60 and peak < 3e9
