"""Every dialect of W8A8 that llm-compressor and lmdeploy.lite have written, for every target: taken or refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import qbridge
from goldens import ALLOW
from support import ROOT, copy_fixture, edit_quantization, only_neighbours
from test_conversion import assert_same_tensors, config, tensors
from test_float_family import FLOATS

CT = ROOT / "fixtures/compressed_tensors"
SQ = ROOT / "fixtures/smooth_quant"

# case: (what --to lmdeploy says, --to vllm, --to transformers); an exactness class, or the codes of the refusal
FAMILY = {
    "llama_w8a8": ("reversible", "reversible", "reversible"),
    "llama_static": ("QB203", "reversible", "reversible"),
    "llama_static_asym": ("QB203 QB209", "reversible", "reversible"),
    "llama_tensor": ("equal", "reversible", "reversible"),
    "llama_group_int8": ("QB212", "reversible", "reversible"),
    "llama_asym_weights": ("QB211", "reversible", "reversible"),
    "llama_token_asym": ("QB209", "reversible", "reversible"),
    "llama_w4a8": ("QB240", "reversible", "reversible"),
    "llama_naive": ("reversible", "reversible", "reversible"),
    "llama_mixed": ("QB203", "reversible", "reversible"),
    "llama_kv_int8": ("QB113 QB208", "QB223", "reversible"),
    "llama_lm_head": ("QB202", "reversible", "reversible"),
    "llama_partial": ("QB201", "reversible", "reversible"),
    "llama_w8a16": ("QB210 QB212", "reversible", "reversible"),
    "llama_old": ("reversible", "reversible", "reversible"),
    "llama_compression_config": ("reversible", "reversible", "reversible"),
    "llama_zero_points": ("reversible", "reversible", "reversible"),
    "llama_lost_zero_points": ("QB211", "reversible", "reversible"),
    "llama_no_block": ("QB021", "QB021", "QB021"),
    "qwen3_w8a8": ("reversible", "reversible", "reversible"),
    "qwen3_partial": ("reversible", "reversible", "reversible"),
    "qwen3_moe_w8a8": ("reversible", "reversible", "QB231"),
    "mixtral_w8a8": ("reversible", "reversible", "QB231"),
    "mixtral_w8a8_w123": ("reversible", "reversible", "QB231"),
}
TARGETS = ("lmdeploy", "vllm", "transformers")
CELLS = [(case, target, said) for case, row in FAMILY.items() for target, said in zip(TARGETS, row, strict=True)]


@pytest.mark.parametrize(("case", "target", "said"), CELLS)
def test_taken_or_refused(case, target, said, tmp_path):
    source = CT / case / "model"
    if not said.startswith("QB"):
        assert set(qbridge.convert(source, tmp_path / "out", target).exactness) == {said}
        assert qbridge.verify(source, tmp_path / "out").same
        return
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.convert(source, tmp_path / "out", target)
    errors = [f for f in refused.value.findings if f.severity == "error"]
    assert {f.code for f in errors} == set(said.split())
    assert all(f.where for f in errors) and refused.value.exit_code == 1
    only_neighbours(tmp_path)


def test_every_fixture_is_in_the_table():
    extra = {"llama_w8a8_rope", "llama_w8a8_sharded", "qwen2_w8a8_tied"}
    packed = {path.parent.name for path in CT.glob("*w[1-8]a16*/model")}
    floats = FLOATS.keys() | {"llama_mxfp6a16"}
    assert {path.parent.name for path in CT.glob("*/model")} == FAMILY.keys() | extra | packed | floats


@pytest.mark.parametrize("case", FAMILY)
def test_to_compressed_tensors_itself_and_back_to_the_same_values(case, tmp_path):
    source, allow = CT / case / "model", ALLOW.get(case, ())
    report = qbridge.convert(source, tmp_path / "out", "compressed-tensors", allow=allow)
    assert set(report.exactness) == {"reversible"}
    verified = qbridge.verify(source, tmp_path / "out", allow=allow)
    assert verified.same and verified.identical == report.layers


@pytest.mark.parametrize("case", ["llama_tensor", "llama_zero_points", "mixtral_w8a8", "qwen3_partial", "llama_old"])
def test_there_and_back_keeps_the_dialect(case, tmp_path):
    source = CT / case / "model"
    qbridge.convert(source, tmp_path / "there", "lmdeploy")
    qbridge.convert(tmp_path / "there", tmp_path / "back", "compressed-tensors")
    assert_same_tensors(source, tmp_path / "back")


def test_allowed_kv_scales_are_left_out_and_nothing_else(tmp_path):
    source = CT / "llama_kv_int8/model"
    report = qbridge.convert(source, tmp_path / "out", "lmdeploy", allow=["drop-kv-scales"])
    assert [f.code for f in report.findings if f.severity == "warning" and f.code in ("QB113", "QB208")]
    before, after = tensors(source), tensors(tmp_path / "out")
    left_out = {name for name in before if name.endswith(("k_scale", "v_scale"))}
    assert left_out and len(after) == len(before) - len(left_out)
    assert not any(name.endswith(("k_scale", "v_scale")) for name in after)


def test_kv_scales_and_their_scheme_are_carried_over(tmp_path):
    source = CT / "llama_kv_int8/model"
    qbridge.convert(source, tmp_path / "out", "compressed-tensors")
    block = config(source)["quantization_config"]
    assert config(tmp_path / "out")["quantization_config"]["kv_cache_scheme"] == block["kv_cache_scheme"]
    assert_same_tensors(source, tmp_path / "out")


def test_kv_scales_without_their_scheme_are_claimed_by_nobody(tmp_path):
    shutil.copytree(CT / "llama_kv_int8/model", tmp_path / "model")
    edited = config(tmp_path / "model")
    edited["quantization_config"]["kv_cache_scheme"] = None
    (tmp_path / "model/config.json").write_text(json.dumps(edited))
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.convert(tmp_path / "model", tmp_path / "out", "lmdeploy")
    assert {f.code for f in refused.value.findings if f.severity == "error"} == {"QB018"}


def test_a_missing_block_is_assumed_only_when_allowed(tmp_path):
    source = CT / "llama_no_block/model"
    report = qbridge.convert(source, tmp_path / "out", "lmdeploy", allow=["assumed-activations"])
    assert "QB021" in {f.code for f in report.findings}
    assert qbridge.verify(CT / "llama_w8a8/model", source, allow=["assumed-activations"]).same is False
    assert qbridge.verify(source, tmp_path / "out", allow=["assumed-activations"]).same


def test_static_activations_of_a_missing_block_show_in_the_tensors(tmp_path):
    shutil.copytree(CT / "llama_static_asym/model", tmp_path / "model")
    edited = config(tmp_path / "model")
    del edited["quantization_config"]
    (tmp_path / "model/config.json").write_text(json.dumps(edited))
    with qbridge.open(tmp_path / "model") as inferred, qbridge.open(CT / "llama_static_asym/model") as said:
        assert inferred.specs == said.specs


@pytest.mark.parametrize("case", ["mixtral_w8a8", "qwen3_moe_w8a8"])
def test_old_lmdeploy_has_no_quantized_experts(case, tmp_path):
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.convert(CT / case / "model", tmp_path / "out", "lmdeploy@0.6.2")
    assert "QB214" in {f.code for f in refused.value.findings if f.severity == "error"}


def dense(folder, modules):
    """Leave some layers of a checkpoint unquantized: float weights, no scales, names on the ignore list."""
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    edited = load_file(file)
    names = [name for name in edited if name.endswith(".weight_scale") and name.split(".weight")[0].endswith(modules)]
    for name in names:
        scale = edited.pop(name)
        weight = name.removesuffix("_scale")
        edited[weight] = (edited[weight].float() * scale.float()).to(scale.dtype)
    save_file(edited, file, metadata={"format": "pt"})
    described = config(folder)
    described["quantization_config"]["ignore"] += [name.removesuffix(".weight_scale") for name in names]
    (folder / "config.json").write_text(json.dumps(described))


def test_unquantized_layers_are_named_as_lmdeploy_matches_them(tmp_path):
    shutil.copytree(CT / "qwen3_w8a8/model", tmp_path / "model")
    dense(tmp_path / "model", ("layers.0.self_attn.q_proj", "layers.0.self_attn.k_proj", "layers.0.self_attn.v_proj"))
    qbridge.convert(tmp_path / "model", tmp_path / "out", "lmdeploy")
    attention = [f"model.layers.0.self_attn.{name}_proj" for name in "qkv"]
    listed = config(tmp_path / "out")["quantization_config"]["modules_to_not_convert"]
    assert set(listed) == {*attention, "model.layers.0.input_layernorm"}


@pytest.mark.parametrize("modules", [("layers.0.self_attn.k_proj",), ("layers.1.mlp.up_proj",)])
def test_a_part_of_a_fused_linear_cannot_stay_unquantized(modules, tmp_path):
    shutil.copytree(CT / "qwen3_w8a8/model", tmp_path / "model")
    dense(tmp_path / "model", modules)
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.convert(tmp_path / "model", tmp_path / "out", "lmdeploy")
    assert {f.code for f in refused.value.findings if f.severity == "error"} == {"QB201"}


def test_some_experts_of_a_layer_cannot_stay_unquantized(tmp_path):
    shutil.copytree(CT / "qwen3_moe_w8a8/model", tmp_path / "model")
    dense(tmp_path / "model", ("layers.0.mlp.experts.0.gate_proj", "layers.0.mlp.experts.0.up_proj"))
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.convert(tmp_path / "model", tmp_path / "out", "lmdeploy")
    assert {f.code for f in refused.value.findings if f.severity == "error"} == {"QB201"}


def test_mixtral_is_written_with_the_names_that_engines_know(tmp_path):
    for case in ("mixtral_w8a8", "mixtral_w8a8_w123"):
        qbridge.convert(CT / case / "model", tmp_path / case, "lmdeploy")
    names = set(tensors(tmp_path / "mixtral_w8a8"))
    assert names == set(tensors(tmp_path / "mixtral_w8a8_w123"))
    assert any(".experts.0.w1.scale" in name for name in names) and not any("gate_proj" in name for name in names)
    assert_same_tensors(tmp_path / "mixtral_w8a8", tmp_path / "mixtral_w8a8_w123")


def test_scales_that_zero_points_of_a_symmetric_layer_contradict(tmp_path):
    from safetensors.numpy import load_file, save_file

    shutil.copytree(CT / "llama_zero_points/model", tmp_path / "model")
    file = tmp_path / "model/model.safetensors"
    edited = load_file(file)
    name = next(name for name in edited if name.endswith("weight_zero_point"))
    edited[name] = np.full_like(edited[name], 3)
    save_file(edited, file, metadata={"format": "pt"})
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.convert(tmp_path / "model", tmp_path / "out", "lmdeploy")
    assert [(f.code, f.where) for f in refused.value.findings if f.severity == "error"] == [("QB020", (name,))]
    assert refused.value.exit_code == 3


def test_asymmetric_weights_whose_zero_points_are_all_zero_are_symmetric(tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(CT / "llama_asym_weights/model", tmp_path / "model")
    file = tmp_path / "model/model.safetensors"
    edited = load_file(file)
    for name in edited:
        if name.endswith("weight_zero_point"):
            edited[name].zero_()
    save_file(edited, file, metadata={"format": "pt"})
    report = qbridge.convert(tmp_path / "model", tmp_path / "out", "lmdeploy")
    assert report.exactness == {"equal": 14} and report.passes["symmetrize"] == 14
    qbridge.convert(tmp_path / "out", tmp_path / "back", "compressed-tensors")
    assert_same_tensors(tmp_path / "model", tmp_path / "back")


@pytest.mark.parametrize("target", ["lmdeploy", "compressed-tensors"])
def test_pickled_checkpoint_of_old_lmdeploy(target, tmp_path):
    source = SQ / "llama_lite062/model"
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.convert(source, tmp_path / "out", target)
    assert [f.code for f in refused.value.findings] == ["QB007"] and refused.value.exit_code == 3
    only_neighbours(tmp_path)
    report = qbridge.convert(source, tmp_path / "out", target, allow=["pickle"])
    assert {"QB007", "QB104"} <= {f.code for f in report.findings}
    assert "auto_map" not in config(tmp_path / "out")
    assert qbridge.verify(source, tmp_path / "out", allow=["pickle"]).identical == 14


def test_float8_smooth_quant_is_for_current_lmdeploy_only(tmp_path):
    source = SQ / "llama_lite_fp8/model"
    qbridge.convert(source, tmp_path / "out", "lmdeploy")
    assert_same_tensors(source, tmp_path / "out")
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.convert(source, tmp_path / "old", "lmdeploy@0.6.2")
    assert {f.code for f in refused.value.findings if f.severity == "error"} == {"QB213"}


def test_input_scales_of_siblings_must_agree_for_vllm(tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(CT / "llama_static/model", tmp_path / "model")
    file = tmp_path / "model/model.safetensors"
    edited = load_file(file)
    edited["model.layers.0.self_attn.k_proj.input_scale"] *= 2
    save_file(edited, file, metadata={"format": "pt"})
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.convert(tmp_path / "model", tmp_path / "out", "vllm")
    (finding,) = [f for f in refused.value.findings if f.severity == "error"]
    assert finding.code == "QB222" and "model.layers.0.self_attn.k_proj" in finding.where


def test_siblings_of_one_fused_linear_must_be_quantized_alike(tmp_path):
    shutil.copytree(CT / "qwen3_partial/model", tmp_path / "model")
    edited = config(tmp_path / "model")
    scheme = edited["quantization_config"]["config_groups"]["group_0"]
    asymmetric = json.loads(json.dumps(scheme))
    asymmetric["input_activations"]["symmetric"] = False
    asymmetric["targets"] = ["re:.*k_proj"]
    edited["quantization_config"]["config_groups"]["group_1"] = asymmetric
    (tmp_path / "model/config.json").write_text(json.dumps(edited))
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.convert(tmp_path / "model", tmp_path / "out", "vllm")
    assert {f.code for f in refused.value.findings if f.severity == "error"} == {"QB221"}


def test_unquantized_tensors_that_the_model_dtype_would_round(tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(CT / "llama_w8a8/model", tmp_path / "model")
    file = tmp_path / "model/model.safetensors"
    edited = load_file(file)
    wide = edited["model.norm.weight"].float()
    wide[3] = 1e-9
    edited["model.norm.weight"] = wide
    edited["model.layers.0.input_layernorm.weight"] = edited["model.layers.0.input_layernorm.weight"].float()
    save_file(edited, file, metadata={"format": "pt"})
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.convert(tmp_path / "model", tmp_path / "out", "lmdeploy")
    (finding,) = [f for f in refused.value.findings if f.severity == "error"]
    assert finding.code == "QB302" and finding.where == ("model.norm.weight",)
    assert "1 values in 1 tensors" in finding.facts[0]
    qbridge.convert(tmp_path / "model", tmp_path / "out", "lmdeploy", allow=["rounded"])
    assert_same_tensors_of_norms(tmp_path / "model", tmp_path / "out")


def assert_same_tensors_of_norms(a, b):
    first, second = tensors(a), tensors(b)
    assert first["model.norm.weight"].dtype == second["model.norm.weight"].dtype
    assert first["model.norm.weight"].tolist() == second["model.norm.weight"].tolist()


def test_float32_scales_are_not_for_transformers_in_a_narrower_model(tmp_path):
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.convert(SQ / "llama_lite/model", tmp_path / "out", "transformers")
    assert {f.code for f in refused.value.findings if f.severity == "error"} == {"QB302"}
    assert set(qbridge.convert(SQ / "llama_lite/model", tmp_path / "out", "vllm").exactness) == {"reversible"}


def test_what_is_written_validates_with_the_library_and_old_keys(tmp_path):
    from compressed_tensors.quantization import QuantizationConfig

    args = {"num_bits", "type", "symmetric", "strategy", "group_size", "dynamic"}
    for case in FAMILY.keys() - {"llama_no_block"}:
        qbridge.convert(CT / case / "model", tmp_path / case, "compressed-tensors")
        block = config(tmp_path / case)["quantization_config"]
        QuantizationConfig.model_validate({k: v for k, v in block.items() if k != "version"})
        for group in block["config_groups"].values():
            for key in ("weights", "input_activations"):
                assert group[key] is None or group[key].keys() == args


def test_expert_that_is_not_quantized_is_counted_under_whatever_name(tmp_path):
    src, name = copy_fixture(tmp_path, "compressed_tensors/mixtral_w8a8"), "block_sparse_moe.experts.1.up_proj"

    def dense(tensors):
        (module,) = [key.removesuffix(".weight") for key in tensors if key.endswith(f"{name}.weight")]
        tensors[f"{module}.weight"] = tensors[f"{module}.weight"].to(torch.bfloat16)
        del tensors[f"{module}.weight_scale"]

    file = src / "model.safetensors"
    held = load_file(file)
    dense(held)
    save_file(held, file, metadata={"format": "pt"})
    edit_quantization(src, lambda block: block["ignore"].append(f"model.layers.0.{name}"))
    before = qbridge.inspect(ROOT / "fixtures/compressed_tensors/mixtral_w8a8/model")
    assert qbridge.inspect(src).unquantized_tensors == before.unquantized_tensors + 1
