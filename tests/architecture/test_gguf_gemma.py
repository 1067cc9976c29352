"""Gemma 3 as GGUF: norms plus 1, windows and ropes, and the way back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import gemma3
import qbridge
from qbridge.codecs.arrays import PlusOne
from qbridge.findings.finding import Findings
from qbridge.ir.dtypes import DType
from qbridge.ir.slots import Slot
from qbridge.source.folder import Folder
from qbridge.source.gguf_files import open_gguf
from support import codes


def opened(path):
    return open_gguf(Folder(path.parent), path.name, Findings())


def stored(path, name):
    """float32 values of a tensor of a file."""
    info = opened(path).tensors[name]
    return np.frombuffer(path.read_bytes()[info.begin : info.end], np.float32)


def test_norms_are_plus_one_and_come_back(tmp_path):
    src = gemma3.make(tmp_path / "src")
    report = qbridge.convert(src, tmp_path / "a.gguf", "llama.cpp")
    assert report.exactness == {"reversible": 42} and not report.findings
    weights = load_file(src / "model.safetensors")
    for there, name in {
        "output_norm": "model.norm",
        "blk.1.attn_norm": "model.layers.1.input_layernorm",
        "blk.1.post_attention_norm": "model.layers.1.post_attention_layernorm",
        "blk.1.ffn_norm": "model.layers.1.pre_feedforward_layernorm",
        "blk.1.post_ffw_norm": "model.layers.1.post_feedforward_layernorm",
        "blk.1.attn_q_norm": "model.layers.1.self_attn.q_norm",
    }.items():
        wanted = weights[f"{name}.weight"].float().numpy() + 1
        assert np.array_equal(stored(tmp_path / "a.gguf", f"{there}.weight"), wanted), name
    assert qbridge.verify(src, tmp_path / "a.gguf").same
    qbridge.restore(tmp_path / "a.gguf", tmp_path / "back", config=src)
    back = load_file(tmp_path / "back/model.safetensors")
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name].view(torch.uint8), weights[name].view(torch.uint8)) for name in weights)


def test_metadata_say_window_and_ropes(tmp_path):
    src = gemma3.make(tmp_path / "src", rope_scaling={"rope_type": "linear", "factor": 8.0})
    qbridge.convert(src, tmp_path / "a.gguf", "llama.cpp")
    found = opened(tmp_path / "a.gguf").metadata
    assert found["general.architecture"] == "gemma3"
    wanted = {"attention.sliding_window": 16, "rope.freq_base": 1e6, "rope.freq_base_swa": 1e4}
    wanted |= {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0, "attention.key_length": 64}
    assert {key: found[f"gemma3.{key}"] for key in wanted} == wanted


@pytest.mark.parametrize(
    "change",
    [
        {"layer_types": ["full_attention"] * 6},
        {"query_pre_attn_scalar": 256},
        {"hidden_activation": "silu"},
        {"sliding_window": None},
        {"rope_scaling": {"rope_type": "yarn", "factor": 8.0}},
        {"attn_logit_softcapping": 50.0},
    ],
)
def test_what_llama_cpp_would_do_otherwise_is_refused(change, tmp_path):
    with pytest.raises(qbridge.QBridgeError) as excinfo:
        qbridge.convert(gemma3.make(tmp_path / "src", **change), tmp_path / "a.gguf", "llama.cpp")
    assert codes(excinfo) == {"QB117"}


def test_sums_that_float32_rounds_are_counted(tmp_path):
    src = gemma3.make(tmp_path / "src")
    tensors = load_file(src / "model.safetensors")
    tensors["model.norm.weight"][:3] = 2.0**-30
    save_file(tensors, src / "model.safetensors", {"format": "pt"})
    report = qbridge.convert(src, tmp_path / "a.gguf", "llama.cpp")
    (finding,) = report.findings
    assert finding.code == "QB302" and finding.facts[0].startswith("3 weights plus 1")
    assert stored(tmp_path / "a.gguf", "output_norm.weight")[0] == 1


def test_a_sum_less_one_is_exact_or_refused():
    codec, slot = PlusOne(DType.BF16), Slot("a", DType.F32, (2,))
    values = np.array([0x3F80, 0xBE00], np.uint16)
    there = codec.encode(values, slot)
    assert there.tolist() == [2.0, 0.875]
    assert (codec.decode(there, DType.BF16, (2,)) == values).all()
    with pytest.raises(ValueError, match="less 1"):
        codec.decode(np.array([1 + 513 * 2**-23, 1], np.float32), DType.BF16, (2,))
