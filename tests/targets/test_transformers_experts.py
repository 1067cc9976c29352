"""Unquantized experts beside quantized ones for transformers, which merges those of a layer into one tensor."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

import qbridge
from qbridge.ir.values import dequantize
from support import ROOT, SINGLE, codes, rewrite_tensors

SOURCE = ROOT / "fixtures/gptq/qwen3_moe_v1_sym/model"


def left_plain(folder, chosen):
    """A copy of a GPTQ checkpoint in which the chosen linears are not quantized."""
    src = shutil.copytree(SOURCE, folder)
    with qbridge.open(src) as opened:
        plain = {
            f"{name}.weight": dequantize(opened.layer(name)).astype(np.float16)
            for name in opened.specs
            if chosen(name)
        }
    assert plain

    def change(tensors):
        for name in [name for name in tensors if f"{name.rpartition('.')[0]}.weight" in plain]:
            del tensors[name]
        tensors.update(plain)

    rewrite_tensors(src, change)
    return src, plain


def test_plain_experts_beside_packed_codes_are_fused_and_come_back(tmp_path):
    with qbridge.open(SOURCE) as opened:
        layer = max(name.partition(".mlp.")[0] for name in opened.specs if ".experts." in name)
    src, plain = left_plain(tmp_path / "src", lambda name: name.startswith(f"{layer}.mlp.experts."))
    qbridge.convert(src, tmp_path / "packed", "compressed-tensors")
    assert "QB336" in codes_of(qbridge.check(tmp_path / "packed", target="transformers"))
    qbridge.convert(src, tmp_path / "dst", "transformers")
    written = load_file(tmp_path / "dst" / SINGLE)
    gates = [plain[f"{layer}.mlp.experts.{expert}.gate_proj.weight"] for expert in range(len(plain) // 3)]
    fused = written[f"{layer}.mlp.experts.gate_up_proj"]
    assert np.array_equal(fused[:, : gates[0].shape[0]], np.stack(gates)) and not plain.keys() & written.keys()
    assert qbridge.verify(src, tmp_path / "dst").same
    qbridge.restore(tmp_path / "dst", tmp_path / "back")
    assert (tmp_path / "back" / SINGLE).read_bytes() == (src / SINGLE).read_bytes()


def codes_of(result):
    return {finding.code for finding in result.findings}


def test_experts_of_one_layer_that_are_quantized_in_part_are_refused(tmp_path):
    src, _ = left_plain(tmp_path / "src", lambda name: name.endswith(".experts.1.down_proj"))
    with pytest.raises(qbridge.QBridgeError) as excinfo:
        qbridge.convert(src, tmp_path / "dst", "transformers")
    assert "QB231" in codes(excinfo)
    assert "not quantized" in str(excinfo.value)
