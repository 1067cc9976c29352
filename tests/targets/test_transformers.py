"""transformers: which float8 it reads natively, what it needs a package for, and how it matches lists."""

from __future__ import annotations

import numpy as np
import pytest

import qbridge
from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model, TensorInfo
from qbridge.ir.scheme import Granularity, WeightScheme
from qbridge.targets.registry import find_target
from qbridge.targets.transformers.matching import DERIVATION
from support import SINGLE, copy_fixture, edit_header, edit_json, edit_quantization, facts, places, rewrite_tensors


def found(folder, *codes):
    return [f for f in qbridge.check(folder, "transformers").findings if f.code in codes]


def test_blocks_are_read_natively(tmp_path):
    src = copy_fixture(tmp_path, "fp8/llama_blocks")
    assert qbridge.check(src, "transformers").ok and qbridge.check(src, "transformers").format == "fp8"


@pytest.mark.parametrize("case", ["fp8/llama_static", "fp8/llama_fbgemm"])
def test_scales_under_names_that_it_does_not_read(case, tmp_path):
    src = copy_fixture(tmp_path, case)
    assert {f.severity for f in found(src, "QB287")} == {qbridge.Severity.ERROR}
    qbridge.convert(src, tmp_path / "dst", "transformers", allow=["drop-activation-details"])
    done = qbridge.check(tmp_path / "dst", "transformers")
    assert done.ok and done.format == "compressed-tensors"


@pytest.mark.parametrize(("size", "missed"), [("absent", True), (None, False)])
def test_without_a_size_of_blocks_it_takes_scales_for_those_of_blocks(size, missed, tmp_path):
    src = copy_fixture(tmp_path, "fp8/llama_static")
    edit_quantization(src, lambda block: block.update({} if size == "absent" else {"weight_block_size": size}))
    assert bool(found(src, "QB284")) is missed


@pytest.mark.parametrize("key", ["modules_to_not_convert", "ignored_layers"])
def test_both_names_of_the_list_of_fp8_are_read(key, tmp_path):
    src = copy_fixture(tmp_path, "fp8/llama_blocks")

    def edit(block):
        for name in ("modules_to_not_convert", "ignored_layers"):
            block.pop(name, None)
        block[key] = ["model.layers.0.mlp.down_proj", "lm_head"]

    edit_quantization(src, edit)
    assert places(found(src, "QB281")) == {"model.layers.0.mlp.down_proj"}


def test_scales_under_names_that_it_reads(tmp_path):
    src = copy_fixture(tmp_path, "fp8/llama_static")
    new = {"weight_scale": "weight_scale_inv", "input_scale": "activation_scale"}

    def renamed(header):
        parts = {name: name.rpartition(".") for name in header}
        return {f"{a}{dot}{new.get(leaf, leaf)}": header[name] for name, (a, dot, leaf) in parts.items()}

    edit_header(src / SINGLE, renamed)
    assert not found(src, "QB287")


@pytest.mark.parametrize(
    ("case", "package"),
    [
        ("gptq/llama_v1_sym", "gptqmodel"),
        ("awq/llama_gemm", "gptqmodel"),
        ("auto_round/llama_gptq_sym", "auto-round"),
    ],
)
def test_formats_that_need_a_package_are_loaded_and_never_written(case, package, tmp_path):
    src = copy_fixture(tmp_path, case)
    assert package in facts(found(src, "QB288")) and not found(src, "QB260")
    report = qbridge.convert(src, tmp_path / "dst", "transformers", dry_run=True, allow=["rounded"])
    assert report.format == "compressed-tensors"


@pytest.mark.parametrize(
    ("case", "missed"),
    [
        ("llama_v1_sym", False),
        ("llama_static_groups", False),
        ("llama_2bit", False),
        ("llama_planar_5bit", True),
        ("llama_int16_words", True),
        ("llama_int8_words", True),
        ("llama_lm_head", True),
        ("qwen2_dynamic", True),
        ("llama_autoround_mixed", True),
    ],
)
def test_gptq_that_gptqmodel_loads_and_transformers_does_not(case, missed, tmp_path):
    src = copy_fixture(tmp_path, f"gptq/{case}")
    assert bool(found(src, "QB234")) is missed
    report = qbridge.convert(src, tmp_path / "dst", "transformers", allow=["rounded"], dry_run=True)
    assert report.format == "compressed-tensors"


