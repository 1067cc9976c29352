"""A quantization block of one method beside tensors of another: refused, in words of what the tensors look like."""

from __future__ import annotations

import json

import pytest

import qbridge
from support import ROOT, copy_fixture, edit_json

KEYS = ("quantization_config", "quantization", "compression_config")
SIDE_FILES = ("quantize_config.json", "hf_quant_config.json")
# By the tensors of a fixture, the formats that store such.
LIKE = {
    "gptq/llama_g128": "gptq or auto-round",
    "awq/llama_gemm": "awq or auto-round",
    "compressed_tensors/llama_w4a16_asym": "compressed-tensors",
    "compressed_tensors/llama_w8a8": "auto-round or compressed-tensors or fp8 or modelopt or quark or w8a8",
    "compressed_tensors/llama_nvfp4": "compressed-tensors",
    "fp8/llama_blocks": "auto-round or fp8 or quark or w8a8",
    "modelopt/llama_nvfp4": "modelopt or quark",
    "quark/llama_int4": "auto-round or compressed-tensors or fp8 or modelopt or quark or w8a8",
    "mlx/llama_affine": "mlx",
    "smooth_quant/llama_lite": "smooth-quant",
    "marlin/llama_autogptq": "marlin",
    "marlin/llama_autoawq": "marlin",
    "mxfp4/gpt_oss": "mxfp4",
}
METHODS = {case.partition("/")[0].replace("_", "-"): case for case in reversed(LIKE)}


def block_of(case):
    return {
        k: v for k, v in json.loads((ROOT / "fixtures" / case / "model/config.json").read_text()).items() if k in KEYS
    }


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", LIKE)
def test_what_the_tensors_look_like_is_said(case, method, tmp_path):
    looks = LIKE[case]
    by_tensors = method == "mlx" and case[:4] in ("gptq", "awq/")  # which names no method
    by_dtypes = (case, method) == ("modelopt/llama_nvfp4", "fp8")  # float8 checkpoints may hold such, and are read
    if by_tensors or by_dtypes or method in looks.split(" or ") or case.startswith(METHODS[method].partition("/")[0]):
        pytest.skip("that method may have such tensors: what differs is said by shapes")
    src = copy_fixture(tmp_path, case)
    block = block_of(METHODS[method])
    edit_json(src / "config.json", lambda config: {**{k: v for k, v in config.items() if k not in KEYS}, **block})
    for name in SIDE_FILES:
        (src / name).unlink(missing_ok=True)
    with pytest.raises(qbridge.QBridgeError) as excinfo:
        qbridge.inspect(src)
    assert f"the tensors look like {looks}" in str(excinfo.value)


@pytest.mark.parametrize("case", LIKE)
def test_of_a_sound_checkpoint_it_is_not_said(case):
    assert "QB046" not in {finding.code for finding in qbridge.inspect(ROOT / "fixtures" / case / "model").findings}
