"""How much an MLP grows to be legal on every rank, and which must grow alike or not at all."""

from __future__ import annotations

from math import lcm

import pytest
from hypothesis import given
from hypothesis import strategies as st

from padding import (
    DOWN,
    MLP,
    deepseek,
    mlp,
    model,
)
from qbridge.architecture.growth import follow, growth
from qbridge.ir.model import Model
from qbridge.targets.parallel import ANY


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