def test_linears_of_the_layers_that_a_list_leaves_out_are_unquantized(tmp_path):
    src = copy_fixture(tmp_path, "gptq/llama_v1_sym")
    down = "model.layers.0.mlp.down_proj"

    def plain(tensors):
        for name in [name for name in tensors if name.startswith(f"{down}.")]:
            del tensors[name]
        tensors[f"{down}.weight"] = np.zeros((128, 256), np.float16)

    rewrite_tensors(src, plain)
    assert places(found(src, "QB234")) == {down}
    others = [["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]]
    others.append(["mlp.gate_proj", "mlp.up_proj"])
    edit_quantization(src, lambda block: block.update(modules_in_block_to_quantize=others))
    assert not found(src, "QB234")


def test_asymmetric_experts_do_not_load():
    from qbridge.formats.rules import ModelRule
    from qbridge.ir.layer import Spec
    from qbridge.ir.scheme import Granularity, WeightScheme
    from qbridge.targets.registry import find_target

    target = find_target("transformers")
    rules = target.choice_of("compressed-tensors").rules
    (rule,) = [r for r in rules if r.code == "QB231" and isinstance(r, ModelRule)]

    def refused(symmetric):
        name = "model.layers.0.mlp.experts.0.down_proj"
        spec = Spec(name, 64, 64, WeightScheme(4, Granularity.GROUP, symmetric, group_size=32), DType.F16)
        return list(rule.check(Model("compressed-tensors", {}, {name: spec}, {}, {})))

    assert refused(False) and not refused(True)


# Lists, by names in memory

TOWER = "vision_tower.transformer.layers.0.attention.q_proj"
PROJECTOR, AUDIO = "multi_modal_projector.linear", "audio_tower.layers.0.fc1"
VISUAL = "visual.blocks.0.attn.proj"
CLIP = "vision_tower.vision_model.encoder.layers.0.mlp.fc1"
IN_MEMORY = "model.vision_tower.encoder.layers.0.mlp.fc1"
COMPRESSOR = "layers.0.attn.compressor.wkv"


@pytest.mark.parametrize(
    ("name", "stored", "method", "entries", "missed"),
    [
        ("Mistral3ForConditionalGeneration", TOWER, "compressed-tensors", ["re:vision_tower.*"], True),
        ("Mistral3ForConditionalGeneration", TOWER, "compressed-tensors", ["re:.*vision_tower.*"], False),
        ("Mistral3ForConditionalGeneration", TOWER, "compressed-tensors", [TOWER], True),
        ("Mistral3ForConditionalGeneration", TOWER, "compressed-tensors", [f"model.{TOWER}"], False),
        ("Qwen2_5_VLForConditionalGeneration", VISUAL, "compressed-tensors", ["re:visual.*"], True),
        ("Qwen2_5_VLForConditionalGeneration", VISUAL, "compressed-tensors", ["re:(.*[.])?visual.*"], False),
        ("LlavaNextVideoForConditionalGeneration", PROJECTOR, "compressed-tensors", [PROJECTOR], True),
        ("LlavaOnevisionForConditionalGeneration", PROJECTOR, "compressed-tensors", [f"model.{PROJECTOR}"], False),
        ("PaliGemmaForConditionalGeneration", PROJECTOR, "compressed-tensors", ["re:multi_modal.*"], True),
        ("Qwen2AudioForConditionalGeneration", AUDIO, "compressed-tensors", [AUDIO], True),
        ("Qwen2AudioForConditionalGeneration", AUDIO, "compressed-tensors", [f"model.{AUDIO}"], False),
        ("Cohere2VisionForConditionalGeneration", f"model.{CLIP}", "compressed-tensors", [f"model.{CLIP}"], True),
        ("Cohere2VisionForConditionalGeneration", f"model.{CLIP}", "compressed-tensors", [IN_MEMORY], False),
        ("MllamaForConditionalGeneration", "vision_model.x", "compressed-tensors", ["vision_model.x"], True),
        ("MllamaForConditionalGeneration", "vision_model.x", "compressed-tensors", ["model.vision_model.x"], False),
        ("Qwen2_5OmniThinkerForConditionalGeneration", AUDIO, "compressed-tensors", [AUDIO], True),
        ("Qwen2_5OmniThinkerForConditionalGeneration", AUDIO, "compressed-tensors", [f"model.{AUDIO}"], False),
        ("DeepseekV4ForCausalLM", COMPRESSOR, "compressed-tensors", [COMPRESSOR], True),
        ("DeepseekV4ForCausalLM", COMPRESSOR, "compressed-tensors", ["re:.*self_attn.compressor.kv_proj"], False),
        ("GPTNeoXForCausalLM", "gpt_neox.layers.0.attention.dense", "compressed-tensors", ["re:.*dense"], False),
        ("Mistral3ForConditionalGeneration", TOWER, "fp8", ["vision_tower"], False),
        ("Mistral3ForConditionalGeneration", TOWER, "fp8", ["model.vision_tower"], False),
        ("Mistral3ForConditionalGeneration", TOWER, "fp8", ["vision"], True),
        ("LlamaForCausalLM", "model.layers.0.mlp.down_proj", "fp8", ["down_proj"], False),
        ("LlamaForCausalLM", "model.layers.0.mlp.down_proj", "fp8", ["mlp.down"], True),
        ("LlamaForCausalLM", "model.layers.0.mlp.down_proj", "compressed-tensors", ["down_proj"], True),
    ],
)
def test_dense_linears_that_a_list_misses(name, stored, method, entries, missed):
    key = "modules_to_not_convert" if method == "fp8" else "ignore"
    block = {"quant_method": method, key: [*entries, "lm_head"]}
    block |= {"config_groups": {"group_0": {"targets": ["Linear"]}}} if method != "fp8" else {}
    config = {"architectures": [name], "num_hidden_layers": 1}
    tensors = {n: TensorInfo(DType.BF16, (64, 64), n) for n in (f"{stored}.weight", "lm_head.weight")}
    model = Model(method, config, {}, {"": {}}, tensors)
    said = {code: set(p.where) for code, p in DERIVATION.check({**config, "quantization_config": block}, model)}
    assert said == ({"QB280": {stored}} if missed else {})


@pytest.mark.parametrize(
    ("name", "stored"), [("GPTNeoXForCausalLM", "embed_out"), ("DeepseekV4ForCausalLM", "head"), ("X", "")]
)
@pytest.mark.parametrize("listed", ["lm_head", "embed_out", "head", "language_model.lm_head"])
def test_a_head_is_listed_as_in_memory(name, stored, listed):
    name = name if stored else "LlavaNextVideoForConditionalGeneration"
    stored = stored or "language_model.lm_head"
    block = {"quant_method": "compressed-tensors", "ignore": [listed]}
    block["config_groups"] = {"group_0": {"targets": ["Linear"]}}
    config = {"architectures": [name], "num_hidden_layers": 1}
    model = Model(
        "x", config, {}, {"": {}}, {f"{stored}.weight": TensorInfo(DType.BF16, (64, 64), f"{stored}.weight")}
    )
    said = {code: set(p.where) for code, p in DERIVATION.check({**config, "quantization_config": block}, model)}
    assert said == ({} if listed == "lm_head" else {"QB280": {stored}})


def test_a_tied_head_that_is_not_listed_is_built_quantized(tmp_path):
    src = copy_fixture(tmp_path, "compressed_tensors/qwen2_w4a16_tied")
    assert not found(src, "QB280")
    edit_quantization(src, lambda block: block.update(ignore=[]))
    assert places(found(src, "QB280")) == {"lm_head"}


@pytest.mark.parametrize(("place", "seen"), [("text_config", True), ("llm_config", False)])
def test_a_block_within_another_config(place, seen, tmp_path):
    src = copy_fixture(tmp_path, "fp8/llama_blocks")
    edit_json(
        src / "config.json", lambda c: c.update({place: {**c, "quantization_config": c.pop("quantization_config")}})
    )
    assert bool(found(src, "QB283")) is not seen


@pytest.mark.parametrize(
    ("name", "ignore", "missed"),
    [
        ("PhiMoEForCausalLM", ["model.layers.0.block_sparse_moe.gate"], True),
        ("PhimoeForCausalLM", ["re:.*gate$"], True),
        ("PhimoeForCausalLM", ["re:.*gate$", "model.layers.0.mlp.router"], False),
        ("PhiMoEForCausalLM", [r"re:.*\.router$"], False),
        ("MixtralForCausalLM", [], False),
    ],
)
def test_a_router_that_is_a_linear_in_memory_is_listed_under_its_name_there(name, ignore, missed):
    block = {"quant_method": "compressed-tensors", "ignore": [*ignore, "lm_head"]}
    block["config_groups"] = {"group_0": {"targets": ["Linear"]}}
    kind = name.removesuffix("ForCausalLM").lower()
    config = {"architectures": [name], "model_type": kind, "num_hidden_layers": 1}
    gate = "model.layers.0.block_sparse_moe.gate"
    tensors = {n: TensorInfo(DType.BF16, (64, 64), n) for n in (f"{gate}.weight", "lm_head.weight")}
    model = Model("compressed-tensors", config, {}, {"": {}}, tensors)
    said = {code: set(p.where) for code, p in DERIVATION.check({**config, "quantization_config": block}, model)}
    assert said == ({"QB280": {gate}} if missed else {})


@pytest.mark.parametrize("kind", ["baichuan", "minicpm", "internlm2", "nemotron-nas"])
@pytest.mark.parametrize("code", [None, {"AutoModelForCausalLM": "modeling_some.SomeForCausalLM"}])
def test_a_model_type_that_transformers_does_not_know_needs_code_of_the_repository(kind, code, tmp_path):
    src = copy_fixture(tmp_path, "gptq/llama_v1_sym")
    assert not found(src, "QB289")
    edit_json(src / "config.json", lambda c: c.update({"model_type": kind, **({"auto_map": code} if code else {})}))
    (finding,) = found(src, "QB289")
    assert finding.where == ("config.json",) and kind in facts([finding])
    assert finding.severity == (qbridge.Severity.WARNING if code else qbridge.Severity.ERROR)
    assert qbridge.check(src, "transformers").ok is bool(code)


@pytest.mark.parametrize(
    ("name", "case", "stops"),
    [
        ("FalconForCausalLM", "compressed_tensors/llama_w4a16", True),
        ("FalconForCausalLM", "compressed_tensors/llama_w8a8", False),
        ("LlamaForCausalLM", "compressed_tensors/llama_w4a16", False),
    ],
)
def test_a_class_that_initializes_weights_of_linears_loads_none_that_are_packed(name, case, stops, tmp_path):
    src = copy_fixture(tmp_path, case)
    edit_json(src / "config.json", lambda c: c.update(architectures=[name]))
    (severity,) = {f.severity for f in found(src, "QB290")} or {None}
    assert severity == (qbridge.Severity.ERROR if stops else None)


def test_a_tied_head_is_called_as_in_memory():
    config = {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "tie_word_embeddings": True,
    }
    groups = {"group_0": {"targets": ["Linear"]}}

    def said(*ignore):
        block = {"quant_method": "compressed-tensors", "config_groups": groups, "ignore": list(ignore)}
        model = Model("compressed-tensors", config, {}, {"": {}}, {})
        return {
            place for _, p in DERIVATION.check({**config, "quantization_config": block}, model) for place in p.where
        }

    assert said("proj_out") == set() and said("lm_head") == {"proj_out"}


@pytest.mark.parametrize("format_name", ["compressed-tensors", "fp8"])
@pytest.mark.parametrize(
    ("architecture", "router", "stops"),
    [
        ("MixtralForCausalLM", "model.layers.0.block_sparse_moe.gate", True),
        ("Qwen3MoeForCausalLM", "model.layers.0.mlp.gate", True),
        ("DeepseekV3ForCausalLM", "model.layers.3.mlp.gate", True),
        ("Qwen2MoeForCausalLM", "model.layers.0.mlp.gate", True),
        ("Qwen2MoeForCausalLM", "model.layers.0.mlp.shared_expert_gate", False),  # a Linear
        ("LlamaForCausalLM", "model.layers.0.mlp.gate_proj", False),
        ("JambaForCausalLM", "model.layers.0.feed_forward.router", False),  # a Linear
    ],
)
def test_routers_that_are_no_linear_are_built_unquantized(format_name, architecture, router, stops):
    weight = WeightScheme(8, Granularity.BLOCK, type="e4m3fn", block=(128, 128))
    specs = {router: Spec(router, 128, 128, weight, DType.F32)}
    model = Model(format_name, {"architectures": [architecture]}, specs, {}, {})
    (choice,) = (one for one in find_target("transformers").choices if format_name == one.format.NAME)
    (rule,) = (rule for rule in choice.rules if rule.code == "QB281")
    assert (rule.check(specs[router], model) is not None) == stops
