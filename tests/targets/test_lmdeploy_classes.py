"""LMDeploy: which model classes it has, and what it builds from the quantization block."""

from __future__ import annotations

import json

import numpy as np
import pytest

import qbridge
from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.ir.scheme import Granularity, WeightScheme
from qbridge.ir.slots import PLAIN, Slot
from qbridge.targets.lmdeploy.awq import OLD_RULES, best_group
from qbridge.targets.lmdeploy.classes import ARCHITECTURES, REMOVED, TURBOMIND_ARCHITECTURES
from qbridge.targets.registry import find_target
from support import copy_fixture, edit_json, edit_quantization, facts, places, refusal, rewrite_tensors

W8A8 = "compressed_tensors/llama_w8a8_rope"
W4A16 = "compressed_tensors/llama_w4a16"


def of_class(folder, *names, **keys):
    edit_json(folder / "config.json", lambda config: config.update(architectures=list(names), **keys))
    return folder


def refusals(folder, target):
    return [f for f in qbridge.check(folder, target).findings if f.code == "QB204"]


@pytest.mark.parametrize("case", [W8A8, "awq/llama_gemm"])
@pytest.mark.parametrize("name", ["MambaForCausalLM", "GraniteForCausalLM"])
def test_a_class_that_it_never_had_stops_it(name, case, tmp_path):
    src = of_class(copy_fixture(tmp_path, case), name)
    assert "QB204" in refusal(src, 1, "QB204")
    found = refusals(src, "lmdeploy")
    assert {f.severity for f in found} == {"error"} and places(found) == {name} and "class" in facts(found)


@pytest.mark.parametrize("name", ["BaichuanForCausalLM", "MllamaForConditionalGeneration"])
def test_a_class_that_it_removed_stops_it_with_its_own_words(name, tmp_path):
    src = of_class(copy_fixture(tmp_path, "awq/llama_gemm"), name)
    found = refusals(src, "lmdeploy")
    assert {f.severity for f in found} == {"error"} and "has been removed" in facts(found)


def test_what_was_removed_is_served_by_the_version_that_had_it(tmp_path):
    src = of_class(copy_fixture(tmp_path, "compressed_tensors/llama_w8a8"), "BaichuanForCausalLM")
    qbridge.convert(src, tmp_path / "dst", "lmdeploy@0.6.2", allow=["incomplete"])
    assert not refusals(tmp_path / "dst", "lmdeploy@0.6.2")


@pytest.mark.parametrize("name", ["Qwen3_5ForConditionalGeneration", "Qwen3_5MoeForConditionalGeneration", "X"])
def test_a_class_that_the_older_transformers_does_not_know_is_warned_of(name, tmp_path):
    src = of_class(copy_fixture(tmp_path, W4A16), name)
    found = [finding for finding in qbridge.check(src, "lmdeploy").findings if finding.code == "QB248"]
    assert {finding.severity for finding in found} == (set() if name == "X" else {"warning"})


def test_the_class_of_remote_code_comes_first(tmp_path):
    src = of_class(
        copy_fixture(tmp_path, "awq/llama_gemm"), "LlamaForCausalLM", auto_map={"AutoModelForCausalLM": "x.Y"}
    )
    assert places(refusals(src, "lmdeploy")) == {"Y"}
    of_class(src, "Unheard", auto_map={"AutoModelForCausalLM": "remote.LlamaForCausalLM"})
    assert not refusals(src, "lmdeploy")


@pytest.mark.parametrize("target", ["lmdeploy", "lmdeploy-turbomind"])
@pytest.mark.parametrize(("name", "folds"), [("Glm4MoeLiteForCausalLM", True), ("LlamaForCausalLM", False)])
def test_projections_that_turbomind_folds_into_others_are_not_quantized(name, folds, target, tmp_path):
    src = of_class(copy_fixture(tmp_path, "awq/llama_gemm"), name)
    found = [f for f in qbridge.check(src, target).findings if f.code == "QB246"]
    assert {f.severity for f in found} == ({"error"} if folds else set())
    assert all(name.endswith("o_proj") for f in found for name in f.where)


