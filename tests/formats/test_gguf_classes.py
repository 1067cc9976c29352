"""Classes whose GGUF is more than other names: experts in stacks with biases, latent attention; there and back."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.torch import load_file

import hub
import make
import qbridge
import small
from qbridge.codecs.heads import HeadRows, TurnedHeads
from qbridge.findings.finding import Findings
from qbridge.ir.dtypes import DType
from qbridge.ir.slots import Slot
from qbridge.ir.values import dequantize
from qbridge.source.folder import Folder
from qbridge.source.gguf_files import open_gguf
from support import ROOT, codes

pytestmark = pytest.mark.filterwarnings("ignore")
LATENT = "DeepseekV3ForCausalLM"


def opened(path):
    return open_gguf(Folder(path.parent), path.name, Findings())


def stored(path, name):
    """Raw elements of a tensor of a file, in its shape."""
    info = opened(path).tensors[name]
    return np.frombuffer(path.read_bytes()[info.begin : info.end], info.dtype.numpy).reshape(info.shape)


@pytest.fixture
def latent(tmp_path, monkeypatch):
    """A small DeepSeek-V3 with int4 experts, without layers for multi-token prediction; keys and values are plain."""
    monkeypatch.setattr(hub, "DRAFTED", {})
    sizes = {"num_key_value_heads": 4, "v_head_dim": 64, "n_routed_experts": 2}
    monkeypatch.setattr(small, "OTHER", {**small.OTHER, LATENT: sizes})
    make.build(LATENT, "w4a16", tmp_path / "src", leave="kv_b_proj")
    return tmp_path / "src/model"


def there_and_back(src, tmp_path):
    report = qbridge.convert(src, tmp_path / "a.gguf", "llama.cpp", allow=["no-tokenizer"])
    assert qbridge.verify(src, tmp_path / "a.gguf").same
    qbridge.restore(tmp_path / "a.gguf", tmp_path / "back", config=src)
    was, now = (load_bits(folder / "model.safetensors") for folder in (src, tmp_path / "back"))
    assert was.keys() == now.keys() and all(was[name] == now[name] for name in was)
    return report


def load_bits(file):
    """(dtype, shape, bytes) by name of a safetensors file."""
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    return {
        name: (
            info["dtype"],
            info["shape"],
            data[8 + size + info["data_offsets"][0] : 8 + size + info["data_offsets"][1]],
        )
        for name, info in header.items()
    }


def test_experts_with_biases_and_sinks(tmp_path):
    src = ROOT / "fixtures/mxfp4/gpt_oss/model"
    report = there_and_back(src, tmp_path)
    assert report.exactness.keys() == {"reversible"}
    weights = load_file(src / "model.safetensors")
    biases = weights["model.layers.1.mlp.experts.gate_up_proj_bias"]
    for name, start in (("gate", 0), ("up", 1)):
        there = stored(tmp_path / "a.gguf", f"blk.1.ffn_{name}_exps.bias")
        assert np.array_equal(there, biases[:, start::2].float().numpy())
    sinks = weights["model.layers.0.self_attn.sinks"].float().numpy()
    assert np.array_equal(stored(tmp_path / "a.gguf", "blk.0.attn_sinks.weight"), sinks)
    found = opened(tmp_path / "a.gguf").metadata
    assert found["general.architecture"] == "gpt-oss" and found["gpt-oss.rope.scaling.yarn_beta_fast"] == 32


def test_experts_of_mixtral(tmp_path):
    src = ROOT / "fixtures/compressed_tensors/mixtral_w8a8_w123/model"
    report = qbridge.convert(src, tmp_path / "a.gguf", "llama.cpp", allow=["no-tokenizer"])
    assert report.exactness == {"equal": 16}
    name = "model.layers.0.block_sparse_moe.experts.3.w2"
    with qbridge.open(src) as was, qbridge.open(tmp_path / "a.gguf") as now:
        assert np.array_equal(dequantize(was.layer(name)), dequantize(now.layer(name)))
    assert opened(tmp_path / "a.gguf").metadata["llama.expert_count"] == 4


def test_keys_and_values_of_latent_attention(latent, tmp_path):
    there_and_back(latent, tmp_path)
    data = load_bits(latent / "model.safetensors")["model.layers.1.self_attn.kv_b_proj.weight"]
    heads = np.frombuffer(data[2], np.uint16).reshape(4, 128 + 64, 512)
    keys, values = (stored(tmp_path / "a.gguf", f"blk.1.attn_{name}_b.weight") for name in "kv")
    assert np.array_equal(keys.view(np.uint16), heads[:, :128].swapaxes(1, 2))
    assert np.array_equal(values.view(np.uint16), heads[:, 128:])
    assert opened(tmp_path / "a.gguf").tensors["blk.1.exp_probs_b.bias"].shape == (2,)


def test_keys_and_values_in_codes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "DRAFTED", {})
    monkeypatch.setattr(small, "OTHER", {**small.OTHER, LATENT: {"num_key_value_heads": 4, "n_routed_experts": 2}})
    make.build(LATENT, "w4a16", tmp_path / "src")
    with pytest.raises(qbridge.QBridgeError) as excinfo:
        qbridge.convert(tmp_path / "src/model", tmp_path / "a.gguf", "llama.cpp", allow=["no-tokenizer"])
    assert codes(excinfo) == {"QB117"} and "the keys turned" in str(excinfo.value)


@pytest.mark.parametrize(
    "change",
    [
        {"scoring_func": "sqrtsoftplus"},
        {"rope_interleave": False},
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 64,
                "mscale": 1.0,
            }
        },
        {"moe_layer_freq": 2},
    ],
)
def test_what_llama_cpp_computes_otherwise_is_refused(change, latent, tmp_path):
    config = json.loads((latent / "config.json").read_text())
    (latent / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(qbridge.QBridgeError) as excinfo:
        qbridge.convert(latent, tmp_path / "a.gguf", "llama.cpp", allow=["no-tokenizer"])
    assert codes(excinfo) == {"QB117"}


@pytest.mark.parametrize("index", [0, 1])
def test_rows_of_heads_are_taken_and_joined(index):
    rows = np.arange(2 * 5 * 3, dtype=np.uint16).reshape(10, 3)
    shares = [HeadRows((3, 2), at).decode(rows, DType.BF16, (2 * count, 3)) for at, count in enumerate((3, 2))]
    assert np.array_equal(HeadRows((3, 2), index).join(shares), rows)
    turned = TurnedHeads(3).encode(shares[0], Slot("a", DType.BF16, (2, 3, 3)))
    assert np.array_equal(turned[1], shares[0][3:].T)
    assert np.array_equal(TurnedHeads(3).decode(turned, DType.BF16, shares[0].shape), shares[0])
    with pytest.raises(ValueError, match="rows of 2"):
        HeadRows((3, 2), index).encode(rows, Slot("a", DType.BF16, (10, 3)))
