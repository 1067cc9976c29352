"""ModelOpt's checkpoints for vLLM: which stay as they are, and what is said of the others."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import qbridge
from qbridge.formats.rules import LayerRule, ModelRule
from qbridge.ir.dtypes import DType
from qbridge.ir.model import TensorInfo
from qbridge.ir.scheme import Granularity
from qbridge.targets.vllm import modelopt
from support import ROOT, SINGLE, copy_fixture, edit_json
from test_conversion import assert_same_tensors, config

FIXTURES = ROOT / "fixtures/modelopt"
SERVED = ["llama_fp8_channel", "llama_mixed", "llama_mxfp8", "llama_nvfp4", "llama_w4a16_nvfp4", "qwen3_moe_nvfp4"]
REPEATED = ["llama_fp8", "llama_fp8_kv"]  # q, k, v and gate, up have unlike scales


def model_of(case):
    with qbridge.open(FIXTURES / case / "model") as opened:
        return opened.model


def broken(model):
    """{code: names} of the layers and models that the rules of vLLM refuse or warn about."""
    found = {}
    for rule in modelopt.RULES:
        if isinstance(rule, LayerRule):
            problems = [(problem, (name,)) for name, s in model.specs.items() if (problem := rule.check(s, model))]
        else:
            problems = [(p, p.where) for p in rule.check(model)] if isinstance(rule, ModelRule) else []
        for _, where in problems:
            found.setdefault(rule.code, set()).update(where)
    return found


def codes(report):
    return {finding.code for finding in report.findings}


def edit(src, fn):
    tensors = load_file(src / SINGLE)
    fn(tensors)
    save_file(tensors, src / SINGLE, metadata={"format": "pt"})


def join(tensors):
    tensors.update((name, torch.tensor(0.01)) for name in tensors if name.endswith(".weight_scale"))


@pytest.mark.parametrize("case", SERVED)
def test_what_vllm_serves_as_it_is_stays_as_it_is(case, tmp_path):
    source = FIXTURES / case / "model"
    report = qbridge.convert(source, tmp_path / "out", "vllm")
    assert (report.format, report.exactness, report.passes) == ("modelopt", {"reversible": report.layers}, {})
    assert codes(report) == ({"QB272"} if case == "llama_mixed" else set())  # which is as much as any format can do
    assert_same_tensors(source, tmp_path / "out")
    for name in ("config.json", "hf_quant_config.json"):
        own, ours = (json.loads((folder / name).read_text()) for folder in (source, tmp_path / "out"))
        assert name == "config.json" or own == ours
    assert qbridge.check(tmp_path / "out", "vllm").ok


@pytest.mark.parametrize("case", REPEATED)
def test_float8_whose_scales_vllm_would_make_one_goes_to_compressed_tensors(case, tmp_path):
    report = qbridge.convert(FIXTURES / case / "model", tmp_path / "out", "vllm")
    assert (report.format, report.passes) == ("compressed-tensors", {"broadcast": 5})
    why = "QB302" if case == "llama_fp8_kv" else "QB272"
    assert report.chosen.startswith("not modelopt: ") and report.chosen.endswith(why) and not codes(report)
    assert qbridge.verify(FIXTURES / case / "model", tmp_path / "out").same


def test_scales_of_the_kv_cache_are_kept_by_compressed_tensors_alone(tmp_path):
    """vLLM has them in the model dtype for ModelOpt and fp8 (seen: 0.024745 became 0.024780)."""
    src = copy_fixture(tmp_path, "modelopt/llama_fp8_kv")
    edit(src, join)
    report = qbridge.convert(src, tmp_path / "out", "vllm")
    assert (
        report.format == "compressed-tensors"
        and "not modelopt: values do not survive" in report.chosen
        and "QB302" in report.chosen
    )
    assert qbridge.verify(src, tmp_path / "out").same

    def halve(tensors):
        tensors.update((name, torch.tensor(0.5)) for name in tensors if name.endswith((".k_scale", ".v_scale")))

    edit(src, halve)
    report = qbridge.convert(src, tmp_path / "own", "vllm")
    assert (report.format, codes(report)) == ("modelopt", set())


def test_float8_whose_scales_are_one_already_stays(tmp_path):
    src = copy_fixture(tmp_path, "modelopt/llama_fp8")
    edit(src, join)
    report = qbridge.convert(src, tmp_path / "out", "vllm")
    assert (report.format, codes(report)) == ("modelopt", set())
    assert_same_tensors(src, tmp_path / "out")


def test_blocks_without_quantized_inputs_go_to_compressed_tensors(tmp_path):
    """vLLM quantizes the inputs of FP8_PB_WO, of which the checkpoint says nothing."""
    src = copy_fixture(tmp_path, "modelopt/llama_fp8_block")

    def widen(tensors):
        for leaf, rows, columns in (("gate_proj", 384, 128), ("up_proj", 384, 128), ("down_proj", 128, 384)):
            name = f"model.layers.0.mlp.{leaf}"
            tensors[f"{name}.weight"] = torch.zeros(rows, columns).to(torch.float8_e4m3fn)
            tensors[f"{name}.weight_scale"] = torch.ones(rows // 128, 1, columns // 128, 1)

    edit(src, widen)
    edit_json(src / "config.json", lambda value: value.update(intermediate_size=384))
    report = qbridge.convert(src, tmp_path / "out", "vllm")
    assert (report.format, codes(report)) == ("compressed-tensors", set())
    checked = qbridge.check(src, "vllm")
    assert checked.ok and codes(checked) == {"QB276"}
    assert config(tmp_path / "out")["quantization_config"]["config_groups"]["group_0"]["input_activations"] is None
    # a checkpoint that says nothing of its inputs may go there by name: the shapes are those that vLLM loads
    qbridge.convert(src, tmp_path / "own", "modelopt")
    assert load_file(tmp_path / "own" / SINGLE)["model.layers.0.self_attn.q_proj.weight_scale"].shape == (1, 1, 1, 1)


def test_blocks_that_end_within_the_inputs_are_refused():
    found = broken(model_of("llama_fp8_block"))
    assert found["QB275"] == {"model.layers.0.mlp.down_proj"} and len(found["QB276"]) == 7


def test_experts_have_one_scale_or_one_per_group():
    model = model_of("qwen3_moe_nvfp4")
    assert broken(model) == {}
    experts = {
        name: replace(s, weight=model_of("llama_fp8_channel").specs["model.layers.0.mlp.up_proj"].weight)
        for name, s in model.specs.items()
        if ".experts." in name
    }
    assert all(s.weight.granularity is Granularity.CHANNEL for s in experts.values())
    assert broken(replace(model, specs={**model.specs, **experts})) == {"QB275": set(experts)}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_mxfp8_is_served_in_bfloat16(dtype):
    model = model_of("llama_mxfp8")
    model = replace(model, config={**model.config, "dtype": dtype, "torch_dtype": dtype})
    assert broken(model) == ({"QB275": {"config.json"}} if dtype == "float16" else {})
    mixed = {**model.specs, "model.layers.1.mlp.up_proj": next(iter(model_of("llama_nvfp4").specs.values()))}
    assert broken(replace(model, specs=mixed)) == {}


@pytest.mark.parametrize("case", ["llama_nvfp4", "llama_mixed"])
def test_a_name_that_begins_like_an_unquantized_one_is_hidden(case):
    model = model_of(case)
    router = TensorInfo(DType.BF16, (4, 128), "model.layers.0.mlp.gate.weight")
    model = replace(model, tensors={**model.tensors, router.stored: router})
    # a mixture lists what is quantized, and nothing else
    assert broken(model) == ({} if case == "llama_mixed" else {"QB275": {"model.layers.0.mlp.gate_proj"}})


def test_vision_towers_are_taken_for_unquantized():
    model = model_of("llama_nvfp4")
    name = "model.vision_tower.layers.0.fc1"
    specs = {**model.specs, name: replace(next(iter(model.specs.values())), name=name)}
    assert broken(replace(model, specs=specs)) == {"QB275": {name}}


def test_older_releases_are_not_said_to_serve_it(tmp_path):
    with pytest.raises(qbridge.QBridgeError):
        qbridge.convert(FIXTURES / "llama_nvfp4/model", tmp_path / "out", "vllm@0.23.0")
