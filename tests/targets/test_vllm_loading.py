"""vLLM: tensors that the loaders of its classes stop at, whatever the block says."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_fused import model_of, problems
from test_vllm_derivation import of_class, planted

import qbridge
from qbridge.ir.scheme import ActivationScheme, Granularity, WeightScheme
from qbridge.testing.strategies import NVFP4
from support import copy_fixture, edit_json, facts, places

QWEN = "Qwen3_5ForCausalLM"


def stops(folder):
    return [finding for finding in qbridge.check(folder, "vllm").findings if finding.code == "QB291"]


@pytest.mark.parametrize("leaf", ["in_proj_ba", "in_proj_qkvz"])
def test_linear_attention_of_qwen35_is_not_loaded_as_one(leaf, tmp_path):
    src = copy_fixture(tmp_path, "fp8/llama_blocks")
    module = f"model.layers.0.linear_attn.{leaf}"
    planted(src, module)
    of_class(src, "Qwen3NextForCausalLM")
    assert not stops(src)
    of_class(src, QWEN)
    assert places(stops(src)) == {module} and f"{leaf}{leaf[-1]}" in facts(stops(src))
    with pytest.raises(qbridge.QBridgeError):
        qbridge.convert(src, tmp_path / "out", "vllm")


@pytest.mark.parametrize(("name", "kind"), [(QWEN, "qwen3_5_text"), ("Qwen3NextForCausalLM", "qwen3_next")])
@pytest.mark.parametrize("interval", [None, 4])
def test_layers_that_config_json_does_not_name_are_those_of_the_class(name, kind, interval, tmp_path):
    src = copy_fixture(tmp_path, "fp8/llama_blocks")
    of_class(src, name, model_type=kind)
    if interval:
        edit_json(src / "config.json", lambda config: config.update(full_attention_interval=interval))
    assert "model.layers.0.self_attn" in places(stops(src)) and "layer_types" in facts(stops(src))
    edit_json(src / "config.json", lambda config: config.update(layer_types=["full_attention"] * 8))
    assert not stops(src)


INT8 = WeightScheme(8, Granularity.CHANNEL)
CHANNEL = WeightScheme(8, Granularity.CHANNEL, type="e4m3fn")
TENSOR = WeightScheme(8, Granularity.TENSOR, type="e4m3fn")
BLOCKS = WeightScheme(8, Granularity.BLOCK, block=(128, 128), type="e4m3fn")
DYNAMIC = ActivationScheme(8, Granularity.TOKEN, dynamic=True, type="e4m3fn")
STATIC = ActivationScheme(8, Granularity.TENSOR, dynamic=False, type="e4m3fn")


@pytest.mark.parametrize(
    ("format_name", "weight", "activation", "taken"),
    [
        ("compressed-tensors", CHANNEL, DYNAMIC, True),
        ("compressed-tensors", CHANNEL, STATIC, False),
        ("compressed-tensors", TENSOR, DYNAMIC, False),
        ("compressed-tensors", INT8, None, False),
        ("compressed-tensors", NVFP4, None, False),
        ("gptq", INT8, None, False),
        ("awq", INT8, None, False),
        ("fp8", TENSOR, DYNAMIC, False),
        ("fp8", BLOCKS, None, False),
    ],
)
def test_fused_attention_of_bloom_is_reshaped_by_heads(format_name, weight, activation, taken):
    names = ["transformer.h.0.self_attention.query_key_value"]
    model = model_of("BloomForCausalLM", names, weight, activation)
    model = replace(model, config={**model.config, "n_head": 4})
    assert problems("vllm", format_name, "QB291", model) == set([] if taken else names)
    assert not problems("vllm", format_name, "QB291", replace(model, config={"architectures": ["FalconForCausalLM"]}))


@pytest.mark.parametrize(
    ("name", "part", "keys"),
    [
        ("AfmoeForCausalLM", "", {"n_group": 1, "route_norm": True, "score_func": "sigmoid", "topk_group": 1}),
        ("ChatGLMModel", "", {"original_rope": True}),
        ("MiniMaxM2ForCausalLM", "", {"rotary_dim": 64, "scoring_func": "sigmoid"}),
        ("Lfm2VlForConditionalGeneration", "text_config", {"block_dim": 64, "conv_dim": 64}),
        ("Qwen3VLMoeForConditionalGeneration", "text_config", {"norm_topk_prob": True}),
        ("VoxtralForConditionalGeneration", "audio_config", {"downsample_factor": 4}),
    ],
)
def test_keys_that_a_class_reads_and_no_class_of_configs_has(name, part, keys):
    model = model_of(name, ["model.layers.0.mlp.down_proj"], CHANNEL, DYNAMIC)
    given = {**model.config, **({part: keys} if part else keys)}
    asked = {f"{part}.{key}".lstrip(".") for key in keys}
    assert problems("vllm", "compressed-tensors", "QB330", model) == asked
    assert not problems("vllm", "compressed-tensors", "QB330", replace(model, config=given))


@pytest.mark.parametrize(
    ("format_name", "weight", "activation", "taken"),
    [
        ("compressed-tensors", CHANNEL, DYNAMIC, True),
        ("fp8", BLOCKS, None, True),
        ("compressed-tensors", TENSOR, DYNAMIC, False),
        ("compressed-tensors", INT8, None, False),
        ("gptq", INT8, None, False),
        ("compressed-tensors", NVFP4, None, False),
    ],
)
def test_keys_of_indexers_are_decoded_from_some_float8_alone(format_name, weight, activation, taken):
    names = ["model.layers.0.self_attn.indexer.wk"]
    model = model_of("DeepseekV32ForCausalLM", names, weight, activation)
    assert problems("vllm", format_name, "QB291", model) == set([] if taken else names)
