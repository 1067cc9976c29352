"""Tensors that are no weight or bias: parameters are carried over with a note, codes and scales never are."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

import qbridge
from qbridge.architecture.architecture import Architecture
from qbridge.architecture.expected import missing
from support import ROOT, codes, copy_fixture, edit_json, helps, places, refusal

DOWN, EXPERTS = "model.layers.0.mlp.down_proj", "mtp.layers.0.mlp.experts"
CASES = [
    "auto_round/llama_gptq_sym",
    "awq/llama_gemm",
    "compressed_tensors/llama_w4a16",
    "compressed_tensors/llama_w8a8_rope",
    "compressed_tensors/llama_nvfp4",
    "fp8/llama_blocks",
    "gptq/llama_v1_sym",
    "marlin/llama_autogptq",
    "modelopt/llama_fp8",
    "smooth_quant/llama_lite",
]
PARAMETERS = {
    "model.layers.0.layer_scalar": torch.ones(1, dtype=torch.bfloat16),
    "model.layers.0.self_attn.attention_sink_bias": torch.ones(4, dtype=torch.bfloat16),
    "vision_tower.embeddings.class_embedding": torch.ones(1, 1, 8, dtype=torch.bfloat16),
    "vision_tower.embeddings.position_embedding": torch.ones(1, 5, 8, dtype=torch.float16),
    "vision_tower.layers.0.ls1": torch.ones(8),
    "vision_tower.layers.0.attn.in_proj_weight": torch.ones(24, 8, dtype=torch.bfloat16),
    "vision_tower.layers.0.q_proj.input_min": torch.tensor(-3.0),
    "multi_modal_projector.mm_input_projection_weight": torch.ones(8, 4, dtype=torch.bfloat16),
    f"{EXPERTS}.gate_up_proj": torch.ones(2, 8, 4, dtype=torch.bfloat16),
    "logit_scale": torch.tensor(2.5),
    "model.layers.0.hc_attn_scale": torch.ones(3),
    "model.layers.0.router.per_expert_scale": torch.ones(4),
    "vision_tower.norm.scale": torch.ones(8),
    "masked_bias": torch.tensor(-1e4, dtype=torch.float16),
    "gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 4, 4, dtype=torch.bool),
    "gpt_neox.layers.1.attention.bias": torch.ones(1, 1, 4, 4, dtype=torch.uint8),
    "vision_tower.embeddings.position_ids": torch.arange(5)[None],
    "vision_tower.embeddings.offsets": torch.arange(5),
    "vision_tower.patch.bn.num_batches_tracked": torch.tensor(7),
    "vision_tower.attn.relative_position_index": torch.zeros(4, 4, dtype=torch.int64),
    "model.layers.0.ffn.gate.tid2eid": torch.zeros(6, 2, dtype=torch.int64),
}


def stored(folder):
    """The one file of a checkpoint, whatever its tool called it."""
    (file,) = folder.glob("*.safetensors")
    return file


def plant(src, **tensors):
    """Add tensors to a checkpoint of one file."""
    file = stored(src)
    save_file({**load_file(file), **tensors}, file, metadata={"format": "pt"})


def said(findings, code):
    return [finding for finding in findings if finding.code == code]


@pytest.mark.parametrize("target", ["own", "dense"])
@pytest.mark.parametrize("case", CASES)
def test_parameters_are_carried_over_with_one_note(case, target, tmp_path):
    src = copy_fixture(tmp_path, case)
    if case.startswith("awq"):  # without a list vLLM leaves out whatever a parameter's module is part of the name of
        block = {"modules_to_not_convert": ["vision_tower"]}
        edit_json(src / "config.json", lambda config: config["quantization_config"].update(block))
    before = {finding.code for finding in qbridge.check(src, "vllm").findings}
    plant(src, **PARAMETERS)
    (note,) = said(qbridge.inspect(src).findings, "QB039")
    assert str(note.severity) == "note" and set(note.where) == PARAMETERS.keys()
    assert {finding.code for finding in qbridge.check(src, "vllm").findings} == {*before, "QB039"}
    to = case.partition("/")[0].replace("_", "-") if target == "own" else target
    report = qbridge.convert(src, tmp_path / "dst", to)
    assert len(said(report.findings, "QB039")) == 1
    written = load_file(stored(tmp_path / "dst"))
    for name, value in PARAMETERS.items():
        assert written[name].dtype == value.dtype and torch.equal(written[name], value), name
    assert target == "dense" or qbridge.verify(src, tmp_path / "dst").same


CODES = {
    "fused float8": {f"{EXPERTS}.gate_up_proj": torch.ones(2, 8, 4).to(torch.float8_e4m3fn)},
    "packed float4": {f"{EXPERTS}.gate_up_proj": torch.ones(2, 8, 4, dtype=torch.uint8)},
    "int8": {f"{EXPERTS}.up_proj": torch.ones(2, 8, 4, dtype=torch.int8)},
    "words": {f"{EXPERTS}.up": torch.ones(8, 4, dtype=torch.int32)},
    "one row of words": {f"{EXPERTS}.up": torch.ones(8, dtype=torch.int32)},
    "long codes": {f"{EXPERTS}.up": torch.ones(8, 4, dtype=torch.int64)},
    "bytes that are no mask": {"gpt_neox.attention.bias": torch.ones(4, 4, dtype=torch.uint8)},
    "float4 scales": {f"{EXPERTS}.up_scale": torch.ones(8, 4).to(torch.float8_e8m0fnu)},
    "a fused scale": {f"{EXPERTS}.gate_up_proj_scale": torch.ones(2, 1, 4)},
    "a second scale": {f"{EXPERTS}.gate_up_proj_weight_scale_2": torch.ones(2)},
    "an input scale": {f"{EXPERTS}.input_scale": torch.tensor(1.0)},
    "an inverse": {"model.layers.7.mlp.up_proj.weight_scale_inv": torch.ones(2, 2)},
    "a zero-point": {f"{EXPERTS}.up_zero_point": torch.ones(8, 1)},
    "scales": {"model.layers.7.mlp.up_proj.scales": torch.ones(8, 1, dtype=torch.float16)},
    "act-order": {"model.layers.7.mlp.up_proj.g_idx": torch.arange(8)},
    "a kv cache": {"model.layers.7.self_attn.k_scale": torch.tensor(1.0)},
    "a scale of no layer scale's": {f"{DOWN}.layer_scale": torch.tensor(1.0)},
    "numbers beside codes": {f"{DOWN}.permutation": torch.arange(8)},
    "flags beside codes": {f"{DOWN}.mask": torch.ones(8, dtype=torch.bool)},
}


@pytest.mark.parametrize("kind", CODES)
@pytest.mark.parametrize("allow", [(), ("unknown-tensors",)])
def test_codes_and_scales_that_nobody_reads_are_never_let_through(kind, allow, tmp_path):
    src = copy_fixture(tmp_path)
    plant(src, **CODES[kind])
    for target in ("lmdeploy", "vllm", "dense", "compressed-tensors"):
        found = refusal(src, 3, "QB018", target, allow=allow)["QB018"]
        assert places(found) == set(CODES[kind]) and "--allow" not in helps(found)
        assert all(finding.as_dict()["allow"] is None for finding in found)
    for command in (lambda: qbridge.inspect(src, allow=allow), lambda: qbridge.verify(src, src, allow=allow)):
        with pytest.raises(qbridge.QBridgeError) as refused:
            command()
        assert codes(refused) == {"QB018"} and refused.value.exit_code == 3
    judged = qbridge.check(src, "vllm", allow=allow)
    assert not judged.ok and said(judged.findings, "QB018")


STRANGE = {
    "a vector": {f"{DOWN}.weight_foo": torch.ones(4)},
    "a module in the linear": {f"{DOWN}.rotation.matrix": torch.ones(4, 4)},
    "a scale by its whole name": {"model.layers.7.mlp.up_proj.scale": torch.ones(8, 1)},
    "a scale alone": {"model.layers.7.k_cache.scale": torch.ones(1)},
}


@pytest.mark.parametrize("kind", STRANGE)
def test_floats_beside_codes_pass_if_allowed(kind, tmp_path):
    src = copy_fixture(tmp_path)
    plant(src, **STRANGE[kind])
    found = refusal(src, 3, "QB018", "vllm")["QB018"]
    assert places(found) == set(STRANGE[kind]) and "--allow unknown-tensors" in helps(found)
    assert all(finding.as_dict()["allow"] == "unknown-tensors" for finding in found)
    report = qbridge.convert(src, tmp_path / "dst", "vllm", allow=["unknown-tensors"])
    (warning,) = said(report.findings, "QB018")
    assert str(warning.severity) == "warning"
    assert load_file(stored(tmp_path / "dst")).keys() >= STRANGE[kind].keys()


def test_a_parameter_of_most_layers_is_not_missed_in_the_others():
    with qbridge.open(ROOT / "fixtures/compressed_tensors/llama_w8a8_rope/model") as opened:
        config, first = (
            dict(opened.model.config),
            [n for n in opened.source.tensors if n.startswith("model.layers.0.")],
        )
        ends = [name for name in opened.source.tensors if ".layers." not in name]
    names = [*ends, *(name.replace(".0.", f".{layer}.", 1) for layer in range(3) for name in first)]
    sinks = [f"model.layers.{layer}.self_attn.attention_sink_bias" for layer in (0, 2)]
    assert missing([*names, *sinks], Architecture.of({**config, "num_hidden_layers": 3})) == []
