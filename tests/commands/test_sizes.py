"""Sizes of config.json that the tensors belie: no engine builds such a model, so check never says yes."""

from __future__ import annotations

import numpy as np
import pytest

import qbridge
from qbridge.architecture.sizes import judge_sizes
from qbridge.findings.finding import Findings
from qbridge.ir.dtypes import DType
from qbridge.ir.model import Model, TensorInfo
from support import ROOT, SINGLE, copy_fixture, edit_json, facts, refusal, rewrite_tensors

# A fixture, and a key with a value that is not the model's.
CASES = [
    ("gptq/llama_g128", {"hidden_size": 512}),
    ("gptq/llama_g128", {"vocab_size": 999}),
    ("gptq/llama_g128", {"intermediate_size": 2048}),
    ("gptq/llama_g128", {"num_key_value_heads": 1}),
    ("gptq/llama_g128", {"head_dim": 128}),
    ("compressed_tensors/llama_w8a8", {"hidden_size": 128}),
    ("fp8/llama_blocks", {"vocab_size": 8}),
    ("awq/qwen2_gemm_skipped", {"intermediate_size": 64}),
    ("gptq/qwen3_moe_v1_sym", {"moe_intermediate_size": 32}),
    ("mxfp4/gpt_oss", {"hidden_size": 96}),
]


@pytest.mark.parametrize(("case", "wrong"), CASES, ids=str)
def test_sizes_that_tensors_belie_are_no_yes(case, wrong, tmp_path):
    src = copy_fixture(tmp_path, case)
    edit_json(src / "config.json", lambda config: config.update(wrong))
    for target in ("vllm", "transformers"):
        answer = qbridge.check(src, target)
        found = [finding for finding in answer.findings if finding.code == "QB052"]
        assert not answer.ok and "by config.json" in facts(found), target


def test_a_conversion_says_it_and_goes_on(tmp_path):
    src = copy_fixture(tmp_path, "gptq/llama_g128")
    edit_json(src / "config.json", lambda config: config.update(vocab_size=999))
    done = qbridge.convert(src, tmp_path / "dst", "vllm")
    (found,) = (finding for finding in done.findings if finding.code == "QB052")
    assert found.severity == "warning" and "999 x 256" in facts([found])


@pytest.mark.parametrize("model", sorted(ROOT.glob("fixtures/*/*/model")), ids=lambda path: path.parent.name)
def test_no_size_of_a_sound_checkpoint_is_wrong(model):
    allow = ("pickle", "assumed-activations", "v1-zeros-wrap")
    try:
        answer = qbridge.check(model, "transformers", allow=allow)
    except qbridge.QBridgeError:
        return
    assert {"QB052", "QB053"}.isdisjoint(finding.code for finding in answer.findings)


ESSENTIAL = ("hidden_size", "vocab_size", "num_hidden_layers", "num_attention_heads")
DERIVED = ("num_key_value_heads", "head_dim")
NO_SIZES = ("four", "2", True, False, {}, 0, -1, 2.5)
ODD = [(key, value) for key in (*ESSENTIAL, *DERIVED, "intermediate_size") for value in NO_SIZES]
ODD += [(key, None) for key in (*ESSENTIAL, "intermediate_size")] + [(key, [1, "x"]) for key in DERIVED]
ODD += [("hidden_size", [256]), ("num_key_value_heads", []), ("num_experts", -1), ("kv_lora_rank", "many")]


@pytest.mark.parametrize(("key", "value"), ODD, ids=str)
@pytest.mark.parametrize("alone", [False, True], ids=["checkpoint", "config"])
def test_what_is_no_size_is_no_yes(key, value, alone, tmp_path):
    src = copy_fixture(tmp_path, "gptq/llama_g128")
    edit_json(src / "config.json", lambda config: config.update({key: value}))
    if alone:
        (src / SINGLE).unlink()
    for tp in (1, 2):
        try:
            answer = qbridge.check(src, "vllm", tp)
        except qbridge.QBridgeError as fault:
            assert fault.exit_code in (1, 3) and key in str(fault)
        else:
            assert not answer.ok and key in facts(answer.findings)
    with pytest.raises(qbridge.QBridgeError):
        qbridge.convert(src, tmp_path / "dst", "vllm")


@pytest.mark.parametrize("key", DERIVED)
def test_a_size_that_classes_derive_may_be_null(key, tmp_path):
    src = copy_fixture(tmp_path, "gptq/llama_g128")
    edit_json(src / "config.json", lambda config: config.update({key: None}))
    found = [finding for finding in qbridge.check(src, "vllm").findings if finding.code == "QB052"]
    assert not any(" is " in fact for finding in found for fact in finding.facts)


def norm(change, name="model.norm.weight"):
    return lambda src: rewrite_tensors(src, lambda tensors: tensors.update({name: change(tensors[name])}))


def config(**values):
    return lambda src: edit_json(src / "config.json", lambda config: config.update(values))


