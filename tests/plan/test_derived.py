"""What an engine would build of a plan is derived before a byte is written, from what a reader of the output sees."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest

import qbridge
from qbridge.commands.checkpoint import open_checkpoint
from qbridge.commands.planning import prepare
from qbridge.findings.finding import Findings, QBridgeError
from qbridge.formats.rules import Problem
from qbridge.ir.dtypes import DType
from qbridge.ir.model import Model, TensorInfo
from qbridge.ir.slots import PLAIN, Slot
from qbridge.plan import planner
from qbridge.plan.plan import Plan
from qbridge.targets.derivation import Derivation, stored_linears
from qbridge.targets.registry import find_target

PAIRS = [
    ("compressed_tensors/llama_w4a16", "vllm"),
    ("compressed_tensors/llama_w4a16", "transformers"),
    ("compressed_tensors/llama_nvfp4", "vllm"),
    ("gptq/llama_v1_asym", "vllm"),
    ("awq/llama_gemm", "lmdeploy"),
    ("auto_round/llama_3bit_asym", "vllm"),
    ("mxfp4/gpt_oss", "vllm"),
    ("mxfp4/gpt_oss", "transformers"),
    ("modelopt/llama_nvfp4", "vllm"),
    ("fp8/llama_blocks", "lmdeploy"),
]


def seen(config, model):
    """What a derivation may look at: the config with its block, and linears and tensors by their names on disk."""
    tensors = {info.stored: (info.dtype, info.shape) for info in model.tensors.values()}
    linears = tuple(map(sorted, stored_linears(model)))
    return json.loads(json.dumps(config)), model.architecture, bool(model.slots), linears, tensors


@pytest.mark.parametrize(("fixture", "target"), PAIRS)
def test_a_plan_is_judged_by_what_a_reader_of_the_output_sees(fixtures, dst, fixture, target):
    source = fixtures / fixture / "model"
    with open_checkpoint(source, plans=True) as opened:
        plan = prepare(opened, find_target(target))
        planned = seen(plan.config, plan.written)
    qbridge.convert(source, dst, target)
    with open_checkpoint(dst) as written:
        assert planned == seen(written.source.config, written.model)


def objecting(mild):
    def check(config, model):
        quantized, plain = stored_linears(model)
        assert config["quantization_config"]["quant_method"] and plain
        yield "QB281", Problem(("planted",), where=tuple(quantized), mild=mild)

    return replace(find_target("vllm"), derivation=Derivation(check, ("QB281",)))


@pytest.mark.parametrize("mild", [False, True])
def test_what_the_engine_would_build_otherwise_stops_the_plan(fixtures, mild):
    with open_checkpoint(fixtures / "compressed_tensors/llama_w4a16/model", plans=True) as opened:
        if mild:
            prepare(opened, objecting(mild))
            told = opened.findings
        else:
            with pytest.raises(QBridgeError) as stopped:
                prepare(opened, objecting(mild))
            told = stopped.value.findings
    (finding,) = (finding for finding in told if finding.facts == ("planted",))
    assert finding.code == "QB281" and str(finding.severity) == ("warning" if mild else "error")
    assert "model.layers.0.self_attn.q_proj" in finding.where


def test_another_format_is_written_where_the_engine_would_build_the_first_otherwise(fixtures):
    def check(config, model):
        if config["quantization_config"]["quant_method"] == "compressed-tensors":
            yield "QB280", Problem(("planted",), where=("model",))

    vllm = replace(find_target("vllm"), derivation=Derivation(check, ("QB280",)))
    with open_checkpoint(fixtures / "compressed_tensors/llama_w4a16/model", plans=True) as opened:
        plan = prepare(opened, vllm)
    assert plan.format.NAME == "gptq" and "QB280" in plan.because


LEAVES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
LEAVES += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
COUNT = 36_000
NAMES = [f"model.layers.{n // 7}.{LEAVES[n % 7]}" for n in range(COUNT)]
SIZES = {"bits": 4, "group_size": 128}
BLOCKS = {
    "gptq": {"quant_method": "gptq", **SIZES, "desc_act": False, "sym": True},
    "awq without a list": {"quant_method": "awq", **SIZES, "zero_point": True, "version": "gemm"},
    "names for targets": {
        "quant_method": "compressed-tensors",
        "config_groups": {"a": {"targets": NAMES[: COUNT // 2]}, "b": {"targets": NAMES[COUNT // 2 :]}},
        "ignore": ["lm_head"],
    },
    "modelopt by layer": {
        **{"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"},
        **{"quantized_layers": {name: {} for name in NAMES}, "ignore": [f"tower.{n}" for n in range(1000)]},
    },
    "auto-round by layer": {"quant_method": "auto-round", **SIZES, "extra_config": {n: {"bits": 4} for n in NAMES}},
}


@pytest.mark.parametrize("target", ["vllm", "transformers", "lmdeploy"])
@pytest.mark.parametrize("block", BLOCKS)
def test_it_costs_little(monkeypatch, target, block):
    keys = {"num_hidden_layers": COUNT // 7 + 1, "model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    slots = {name: {"code": Slot(f"{name}.qweight", DType.I32, (64, 64), PLAIN)} for name in NAMES}
    plain = [f"model.layers.{n}.input_layernorm.weight" for n in range(COUNT // 7)]
    tensors = {name: TensorInfo(DType.F16, (64,), name) for name in plain}
    tensors["lm_head.weight"] = TensorInfo(DType.F16, (64, 64), "lm_head.weight")
    model = Model("planted", keys, {}, slots, tensors)
    monkeypatch.setattr(Plan, "written", property(lambda plan: model))
    plan = Plan(model, find_target(target), None, {}, (), {**keys, "quantization_config": BLOCKS[block]})
    findings, start = Findings(), time.process_time()
    planner._derive(plan, findings)
    assert time.process_time() - start < 5 and findings.errors == ()  # a second where nobody else computes