@pytest.mark.parametrize("case", [W8A8, "awq/llama_gemm"])
@pytest.mark.parametrize(
    ("name", "unseen"),
    [
        ("Gemma3ForConditionalGeneration", True),
        ("LlavaForConditionalGeneration", True),
        ("LlavaNextForConditionalGeneration", True),
        ("InternVLForConditionalGeneration", False),
        ("Gemma3ForCausalLM", False),
    ],
)
def test_a_text_model_that_is_built_without_the_block_is_not_quantized(name, unseen, case, tmp_path):
    src = of_class(copy_fixture(tmp_path, case), name)
    if unseen:
        with pytest.raises(qbridge.QBridgeError, match="QB245"):
            qbridge.convert(src, tmp_path / "dst", "lmdeploy", allow=["incomplete"])
    if case == W8A8:  # which the engine takes as no such format
        return
    found = [f for f in qbridge.check(src, "lmdeploy").findings if f.code == "QB245"]
    assert [(f.severity, f.where) for f in found] == ([("error", (name,))] if unseen else [])


def test_any_of_its_classes_will_do(tmp_path):
    src = of_class(copy_fixture(tmp_path, "awq/llama_gemm"), "Unheard", "LlamaForCausalLM")
    assert not refusals(src, "lmdeploy")


def test_the_tables_share_no_class_with_what_was_removed():
    assert REMOVED.isdisjoint(ARCHITECTURES["0.18.0"]) and ARCHITECTURES["0.18.0"] >= TURBOMIND_ARCHITECTURES


@pytest.mark.parametrize("target", ["lmdeploy", "lmdeploy-turbomind"])
def test_where_turbomind_alone_loads_its_classes_decide(target, tmp_path):
    src = of_class(copy_fixture(tmp_path, W4A16), "Phi3ForCausalLM")
    found = [f for f in qbridge.check(src, target).findings if f.code == "QB204"]
    assert {f.severity for f in found} == {"error"} and "TurboMind" in facts(found)


# Which linears it builds quantized


@pytest.mark.parametrize(
    "module",
    [
        "model.layers.2.self_attn.q_proj",
        "model.mtp.layers.0.mlp.down_proj",
        "model.layers.0.self_attn.indexer.weights_proj",
        "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj",
        "vpm.encoder.layers.0.self_attn.q_proj",
        "multi_modal_projector.layers.0.up_proj",
    ],
)
def test_drafts_and_towers_are_none_of_its_quantized_linears(module, tmp_path):
    src = copy_fixture(tmp_path, W8A8)
    rewrite_tensors(src, lambda tensors: tensors.update({f"{module}.weight": np.ones((64, 64), np.float16)}))
    edit_json(src / "config.json", lambda config: config["quantization_config"]["ignore"].append(module))
    qbridge.convert(src, tmp_path / "dst", "lmdeploy")


@pytest.mark.parametrize("module", ["model.layers.0.mlp.down_proj", "model.layers.1.self_attn.q_proj"])
def test_a_dense_linear_of_the_decoder_is_one(module, tmp_path):
    src = copy_fixture(tmp_path, W8A8)

    def undone(tensors):
        shape = tensors.pop(f"{module}.weight").shape
        tensors.pop(f"{module}.weight_scale")
        tensors[f"{module}.weight"] = np.ones(shape, np.float16)

    rewrite_tensors(src, undone)
    edit_json(src / "config.json", lambda config: config["quantization_config"]["ignore"].append(module))
    assert places(refusal(src, 1, "QB201")["QB201"]) == {module}


# Its list, and where it looks for the block


def derived(folder, target="lmdeploy"):
    found = {}
    for finding in qbridge.check(folder, target).findings:
        if finding.code in ("QB280", "QB281", "QB283", "QB284"):
            found.setdefault(finding.code, set()).update(finding.where)
    return found


def edit_list(folder, fn):
    edit_quantization(folder, lambda block: block.update(modules_to_not_convert=fn(block["modules_to_not_convert"])))


def test_what_convert_lists_is_what_it_matches(tmp_path):
    src = copy_fixture(tmp_path, "compressed_tensors/qwen3_partial")
    dst = tmp_path / "dst"
    qbridge.convert(src, dst, "lmdeploy")
    assert qbridge.check(dst, "lmdeploy").ok
    dense = sorted(qbridge.inspect(dst).unquantized_linears)
    edit_list(dst, lambda entries: [])
    missed = derived(dst)["QB280"]
    assert missed and missed <= set(dense)
    edit_list(dst, lambda entries: [".".join(name.split(".")[-2:]) for name in missed])  # shorter than its names
    assert derived(dst)["QB280"] == missed


