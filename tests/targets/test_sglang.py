"""SGLang: which format it is given, what is refused with the way out, and what its own lists make of a block."""

from __future__ import annotations

import filecmp
import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import make
import qbridge
from qbridge.findings.finding import QBridgeError
from qbridge.formats.rules import broken
from qbridge.targets.registry import find_target
from qbridge.targets.sglang import loading
from qbridge.testing import check_target
from support import ROOT, copy_fixture, edit_json

FIXTURES = ROOT / "fixtures"
SGLANG = find_target("sglang")
WAY = ("--allow dynamic-activations",)


def fixture(case):
    return FIXTURES / case / "model"


def codes(found, severity):
    return {finding.code for finding in found.findings if finding.severity == severity}


def test_laws():
    check_target(SGLANG)


@pytest.mark.parametrize(
    ("case", "allow", "format_name", "passes"),
    [
        ("fp8/llama_blocks", (), "compressed-tensors", {}),
        ("fp8/llama_blocks_ue8m0", ("drop-activation-details",), "compressed-tensors", {"plain-inputs", "recast"}),
        ("compressed_tensors/qwen3_moe_w8a8", (), "w8a8", {"recast"}),
        ("compressed_tensors/llama_static", ("dynamic-activations",), "compressed-tensors", {"dynamic-inputs"}),
        ("compressed_tensors/llama_tensor", (), "compressed-tensors", {"broadcast"}),
        ("compressed_tensors/llama_w5a16", (), "compressed-tensors", {"widen"}),
        ("gptq/llama_v1_asym", (), "compressed-tensors", {}),
        ("gptq/llama_desc_act", (), "gptq", {}),
        ("smooth_quant/llama_lite", (), "compressed-tensors", {}),
        ("mxfp4/gpt_oss", (), "mxfp4", {}),
    ],
)
def test_it_is_given_a_format_that_it_loads_and_check_accepts_it(case, allow, format_name, passes, tmp_path):
    report = qbridge.convert(fixture(case), tmp_path / "out", "sglang", allow=allow)
    assert report.format == format_name and set(passes) <= report.passes.keys()
    assert report.serve == f"python -m sglang.launch_server --model-path {tmp_path / 'out'}"
    assert qbridge.check(tmp_path / "out", "sglang").ok
    assert qbridge.verify(fixture(case), tmp_path / "out").same is (report.activations_changed == 0)


@pytest.mark.parametrize(
    ("case", "code"),
    [
        ("compressed_tensors/llama_mxfp4", "QB293"),
        ("compressed_tensors/llama_w4a8", "QB293"),
        ("fp8/llama_blocks", "QB294"),
        ("compressed_tensors/llama_static", "QB295"),
        ("compressed_tensors/llama_token_asym", "QB295"),
        ("compressed_tensors/mixtral_w8a8", "QB296"),
        ("awq/llama_gemv", "QB298"),
        ("gptq/llama_v1_asym", "QB298"),
        ("fp8/llama_fbgemm", "QB298"),
        ("modelopt/llama_w4a16_nvfp4", "QB298"),
        ("compressed_tensors/llama_lm_head", "QB281"),
        ("auto_round/llama_lm_head_claimed", "QB280"),
        ("awq/llama_mislabelled_gptq", "QB284"),
        ("smooth_quant/llama_lite", "QB260"),
    ],
)
def test_what_it_refuses_or_drops_is_refused_as_it_is(case, code):
    found = qbridge.check(fixture(case), "sglang")
    assert not found.ok and code in codes(found, "error")


@pytest.mark.parametrize(("case", "code"), [("gptq/llama_desc_act", "QB297"), ("modelopt/llama_nvfp4", "QB292")])
def test_what_it_serves_otherwise_than_others_is_a_note(case, code):
    found = qbridge.check(fixture(case), "sglang")
    assert found.ok and code in codes(found, "note")


def test_a_format_that_a_word_opens_is_nearer_than_one_that_nothing_opens(tmp_path):
    """NVFP4 of weights alone: as ModelOpt nothing helps, as compressed-tensors the reciprocals are no float32."""
    source = fixture("modelopt/llama_w4a16_nvfp4")
    with pytest.raises(QBridgeError) as refused:
        qbridge.convert(source, tmp_path / "out", "sglang")
    errors = [finding for finding in refused.value.findings if finding.severity is qbridge.Severity.ERROR]
    assert [finding.code for finding in errors] == ["QB305"] and errors[0].entry.allow == "rounded"
    assert qbridge.convert(source, tmp_path / "out", "sglang", allow=["rounded"]).format == "compressed-tensors"
    assert qbridge.check(tmp_path / "out", "sglang").ok


