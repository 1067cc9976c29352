"""vLLM: tensors that the loaders of its classes stop at, whatever the block says."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from safetensors.torch import load_file, save_file
from test_fused import model_of, problems
from test_vllm_derivation import of_class, planted

import make
import qbridge
from qbridge.ir.dtypes import DType
from qbridge.ir.model import TensorInfo
from qbridge.ir.scheme import ActivationScheme, Granularity, WeightScheme
from qbridge.testing.strategies import NVFP4
from support import copy_fixture, edit_json, edit_quantization, facts, places

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


@pytest.mark.parametrize("nested", [False, True])
def test_convert_names_the_layers_as_they_are_stored(nested, tmp_path):
    src = copy_fixture(tmp_path, "fp8/llama_blocks")
    of_class(src, QWEN, model_type="qwen3_5_text")
    if nested:
        edit_json(src / "config.json", lambda config: config.update(text_config={**config}, model_type="qwen3_5"))
    report = qbridge.convert(src, tmp_path / "out", "vllm", allow=["incomplete"])
    assert "QB345" in {finding.code for finding in report.findings} and not stops(tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    holder = config["text_config"] if nested else config
    assert holder["layer_types"] == ["full_attention"] * holder["num_hidden_layers"]
    assert qbridge.verify(src, tmp_path / "out", allow=["incomplete"]).same
    qbridge.restore(tmp_path / "out", tmp_path / "back", allow=["incomplete"])
    assert "layer_types" not in (tmp_path / "back/config.json").read_text()
    edit_json(src / "config.json", lambda config: config.update(layer_types=["linear_attention"] * 2))
    assert nested or not qbridge.verify(src, tmp_path / "out", allow=["incomplete"]).same


def test_a_layer_of_both_kinds_is_named_by_nobody(tmp_path):
    src = copy_fixture(tmp_path, "fp8/llama_blocks")
    planted(src, "model.layers.0.linear_attn.out_proj")
    of_class(src, QWEN, model_type="qwen3_5_text")
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.convert(src, tmp_path / "out", "vllm", allow=["incomplete", "unknown-tensors"])
    assert "QB291" in {finding.code for finding in refused.value.findings}


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
        ("MiniMaxM2ForCausalLM", "", {"rotary_dim": 64, "scoring_func": "sigmoid", "use_routing_bias": True}),
        ("Lfm2VlForConditionalGeneration", "text_config", {"block_dim": 64, "conv_dim": 64}),
        ("Qwen3VLMoeForConditionalGeneration", "text_config", {"norm_topk_prob": True}),
        ("Step3p5ForCausalLM", "", {"need_fp32_gate": True, "norm_expert_weight": True, "use_moe_router_bias": True}),
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
    ("name", "given", "left_out"),
    [
        *(((name, {}, True)) for name in ("LlamaForCausalLM", "Glm4ForCausalLM", "Qwen3MoeForCausalLM")),
        ("LlamaForCausalLM", {"attention_bias": False}, True),
        ("LlamaForCausalLM", {"attention_bias": True}, False),
        ("Qwen2ForCausalLM", {}, False),
        ("Glm4vForConditionalGeneration", {"text_config": {}}, True),
        ("Glm4vForConditionalGeneration", {"text_config": {"attention_bias": True}}, False),
    ],
)
@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("engine", ["vllm", "transformers"])
def test_biases_that_config_json_denies_are_left_out(name, given, left_out, quantized, engine):
    layer = "model.layers.0.self_attn"
    names = [f"{layer}.o_proj", *([f"{layer}.q_proj"] if quantized else [])]
    model = model_of(name, names, CHANNEL, DYNAMIC)
    specs = {one: replace(spec, bias=DType.BF16) for one, spec in model.specs.items()}
    bias = f"{layer}.q_proj.bias"
    tensors = {} if quantized else {bias: TensorInfo(bias, DType.BF16, (64,))}
    model = replace(model, specs=specs, tensors=tensors, config={**model.config, **given})
    by_engine = left_out and (engine == "vllm" or not name.startswith("Glm4v"))  # transformers always builds those
    assert problems(engine, "compressed-tensors", "QB331", model) == ({bias} if by_engine else set())
    plain = replace(model, specs={one: replace(spec, bias=None) for one, spec in specs.items()}, tensors={})
    assert not problems(engine, "compressed-tensors", "QB331", plain)


@pytest.mark.parametrize("engine", ["vllm", "transformers"])
def test_biases_of_towers_are_none_of_config_jsons_business(engine):
    bias = "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.bias"
    model = model_of(
        "Gemma3ForConditionalGeneration", ["language_model.model.layers.0.mlp.up_proj"], CHANNEL, DYNAMIC
    )
    model = replace(model, tensors={bias: TensorInfo(bias, DType.BF16, (64,))})
    assert not problems(engine, "compressed-tensors", "QB331", model)


def test_gates_of_heads_that_config_json_denies_are_left_out():
    model = model_of("Step3p5ForCausalLM", ["model.layers.0.self_attn.g_proj"], CHANNEL, DYNAMIC)
    assert problems("vllm", "compressed-tensors", "QB331", model) == set(model.specs)
    given = replace(model, config={**model.config, "use_head_wise_attn_gate": True})
    assert not problems("vllm", "compressed-tensors", "QB331", given)


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


def bloom(folder, source):
    """A Bloom whose float8 linears have one scale each, and dynamic activations."""
    make.build("BloomForCausalLM", "fp8-dynamic", folder)
    src = folder / "model"
    tensors = load_file(src / "model.safetensors")
    scales = {name: scale[:1, 0] for name, scale in tensors.items() if name.endswith(".weight_scale")}
    save_file({**tensors, **scales}, src / "model.safetensors", {"format": "pt"})
    if source == "fp8":
        block = {"quant_method": "fp8", "activation_scheme": "dynamic", "modules_to_not_convert": ["lm_head"]}
        edit_json(src / "config.json", lambda config: config.update(quantization_config=block))
    else:
        edit_quantization(src, lambda block: block["config_groups"]["group_0"]["weights"].update(strategy="tensor"))
    assert places(stops(src))
    return src


@pytest.mark.parametrize("source", ["fp8", "compressed-tensors"])
def test_one_scale_of_blooms_fused_attention_is_repeated_for_each_channel(source, tmp_path):
    """The scale stays what it is for the other linears; activations are dynamic, as a static scale has one number."""
    src = bloom(tmp_path, source)
    report = qbridge.convert(src, tmp_path / "out", "vllm")
    assert report.format == "compressed-tensors" and report.passes["broadcast"] >= 1
    assert not stops(tmp_path / "out") and qbridge.verify(src, tmp_path / "out").same
    qbridge.restore(tmp_path / "out", tmp_path / "back")
    assert qbridge.verify(src, tmp_path / "back").equal == 0


V4 = "DeepseekV4ForCausalLM"


@pytest.mark.parametrize(("name", "stopped"), [(V4, True), ("DeepseekV3ForCausalLM", False)])
def test_norms_of_latents_under_the_name_that_transformers_saves(name, stopped):
    norm = "layers.0.attn.norm.weight"
    model = model_of(name, ["layers.0.attn.wq_a"], BLOCKS, DYNAMIC)
    model = replace(model, tensors={norm: TensorInfo(DType.BF16, (128,), norm)})
    assert problems("vllm", "fp8", "QB291", model) == ({norm} if stopped else set())


@pytest.mark.parametrize(
    ("weight", "given", "wrong"),
    [
        (BLOCKS, {"topk_method": "noaux_tc", "expert_dtype": "fp8"}, set()),
        (BLOCKS, {"expert_dtype": "fp8"}, {"layers.0.ffn.gate.bias"}),
        (BLOCKS, {"topk_method": "noaux_tc"}, {"expert_dtype"}),
        (BLOCKS, {"topk_method": "noaux_tc", "expert_dtype": "fp4"}, {"expert_dtype"}),
    ],
)
def test_keys_that_say_what_experts_and_routers_are(weight, given, wrong):
    bias = "layers.0.ffn.gate.bias"
    model = model_of(V4, ["layers.0.ffn.experts.0.w1"], weight, DYNAMIC)
    model = replace(
        model,
        format="fp8",
        tensors={bias: TensorInfo(DType.F32, (4,), bias)},
        config={**model.config, **given},
    )
    assert problems("vllm", "fp8", "QB330", model) == wrong


@pytest.mark.parametrize("name", ["model.layers.0.mlp.side_proj", "model.layers.7.mlp.down_proj"])
@pytest.mark.parametrize(("architecture", "stopped"), [("LlamaForCausalLM", True), ("UnheardOf", False)])
def test_what_a_class_has_no_place_for_stops_it(name, architecture, stopped):
    model = model_of(architecture, ["model.layers.0.mlp.down_proj"], CHANNEL, DYNAMIC)
    model = replace(
        model,
        config={**model.config, "num_hidden_layers": 1},
        tensors={f"{name}.weight": TensorInfo(DType.BF16, (64, 64), f"{name}.weight")},
    )
    assert problems("vllm", "compressed-tensors", "QB291", model) == ({name} if stopped else set())