def test_an_entry_that_holds_the_name_of_what_is_quantized(tmp_path):
    src, dst = copy_fixture(tmp_path, "compressed_tensors/qwen3_w8a8"), tmp_path / "dst"
    qbridge.convert(src, dst, "lmdeploy")
    assert not derived(dst)
    edit_quantization(dst, lambda block: block.update(modules_to_not_convert=["x.model.layers.0.mlp.down_proj.y"]))
    assert derived(dst) == {"QB281": {"model.layers.0.mlp.down_proj"}}


@pytest.mark.parametrize(("fmt", "known"), [("e4m3", True), ("float8_e4m3fn", False)])
def test_words_for_float8_that_it_knows(fmt, known, tmp_path):
    src = copy_fixture(tmp_path, "fp8/llama_lmdeploy_block")
    edit_quantization(src, lambda block: block.update(fmt=fmt))
    assert derived(src) == ({} if known else {"QB284": {"quantization_config.fmt"}})


@pytest.mark.parametrize("target", ["lmdeploy", "lmdeploy-turbomind", "lmdeploy@0.6.2"])
@pytest.mark.parametrize(("version", "key"), [("gemm", ""), ("GEMM", "version"), (None, "version")])
def test_versions_of_awq_that_turbomind_asserts_and_convert_writes(version, key, target, tmp_path):
    src, dst = copy_fixture(tmp_path, "awq/llama_gemm_g128"), tmp_path / "dst"
    edit_quantization(
        src, lambda block: block.pop("version") and block.update({"version": version} if version else {})
    )
    assert derived(src, target) == ({"QB284": {f"quantization_config.{key}"}} if key else {})
    qbridge.convert(src, dst, target, allow=["rounded"])
    assert derived(dst, target) == {}


def test_flags_of_gptq_that_turbomind_asserts(tmp_path):
    src = copy_fixture(tmp_path, "gptq/llama_g128")
    edit_quantization(src, lambda block: block.update(desc_act=True, sym=False))
    wanted = {"QB284": {"quantization_config.desc_act", "quantization_config.sym"}}
    assert derived(src, "lmdeploy-turbomind") == wanted


def test_awq_in_another_layout_is_taken_for_gemm(tmp_path):
    src = copy_fixture(tmp_path, "awq/llama_gemv")
    of_class(src, "GemmaForCausalLM")  # the PyTorch engine's alone
    assert derived(src) == {"QB284": {"quantization_config.version"}}


@pytest.mark.parametrize(("place", "seen"), [("text_config", True), ("llm_config", True), ("language_config", False)])
def test_a_block_within_another_config(place, seen, tmp_path):
    src = copy_fixture(tmp_path, "fp8/llama_lmdeploy_block")
    edit_json(
        src / "config.json", lambda c: c.update({place: {**c, "quantization_config": c.pop("quantization_config")}})
    )
    of_class(src, "MistralForCausalLM")
    assert ("QB283" in derived(src)) is not seen


def test_an_older_key_is_seen_by_neither_engine(tmp_path):
    src = copy_fixture(tmp_path, W4A16)
    edit_json(src / "config.json", lambda c: c.update(compression_config=c.pop("quantization_config")))
    assert derived(src).keys() == derived(src, "lmdeploy-turbomind").keys() == {"QB283"}


@pytest.mark.parametrize("target", ["lmdeploy", "lmdeploy-turbomind"])
def test_turbomind_asks_a_group_for_its_format(target, tmp_path):
    src, dst = copy_fixture(tmp_path, "compressed_tensors/llama_w4a16_g128"), tmp_path / "dst"
    edit_quantization(src, lambda block: block["config_groups"]["group_0"].update(format="pack-quantized"))
    assert "QB284" not in derived(src, target)
    edit_quantization(src, lambda block: block["config_groups"]["group_0"].pop("format") and None)
    assert derived(src, target) == {"QB284": {"quantization_config.config_groups.group_0.format"}}
    qbridge.convert(src, dst, target, allow=["rounded"])
    assert "QB284" not in derived(dst, target)


