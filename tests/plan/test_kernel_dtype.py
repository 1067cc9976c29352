"""A conversion names the dtype of the engine's kernels in config.json, where the model's own dtype has no kernel."""

from __future__ import annotations

import json

import numpy as np
import pytest

import qbridge
from support import codes, copy_fixture, edit_json, rewrite_tensors

# What vLLM 0.5.4 has kernels of float16 alone for: GPTQ's own, whose layers Marlin does not take.
CASES = ("gptq/llama_3bit", "gptq/llama_v2_asym", "compressed_tensors/llama_w4a16_asym")


@pytest.fixture
def src(request, tmp_path):
    src = copy_fixture(tmp_path, request.param)
    edit_json(src / "config.json", lambda config: {**config, "rope_theta": 1e4, "torch_dtype": "bfloat16"})
    edit_json(src / "config.json", lambda config: config.update(dtype="bfloat16"))
    return src


def read(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("src", CASES, indirect=True)
@pytest.mark.parametrize("gpu", ["sm80", "sm90"])
def test_what_is_converted_is_served_in_the_dtype_of_its_config(src, dst, gpu):
    qbridge.convert(src, dst, "vllm@0.5.4", allow={"rounded"})
    answer = qbridge.check(dst, "vllm@0.5.4", gpu=gpu)
    assert answer.ok, [str(finding) for finding in answer.findings]
    config = read(dst)
    assert config.get("dtype", "float16") == config["torch_dtype"] == "float16"
    qbridge.restore(dst, dst.parent / "back")
    assert read(dst.parent / "back") == read(src)


@pytest.mark.parametrize("src", CASES, indirect=True)
def test_where_the_dtype_has_a_kernel_it_stays(src, dst):
    qbridge.convert(src, dst, "vllm", allow={"rounded"})
    assert read(dst)["torch_dtype"] == "bfloat16"


@pytest.mark.parametrize("src", ["gptq/llama_3bit"], indirect=True)
def test_values_that_the_other_dtype_cannot_hold_are_refused(src, dst):
    def overflow(tensors):
        tensors["model.norm.weight"] = np.full_like(tensors["model.norm.weight"], 2.0**20, np.float32)

    rewrite_tensors(src, overflow)
    with pytest.raises(qbridge.QBridgeError) as excinfo:
        qbridge.convert(src, dst, "vllm@0.5.4")
    assert codes(excinfo) == {"QB302"}
