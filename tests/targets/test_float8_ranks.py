"""Blocks of float8 experts on several ranks: those that vLLM splits itself, and those that are padded."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import qbridge
from float8_experts import COUNT, LAYER, LEAVES, SPLIT, experts
from padding import assert_same_model_in_more_features
from qbridge.formats.rules import broken
from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.ir.scheme import ActivationScheme, Granularity, WeightScheme
from qbridge.targets.registry import find_target
from support import SINGLE, facts, helps, places
from test_conversion import assert_same_tensors, config

LINEARS = 3 * COUNT
DOWN = ("q_a_proj", "kv_a_proj_with_mqa")  # to the latent dims: every rank has all of both


def found(src, target, **options):
    return {finding.code: finding for finding in qbridge.check(src, target, **options).findings}


@pytest.mark.parametrize(("size", "hidden", "sides", "tp", "made"), SPLIT)
def test_vllm_splits_blocks_of_experts_where_it_can(size, hidden, sides, tp, made, tmp_path):
    src = experts(tmp_path / "src", size, hidden, sides=sides)
    codes = found(src, "vllm", tp=tp)
    assert ("QB273" in codes, "QB229" in codes) == (made is None, bool(made))
    if made:
        what = f"blocks of {sides[0]} x {sides[1]} become {made} x {made} (tp {tp})"
        assert what in facts([codes["QB229"]]) and len(places([codes["QB229"]])) == LINEARS
        assert qbridge.convert(src, tmp_path / "out", "vllm", tp=tp).format == "fp8"
    assert ("QB273" in found(src, "vllm@0.23.0", tp=tp)) == (made != 0)  # it does not split them


@pytest.mark.parametrize("target", ["vllm", "lmdeploy", "compressed-tensors"])
def test_nothing_else_is_split(target, tmp_path):
    src = experts(tmp_path / "src", 384, layout="compressed-tensors")
    codes = found(src, target, tp=2)
    assert "QB229" not in codes and {"QB273", "QB251", "QB260"} & set(codes)


def test_vllm_is_given_fp8_where_it_splits_blocks_in_that_alone(tmp_path):
    src = experts(tmp_path / "src", 384, layout="compressed-tensors")
    report = qbridge.convert(src, tmp_path / "out", "vllm", tp=2)
    assert (report.format, report.passes) == ("fp8", {})
    assert qbridge.verify(src, tmp_path / "out").same and "QB273" not in found(tmp_path / "out", "vllm", tp=2)


@pytest.mark.parametrize("scale", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("size", "hidden"), [(384, 256), (448, 256), (192, 256), (384, 192)])
@pytest.mark.parametrize("layout", ["fp8", "compressed-tensors"])
@pytest.mark.parametrize("target", ["vllm", "lmdeploy", "fp8", "compressed-tensors"])
def test_blocks_are_padded_to_whole_ones_on_every_rank(target, layout, size, hidden, scale, tmp_path):
    src, out, back = experts(tmp_path / "src", size, hidden, layout, scale=scale), tmp_path / "out", tmp_path / "back"
    report = qbridge.convert(src, out, target, tp=(2, 4), pad=True)
    assert report.passes["pad"] == LINEARS and config(out)["moe_intermediate_size"] == 512
    assert assert_same_model_in_more_features(src, out) == LINEARS
    for tp in (1, 2, 4):
        assert "QB273" not in found(out, target, tp=tp)
    with qbridge.open(out) as opened:
        for name, spec in opened.specs.items():
            arrays, (rows, columns) = opened.layer(name).arrays, spec.dims
            inner = (min(rows, size), columns) if "down" not in name else (rows, size)
            beyond = np.ones(spec.dims, bool)
            beyond[: inner[0], : inner[1]] = False
            assert not arrays["code"][beyond].any(), "the padding is code 0"
    qbridge.restore(out, back)
    assert_same_tensors(src, back)
    assert json.loads((back / "config.json").read_text()) == json.loads((src / "config.json").read_text())


def test_whole_new_blocks_have_a_scale_of_one(tmp_path):
    src = experts(tmp_path / "src", 384)
    qbridge.convert(src, tmp_path / "out", "fp8", tp=4, pad=True)
    tensors = load_file(tmp_path / "out" / SINGLE)
    for name in LEAVES:
        scales = tensors[f"{LAYER}.mlp.experts.0.{name}.weight_scale_inv"]
        assert (scales[3:] if LEAVES[name] else scales[:, 3:]).unique().tolist() == [1.0]


def test_padding_is_offered_where_a_block_straddles(tmp_path):
    src = experts(tmp_path / "src", 384, layout="compressed-tensors")
    offered = helps([found(src, "vllm", tp=4)["QB273"]])
    assert "--to vllm@0.33.0 --tp 4 --pad" in offered and "384 -> 512" in offered


@pytest.mark.parametrize(("rows", "fits"), [((128, 192), True), ((192, 128), False)])
@pytest.mark.parametrize("layer", [0, 1], ids=["decoder", "draft"])
@pytest.mark.parametrize("tp", [1, 2, 8])
@pytest.mark.parametrize("target", ["vllm", "vllm@0.23.0", "sglang"])
def test_blocks_of_what_every_rank_has_whole_may_end_in_the_last_of_the_linears(target, tp, layer, rows, fits):
    """DeepSeek's q_a_proj and kv_a_proj_with_mqa, which are built as one: their scales lie one after another."""
    weight = WeightScheme(8, Granularity.BLOCK, type="e4m3fn", block=(128, 128))
    inputs = ActivationScheme(8, Granularity.GROUP, dynamic=True, type="e4m3fn", group_size=128)
    names = [f"model.layers.{number}.self_attn.{leaf}" for number in {0, layer} for leaf in DOWN]
    sizes = rows * (len(names) // 2)
    specs = {name: Spec(name, size, 256, weight, DType.F32, inputs) for name, size in zip(names, sizes, strict=True)}
    described = {"architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "num_hidden_layers": 1}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 8, "hidden_size": 256, "intermediate_size": 1024}
    model = Model("fp8", {**described, **heads, "num_nextn_predict_layers": 1}, specs, {}, {})
    engine = find_target(target)
    for format_name in ("fp8", "compressed-tensors"):
        choice = engine.choice_of(format_name)
        if choice is not None:
            codes = {fault.rule.code for fault in broken(engine.limits(choice, (tp,)), model)}
            assert ("QB273" in codes) is not fits
