"""The W8A8 family in the real engines: what we let through loads, what we refuse would have been damage."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from engine import ROOT, ask, assert_loads, lmdeploy
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file

import qbridge
from qbridge.ir.values import dequantize

pytestmark = pytest.mark.engine

CT = ROOT / "fixtures/compressed_tensors"
SQ = ROOT / "fixtures/smooth_quant"
LLAMA = [
    "llama_tensor",
    "llama_naive",
    "llama_old",
    "llama_compression_config",
    "llama_zero_points",
    "llama_no_block",
    "llama_kv_int8",
]
PREFIXED = ["qwen3_w8a8", "qwen3_partial", "qwen3_moe_w8a8"]
MIXTRAL = ["mixtral_w8a8", "mixtral_w8a8_w123"]
ALLOW = ["assumed-activations", "drop-kv-scales", "pickle"]


def assert_effective(out, case):
    """What LMDeploy computes with is what the source says, weight by weight."""
    effective = load_file(out)
    with qbridge.open(CT / case / "model", allow=ALLOW) as source:
        for name in source.specs:
            values = dequantize(source.layer(name)).astype(np.float32)
            assert np.array_equal(effective[f"{name}.weight"], values), name


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("case", LLAMA + PREFIXED + MIXTRAL)
def test_current_lmdeploy_loads_every_accepted_case(case, tp, tmp_path):
    qbridge.convert(CT / case / "model", tmp_path / "out", "lmdeploy", allow=ALLOW)
    assert_loads(lmdeploy("0.18.0", tmp_path / "out", tp, tmp_path / "effective.safetensors"), tp)
    assert_effective(tmp_path / "effective.safetensors", case)


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("case", LLAMA)
def test_old_lmdeploy_loads_every_accepted_case(case, tp, tmp_path):
    qbridge.convert(CT / case / "model", tmp_path / "out", "lmdeploy@0.6.2", allow=ALLOW)
    assert_loads(lmdeploy("0.6.2", tmp_path / "out", tp), tp)


@pytest.mark.parametrize("version", ["0.18.0", "0.6.2"])
def test_pickled_checkpoint_of_old_lmdeploy_as_safetensors(version, tmp_path):
    qbridge.convert(SQ / "llama_lite062/model", tmp_path / "out", f"lmdeploy@{version}", allow=ALLOW)
    assert_loads(lmdeploy(version, tmp_path / "out", 2), 2)


def test_float8_smooth_quant_loads_in_current_lmdeploy(tmp_path):
    qbridge.convert(SQ / "llama_lite_fp8/model", tmp_path / "out", "lmdeploy")
    assert_loads(lmdeploy("0.18.0", tmp_path / "out", 2), 2)


def by_hand(case, folder):
    """What a script of ten lines would write for LMDeploy: names and config changed, nothing checked."""
    shutil.copytree(CT / case / "model", folder)
    tensors = load_torch(folder / "model.safetensors")
    renamed = {
        name.replace(".weight_scale", ".scale"): value.float() if name.endswith("weight_scale") else value
        for name, value in tensors.items()
    }
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    ignore = config["quantization_config"]["ignore"]
    config["quantization_config"] = {
        "quant_method": "smooth_quant",
        "quant_dtype": "int8",
        "modules_to_not_convert": [f"re:.*{entry.rpartition('.')[2]}" for entry in ignore],
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("version", ["0.18.0", "0.6.2"])
def test_damage_of_an_unquantized_linear_is_silent_and_refused_here(version, tmp_path):
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.convert(CT / "llama_partial/model", tmp_path / "out", f"lmdeploy@{version}")
    assert "QB201" in {f.code for f in refused.value.findings}
    report = lmdeploy(version, by_hand("llama_partial", tmp_path / "hand"), 1)
    assert report["error"] is None
    assert any("mlp.down_proj" in name for name in report["ranks"][0]["missing"])


def test_damage_of_an_ignore_list_that_lmdeploy_does_not_match_is_silent(tmp_path):
    report = lmdeploy("0.18.0", by_hand("qwen3_partial", tmp_path / "hand"), 1)
    assert report["error"] is None
    assert any("mlp.down_proj" in name for name in report["ranks"][0]["missing"])
    assert report["ranks"][0]["lossy_casts"]


def test_damage_of_float8_in_old_lmdeploy_is_silent_and_refused_here(tmp_path):
    with pytest.raises(qbridge.QBridgeError):
        qbridge.convert(SQ / "llama_lite_fp8/model", tmp_path / "out", "lmdeploy@0.6.2")
    report = lmdeploy("0.6.2", SQ / "llama_lite_fp8/model", 1)
    assert report["error"] is None and "W8A8Linear" in report["ranks"][0]["linears"]


def test_experts_without_the_head_norms_would_be_misfed(tmp_path):
    qbridge.convert(CT / "qwen3_moe_w8a8/model", tmp_path / "out", "lmdeploy")
    config = json.loads((tmp_path / "out/config.json").read_text())
    entries = config["quantization_config"]["modules_to_not_convert"]
    config["quantization_config"]["modules_to_not_convert"] = [e for e in entries if e.endswith(".gate")]
    (tmp_path / "out/config.json").write_text(json.dumps(config))
    assert lmdeploy("0.18.0", tmp_path / "out", 1)["ranks"][0]["misfed"]


VLLM = [
    "llama_w8a8",
    "llama_static",
    "llama_static_asym",
    "llama_tensor",
    "llama_token_asym",
    "llama_w4a8",
    "llama_naive",
    "llama_mixed",
    "llama_partial",
    "llama_old",
    "llama_zero_points",
    "llama_lm_head",
    "qwen3_partial",
]


@pytest.mark.parametrize("case", VLLM)
def test_vllm_serves_what_we_write_for_it(case, tmp_path):
    qbridge.convert(CT / case / "model", tmp_path / "out", "vllm")
    run = ask("vllm", "vllm_cpu.py", tmp_path / "out", "--tp", 1, "--dtype", "bfloat16")
    assert run["error"] is None, run["error"]
    assert np.isfinite([x for x in run["prompt_logprobs"] if x is not None]).all()


@pytest.mark.parametrize("case", ["llama_static_asym", "llama_w4a8"])
def test_vllm_computes_the_same_from_what_we_write_as_from_the_source(case, tmp_path):
    qbridge.convert(CT / case / "model", tmp_path / "out", "vllm")
    folders = CT / case / "model", tmp_path / "out"
    runs = [ask("vllm", "vllm_cpu.py", folder, "--tp", 1, "--dtype", "bfloat16") for folder in folders]
    assert runs[0]["prompt_logprobs"] == runs[1]["prompt_logprobs"] and runs[0]["tokens"] == runs[1]["tokens"]


TRANSFORMERS = ["llama_static_asym", "llama_group_int8", "llama_asym_weights", "llama_mixed", "llama_zero_points"]


@pytest.mark.parametrize(
    "case", [*TRANSFORMERS, "llama_compression_config", "llama_lost_zero_points", "qwen3_partial"]
)
def test_transformers_loads_what_we_write_for_it(case, tmp_path):
    qbridge.convert(CT / case / "model", tmp_path / "out", "transformers")
    dump = tmp_path / "dense.safetensors"
    report = ask("llm-compressor", "transformers_load.py", tmp_path / "out", "--out", dump)
    assert report["error"] is None and report["config_error"] is None and report["decode_error"] is None
    assert not any(report["loading"].values()), report["loading"]
    assert report["finite_logits"]
    dense = load_torch(dump)
    with qbridge.open(CT / case / "model") as source:
        for name in source.specs:
            values = torch.from_numpy(dequantize(source.layer(name)).astype(np.float32))
            assert torch.equal(dense[f"{name}.weight"], values), name
