"""Weight-only checkpoints between GPTQ, AWQ and compressed-tensors, in the real engines."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from engine import ROOT, ask, assert_loads, lmdeploy
from safetensors.torch import load_file

import qbridge
from qbridge.values import dequantize

pytestmark = pytest.mark.engine

GPTQ, AWQ, CT = (ROOT / "fixtures" / name for name in ("gptq", "awq", "compressed_tensors"))


def served(folder):
    """The prompt's log-probabilities in vLLM, in float16."""
    run = ask("vllm", "vllm_cpu.py", folder, "--tp", 1, "--dtype", "float16")
    assert run["error"] is None, run["error"]
    return np.array(run["prompt_logprobs"][1:])


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (GPTQ / "llama_v1_sym/model", "compressed-tensors"),
        (AWQ / "llama_gemm/model", "compressed-tensors"),
        (CT / "llama_w4a16/model", "gptq"),
        (CT / "llama_w4a16_asym/model", "awq"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.parent.parent.name}-{value.parent.name}",
)
def test_vllm_computes_the_same_from_the_other_layout(source, target, tmp_path):
    qbridge.convert(source, tmp_path / "out", target)
    assert np.abs(served(source) - served(tmp_path / "out")).max() <= 0.02


@pytest.mark.parametrize("case", ["llama_v1_asym", "llama_v1_zero0", "llama_v2_asym"])
def test_asymmetric_gptq_that_vllm_refuses_is_served_after_conversion(case, tmp_path):
    refused = ask("vllm", "vllm_cpu.py", GPTQ / case / "model", "--tp", 1, "--dtype", "float16")
    assert "Unsupported quantization config" in refused["error"]["message"]
    for target in ("compressed-tensors", "awq"):
        qbridge.convert(GPTQ / case / "model", tmp_path / target, target)
    first, second = (served(tmp_path / target) for target in ("compressed-tensors", "awq"))
    assert np.abs(first - second).max() <= 0.02


@pytest.mark.parametrize(
    "source",
    [
        *(GPTQ / f"{case}/model" for case in ("llama_v1_asym", "llama_8bit", "llama_3bit", "qwen2_dynamic")),
        AWQ / "llama_lmdeploy/model",
        CT / "llama_w4a16_old_zp/model",
    ],
    ids=lambda path: f"{path.parent.parent.name}-{path.parent.name}",
)
def test_compressed_tensors_itself_decodes_what_we_write(source, tmp_path):
    qbridge.convert(source, tmp_path / "out", "compressed-tensors")
    dump = tmp_path / "dense.safetensors"
    report = ask("llm-compressor", "transformers_load.py", tmp_path / "out", "--out", dump)
    assert report["error"] is None and report["config_error"] is None and report["decode_error"] is None
    assert not any(report["loading"].values()), report["loading"]
    dense = load_file(dump)
    with qbridge.open(source) as opened:
        for name in opened.specs:
            values = torch.from_numpy(dequantize(opened.layer(name)).astype(np.float32))
            assert torch.equal(dense[f"{name}.weight"], values), name


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize(
    "source",
    [
        GPTQ / "llama_v1_sym/model",
        GPTQ / "llama_v1_zero0/model",
        CT / "llama_w4a16/model",
        CT / "llama_w4a16_asym/model",
    ],
    ids=lambda path: f"{path.parent.parent.name}-{path.parent.name}",
)
def test_lmdeploy_loads_4_bit_weights_of_other_tools(source, tp, tmp_path):
    qbridge.convert(source, tmp_path / "out", "lmdeploy")
    dump = tmp_path / "effective.safetensors"
    assert_loads(lmdeploy("0.18.0", tmp_path / "out", tp, dump), tp)
    effective = load_file(dump)
    with qbridge.open(source) as opened:
        for name in opened.specs:
            values = torch.from_numpy(dequantize(opened.layer(name)).astype(np.float32))
            assert torch.equal(effective[f"{name}.weight"], values), name
