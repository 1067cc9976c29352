"""4-bit weights in LMDeploy 0.18.0: both engines compute with exactly the values of the source."""

from __future__ import annotations

import shutil

import pytest
from engine import ask, assert_loads, lmdeploy, turbomind
from weight_only import differences, fixture, method

import qbridge
from support import edit_json

pytestmark = pytest.mark.engine

# Case and tensor-parallel size. Groups of 128 in 128 columns cannot be split.
G128 = [
    ("gptq/llama_g128", 1),
    ("gptq/llama_g128", 2),
    ("compressed_tensors/llama_w4a16_g128", 1),
    ("compressed_tensors/llama_w4a16_g128", 2),
    ("auto_round/llama_g128", 1),
    ("auto_round/llama_g128", 2),
    ("awq/llama_llm_awq", 1),
    ("gptq/llama_channel", 1),
]
SMALL_GROUPS = [
    (case, tp)
    for case in (
        "gptq/llama_v1_sym",
        "gptq/llama_v1_zero0",
        "gptq/llama_3bit",
        "compressed_tensors/llama_w4a16",
        "compressed_tensors/llama_w4a16_asym",
    )
    for tp in (1, 2)
]
TURBOMIND = [(case, "lmdeploy", tp, "awq") for case, tp in G128] + [
    (case, "lmdeploy-turbomind", tp, "compressed-tensors")
    for case in ("gptq/llama_v1_sym", "gptq/llama_3bit")
    for tp in (1, 2)
]
MOE = ["gptq/qwen3_moe_v1_sym", "compressed_tensors/qwen3_moe_w4a16"]


def complaints(report):
    """What TurboMind's driver found wrong."""
    keys = ("error", "missing", "unexpected", "act_order", "lossy_casts")
    return {key: report[key] for key in keys if report.get(key)}


@pytest.mark.parametrize(("case", "tp"), G128 + SMALL_GROUPS)
def test_the_pytorch_engine_has_the_sources_weights(case, tp, tmp_path):
    dump = tmp_path / "effective.safetensors"
    qbridge.convert(fixture(case), tmp_path / "out", "lmdeploy")
    assert_loads(lmdeploy("0.18.0", tmp_path / "out", tp, dump), tp)
    assert differences(dump, fixture(case)) == {}, "LMDeploy would compute with other weights"


@pytest.mark.parametrize(("case", "target", "tp", "chosen"), TURBOMIND)
def test_turbomind_has_the_sources_weights(case, target, tp, chosen, tmp_path):
    dump = tmp_path / "effective.safetensors"
    qbridge.convert(fixture(case), tmp_path / "out", target)
    report = turbomind(tmp_path / "out", tp, dump)
    assert (complaints(report), report["model_format"]) == ({}, chosen)
    assert differences(dump, fixture(case)) == {}, "TurboMind would compute with other weights"


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("case", MOE)
def test_turbomind_loads_experts(case, tp, tmp_path):
    qbridge.convert(fixture(case), tmp_path / "out", "lmdeploy-turbomind")
    assert complaints(turbomind(tmp_path / "out", tp)) == {}, "TurboMind does not take these experts"


@pytest.mark.parametrize("case", MOE)
def test_the_pytorch_engine_has_no_experts_in_awq(case, tmp_path):
    qbridge.convert(fixture(case), tmp_path / "out", "awq")
    refusal = lmdeploy("0.18.0", tmp_path / "out", 1)["error"]
    assert refusal and refusal["message"] == "Unsupported quant method: awq", "it has learned to load them"


@pytest.mark.parametrize("case", MOE)
def test_experts_are_written_for_an_engine_that_loads_them(case, tmp_path):
    qbridge.convert(fixture(case), tmp_path / "out", "lmdeploy")
    refusals = [lmdeploy("0.18.0", tmp_path / "out", 1)["error"], turbomind(tmp_path / "out", 1)["error"]]
    assert None in refusals, f"neither engine loads the {method(tmp_path / 'out')} that was written"


