"""What we write of floats, loaded by transformers and decoded by compressed-tensors itself."""

from __future__ import annotations

import numpy as np
import pytest
from engine import ask
from safetensors.numpy import load_file
from weight_only import differences, fixture

import qbridge
from qbridge.ir.values import dequantize

pytestmark = pytest.mark.engine

EXACT = [
    "compressed_tensors/llama_fp8_dynamic",
    "compressed_tensors/llama_fp8_static",
    "compressed_tensors/llama_fp8_block",
    "compressed_tensors/llama_mxfp8",
    "fp8/llama_blocks",
    "fp8/llama_static",
    "modelopt/llama_fp8",
    "modelopt/llama_fp8_channel",
    "modelopt/llama_mxfp8",
    "smooth_quant/llama_lite_fp8",
]
# The library unpacks these into bfloat16, and so rounds every weight.
NEARLY = ["compressed_tensors/llama_nvfp4", "modelopt/llama_nvfp4"]


def loaded(case, folder):
    """Where the library's own weights lie, of a checkpoint that transformers took and ran."""
    dump = folder / "dense.safetensors"
    qbridge.convert(fixture(case), folder / "out", "compressed-tensors", allow=["rounded", "drop-kv-scales"])
    report = ask("llm-compressor", "transformers_load.py", folder / "out", "--out", dump)
    faults = {key: report[key] for key in ("error", "config_error", "decode_error") if report.get(key)}
    faults |= {kind: names for kind, names in report.get("loading", {}).items() if names}
    assert faults == {} and report["finite_logits"], "the loader cannot take it"
    return dump


@pytest.mark.parametrize("case", EXACT)
def test_the_tools_decode_the_weights_of_the_source(case, tmp_path):
    assert differences(loaded(case, tmp_path), fixture(case)) == {}


@pytest.mark.parametrize("case", NEARLY)
def test_the_tools_decode_weights_with_global_scales(case, tmp_path):
    weights = load_file(loaded(case, tmp_path))
    with qbridge.open(fixture(case)) as opened:
        for name in opened.specs:
            values = dequantize(opened.layer(name))
            assert np.allclose(weights[f"{name}.weight"], values, rtol=2.0**-8, atol=0), name
