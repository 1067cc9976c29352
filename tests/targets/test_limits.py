"""Limits of engines on weight-only checkpoints: each code, where it is said and where it is not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import qbridge
from qbridge.formats.rules import LayerRule, ModelRule
from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.ir.scheme import Granularity, WeightScheme
from qbridge.passes.regroup import Regroup
from qbridge.targets.registry import find_target
from qbridge.targets.vllm import groups
from support import ROOT, copy_fixture, edit_json, facts, places, refusal, rewrite_tensors
from test_conversion import assert_same_tensors

# fixture, target, a code of the refusal
REFUSED = [
    ("gptq/llama_v2_asym", "vllm-gptq", "QB224"),
    ("gptq/llama_desc_act", "vllm", "QB224"),
    ("gptq/llama_planar_5bit", "vllm-gptq", "QB224"),
    ("gptq/llama_8bit", "lmdeploy-turbomind", "QB240"),
    ("auto_round/llama_6bit_asym", "lmdeploy-turbomind", "QB240"),
    ("compressed_tensors/llama_w3a16", "lmdeploy-turbomind", "QB240"),  # widened, and still no whole groups
    ("gptq/llama_desc_act", "lmdeploy-turbomind", "QB241"),
    ("auto_round/llama_regex", "lmdeploy-turbomind", "QB242"),
    ("compressed_tensors/llama_w4a16_unlike", "vllm", "QB221"),
    ("compressed_tensors/llama_w4a16_unlike", "vllm-gptq", "QB221"),
    ("auto_round/llama_mixed", "vllm", "QB221"),
    ("gptq/llama_v1_asym", "marlin", "QB112"),
    ("compressed_tensors/llama_w8a8", "gptqmodel", "QB232"),
]


@pytest.mark.parametrize(("case", "target", "code"), REFUSED)
def test_what_an_engine_does_not_serve_is_named(case, target, code, tmp_path):
    with pytest.raises(qbridge.QBridgeError) as caught:
        qbridge.convert(ROOT / "fixtures" / case / "model", tmp_path / "out", target)
    assert code in {f.code for f in caught.value.findings if f.severity == "error"}
    assert all(f.where for f in caught.value.findings) and not list(tmp_path.iterdir())


def test_a_scheme_that_no_pass_makes_legal_is_named_as_it_is_stored(tmp_path):
    src = copy_fixture(tmp_path, "compressed_tensors/llama_w8a8")
    [finding] = refusal(src, 1, "QB240", "lmdeploy-turbomind")["QB240"]
    assert len(finding.where) == 14 and "int8 symmetric per channel" in finding.facts[0]


def broken(target, code, model):
    """What the rules of this code say about a model, layer by layer or as a whole."""
    found = []
    for rule in find_target(target).rules:
        if rule.code == code:
            checked = [rule.check(spec, model) for spec in model.specs.values()] if hasattr(rule, "fix") else []
            found += checked or rule.check(model)
    return [problem for problem in found if problem]


def model_of(case) -> Model:
    with qbridge.open(ROOT / "fixtures" / case / "model") as opened:
        return opened.model


@pytest.mark.parametrize(
    ("case", "target", "code", "count"),
    [
        ("gptq/llama_channel", "lmdeploy", "QB215", 7),
        ("awq/llama_gemm_g128", "lmdeploy", "QB215", 0),
        ("compressed_tensors/llama_w4a16_mixed", "lmdeploy-turbomind", "QB243", 1),
        ("compressed_tensors/llama_w4a16", "lmdeploy-turbomind", "QB243", 0),
        ("gptq/llama_v2_asym", "lmdeploy-turbomind", "QB244", 1),
        ("gptq/llama_v1_sym", "lmdeploy-turbomind", "QB244", 0),
        ("awq/llama_gemm", "vllm", "QB225", 0),
    ],
)
def test_limits_that_another_choice_or_a_pass_gets_round(case, target, code, count):
    assert len(broken(target, code, model_of(case))) == count


@pytest.mark.parametrize("size", [32, 64, 128])
def test_groups_that_kernels_of_vllm_have_stay(size):
    weight = WeightScheme(4, Granularity.GROUP, group_size=size)
    spec = Spec("model.layers.0.mlp.down_proj", 512, 3 * 128, weight, DType.F16)
    model = Model("gptq", {"architectures": ["LlamaForCausalLM"]}, {spec.name: spec}, {}, {})
    for name in ("gptq", "compressed-tensors"):
        rules = find_target("vllm").choice_of(name).rules
        assert [rule.code for rule in rules if hasattr(rule, "fix") and rule.check(spec, model)] == []
    third = replace(spec, weight=replace(weight, group_size=3 * size))  # 96 has no kernel, and 32 divides it
    assert groups.common_group(third, model) == Regroup(size)


@pytest.mark.parametrize("case", ["gptq/llama_v1_sym", "gptq/llama_8bit"])
def test_gptq_of_4_and_8_bits_is_served_as_it_is(case):
    found = qbridge.check(ROOT / "fixtures" / case / "model", "vllm").findings
    assert "QB224" not in {finding.code for finding in found}


def test_marlin_of_older_vllm_takes_odd_multiples_of_its_tiles():
    done = qbridge.check(ROOT / "fixtures/gptq/llama_640/model", "vllm@0.23.0")
    assert {kernel.kernel for kernel in done.kernels if kernel.in_features == 640} == {"Marlin"}


def test_groups_of_32_are_served_by_turbomind_as_they_are():
    assert qbridge.check(ROOT / "fixtures/compressed_tensors/llama_w4a16/model", "lmdeploy-turbomind").ok


def test_one_bit_is_widened_for_vllm_which_reads_2_to_8(tmp_path):
    src = ROOT / "fixtures/compressed_tensors/llama_w1a16/model"
    assert "QB220" in {finding.code for finding in qbridge.check(src, "vllm").findings}
    qbridge.convert(src, tmp_path / "dst", "vllm")
    assert qbridge.check(tmp_path / "dst", "vllm").ok
    with qbridge.open(tmp_path / "dst") as opened:
        assert {spec.weight.bits for spec in opened.specs.values()} == {2}


def test_groups_of_256_are_split_for_the_kernels_of_vllm(tmp_path):
    import json

    from qbridge.formats.registry import find
    from qbridge.ir.dtypes import DType
    from qbridge.ir.layer import Spec
    from qbridge.ir.scheme import Granularity, WeightScheme
    from qbridge.testing.laws import write_model
    from qbridge.testing.strategies import random_layer

    name = "model.layers.0.mlp.down_proj"
    weight = WeightScheme(4, Granularity.GROUP, symmetric=False, group_size=256)
    layer = random_layer(Spec(name, 64, 512, weight, DType.F16), 0)
    write_model(tmp_path / "src", find("awq"), [layer], {"lm_head.weight": np.ones((4, 4), np.float16)})
    assert len(broken("vllm", "QB225", model_at(tmp_path / "src"))) == 1
    report = qbridge.convert(tmp_path / "src", tmp_path / "out", "vllm")
    assert (report.format, report.passes, report.exactness) == ("awq", {"regroup": 1}, {"equal": 1})
    assert qbridge.verify(tmp_path / "src", tmp_path / "out").same
    assert json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]["group_size"] == 128
    qbridge.convert(tmp_path / "out", tmp_path / "back", "awq")
    assert qbridge.verify(tmp_path / "src", tmp_path / "back").same


def model_at(folder) -> Model:
    with qbridge.open(folder) as opened:
        return opened.model


@pytest.mark.parametrize(("case", "said"), [("llama_gemm", True), ("llama_gemm_g128", False)])
def test_awq_that_one_engine_alone_loads_is_a_warning(case, said, tmp_path):
    report = qbridge.convert(ROOT / "fixtures/awq" / case / "model", tmp_path / "out", "lmdeploy")
    found = [f for f in report.findings if f.code == "QB216"]
    assert bool(found) is said and all(f.severity == "warning" for f in found)


@pytest.mark.parametrize(
    ("leaf", "said"), [("self_attn.o_proj", True), ("mlp.down_proj", True), ("mlp.up_proj", False)]
)
def test_bias_that_is_added_once_too_often_is_a_warning(leaf, said, tmp_path):
    src = copy_fixture(tmp_path, "awq/llama_gemm_g128")
    name = f"model.layers.0.{leaf}"
    rewrite_tensors(src, lambda t: t.update({f"{name}.bias": np.ones(t[f"{name}.scales"].shape[1], np.float16)}))
    report = qbridge.convert(src, tmp_path / "out", "lmdeploy")
    assert places(f for f in report.findings if f.code == "QB217") == ({name} if said else set())
    assert qbridge.verify(src, tmp_path / "out").same


def test_unlike_parts_of_a_fused_linear_are_said_with_their_schemes(tmp_path):
    src = copy_fixture(tmp_path, "compressed_tensors/llama_w4a16_unlike")
    found = refusal(src, 1, "QB221", "vllm")
    assert "int4" in facts(found["QB221"]) and any("_proj" in place for place in places(found["QB221"]))


def test_another_dtype_to_compute_in_is_a_warning_of_verify(tmp_path):
    src = copy_fixture(tmp_path, "compressed_tensors/llama_w4a16_g128")
    edit_json(src / "config.json", lambda config: config.update(dtype="float32", torch_dtype="float32"))
    qbridge.convert(src, tmp_path / "out", "lmdeploy")
    found = qbridge.verify(src, tmp_path / "out")
    assert found.same
    assert [(f.code, str(f.severity), f.facts) for f in found.findings] == [
        ("QB505", "warning", ("'float32' and 'float16'",))
    ]


@pytest.mark.parametrize(
    "case",
    [
        "gptq/qwen2_tied",
        "compressed_tensors/qwen2_w4a16_tied",
        "gptq/qwen3_moe_v1_sym",
        "compressed_tensors/qwen3_moe_w4a16",
    ],
)
@pytest.mark.parametrize("target", ["awq", "gptq-v2", "auto-round", "lmdeploy", "lmdeploy-turbomind", "vllm"])
def test_tied_embeddings_and_experts_go_there_and_come_back(case, target, tmp_path):
    source = ROOT / "fixtures" / case / "model"
    report = qbridge.convert(source, tmp_path / "there", target)
    assert qbridge.verify(source, tmp_path / "there").same
    qbridge.convert(tmp_path / "there", tmp_path / "back", report.source_format)
    assert_same_tensors(source, tmp_path / "back")


@pytest.mark.parametrize(
    ("case", "ok"),
    [
        ("gptq/llama_v1_sym", True),
        ("gptq/llama_v1_asym", True),  # by GPTQModel itself
        ("gptq/llama_v2_asym", True),
        ("gptq/llama_autogptq_asym", False),
        ("gptq/llama_desc_act", True),
        ("gptq/llama_planar_5bit", True),
        ("awq/llama_gemm", True),
        ("awq/llama_gptqmodel_8bit", True),
    ],
)
def test_gptqmodel_is_asked_for_a_checkpoint_as_it_is(case, ok):
    done = qbridge.check(ROOT / "fixtures" / case / "model", "gptqmodel", allow=["v1-zeros-wrap"])
    assert done.ok == ok and [f.code for f in done.findings if f.severity == "error"] == ([] if ok else ["QB232"])


def test_gptqmodel_keeps_awq_and_gets_gptq_of_all_else(tmp_path):
    for number, (case, format) in enumerate(
        [("awq/llama_gemm", "awq"), ("compressed_tensors/llama_w4a16_asym", "gptq")]
    ):
        out = tmp_path / str(number)
        assert qbridge.convert(ROOT / "fixtures" / case / "model", out, "gptqmodel").format == format
        assert qbridge.check(out, "gptqmodel").ok


@pytest.mark.parametrize(
    ("format", "size", "inputs", "becomes"),
    [
        ("gptq", 2048, 8192, 1024),
        ("gptq", 1024, 8192, None),
        ("gptq", 96, 192, 32),
        ("gptq", 128, 10944, None),  # the last group is short
        ("gptq", 8, 128, False),
        ("awq", 256, 512, 128),
        ("awq", 512, 512, None),
        ("awq", 128, 10944, 64),
    ],
)
def test_groups_that_gptqmodel_has_no_kernel_for(format, size, inputs, becomes):
    spec = Spec("m", 8, inputs, WeightScheme(4, Granularity.GROUP, group_size=size), DType.F16)
    model = Model(format, {}, {"m": spec}, {}, {})
    (choice,) = (choice for choice in find_target("gptqmodel").choices if format == choice.format.NAME)
    said = [rule for rule in choice.rules if isinstance(rule, LayerRule) and rule.check(spec, model)]
    assert [rule.code for rule in said] == ([] if becomes is None else ["QB232"])
    if said:
        assert said[0].fix(spec, model) == (Regroup(becomes) if becomes else None)


@pytest.mark.parametrize(
    ("format_name", "target", "size", "rows", "dtype", "code", "mild"),
    [
        ("compressed-tensors", "vllm", 256, 512, "bfloat16", "QB226", False),  # Humming has any group: a note
        ("compressed-tensors", "vllm@0.23", 256, 512, "bfloat16", "QB220", False),
        ("awq", "vllm", 256, 512, "float16", "QB225", True),  # CUDA's awq_gemm
        ("awq", "vllm", 256, 512, "bfloat16", "QB225", False),
        ("awq", "vllm", 256, 384, "float16", "QB225", False),
    ],
)
def test_large_groups_are_split_and_refused_only_where_no_kernel_has_them(
    format_name, target, size, rows, dtype, code, mild
):
    weight = WeightScheme(4, Granularity.GROUP, format_name != "awq", group_size=size)
    spec = Spec("model.layers.0.mlp.down_proj", rows, 512, weight, DType.F16)
    config = {"architectures": ["LlamaForCausalLM"], "torch_dtype": dtype}
    model = Model(format_name, config, {spec.name: spec}, {}, {})
    rules = find_target(target).choice_of(format_name).rules
    said = [(rule, problem) for rule in rules if hasattr(rule, "fix") and (problem := rule.check(spec, model))]
    assert [(rule.code, problem.mild) for rule, problem in said] == [(code, mild)]
    assert said[0][0].fix(spec, model) == Regroup(128)


@pytest.mark.parametrize(("size", "fix"), [(256, Regroup(128)), (48, None)])
def test_a_short_last_group_is_refused_where_it_is_not_split(size, fix):
    weight = WeightScheme(4, Granularity.GROUP, group_size=size)
    spec = Spec("model.layers.0.mlp.down_proj", 512, 640, weight, DType.F16)
    model = Model("compressed-tensors", {"architectures": ["LlamaForCausalLM"]}, {spec.name: spec}, {}, {})
    rules = find_target("vllm").choice_of("compressed-tensors").rules
    (rule,) = [rule for rule in rules if rule.code == "QB220" and hasattr(rule, "fix") and rule.check(spec, model)]
    assert rule.fix(spec, model) == fix


@pytest.mark.parametrize(
    ("bits", "symmetric", "size", "dtype", "served"),
    [
        (4, True, 16, "bfloat16", True),  # Humming
        (3, False, 16, "bfloat16", True),
        (4, True, 8, "bfloat16", False),
        (4, True, 8, "float16", True),  # Exllama
        (4, False, 8, "float16", False),
    ],
)
def test_small_groups_that_no_kernel_of_vllm_has(bits, symmetric, size, dtype, served):
    weight = WeightScheme(bits, Granularity.GROUP, symmetric, group_size=size)
    spec = Spec("model.layers.0.mlp.down_proj", 512, 512, weight, DType.F16)
    config = {"architectures": ["LlamaForCausalLM"], "torch_dtype": dtype}
    model = Model("compressed-tensors", config, {spec.name: spec}, {}, {})
    rules = find_target("vllm").choice_of("compressed-tensors").rules
    said = [rule for rule in rules if rule.code == "QB220" and hasattr(rule, "fix") and rule.check(spec, model)]
    assert (not said) is served


@pytest.mark.parametrize(
    ("architecture", "target", "refused"),
    [
        ("Qwen3MoeForCausalLM", "vllm", True),
        ("Qwen3VLMoeForConditionalGeneration", "vllm", True),
        ("MixtralForCausalLM", "vllm", False),  # its class splits each expert and counts none
        ("Qwen3MoeForCausalLM", "lmdeploy", False),  # experts are counted for expert parallelism alone
    ],
)
def test_more_ranks_than_experts_are_refused_where_the_class_counts_them(architecture, target, refused):
    sizes = {"hidden_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 128}
    sizes |= {"num_hidden_layers": 1, "num_experts": 4, "num_local_experts": 4, "moe_intermediate_size": 1024}
    sizes |= {"vocab_size": 1024, "intermediate_size": 1024}
    model = Model("compressed-tensors", {"architectures": [architecture], **sizes}, {}, {}, {})
    found = find_target(target)
    choice = found.choices[0]
    facts = {
        tp: [
            fact
            for rule in found.limits(choice, (tp,))
            if rule.code == "QB250" and isinstance(rule, ModelRule)
            for problem in rule.check(model)
            for fact in problem.facts
        ]
        for tp in (4, 8)
    }
    assert facts[4] == []
    assert [fact for fact in facts[8] if "routed experts" in fact] == (
        ["4 routed experts, and the class wants no more ranks than experts (tp 8)"] if refused else []
    )
