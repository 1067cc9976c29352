"""Unquantized experts beside quantized attention: fused, one by one, as asked or as the target needs, and back."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import qbridge
from plain_experts import CLASSES, LAYER, both_ways, checkpoint, fused, held, one_by_one
from qbridge.write.budget import Effort
from support import SINGLE, codes, contents, edit_json


def same(one, other):
    return one.keys() == other.keys() and all(
        (one[n].dtype, one[n].shape) == (other[n].dtype, other[n].shape)
        and one[n].reshape(-1).view(torch.uint8).equal(other[n].reshape(-1).view(torch.uint8))
        for n in one
    )


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
    monkeypatch.setattr("qbridge.write.jobs.CODES", 1 << 9)
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
