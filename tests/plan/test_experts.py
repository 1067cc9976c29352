"""Unquantized experts beside quantized attention: fused, one by one, as asked or as the target needs, and back."""

from __future__ import annotations

import json
from itertools import product

import pytest
import torch
from safetensors.torch import load_file, save_file

import qbridge
from qbridge.write.budget import Effort
from support import SINGLE, codes, contents, edit_json

EXPERTS, HIDDEN, INNER = 3, 128, 64
LEAVES, OTHERS = ("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2")
LAYER = "model.layers.0"
BLOCK = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "quantization_status": "compressed",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "dynamic": False},
            "input_activations": {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True},
        }
    },
    "ignore": ["lm_head", "re:.*(mlp|moe|feed_forward).*"],
}
# (class, model type, block of experts, how its fused tensors lie, whether single experts are w1, w3 and w2)
CLASSES = {
    "qwen3_moe": ("Qwen3MoeForCausalLM", "qwen3_moe", "mlp.experts", "rows", False),
    "mixtral": ("MixtralForCausalLM", "mixtral", "block_sparse_moe.experts", "rows", True),
    "llama4": ("Llama4ForCausalLM", "llama4_text", "feed_forward.experts", "columns", False),
    "step": ("Step3p5ForCausalLM", "step3p5", "moe.experts", "apart", False),
}


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def one_by_one(block, other=False):
    """The linears of single experts."""
    sizes = dict(zip(LEAVES, ((INNER, HIDDEN), (INNER, HIDDEN), (HIDDEN, INNER)), strict=True))
    called = dict(zip(LEAVES, OTHERS if other else LEAVES, strict=True))
    return {
        f"{LAYER}.{block}.{expert}.{called[leaf]}.weight": random(*sizes[leaf], seed=seed)
        for seed, (expert, leaf) in enumerate(product(range(EXPERTS), LEAVES))
    }


def fused(block, lies):
    """The same in the tensors that a class has."""
    found, place = one_by_one(block), f"{LAYER}.{block}"
    gate, up, down = (torch.stack([found[f"{place}.{n}.{leaf}.weight"] for n in range(EXPERTS)]) for leaf in LEAVES)
    if lies == "apart":
        parent = place.removesuffix(".experts")
        return {f"{parent}.{leaf}.weight": part for leaf, part in zip(LEAVES, (gate, up, down), strict=True)}
    both = torch.cat((gate, up), 1)
    turned = (both.mT, down.mT) if lies == "columns" else (both, down)
    return {f"{place}.{name}": part for name, part in zip(("gate_up_proj", "down_proj"), turned, strict=True)}