@pytest.mark.parametrize(("case", "fits"), [("llama_fp8_naive", True), ("llama_w8a16_channel", False)])
def test_tiles_of_float8_alone_may_be_turned(case, fits):
    """o_proj has 128 outputs and 64 inputs on a rank: the kernel has tiles for that, and is not asked for floats."""
    found = qbridge.check(fixture(f"compressed_tensors/{case}"), "sglang", tp=2)
    assert ("QB253" not in codes(found, "error")) is fits


def test_groups_of_gpt_oss_are_whole_on_every_rank():
    """Its loader gives ranks 64 and 32 of 96 inputs, and stops."""
    assert qbridge.check(fixture("mxfp4/gpt_oss"), "sglang").ok
    assert "QB251" in codes(qbridge.check(fixture("mxfp4/gpt_oss"), "sglang", tp=2), "error")


def test_a_class_that_it_lacks_is_said(tmp_path):
    source = copy_fixture(tmp_path, "compressed_tensors/llama_w4a16_g128")
    edit_json(source / "config.json", lambda found: found.update(architectures=["FalconForCausalLM"]))
    assert "QB268" in codes(qbridge.check(source, "sglang"), "error")


def test_static_activations_are_dropped_only_when_that_is_allowed_and_come_back(tmp_path):
    source = fixture("compressed_tensors/llama_static_asym")
    with pytest.raises(QBridgeError) as refused:
        qbridge.convert(source, tmp_path / "there", "sglang")
    assert [(fault.code, fault.help) for fault in refused.value.findings] == [("QB295", WAY)]
    report = qbridge.convert(source, tmp_path / "there", "sglang", allow=["dynamic-activations"])
    assert report.activations_changed == report.layers == report.passes["dynamic-inputs"]
    steps = json.loads((tmp_path / "there" / "qbridge.json").read_text())["steps"]
    (step,) = {json.dumps(passed) for entry in steps for passed in entry["passes"]}
    assert json.loads(step) == {"pass": "dynamic-inputs", "activations": "changed", "weights": "unchanged"}
    qbridge.restore(tmp_path / "there", tmp_path / "back")
    assert filecmp.cmp(source / "model.safetensors", tmp_path / "back" / "model.safetensors", shallow=False)


@pytest.mark.parametrize("leaves", [("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")])
def test_parts_that_are_not_quantized_are_listed_by_the_name_of_the_whole(leaves, tmp_path):
    """Llama's class looks for qkv_proj in the list, and builds it quantized where q, k and v stand there."""
    source = copy_fixture(tmp_path, "compressed_tensors/llama_w4a16_g128")
    with qbridge.open(source) as opened:
        dense = [name for name in opened.specs if name.rpartition(".")[2] in leaves]
        shapes = {name: opened.specs[name].dims for name in dense}
    tensors = load_file(source / "model.safetensors")
    for name in dense:
        for stored in [stored for stored in tensors if stored.startswith(f"{name}.weight")]:
            del tensors[stored]
        tensors[f"{name}.weight"] = np.zeros(shapes[name], np.float16)
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    edit_json(source / "config.json", lambda found: found["quantization_config"]["ignore"].extend(dense))
    assert "QB280" in codes(qbridge.check(source, "sglang"), "error")
    qbridge.convert(source, tmp_path / "out", "sglang")
    assert qbridge.check(tmp_path / "out", "sglang").ok


def of_class(folder, architecture, case="compressed_tensors/llama_w4a16_g128", **keys):
    """A fixture under the name of another class, with other keys in config.json."""
    source = copy_fixture(folder, case)
    edit_json(source / "config.json", lambda config: config.update({"architectures": [architecture], **keys}))
    return source


@pytest.mark.parametrize(
    ("architecture", "keys", "code"),
    [
        ("NoSuchForCausalLM", {}, "QB268"),
        ("GlmForCausalLM", {}, "QB268"),  # tensor parallelism of another style
        ("LongcatFlashForCausalLM", {}, "QB268"),
        ("LlavaForConditionalGeneration", {"vision_config": {"model_type": "clip_vision_model"}}, "QB268"),
        ("Qwen3MoeForCausalLM", {}, "QB269"),  # which has experts in every layer
        ("NemotronHForCausalLM", {"n_groups": 2}, "QB269"),
        ("Exaone4ForCausalLM", {"sliding_window_pattern": 4}, "QB269"),
        ("CwmForCausalLM", {}, "QB293"),  # through transformers, no target is found
        ("Qwen3ForSequenceClassification", {}, "QB299"),
        ("StableLmForCausalLM", {}, "QB281"),  # its attention is built without the block
    ],
)
def test_what_a_class_does_not_take_is_refused(architecture, keys, code, tmp_path):
    source = of_class(tmp_path, architecture, **keys)
    assert code in codes(qbridge.check(source, "sglang"), "error")