def test_gptq_is_turbominds_and_never_written_for_lmdeploy(tmp_path):
    src = copy_fixture(tmp_path, "gptq/llama_g128")
    codes = {f.code for f in qbridge.check(src, "lmdeploy").findings}
    assert "QB260" not in codes and "QB216" in codes
    assert qbridge.convert(src, tmp_path / "dst", "lmdeploy", dry_run=True, allow=["rounded"]).format == "awq"
    of_class(src, "GPTNeoXForCausalLM")
    assert "QB204" in {f.code for f in qbridge.check(src, "lmdeploy").findings}


@pytest.mark.parametrize(
    ("name", "size", "refused"),
    [
        ("MixtralForCausalLM", 128, False),
        ("MixtralForCausalLM", 32, True),
        ("PhiMoEForCausalLM", 128, True),  # a class of the PyTorch engine alone, which has no experts in AWQ
    ],
)
def test_experts_in_awq_are_turbominds_alone(name, size, refused):
    weight = WeightScheme(4, Granularity.GROUP, symmetric=False, group_size=size)
    expert = "model.layers.0.block_sparse_moe.experts.0.w1"
    model = Model("awq", {"architectures": [name]}, {expert: Spec(expert, 64, 128, weight, DType.F16)}, {}, {})
    (choice,) = (choice for choice in find_target("lmdeploy").choices if choice.format.NAME == "awq")
    (rule,) = (rule for rule in choice.rules if rule.code == "QB218")
    assert [problem.where for problem in rule.check(model)] == ([(expert,)] if refused else [])


@pytest.mark.parametrize(
    ("name", "module", "method", "refused"),
    [
        ("Qwen2MoeForCausalLM", "mlp.experts.0.up_proj", "smooth_quant", True),
        ("Qwen2MoeForCausalLM", "mlp.experts.0.up_proj", "awq", False),  # TurboMind's
        ("Qwen2MoeForCausalLM", "mlp.shared_expert.up_proj", "smooth_quant", False),
        ("Qwen3MoeForCausalLM", "mlp.experts.0.up_proj", "smooth_quant", False),
        ("DeepseekForCausalLM", "mlp.experts.0.up_proj", "fp8", True),
        ("MiniCPM3ForCausalLM", "self_attn.kv_b_proj", "awq", True),
        ("MiniCPM3ForCausalLM", "mlp.up_proj", "awq", False),
        ("PhiMoEForCausalLM", "block_sparse_moe.experts.0.w1", "smooth_quant", True),
        ("Qwen3NextForCausalLM", "linear_attn.out_proj", "fp8", True),
    ],
)
def test_linears_that_a_class_builds_without_the_block_are_refused(name, module, method, refused):
    config = {"architectures": [name], "quantization_config": {"quant_method": method, "version": "gemm"}}
    module = f"model.layers.0.{module}"
    model = Model(method, config, {}, {module: {"code": Slot(f"{module}.weight", DType.I8, (8, 8), PLAIN)}}, {})
    derivation = find_target("lmdeploy").derivation
    said = {code: set(problem.where) for code, problem in derivation.check(config, model)}
    assert said == ({"QB281": {module}} if refused else {})


@pytest.mark.parametrize("allow", [(), ("dequantized",)])
def test_no_word_lets_codes_pass_where_the_class_has_weights(allow, tmp_path):
    src = of_class(copy_fixture(tmp_path, "compressed_tensors/llama_fp8_block"), "MiniCPM3ForCausalLM")
    with pytest.raises(qbridge.QBridgeError) as caught:
        qbridge.convert(src, tmp_path / "dst", "lmdeploy", allow=[*allow, "unknown-tensors", "incomplete"])
    assert "QB281" in {finding.code for finding in caught.value.findings if finding.severity == "error"}


# k and v are as wide as one head, whose outputs are half a group.