LAYER_NORM = "model.layers.0.input_layernorm.weight"
BELIED = {
    "a norm of two axes": ("gptq/llama_g128", norm(lambda values: values[None])),
    "a short norm": ("gptq/llama_g128", norm(lambda values: values[:-8])),
    "an empty norm": ("gptq/llama_g128", norm(lambda values: values[:0], LAYER_NORM)),
    "a long norm": ("gptq/llama_g128", norm(lambda values: np.concatenate([values, values]), LAYER_NORM)),
    "fewer layers": ("compressed_tensors/llama_w8a8", config(num_hidden_layers=1)),
    "fewer experts": ("gptq/qwen3_moe_v1_sym", config(num_experts=2)),
    "no experts": ("gptq/qwen3_moe_v1_sym", config(num_experts=0)),
}


@pytest.mark.parametrize("what", BELIED)
def test_what_is_stored_and_the_config_does_not_count_is_no_yes(what, tmp_path):
    case, change = BELIED[what]
    src = copy_fixture(tmp_path, case)
    change(src)
    for target in ("vllm", "sglang", "lmdeploy", "transformers"):
        answer = qbridge.check(src, target)
        assert "QB052" in {finding.code for finding in answer.findings if finding.severity == "error"}, target


def test_a_table_of_positions_that_a_row_names_last_is_no_norm():
    config = {"architectures": ["OPTForCausalLM"], "hidden_size": 256, "num_hidden_layers": 1, "ffn_dim": 512}
    names = {"embed_positions": (258, 256), "layers.0.self_attn_layer_norm": (256,)}
    found = [TensorInfo(DType.F16, shape, f"model.decoder.{name}.weight") for name, shape in names.items()]
    findings = Findings()
    judge_sizes(Model("dense", config, {}, {}, {each.stored: each for each in found}), findings)
    assert not list(findings)


def test_layers_for_multi_token_prediction_are_counted_apart(tmp_path):
    src = copy_fixture(tmp_path, "compressed_tensors/llama_w8a8")
    edit_json(src / "config.json", lambda config: config.update(num_hidden_layers=1, num_nextn_predict_layers=1))
    assert "QB052" not in {finding.code for finding in qbridge.check(src, "vllm").findings}


ODD_VALUES = [
    *(("rms_norm_eps", value) for value in ("1e-5", -1.0, True)),
    *(("max_position_embeddings", value) for value in (0, -4, "4k")),
    *(("rope_theta", value) for value in (0, "big")),
    *((key, value) for key in ("dtype", "torch_dtype") for value in ("int8", 16, "bf16x")),
    *(("hidden_act", value) for value in (3, ["silu"])),
    *(("rope_scaling", value) for value in ([1], "linear")),
    *(("tie_word_embeddings", value) for value in ("true", 1)),
    *(("architectures", value) for value in ("LlamaForCausalLM", [1])),
    *(("layer_types", value) for value in ([], "full_attention", [1])),
]


@pytest.mark.parametrize(("key", "value"), ODD_VALUES, ids=str)
def test_a_value_that_no_model_is_built_with_is_no_yes(key, value, tmp_path):
    src = copy_fixture(tmp_path, "gptq/llama_g128")
    edit_json(src / "config.json", lambda config: config.update({key: value}))
    for target in ("vllm", "transformers"):
        answer = qbridge.check(src, target)
        assert not answer.ok and key in facts(f for f in answer.findings if f.code == "QB053"), target
    assert "QB053" in refusal(src, 1, "QB053", "vllm")
    for file in src.glob("*.safetensors"):
        file.unlink()
    try:
        assert not qbridge.check(src, "vllm").ok
    except qbridge.QBridgeError as fault:
        assert fault.exit_code == 1


@pytest.mark.parametrize(("key", "value"), [("architectures", ["Qwen2ForCausalLM"]), ("model_type", "qwen3")])
def test_a_class_beside_the_type_of_another_model_is_a_warning(key, value, tmp_path):
    """Engines build one or the other, and serve what they build."""
    src = copy_fixture(tmp_path, "gptq/llama_g128")
    edit_json(src / "config.json", lambda config: config.update({key: value}))
    (found,) = (finding for finding in qbridge.check(src, "vllm").findings if finding.code == "QB053")
    assert found.severity == "warning" and "architectures names" in facts([found])


@pytest.mark.parametrize("chosen", [0, 5, 999])
def test_more_experts_than_there_are_cannot_be_chosen(chosen, tmp_path):
    src = copy_fixture(tmp_path, "gptq/qwen3_moe_v1_sym")
    edit_json(src / "config.json", lambda config: config.update(num_experts_per_tok=chosen))
    assert "num_experts_per_tok" in facts(refusal(src, 1, "QB053", "vllm")["QB053"])
    assert not qbridge.check(src, "vllm").ok


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"])
def test_truth_values_are_no_weights(name, tmp_path):
    src = copy_fixture(tmp_path, "gptq/llama_g128")
    norm(lambda values: values.astype(bool), name)(src)
    refusal(src, 3, "QB018", "vllm")
    assert not qbridge.check(src, "vllm").ok


def test_biases_that_the_config_speaks_of_are_missed(tmp_path):
    src = copy_fixture(tmp_path, "gptq/llama_g128")
    edit_json(src / "config.json", lambda config: config.update(mlp_bias=True))
    refusal(src, 3, "QB263", "vllm")
    assert not qbridge.check(src, "vllm").ok
