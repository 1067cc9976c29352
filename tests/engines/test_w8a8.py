"""W8A8 between llm-compressor and LMDeploy, in the real engines."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from engine import ROOT, ask, assert_loads, lmdeploy
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch

import qbridge
from qbridge.architecture.config import rope
from qbridge.ir.values import dequantize

pytestmark = pytest.mark.engine

FIXTURES = ROOT / "fixtures"
CT = ["llama_w8a8", "qwen2_w8a8_tied", "llama_w8a8_sharded", "llama_w8a8_rope"]
SQ = ["llama_lite", "qwen2_lite"]
ENVIRONMENTS = {"0.18.0": "lmdeploy-0.18.0", "0.6.2": "lmdeploy-0.6.2"}


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """Every llm-compressor fixture for LMDeploy, once with --from and once without, which must be the same."""
    folder = tmp_path_factory.mktemp("lmdeploy")
    for case in CT:
        source = FIXTURES / "compressed_tensors" / case / "model"
        qbridge.convert(source, folder / case, "lmdeploy", "llm-compressor")
        qbridge.convert(source, folder / f"{case}-detected", "lmdeploy")
        for file in (folder / case).iterdir():
            assert file.read_bytes() == (folder / f"{case}-detected" / file.name).read_bytes()
    return folder


def under_the_old_key(case, tmp_path):
    """The checkpoint as releases before 0.7 of compressed-tensors would have spelled its config."""
    model = tmp_path / "old"
    shutil.copytree(FIXTURES / "compressed_tensors" / case / "model", model)
    config = json.loads((model / "config.json").read_text())
    config["compression_config"] = config.pop("quantization_config")
    (model / "config.json").write_text(json.dumps(config))
    return model


def test_the_story_unconverted_it_dies_with_that_key_error(tmp_path):
    report = lmdeploy("0.6.2", under_the_old_key("llama_w8a8", tmp_path), 2)
    assert report["error"]["type"] == "KeyError"
    assert report["error"]["message"].strip("'\"").endswith("mlp.down_proj.weight_scale")


def test_the_story_unconverted_it_is_refused_by_the_current_release():
    report = lmdeploy("0.18.0", FIXTURES / "compressed_tensors/llama_w8a8/model", 1)
    assert "compressed-tensors" in report["error"]["message"]


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("version", ["0.18.0", "0.6.2"])
def test_the_story_converted_from_the_old_key_it_loads(version, tp, tmp_path):
    qbridge.convert(under_the_old_key("llama_w8a8", tmp_path), tmp_path / "out", f"lmdeploy@{version}")
    assert_loads(lmdeploy(version, tmp_path / "out", tp), tp)


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("version", ["0.18.0", "0.6.2"])
@pytest.mark.parametrize("case", CT)
def test_what_we_write_loads(case, version, tp, converted, tmp_path):
    out = tmp_path / "effective.safetensors" if version == "0.18.0" else None
    assert_loads(lmdeploy(version, converted / case, tp, out), tp)
    if out is None:
        return
    effective = load_file(out)
    with qbridge.open(FIXTURES / "compressed_tensors" / case / "model") as source:
        for name in source.specs:
            values = dequantize(source.layer(name)).astype(np.float32)
            assert np.array_equal(effective[f"{name}.weight"], values), name
        for name, info in source.model.tensors.items():
            if info.dtype == "F16":
                assert np.array_equal(effective[name], source.tensor(name).astype(np.float32)), name


@pytest.mark.parametrize("version", ["0.18.0", "0.6.2"])
@pytest.mark.parametrize("case", CT)
def test_the_engines_own_transformers_parses_the_source_model(case, version, converted):
    report = ask(ENVIRONMENTS[version], "hf_config.py", converted / case)["config"]
    source = json.loads((FIXTURES / "compressed_tensors" / case / "model/config.json").read_text())
    theta, scaling, _ = rope(source)
    assert report["rope"] == {"theta": theta, "scaling": scaling}
    assert report["dtype"] == source.get("dtype", source.get("torch_dtype"))
    assert report["head_dim"] == source.get("head_dim", source["hidden_size"] // source["num_attention_heads"])
    assert report["rms_norm_eps"] == source["rms_norm_eps"]
    assert report["tie_word_embeddings"] == source["tie_word_embeddings"]


def test_old_lmdeploy_would_rotate_another_head_dim_so_it_is_refused(converted, tmp_path):
    case = FIXTURES / "compressed_tensors/llama_w8a8_rope/model"
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.convert(case, tmp_path / "out", "lmdeploy@0.6.2")
    assert {f.code for f in refused.value.findings if f.severity == "error"} == {"QB206"}
    head_dim = json.loads((case / "config.json").read_text())["head_dim"]
    rotated = {v: len(lmdeploy(v, converted / "llama_w8a8_rope", 1)["rope"]["inv_freq"]) for v in ENVIRONMENTS}
    assert rotated == {"0.18.0": head_dim // 2, "0.6.2": 16}


@pytest.mark.parametrize("case", SQ)
def test_lmdeploys_own_checkpoint_serves_elsewhere_and_comes_back(case, tmp_path):
    source = FIXTURES / "smooth_quant" / case / "model"
    qbridge.convert(source, tmp_path / "there", "compressed-tensors")
    report = ask("llm-compressor", "transformers_load.py", tmp_path / "there")
    assert report["error"] is None
    assert not any(report["loading"].values()), report["loading"]
    assert report["finite_logits"]
    run = ask("vllm", "vllm_cpu.py", tmp_path / "there", "--tp", 1, "--dtype", "bfloat16")
    assert run["error"] is None
    assert np.isfinite([x for x in run["prompt_logprobs"] if x is not None]).all()
    qbridge.convert(tmp_path / "there", tmp_path / "back", "lmdeploy")
    first, second = (load_bytes(folder) for folder in (source, tmp_path / "back"))
    assert first == second


def load_bytes(folder):
    return {
        name: (tensor.dtype, tensor.shape, tensor.view(torch.uint8).numpy().tobytes())
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_torch(file).items()
    }