def with_one_kv_head(tmp_path, name, outputs):
    """AWQ in groups of 128 whose k_proj and v_proj have fewer outputs, of a class of LMDeploy."""
    src = of_class(copy_fixture(tmp_path, "awq/llama_gemm_g128"), name)
    heads = {"num_attention_heads": 128 // outputs, "num_key_value_heads": 1, "head_dim": outputs}
    edit_json(src / "config.json", lambda c: c.update(heads))

    def narrowed(tensors):
        for key in [key for key in tensors if ".k_proj." in key or ".v_proj." in key]:
            tensors[key] = tensors[key][..., : outputs // (1 if key.endswith("scales") else 8)].copy()

    rewrite_tensors(src, narrowed)
    return src


@pytest.mark.parametrize(("outputs", "size"), [(64, 64), (32, 32), (128, 128)])
def test_outputs_of_parts_of_a_linear_are_whole_groups_of_the_pytorch_engine(outputs, size, tmp_path):
    """It cuts the parts of q, k, v and of gate, up into whole groups on one GPU, too: AssertionError."""
    src, dst = with_one_kv_head(tmp_path, "MistralForCausalLM", outputs), tmp_path / "dst"
    found = [f for f in qbridge.check(src, "lmdeploy").findings if f.code == "QB215"]
    assert bool(found) is (size != 128) and all(f"{outputs} outputs" in facts([f]) for f in found)
    qbridge.convert(src, dst, "lmdeploy", allow=["incomplete"])
    assert json.loads((dst / "config.json").read_text())["quantization_config"]["group_size"] == size
    assert qbridge.check(dst, "lmdeploy").ok
    assert qbridge.verify(src, dst, allow=["incomplete"]).same


def test_a_class_of_turbomind_keeps_its_groups(tmp_path):
    """TurboMind cuts nothing on one GPU, and has groups of 128 alone; the other engine is named as one that stops."""
    src, dst = with_one_kv_head(tmp_path, "LlamaForCausalLM", 64), tmp_path / "dst"
    done = qbridge.check(src, "lmdeploy")
    assert done.ok and "64 outputs" in facts([f for f in done.findings if f.code == "QB216"])
    qbridge.convert(src, dst, "lmdeploy")
    assert json.loads((dst / "config.json").read_text())["quantization_config"]["group_size"] == 128


@pytest.mark.parametrize(
    ("leaf", "outputs", "size"),
    [
        ("qkv_proj", 4 * 128 + 2 * 64, 64),  # 4 heads of 64 and 1 of k and v, stored as one
        ("gate_up_proj", 2 * 96, 32),
        ("o_proj", 96, 128),  # it is cut by its inputs alone
        ("kv_b_proj", 96, 128),  # it is cut only where there are several ranks
    ],
)
def test_parts_of_linears_that_are_stored_as_one_are_whole_groups_too(leaf, outputs, size):
    name = f"model.layers.0.self_attn.{leaf}"
    weight = WeightScheme(4, Granularity.GROUP, symmetric=False, group_size=128)
    config = {"architectures": ["Phi3ForCausalLM"], "num_attention_heads": 8, "num_key_value_heads": 1}
    model = Model("awq", config, {name: Spec(name, outputs, 256, weight, DType.F16)}, {}, {})
    assert best_group(model) == size


@pytest.mark.parametrize(("outputs", "size"), [(64, 64), (128, 128)])
@pytest.mark.parametrize("name", ["LlamaForCausalLM", "GemmaForCausalLM"])
def test_the_older_release_takes_awq_in_groups_that_divide_outputs(name, outputs, size, tmp_path):
    """Its TurboMind has no heads of 64 in Llama, and its PyTorch engine cuts as the newer one does."""
    src, dst = with_one_kv_head(tmp_path, name, outputs), tmp_path / "dst"
    edit_json(src / "config.json", lambda c: c.pop("head_dim") and None)
    report = qbridge.convert(src, dst, "lmdeploy@0.6.2", allow=["incomplete"])
    config = json.loads((dst / "config.json").read_text())
    block = config["quantization_config"]
    assert report.format == "awq" and (block["group_size"], block["version"]) == (size, "gemm")
    assert qbridge.check(dst, "lmdeploy@0.6.2").ok is True
    assert qbridge.verify(src, dst, allow=["incomplete"]).same
    assert qbridge.check(src, "lmdeploy@0.6.2").ok is (size == 128)


def test_ranks_of_the_older_release_hold_whole_groups_of_outputs(tmp_path):
    src, dst = copy_fixture(tmp_path, "awq/llama_gemm_g128"), tmp_path / "dst"
    assert "QB251" in {f.code for f in qbridge.check(src, "lmdeploy@0.6.2", tp=2).findings}
    qbridge.convert(src, dst, "lmdeploy@0.6.2", tp=2)
    assert json.loads((dst / "config.json").read_text())["quantization_config"]["group_size"] == 64
    assert qbridge.check(dst, "lmdeploy@0.6.2", tp=2).ok


@pytest.mark.parametrize(
    ("outputs", "group", "fact"),
    [
        ({"q_proj": 128, "k_proj": 32, "v_proj": 32, "o_proj": 256}, 32, ""),  # q, k and v are one linear of 192
        ({"q_proj": 256, "k_proj": 256, "v_proj": 256, "o_proj": 256}, 16, "takes 32 inputs"),
        ({"q_proj": 128, "k_proj": 32, "v_proj": 64, "o_proj": 256}, 32, "224 outputs"),
        ({"o_proj": 96}, 32, "96 outputs"),
        ({"o_proj": 192}, 128, "groups of 64"),
    ],
)
def test_the_kernel_of_the_older_release_has_its_shapes(outputs, group, fact):
    """AutoAWQ's: groups of 32 or more, outputs in whole groups and in 64s, of the linears that are built."""
    weight = WeightScheme(4, Granularity.GROUP, symmetric=False, group_size=group)
    names = {f"model.layers.0.self_attn.{leaf}": count for leaf, count in outputs.items()}
    specs = {name: Spec(name, count, 256, weight, DType.F16) for name, count in names.items()}
    model = Model("awq", {"architectures": ["LlamaForCausalLM"]}, specs, {}, {})
    problems = [OLD_RULES[0].check(spec, model) for spec in specs.values()]
    found = " ".join(" ".join(problem.facts) for problem in problems if problem)
    assert fact in found and bool(found) is bool(fact)


TOWERS = [
    ("Qwen2_5_VLForConditionalGeneration", {"hidden_size": 128, "num_heads": 4}, True),
    ("Qwen2_5_VLForConditionalGeneration", {"hidden_size": 1280, "num_heads": 16}, False),
    ("Qwen2_5_VLForConditionalGeneration", {"num_heads": 16}, True),  # transformers' default is 3584
    ("Qwen2_5_VLForConditionalGeneration", {"hidden_size": "1280", "num_heads": 16}, True),
    ("Qwen2VLForConditionalGeneration", {"embed_dim": 1280, "num_heads": 16, "hidden_size": 3584}, False),
    ("Qwen2VLForConditionalGeneration", {"embed_dim": 1152, "num_heads": 16}, True),
    ("Qwen3_5ForConditionalGeneration", {"hidden_size": 1152, "num_heads": 16}, False),
    ("Qwen3_5MoeForConditionalGeneration", {"hidden_size": 1280, "num_heads": 16}, True),
    ("InternVLChatModel", {"hidden_size": 3200, "num_attention_heads": 25}, False),
    ("InternVLForConditionalGeneration", {"hidden_size": 1280, "num_attention_heads": 16}, True),
    ("Qwen3VLForConditionalGeneration", {"hidden_size": 128, "num_heads": 4}, False),  # none of TurboMind's
]


@pytest.mark.parametrize(("name", "vision", "odd"), TOWERS)
def test_turbomind_has_no_attention_for_other_heads_of_a_tower(name, vision, odd, tmp_path):
    src = of_class(copy_fixture(tmp_path, "awq/llama_gemm_g128"), name, vision_config=vision)
    found = [f for f in qbridge.check(src, "lmdeploy-turbomind").findings if f.code == "QB249"]
    assert [(f.severity, f.where) for f in found] == ([("error", ("vision_config",))] if odd else [])
    both = [f for f in qbridge.check(src, "lmdeploy").findings if f.code in ("QB249", "QB216")]
    starts = any("--backend pytorch" in text for f in both for text in f.help)
    assert all(f.code == "QB216" for f in both) and starts == odd  # LMDeploy would pick TurboMind


def test_an_output_for_odd_heads_is_served_by_the_other_engine(tmp_path):
    name, vision = "Qwen2_5_VLForConditionalGeneration", {"hidden_size": 128, "num_heads": 4}
    src = of_class(copy_fixture(tmp_path, "awq/llama_gemm_g128"), name, vision_config=vision)
    done = qbridge.convert(src, tmp_path / "dst", "lmdeploy", allow=["incomplete"])
    assert "--backend pytorch" in done.serve
    with pytest.raises(qbridge.QBridgeError, match="QB249"):
        qbridge.convert(src, tmp_path / "other", "lmdeploy-turbomind", allow=["incomplete"])