def broken_rules(architecture, tensors=None, **keys):
    """The problems, by code, that any format has with a model of another class, and of other names of tensors."""
    with qbridge.open(fixture("compressed_tensors/llama_w4a16_g128")) as opened:
        model = replace(opened.model, config={**opened.model.config, "architectures": [architecture], **keys})
    named = {new: replace(info, stored=new) for new, info in zip(tensors or (), model.tensors.values(), strict=False)}
    found = broken(loading.RULES, replace(model, tensors=named or model.tensors))
    return {fault.rule.code: fault.problem for fault in found}


@pytest.mark.parametrize(
    ("architecture", "missing", "given"),
    [
        ("KimiK25ForConditionalGeneration", {"vision_config": {}}, {"vision_config": {"vt_hidden_size": 8}}),
        ("ExaoneMoeForCausalLM", {}, {"is_moe_layer": [False, True]}),
        ("Qwen2VLForConditionalGeneration", {"vision_config": {}}, {"vision_config": {"in_chans": 3}}),
        ("Exaone4ForCausalLM", {"sliding_window_pattern": 4}, {"sliding_window_pattern": "LLLG"}),
        ("PhiForCausalLM", {"num_key_value_heads": 1}, {"num_key_value_heads": None}),
        ("MiMoV2FlashForCausalLM", {}, {"hybrid_layer_pattern": [0]}),
    ],
)
def test_a_class_is_taken_with_the_keys_that_it_asks_for(architecture, missing, given):
    assert broken_rules(architecture, **missing).keys() == {"QB269"}
    assert broken_rules(architecture, **given) == {}


@pytest.mark.parametrize(
    ("architecture", "key", "ending"),
    [
        ("HunYuanDenseV1ForCausalLM", "use_qk_norm", "self_attn.key_layernorm.weight"),
        ("MiniMaxM2ForCausalLM", "use_routing_bias", "block_sparse_moe.e_score_correction_bias"),
    ],
)
def test_tensors_that_a_class_has_no_place_for_without_a_key(architecture, key, ending):
    tensors = [f"model.layers.0.{ending}"]
    assert broken_rules(architecture, tensors).keys() == {"QB269"}
    assert broken_rules(architecture, tensors, **{key: True}) == {}


def test_a_class_of_transformers_is_given_another_format(tmp_path):
    source = of_class(tmp_path, "CwmForCausalLM")
    report = qbridge.convert(source, tmp_path / "out", "sglang")
    assert report.format == "gptq" and qbridge.check(tmp_path / "out", "sglang").ok


@pytest.mark.parametrize(("architecture", "format_name"), [("GPTJForCausalLM", "gptq"), ("LlamaForCausalLM", "")])
def test_loaders_that_ask_compressed_tensors_alone_for_scales(architecture, format_name, tmp_path):
    source = of_class(tmp_path, architecture, "gptq/llama_g128")
    found = codes(qbridge.check(source, "sglang"), "error")
    assert ("QB298" in found) is (format_name != "")


def test_intervals_of_full_attention_that_layers_do_not_keep(tmp_path):
    kinds = ["full_attention", "linear_attention", "linear_attention", "full_attention"]
    source = of_class(
        tmp_path, "Qwen3_5ForCausalLM", model_type="qwen3_5_text", layer_types=kinds, full_attention_interval=2
    )
    assert "QB269" in codes(qbridge.check(source, "sglang"), "error")


def test_the_advice_has_the_flags_that_rename_what_a_loader_does_not_take():
    """Qwen2.5-VL's takes the text model under `model` alone; the other names are in tests/engines."""
    text, tower = "model.language_model.layers.0.mlp.down_proj.weight", "model.visual.merger.mlp.0.weight"
    problem = broken_rules("Qwen2_5_VLForConditionalGeneration", [text, tower], model_type="qwen2_5_vl")["QB269"]
    flags = "--rename-prefix model.language_model=model --rename-prefix model.visual=visual"
    assert problem.help == (f"convert it with {flags}",)
    renamed = [text.replace("model.language_model", "model"), tower.replace("model.visual", "visual")]
    assert broken_rules("Qwen2_5_VLForConditionalGeneration", renamed, model_type="qwen2_5_vl") == {}


def test_a_tower_in_a_single_file_is_found_by_an_index(tmp_path):
    case = next(case for case in make.cases() if case.name == "Llama4_cg-w4a16")
    case.build(tmp_path / "case")
    src = tmp_path / "case/model"
    (found,) = (f for f in qbridge.check(src, "sglang").findings if f.severity is qbridge.Severity.ERROR)
    assert found.code == "QB269" and all("vision" in name for name in found.where)
    qbridge.convert(src, tmp_path / "out", "sglang")
    assert qbridge.check(tmp_path / "out", "sglang").ok and (tmp_path / "out/model.safetensors.index.json").exists()
    assert qbridge.verify(src, tmp_path / "out").same
    qbridge.convert(src, tmp_path / "out", "sglang")
    qbridge.restore(tmp_path / "out", tmp_path / "back")
    assert not (tmp_path / "back/model.safetensors.index.json").exists()
