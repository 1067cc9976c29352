"""Other options than padding: groups, widths, no passes, and a dry run."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import qbridge
from padding import (
    DOWN,
    MLP,
    assert_same_model_in_more_features,
    assert_sizes_agree,
    edited,
    fixture,
    flip,
    put,
)
from support import copy_fixture, facts, only_neighbours, refusal
from test_conversion import assert_same_tensors, config


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