def test_turbomind_ignores_g_idx_so_it_is_refused(tmp_path):
    source, dump = fixture("compressed_tensors/llama_w4a16_g_idx"), tmp_path / "effective.safetensors"
    report = turbomind(source, 1, dump)
    assert report["error"] is None and len(report["act_order"]) == 7
    assert len(differences(dump, source)) == 7, "TurboMind has learned to read g_idx"
    with pytest.raises(qbridge.QBridgeError, match="QB241"):
        qbridge.convert(source, tmp_path / "out", "lmdeploy-turbomind")


@pytest.mark.parametrize(("target", "wrong"), [("gptq-v1", 0), ("gptq-v2", 7)])
def test_turbomind_takes_version_2_zero_points_for_version_1(target, wrong, tmp_path):
    dump = tmp_path / "effective.safetensors"
    qbridge.convert(fixture("gptq/llama_g128"), tmp_path / "out", target)
    assert complaints(turbomind(tmp_path / "out", 1, dump)) == {}
    assert len(differences(dump, fixture("gptq/llama_g128"))) == wrong, "TurboMind reads the versions differently now"


@pytest.mark.parametrize(("case", "size"), [("gptq/llama_v1_sym", 32), ("awq/llama_gemv_fast", 64)])
def test_turbomind_refuses_the_awq_groups_that_we_warn_of(case, size, tmp_path):
    report = qbridge.convert(fixture(case), tmp_path / "out", "lmdeploy")
    assert "QB216" in {finding.code for finding in report.findings}
    refusal = turbomind(tmp_path / "out", 1)["error"]
    assert refusal and f"Unsupported group_size={size}" in refusal["message"], "TurboMind takes smaller groups now"


@pytest.mark.parametrize(("case", "tp"), [*G128[:6], *SMALL_GROUPS])
def test_the_pytorch_engine_of_062_has_the_sources_weights(case, tp, tmp_path):
    dump = tmp_path / "effective.safetensors"
    qbridge.convert(fixture(case), tmp_path / "out", "lmdeploy@0.6.2", tp=tp)
    report = lmdeploy("0.6.2", tmp_path / "out", tp, dump)
    assert_loads(report, tp)
    assert {name for rank in report["ranks"] for name in rank["linears"] if "Awq" in name}
    assert differences(dump, fixture(case)) == {}, "LMDeploy 0.6.2 would compute with other weights"


# Cases whose heads become heads of 128, as the TurboMind of 0.6.2 has no others, and the MLP's size after padding.
HEADS_OF_128 = [
    ("gptq/llama_g128", 1, 512),
    ("gptq/llama_g128", 2, 512),
    ("compressed_tensors/llama_w4a16_g128", 1, 512),
    ("compressed_tensors/llama_w4a16_g128", 2, 512),
    ("gptq/llama_640", 1, 640),
    ("gptq/llama_640", 2, 768),
]


def with_heads_of_128(case, folder):
    """The same checkpoint read with half as many heads: its weights are random."""
    shutil.copytree(fixture(case), folder)
    edit_json(folder / "config.json", lambda config: config.update(num_attention_heads=2, num_key_value_heads=2))
    edit_json(folder / "config.json", lambda config: config.update(head_dim=128))
    return folder


@pytest.mark.parametrize(("case", "tp", "inner"), HEADS_OF_128)
def test_turbomind_of_062_has_the_sources_weights(case, tp, inner, tmp_path):
    source, dump = with_heads_of_128(case, tmp_path / "source"), tmp_path / "effective.safetensors"
    qbridge.convert(source, tmp_path / "out", "lmdeploy@0.6.2")
    report = ask("lmdeploy-0.6.2", "lmdeploy_turbomind_062.py", tmp_path / "out", "--tp", tp, "--out", dump)
    assert (report["error"], report["unread"]) == (None, [])
    assert (report["backend"], report["model_format"], report["inter_size"]) == ("turbomind", "awq", inner)
    assert differences(dump, source) == {}, "TurboMind 0.6.2 would compute with other weights"


def test_turbomind_of_062_has_no_groups_of_32(tmp_path):
    source = with_heads_of_128("compressed_tensors/llama_w4a16_g128", tmp_path / "source")
    qbridge.convert(source, tmp_path / "out", "awq", regroup=32)
    refusal = ask("lmdeploy-0.6.2", "lmdeploy_turbomind_062.py", tmp_path / "out")["error"]
    assert refusal and "only 128 is supported" in refusal["message"]
