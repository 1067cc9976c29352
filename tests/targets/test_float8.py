"""float8 checkpoints for the engines: what they take, what they would change, and what is refused."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_fused import TENSOR, model_of, problems

import qbridge
from qbridge.ir.scheme import ActivationScheme, Granularity, WeightScheme
from support import SINGLE, copy_fixture, edit_quantization, facts, helps, places, refusal
from test_conversion import assert_same_tensors, config

QKV = [f"model.layers.0.self_attn.{leaf}_proj" for leaf in "qkv"]
GATE, UP = "model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj"


SCHEMES = [  # of weights and inputs, and whether LMDeploy splits all of their tensors
    (TENSOR, ActivationScheme(8, Granularity.TENSOR, dynamic=False, type="e4m3fn"), False),
    (WeightScheme(8, Granularity.BLOCK, block=(128, 128), type="e4m3fn"), None, True),
]


@pytest.fixture
def blocks(tmp_path):
    return copy_fixture(tmp_path, "fp8/llama_blocks")


@pytest.fixture
def static(tmp_path):
    return copy_fixture(tmp_path, "fp8/llama_static")


def edit(src, fn):
    tensors = load_file(src / SINGLE)
    fn(tensors)
    save_file(tensors, src / SINGLE, metadata={"format": "pt"})


def found(src, target, **options):
    """{code: findings} of a check."""
    codes = {}
    for finding in qbridge.check(src, target, **options).findings:
        codes.setdefault(finding.code, []).append(finding)
    return codes


@pytest.mark.parametrize("case", ["llama_blocks", "llama_blocks_ue8m0", "llama_lmdeploy_block", "llama_static"])
@pytest.mark.parametrize("target", ["lmdeploy", "lmdeploy@0.18"])
def test_lmdeploy_takes_blocks_and_static_scales_as_fp8(case, target, tmp_path):
    src = copy_fixture(tmp_path, f"fp8/{case}")
    report = qbridge.convert(src, tmp_path / "out", target)
    assert (report.format, report.exactness) == ("fp8", {"reversible": 7})
    assert qbridge.verify(src, tmp_path / "out").same
    warned = {finding.code for finding in report.findings}
    assert ("QB216" in warned) == (case == "llama_static")  # TurboMind would take codes for weights


def test_dynamic_activations_per_token_go_to_lmdeploy_as_smooth_quant(static, tmp_path):
    edit(static, lambda tensors: [tensors.pop(name) for name in list(tensors) if name.endswith("input_scale")])
    edit_quantization(static, lambda block: block.update(activation_scheme="dynamic"))
    report = qbridge.convert(static, tmp_path / "out", "lmdeploy")
    assert (report.format, report.passes) == ("smooth-quant", {"broadcast": 7})
    assert config(tmp_path / "out")["quantization_config"]["quant_dtype"] == "float8_e4m3fn"
    assert load_file(tmp_path / "out" / SINGLE)[f"{GATE}.scale"].shape == (256, 1)
    qbridge.restore(tmp_path / "out", tmp_path / "back")
    assert_same_tensors(static, tmp_path / "back")


def test_smooth_quant_of_float8_is_fp8_and_comes_back(tmp_path):
    src = copy_fixture(tmp_path, "smooth_quant/llama_lite_fp8")
    assert qbridge.convert(src, tmp_path / "there", "fp8").exactness == {"reversible": 14}
    qbridge.convert(tmp_path / "there", tmp_path / "back", "lmdeploy")
    assert_same_tensors(src, tmp_path / "back")


def test_what_is_not_quantized_is_listed_by_its_full_name(blocks, tmp_path):
    def dense(tensors):
        for name in (*QKV, GATE, UP):
            tensors.pop(f"{name}.weight_scale_inv")
            tensors[f"{name}.weight"] = tensors[f"{name}.weight"].bfloat16()

    edit(blocks, dense)
    listed = config_after(blocks, tmp_path, "vllm")["modules_to_not_convert"]
    assert set(listed) == {"lm_head", *QKV, GATE, UP}
    assert set(refusal(blocks, 1, "QB201")) >= {"QB201"}  # LMDeploy consults no list for a Llama


def config_after(src, tmp_path, target):
    qbridge.convert(src, tmp_path / "out", target)
    return config(tmp_path / "out")["quantization_config"]


def test_lmdeploy_has_one_input_scale_for_fused_linears(static):
    edit(static, lambda tensors: tensors.update({f"{QKV[1]}.input_scale": torch.tensor(0.75)}))
    assert set(refusal(static, 1, "QB271")["QB271"][0].where) == set(QKV)
    assert "QB271" in qbridge.check(static, "lmdeploy").needs_values


def test_so_has_vllm(static):
    edit(static, lambda tensors: tensors.update({f"{UP}.input_scale": torch.tensor(0.75)}))
    assert {GATE, UP} <= places(refusal(static, 1, "QB222", "vllm")["QB222"])


def test_other_blocks_are_not_lmdeploys(blocks):
    edit_quantization(blocks, lambda block: block.update(weight_block_size=[64, 128]))

    def halve(tensors):
        for name in [name for name in tensors if name.endswith("_inv")]:
            tensors[name] = tensors[name].repeat_interleave(2, dim=0)

    edit(blocks, halve)
    assert "64x128" in facts(refusal(blocks, 1, "QB270")["QB270"])


@pytest.mark.parametrize(("weight", "inputs", "split"), SCHEMES)
@pytest.mark.parametrize("leaf", ["wqkv", "qkv_proj", "gate_up_proj", "query_key_value", "dense_h_to_4h", "o_proj"])
def test_lmdeploy_splits_no_scale_of_inputs(leaf, weight, inputs, split):
    model = model_of("InternLM2ForCausalLM", [f"model.layers.0.attention.{leaf}"], weight, inputs)
    stops = leaf != "o_proj" and not split
    assert problems("lmdeploy", "fp8", "QB270", model) == (set(model.specs) if stops else set())


def found_of(src, target):
    """The codes of a refusal."""
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.convert(src, src.parent / "out", target)
    return {finding.code for finding in refused.value.findings}


def test_old_lmdeploy_and_old_vllm_take_none(blocks):
    refusal(blocks, 1, "QB110 QB212 QB213", "lmdeploy@0.6.2")
    assert "QB220" in found_of(blocks, "vllm@0.5.4")


def test_vllm_would_requantize_what_it_fuses(static, tmp_path):
    (warned,) = found(static, "vllm")["QB272"][:1]
    assert warned.severity == "warning" and set(QKV) | {GATE, UP} == places(found(static, "vllm")["QB272"])


def test_vllm_has_fp8_in_blocks_or_per_tensor(tmp_path):
    src = copy_fixture(tmp_path, "fp8/llama_fbgemm")
    assert "deprecated" in facts(found(src, "vllm")["QB274"])


@pytest.mark.parametrize("target", ["vllm", "lmdeploy"])
def test_whole_blocks_on_every_rank(blocks, target):
    edit_quantization(blocks, lambda block: block.update(modules_to_not_convert=["lm_head"]))
    assert "QB273" not in found(blocks, target, tp=2)
    straddling = found(blocks, target, tp=4)["QB273"]
    assert places(straddling) == {*QKV, "model.layers.0.self_attn.o_proj"}
    assert "out_features 256, per rank 64 = 0.5 blocks of 128 (tp 4)" in facts(straddling)
    assert "in_features 256, per rank 64 = 0.5 blocks of 128 (tp 4)" in facts(straddling)
    assert "tp = 1" in helps(straddling)
    refusal(blocks, 1, "QB273", target, tp=4)


@pytest.mark.parametrize(("target", "refused"), [("vllm", {GATE}), ("lmdeploy", {GATE, UP})])
def test_whole_blocks_at_the_borders_of_fused_linears(target, refused, blocks):
    def crop(tensors):
        for name in (GATE, UP):
            tensors[f"{name}.weight"] = tensors[f"{name}.weight"][:448].contiguous()
        tensors["model.layers.0.mlp.down_proj.weight"] = tensors["model.layers.0.mlp.down_proj.weight"][
            :, :448
        ].contiguous()

    edit(blocks, crop)
    edit_quantization(blocks, lambda block: block.update(modules_to_not_convert=["lm_head"]))
    assert places(found(blocks, target)["QB273"]) == refused


# Fixture, target, the format written, what is done on the way.
BRIDGES = [
    ("fp8/llama_blocks", "compressed-tensors", "compressed-tensors", {}),
    ("fp8/llama_lmdeploy_block", "compressed-tensors", "compressed-tensors", {}),
    ("fp8/llama_static", "compressed-tensors", "compressed-tensors", {}),
    ("fp8/llama_static", "vllm", "compressed-tensors", {"broadcast": 5}),
    ("fp8/llama_blocks", "vllm", "fp8", {}),
    ("compressed_tensors/llama_fp8_block", "fp8", "fp8", {}),
    ("compressed_tensors/llama_fp8_block", "lmdeploy", "fp8", {}),
    ("compressed_tensors/llama_fp8_static", "lmdeploy", "fp8", {}),
    ("compressed_tensors/llama_fp8_dynamic", "lmdeploy", "smooth-quant", {"recast": 14}),
    ("compressed_tensors/llama_fp8_dynamic", "fp8", "fp8", {}),
    ("smooth_quant/llama_lite_fp8", "vllm", "compressed-tensors", {}),
]


@pytest.mark.parametrize(("case", "target", "chosen", "passes"), BRIDGES)
def test_bridges_are_exact_and_undone(case, target, chosen, passes, tmp_path):
    src = copy_fixture(tmp_path, case)
    report = qbridge.convert(src, tmp_path / "out", target)
    assert (report.format, report.passes) == (chosen, passes)
    assert qbridge.verify(src, tmp_path / "out").same
    qbridge.restore(tmp_path / "out", tmp_path / "back")
    assert_same_tensors(src, tmp_path / "back")


def test_fbgemm_without_its_limit_is_for_vllm(tmp_path):
    src = copy_fixture(tmp_path, "fp8/llama_fbgemm")
    refusal(src, 1, "QB116", "compressed-tensors")
    report = qbridge.convert(src, tmp_path / "out", "vllm", allow=["drop-activation-details"])
    assert (report.format, report.passes) == ("compressed-tensors", {"plain-inputs": 7})