def checkpoint(path, name, experts):
    """A layer of float8 attention and the given experts."""
    architecture, kind, block, _, _ = CLASSES[name]
    parent = block.removesuffix(".experts")
    sizes = {"q_proj": HIDDEN, "k_proj": HIDDEN // 2, "v_proj": HIDDEN // 2}
    tensors = dict(experts)
    for seed, (leaf, rows) in enumerate({**sizes, "o_proj": HIDDEN}.items()):
        tensors[f"{LAYER}.self_attn.{leaf}.weight"] = random(rows, HIDDEN, seed=seed).to(torch.float8_e4m3fn)
        tensors[f"{LAYER}.self_attn.{leaf}.weight_scale"] = random(rows, 1).abs() + 0.01
    router = "router" if name == "llama4" else "gate"
    tensors[f"{LAYER}.{parent}.{router}.weight"] = random(EXPERTS, HIDDEN)
    tensors |= {f"{LAYER}.{n}.weight": random(HIDDEN) for n in ("input_layernorm", "post_attention_layernorm")}
    if name in ("qwen3_moe", "step"):
        tensors |= {f"{LAYER}.self_attn.{n}_norm.weight": random(HIDDEN // 4) for n in "qk"}
    if name == "llama4":
        shapes = zip(LEAVES, ((INNER, HIDDEN), (INNER, HIDDEN), (HIDDEN, INNER)), strict=True)
        tensors |= {f"{LAYER}.{parent}.shared_expert.{leaf}.weight": random(*shape) for leaf, shape in shapes}
    tensors |= {"model.norm.weight": random(HIDDEN), "model.embed_tokens.weight": random(64, HIDDEN)}
    tensors["lm_head.weight"] = random(64, HIDDEN)
    config = {
        **{"architectures": [architecture], "model_type": kind, "hidden_size": HIDDEN, "intermediate_size": INNER},
        **{"moe_intermediate_size": INNER, "intermediate_size_mlp": INNER, "num_hidden_layers": 1},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": HIDDEN // 4, "vocab_size": 64},
        **{"num_local_experts": EXPERTS, "num_experts": EXPERTS, "num_experts_per_tok": 1, "dtype": "bfloat16"},
        **{"decoder_sparse_step": 1, "rope_theta": 10000.0, "quantization_config": BLOCK},
    }
    path.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path / SINGLE, {"format": "pt"})
    (path / "config.json").write_text(json.dumps(config))
    return path


def held(path):
    """The tensors of experts of a checkpoint."""
    return {n: t for n, t in load_file(path / SINGLE).items() if t.dim() == 3 or ".experts." in n}


def same(one, other):
    return one.keys() == other.keys() and all(
        (one[n].dtype, one[n].shape) == (other[n].dtype, other[n].shape)
        and one[n].reshape(-1).view(torch.uint8).equal(other[n].reshape(-1).view(torch.uint8))
        for n in one
    )


def both_ways(name):
    _, _, block, lies, other = CLASSES[name]
    return {"fused": fused(block, lies), "separate": one_by_one(block, other)}


def comes_back(src, out, back):
    qbridge.restore(out, back)
    assert same(load_file(src / SINGLE), load_file(back / SINGLE))
    assert json.loads((back / "config.json").read_text()) == json.loads((src / "config.json").read_text())


@pytest.mark.parametrize("how", ["fused", "separate"])
@pytest.mark.parametrize("name", CLASSES)
def test_experts_are_stored_as_asked_and_come_back(name, how, tmp_path):
    ways = both_ways(name)
    other = next(way for way in ways if way != how)
    src = checkpoint(tmp_path / "src", name, ways[other])
    qbridge.convert(src, tmp_path / "out", "compressed-tensors", experts=how)
    assert same(held(tmp_path / "out"), ways[how])
    assert qbridge.verify(src, tmp_path / "out").same and qbridge.verify(tmp_path / "out", src).same
    comes_back(src, tmp_path / "out", tmp_path / "back")
    qbridge.convert(tmp_path / "out", tmp_path / "again", "compressed-tensors", experts=how)
    assert same(held(tmp_path / "again"), ways[how])


@pytest.mark.parametrize("how", ["fused", "separate"])
@pytest.mark.parametrize("name", ["qwen3_moe", "llama4"])
def test_windows_and_streams_give_the_same(name, how, tmp_path, monkeypatch):
    ways = both_ways(name)
    src = checkpoint(tmp_path / "src", name, ways["separate" if how == "fused" else "fused"])
    qbridge.convert(src, tmp_path / "whole", "compressed-tensors", experts=how)
    with qbridge.stream(src, "compressed-tensors", experts=how) as stream:
        assert same(dict(stream), load_file(tmp_path / "whole" / SINGLE))
    monkeypatch.setattr(Effort, "block", property(lambda effort: 1 << 12))
    monkeypatch.setattr("qbridge.write.jobs._CODES", 1 << 9)
    qbridge.convert(src, tmp_path / "windows", "compressed-tensors", experts=how)
    assert contents(tmp_path / "windows")[SINGLE] == contents(tmp_path / "whole")[SINGLE]


def test_an_expert_that_differs_is_another_model(tmp_path):
    ways = both_ways("llama4")
    src = checkpoint(tmp_path / "src", "llama4", ways["separate"])
    edited = {**ways["fused"]}
    edited[f"{LAYER}.feed_forward.experts.down_proj"][1, 2, 3] += 1
    other = checkpoint(tmp_path / "other", "llama4", edited)
    verification = qbridge.verify(src, other)
    assert not verification.same and "experts.1.down_proj" in str([f.where for f in verification.findings])


@pytest.mark.parametrize(
    ("name", "target", "source", "wanted"),
    [
        ("llama4", "dense", "separate", "fused"),
        ("llama4", "transformers", "fused", "separate"),  # it replaces them by single linears beside such a block
        ("llama4", "transformers", "separate", "separate"),
        ("llama4", "vllm", "fused", "fused"),
        ("llama4", "vllm", "separate", "separate"),
        ("step", "dense", "separate", "fused"),
        ("qwen3_moe", "dense", "separate", "separate"),
        ("qwen3_moe", "transformers", "fused", "fused"),
        ("qwen3_moe", "vllm", "fused", "fused"),
        ("mixtral", "vllm", "fused", "separate"),  # its loader knows w13, and no gate_up_proj
        ("mixtral", "transformers", "separate", "separate"),
    ],
)
def test_a_target_gets_what_it_knows(name, target, source, wanted, tmp_path):
    ways = both_ways(name)
    src = checkpoint(tmp_path / "src", name, ways[source])
    qbridge.convert(src, tmp_path / "out", target)
    assert same(held(tmp_path / "out"), ways[wanted])
    if target != "dense":
        assert qbridge.verify(src, tmp_path / "out").same
        comes_back(src, tmp_path / "out", tmp_path / "back")


def test_columns_of_a_class_of_rows_are_turned(tmp_path):
    src = checkpoint(tmp_path / "src", "qwen3_moe", fused("mlp.experts", "columns"))
    qbridge.convert(src, tmp_path / "out", "transformers")
    assert same(held(tmp_path / "out"), fused("mlp.experts", "rows"))
    comes_back(src, tmp_path / "out", tmp_path / "back")


@pytest.mark.parametrize("target", ["modelopt", "compressed-tensors"])
@pytest.mark.parametrize("how", ["fused", "separate"])
def test_lists_of_what_is_unquantized_follow(target, how, tmp_path):
    ways = both_ways("qwen3_moe")
    src = checkpoint(tmp_path / "src", "qwen3_moe", ways["separate" if how == "fused" else "fused"])
    qbridge.convert(src, tmp_path / "out", target, experts=how)
    with qbridge.open(tmp_path / "out") as opened:
        assert len(opened.specs) == 4
    assert qbridge.check(tmp_path / "out", "vllm").ok


def test_names_that_tools_give_come_back(tmp_path):
    stored = one_by_one("block_sparse_moe.experts")  # as llm-compressor calls Mixtral's
    src = checkpoint(tmp_path / "src", "mixtral", stored)
    qbridge.convert(src, tmp_path / "out", "compressed-tensors", experts="fused")
    assert same(held(tmp_path / "out"), fused("block_sparse_moe.experts", "rows"))
    comes_back(src, tmp_path / "out", tmp_path / "back")


def test_a_prefix_is_renamed_as_well(tmp_path):
    src = checkpoint(tmp_path / "src", "qwen3_moe", both_ways("qwen3_moe")["fused"])
    renamed = {"model": "model.language_model"}
    qbridge.convert(src, tmp_path / "out", "compressed-tensors", experts="separate", rename_prefix=renamed)
    assert "model.language_model.layers.0.mlp.experts.2.down_proj.weight" in held(tmp_path / "out")
    comes_back(src, tmp_path / "out", tmp_path / "back")


def without(tensors, *ends):
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(ends)}


@pytest.mark.parametrize(
    ("name", "change", "why"),
    [
        ("qwen3_moe", lambda ways: without(ways["separate"], "1.up_proj.weight"), "no whole"),
        ("qwen3_moe", lambda ways: {n: t.float() if "1.up" in n else t for n, t in ways["separate"].items()}, "kind"),
    ],
)
def test_what_is_no_block_of_experts_is_refused(name, change, why, tmp_path):
    src = checkpoint(tmp_path / "src", name, change(both_ways(name)))
    with pytest.raises(qbridge.QBridgeError, match=why) as refused:
        qbridge.convert(src, tmp_path / "out", "compressed-tensors", experts="fused", allow=["incomplete"])
    assert "QB335" in codes(refused)


def test_a_class_that_is_not_known_is_refused(tmp_path):
    src = checkpoint(tmp_path / "src", "qwen3_moe", both_ways("qwen3_moe")["fused"])
    edit_json(src / "config.json", lambda config: config.update(architectures=["StrangeForCausalLM"]))
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.convert(src, tmp_path / "out", "compressed-tensors", experts="separate")
    assert codes(refused) == {"QB335"}


def test_a_lost_expert_does_not_come_back(tmp_path):
    src = checkpoint(tmp_path / "src", "qwen3_moe", both_ways("qwen3_moe")["separate"])
    qbridge.convert(src, tmp_path / "out", "compressed-tensors", experts="fused")
    save_file(
        without(load_file(tmp_path / "out" / SINGLE), "experts.down_proj"),
        tmp_path / "out" / SINGLE,
        {"format": "pt"},
    )
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.restore(tmp_path / "out", tmp_path / "back", allow=["incomplete"])
    assert "QB037" in codes(refused)


def test_options_that_mean_nothing(tmp_path):
    with pytest.raises(ValueError, match="fused or separate"):
        qbridge.convert(tmp_path, tmp_path / "out", "vllm", experts="merged")


@pytest.mark.parametrize(
    ("name", "way", "target", "ok"),
    [
        ("mixtral", "fused", "vllm", False),
        ("mixtral", "separate", "vllm", True),
        ("llama4", "fused", "vllm", True),
        ("llama4", "fused", "transformers", False),
        ("llama4", "separate", "transformers", True),
        ("qwen3_moe", "fused", "transformers", True),
        ("qwen3_moe", "separate", "transformers", True),
    ],
)
def test_check_knows_which_loaders_take_them(name, way, target, ok, tmp_path):
    src = checkpoint(tmp_path / "src", name, both_ways(name)[way])
    answer = qbridge.check(src, target)
    assert answer.ok == ok and ("QB336" in {finding.code for finding in answer.findings}) != ok


def test_what_the_target_does_not_take_is_refused_though_it_was_asked_for(tmp_path):
    src = checkpoint(tmp_path / "src", "mixtral", both_ways("mixtral")["separate"])
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.convert(src, tmp_path / "out", "vllm", experts="fused")
    assert "QB336" in codes(refused)
