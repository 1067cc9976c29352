"""Conversions of real checkpoints, end to end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import qbridge
from qbridge.architecture.config import Reader, meaning, rope, spell
from support import ROOT

CT = [
    ROOT / "fixtures/compressed_tensors" / case / "model"
    for case in ("llama_w8a8", "qwen2_w8a8_tied", "llama_w8a8_sharded", "llama_w8a8_rope", "qwen3_w8a8")
]
SQ = [ROOT / "fixtures/smooth_quant" / case / "model" for case in ("llama_lite", "qwen2_lite")]


def name(path):
    return path.parent.name


def tensors(folder):
    return {k: v for file in sorted(Path(folder).glob("*.safetensors")) for k, v in load_file(file).items()}


def config(folder):
    return json.loads((Path(folder) / "config.json").read_text())


def assert_same_tensors(a, b):
    first, second = tensors(a), tensors(b)
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert (value.dtype, value.shape) == (second[key].dtype, second[key].shape), key
        assert torch.equal(*(x.reshape(-1).view(torch.uint8) for x in (value, second[key]))), key


@pytest.mark.parametrize("source", CT, ids=name)
def test_llm_compressor_to_lmdeploy_is_the_layout_of_lmdeploy(source, tmp_path):
    report = qbridge.convert(source, tmp_path / "out", "lmdeploy", "llm-compressor")
    assert report.exactness == {"reversible": 14}
    before, after = tensors(source), tensors(tmp_path / "out")
    assert config(tmp_path / "out")["quantization_config"] == {"quant_method": "smooth_quant", "quant_dtype": "int8"}
    renamed = {key.removesuffix("weight_scale") + "scale" if key.endswith("weight_scale") else key for key in before}
    assert after.keys() == renamed
    for key, value in before.items():
        if key.endswith(".weight_scale"):
            scale = after[key.removesuffix("weight_scale") + "scale"]
            assert scale.dtype == torch.float32 and scale.shape == (value.shape[0], 1)
            assert torch.equal(scale, value.float().reshape(-1, 1))
        else:
            assert after[key].dtype == value.dtype and torch.equal(after[key], value)


@pytest.mark.parametrize("source", CT, ids=name)
def test_there_and_back_gives_identical_tensors(source, tmp_path):
    qbridge.convert(source, tmp_path / "there", "lmdeploy")
    qbridge.convert(tmp_path / "there", tmp_path / "back", "compressed-tensors")
    assert_same_tensors(source, tmp_path / "back")
    assert qbridge.verify(source, tmp_path / "back").identical == 14


@pytest.mark.parametrize("source", SQ, ids=name)
def test_lmdeploy_lite_to_compressed_tensors_keeps_float32_scales_and_comes_back(source, tmp_path):
    qbridge.convert(source, tmp_path / "there", "compressed-tensors")
    scales = {k: v for k, v in tensors(tmp_path / "there").items() if k.endswith("weight_scale")}
    assert len(scales) == 14 and all(v.dtype == torch.float32 for v in scales.values())
    qbridge.convert(tmp_path / "there", tmp_path / "back", "lmdeploy")
    assert_same_tensors(source, tmp_path / "back")


def test_a_scale_that_was_edited_since_is_not_forced_back(tmp_path):
    from safetensors.torch import save_file

    qbridge.convert(CT[0], tmp_path / "there", "lmdeploy")
    edited = tensors(tmp_path / "there")
    key = next(k for k in edited if k.endswith(".scale"))
    edited[key][0] = 1 / 3
    save_file(edited, tmp_path / "there/model.safetensors", metadata={"format": "pt"})
    qbridge.convert(tmp_path / "there", tmp_path / "back", "compressed-tensors")
    back = tensors(tmp_path / "back")
    layer = key.removesuffix(".scale")
    assert back[f"{layer}.weight_scale"].dtype == torch.float32
    assert sum(v.dtype == torch.float32 for k, v in back.items() if k.endswith("weight_scale")) == 1
    assert qbridge.verify(tmp_path / "there", tmp_path / "back").same


@pytest.mark.parametrize("source", CT + SQ, ids=name)
def test_the_config_says_the_same_to_transformers_4_and_5(source, tmp_path):
    qbridge.convert(source, tmp_path / "out", "compressed-tensors")
    written, original = config(tmp_path / "out"), config(source)
    theta, scaling, _ = rope(original)
    assert written["rope_theta"] == theta
    assert written.get("rope_scaling") == scaling
    assert written.get("rope_parameters") == original.get("rope_parameters")
    assert written["torch_dtype"] == (original.get("dtype") or original.get("torch_dtype"))
    kept = {k: v for k, v in original.items() if k not in ("quantization_config", "rope_parameters")}
    assert {k: written[k] for k in kept} == kept
    assert meaning(written) == meaning(original)


@pytest.mark.parametrize("source", CT + SQ, ids=name)
def test_lmdeploy_gets_no_rope_parameters_beside_a_rope_without_scaling(source, tmp_path):
    qbridge.convert(source, tmp_path / "out", "lmdeploy")
    written, (theta, scaling, _) = config(tmp_path / "out"), rope(config(source))
    assert (written["rope_theta"], written.get("rope_scaling")) == (theta, scaling)
    assert ("rope_parameters" in written) == (scaling is not None)
    assert meaning(written) == meaning(config(source))


@pytest.mark.parametrize("source", CT, ids=name)
def test_transformers_parses_the_same_model_from_both_configs(source, tmp_path):
    from transformers import AutoConfig

    qbridge.convert(source, tmp_path / "out", "lmdeploy")
    before, after = (AutoConfig.from_pretrained(path).to_dict() for path in (source, tmp_path / "out"))
    for key, value in before.items():
        if key not in ("quantization_config", "_name_or_path"):
            assert after[key] == value, key


def test_old_rope_spellings_are_understood():
    old = {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}
    new = {"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}}
    assert meaning(old) == meaning(new)
    assert spell(old, Reader()) == old
    assert spell(new, Reader()) == {**new, "rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}
    assert meaning({"rope_theta": 1e6}) != meaning({"rope_theta": 1e4})
    assert "rope_theta" not in spell({"model_type": "bloom"}, Reader())


@pytest.mark.parametrize("source", CT[:1] + SQ[:1], ids=name)
def test_stream_hands_out_what_convert_writes(source, tmp_path):
    target = "lmdeploy" if source in CT else "compressed-tensors"
    qbridge.convert(source, tmp_path / "out", target)
    written = tensors(tmp_path / "out")
    with qbridge.stream(source, target) as streamed:
        assert streamed.config == config(tmp_path / "out")
        found = dict(streamed)
    assert found.keys() == written.keys() == streamed.shapes.keys()
    assert streamed.total_size == sum(t.nbytes for t in found.values())
    for key, value in written.items():
        assert found[key].dtype == value.dtype and torch.equal(found[key], value)


def test_dry_run_plans_the_same_and_writes_nothing(tmp_path):
    planned = qbridge.convert(CT[0], tmp_path / "out", "lmdeploy", dry_run=True)
    assert list(tmp_path.iterdir()) == []
    done = qbridge.convert(CT[0], tmp_path / "out", "lmdeploy")
    assert planned.files == done.files == {"model.safetensors": (tmp_path / "out/model.safetensors").stat().st_size}


def test_open_gives_layers_in_canonical_form():
    with qbridge.open(CT[0]) as checkpoint:
        layer = checkpoint.layer("model.layers.0.mlp.down_proj")
        assert layer.complete and layer.arrays["code"].dtype == np.int8
        assert checkpoint.tensor("model.norm.weight").shape == (256,)


def test_engine_at_minor_version_means_its_newest_patch(tmp_path):
    assert qbridge.convert(CT[0], tmp_path / "a", "lmdeploy@0.6", dry_run=True).target == "lmdeploy@0.6.2"
    assert qbridge.convert(CT[0], tmp_path / "a", "lmdeploy", dry_run=True).target == "lmdeploy@0.18.0"


def test_the_manifest_names_no_path_and_no_time(tmp_path):
    qbridge.convert(CT[0], tmp_path / "out", "lmdeploy")
    text = (tmp_path / "out/qbridge.json").read_text()
    assert str(tmp_path) not in text and str(ROOT) not in text
    manifest = json.loads(text)
    assert manifest["source"]["format"] == "compressed-tensors"
    assert manifest["source"]["config"] == config(CT[0])
    assert sum(len(step["layers"]) for step in manifest["steps"]) == 14
