"""Experts with float4 codes in an fp8 checkpoint, as DeepSeek-V4 has them: MXFP4 with e8m0 scales, and NVFP4."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import qbridge
from qbridge.ir.scheme import Granularity
from qbridge.ir.values import dequantize
from support import SINGLE, codes

EXPERTS, HIDDEN, INNER = 2, 256, 128
BLOCK = {
    "quant_method": "fp8",
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "scale_fmt": "ue8m0",
    "weight_block_size": [128, 128],
}
NV = {
    **BLOCK,
    "moe_quant_algo": "NVFP4",
    "quant_algo": "MIXED_PRECISION",
    "group_size": 16,
    "ignore": ["*.attn.*", "head"],
    "quantized_layers": {"layers.0.ffn.experts": {"quant_algo": "NVFP4", "group_size": 16}},
    "config_groups": {},
    "producer": {"name": "modelopt"},
    "kv_cache_quant_algo": None,
}
LINEARS = {"w1": (INNER, HIDDEN), "w2": (HIDDEN, INNER), "w3": (INNER, HIDDEN)}
F4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=torch.float64)
GENERATOR = torch.Generator().manual_seed(3)


def byte(*shape, top=256):
    return torch.randint(0, top, shape, generator=GENERATOR, dtype=torch.uint8)


def exponents(*shape):
    return (byte(*shape, top=8) + 120).view(torch.float8_e8m0fnu)


def mxfp4(rows, columns, scale="scale", kind=torch.float8_e8m0fnu, code=torch.int8):
    return {
        "weight": byte(rows, columns // 2).view(code),
        scale: exponents(rows, columns // 32).view(kind),
    }


def nvfp4(rows, columns, shape=(), inputs=True):
    alone = {"weight_scale_2": torch.full(shape, 0.375)}
    alone |= {"input_scale": torch.full(shape, 0.5)} if inputs else {}
    scale = (torch.rand(rows, columns // 16, generator=GENERATOR) + 0.1).to(torch.float8_e4m3fn)
    return {"weight": byte(rows, columns // 2), "weight_scale": scale, **alone}


def values(parts):
    code = parts["weight"].view(torch.uint8)
    weight = F4[torch.stack((code & 15, code >> 4), -1).flatten(1).long()]
    if "weight_scale_2" in parts:
        scale = parts["weight_scale"].double() * parts["weight_scale_2"].double()
    else:
        scale = next(part for leaf, part in parts.items() if leaf != "weight").view(torch.float8_e8m0fnu).double()
    return weight * scale.repeat_interleave(weight.shape[1] // scale.shape[1], 1)


def checkpoint(path, experts, block=BLOCK, architecture="DeepseekV4ForCausalLM"):
    """Float8 attention and shared experts, float4 experts: `experts` makes the tensors of a linear."""
    path.mkdir()
    made = {
        f"layers.0.ffn.experts.{expert}.{leaf}": experts(*dims)
        for expert in range(EXPERTS)
        for leaf, dims in LINEARS.items()
    }
    tensors = {f"{module}.{leaf}": part for module, parts in made.items() for leaf, part in parts.items()}
    float8 = {"attn.wq_a": (128, HIDDEN), "attn.wo_b": (HIDDEN, 256)}
    float8 |= {f"ffn.shared_experts.{leaf}": dims for leaf, dims in LINEARS.items()}
    for name, (rows, columns) in float8.items():
        weight = torch.randn(rows, columns, generator=GENERATOR).to(torch.float8_e4m3fn)
        scale = exponents(-(-rows // 128), -(-columns // 128))
        tensors |= {f"layers.0.{name}.weight": weight, f"layers.0.{name}.scale": scale}
    plain = {"embed": (64, HIDDEN), "head": (64, HIDDEN), "layers.0.ffn.gate": (EXPERTS, HIDDEN), "norm": (HIDDEN,)}
    tensors |= {f"{name}.weight": torch.ones(shape).bfloat16() for name, shape in plain.items()}
    save_file(tensors, path / SINGLE, {"format": "pt"})
    config = {
        "architectures": [architecture],
        "model_type": "deepseek_v4",
        "hidden_size": HIDDEN,
        "moe_intermediate_size": INNER,
        "n_routed_experts": EXPERTS,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "head_dim": 128,
        "vocab_size": 64,
        "expert_dtype": "fp4",
        "dtype": "bfloat16",
        "quantization_config": block,
    }
    (path / "config.json").write_text(json.dumps(config))
    return made


CASES = {
    "mxfp4": (mxfp4, BLOCK),
    "mxfp4 in unsigned bytes": (lambda *dims: mxfp4(*dims, kind=torch.uint8, code=torch.uint8), BLOCK),
    "mxfp4, another name": (lambda *dims: mxfp4(*dims, scale="weight_scale_inv"), BLOCK),
    "nvfp4": (nvfp4, NV),
    "nvfp4, scales of one axis": (lambda *dims: nvfp4(*dims, shape=(1,)), NV),
    "nvfp4, inputs not quantized": (lambda *dims: nvfp4(*dims, inputs=False), NV),
}


@pytest.fixture(params=CASES)
def case(request, tmp_path):
    return tmp_path / "src", checkpoint(tmp_path / "src", *CASES[request.param]), request.param


def test_values_and_what_is_said_of_them(case):
    src, made, _ = case
    with qbridge.open(src) as opened:
        assert opened.format == "fp8" and {f.code for f in opened.findings} <= {"QB039"}
        for module, parts in made.items():
            assert np.array_equal(dequantize(opened.layer(module)), values(parts).numpy()), module
        float8 = [spec for spec in opened.specs.values() if spec.weight.granularity is Granularity.BLOCK]
        assert len(float8) == 5 and len(opened.specs) == 5 + 3 * EXPERTS


def test_dense_has_their_values(case, tmp_path):
    src, made, _ = case
    qbridge.convert(src, tmp_path / "dense", "dense")
    found = load_file(tmp_path / "dense" / SINGLE)
    for module, parts in made.items():
        assert found[f"{module}.weight"].equal(values(parts).bfloat16()), module


def test_vllm_gets_them_as_they_are(case, tmp_path):
    src, made, name = case
    if "not quantized" in name:
        with pytest.raises(qbridge.QBridgeError) as refused:
            qbridge.convert(src, tmp_path / "out", "vllm")
        assert codes(refused) & {"QB110", "QB116"}
        return
    qbridge.convert(src, tmp_path / "out", "vllm")
    found, block = (load_file(tmp_path / "out" / SINGLE), json.loads((tmp_path / "out/config.json").read_text()))
    assert block["expert_dtype"] == "fp4" and block["quantization_config"]["quant_method"] == "fp8"
    assert block["quantization_config"].get("moe_quant_algo") == ("NVFP4" if "nvfp4" in name else None)
    leaves = {key.rpartition(".")[2] for key in found if ".experts." in key}
    assert leaves == (
        {"weight", "weight_scale", "weight_scale_2", "input_scale"} if "nv" in name else {"weight", "scale"}
    )
    assert "layers.0.attn.wq_a.scale" in found
    for module, parts in made.items():
        assert found[f"{module}.weight"].view(torch.uint8).equal(parts["weight"].view(torch.uint8))
    assert qbridge.verify(src, tmp_path / "out").same and qbridge.check(tmp_path / "out", "vllm").ok
    qbridge.restore(tmp_path / "out", tmp_path / "back")
    wanted, back = load_file(src / SINGLE), load_file(tmp_path / "back" / SINGLE)
    assert wanted.keys() == back.keys()
    for key, tensor in wanted.items():
        assert (tensor.dtype, tensor.shape) == (back[key].dtype, back[key].shape), key
        assert tensor.reshape(-1).view(torch.uint8).equal(back[key].reshape(-1).view(torch.uint8)), key


@pytest.mark.parametrize(("name", "ok"), [("mxfp4", True), ("nvfp4", False)])
def test_transformers_knows_one_of_them(name, ok, tmp_path):
    checkpoint(tmp_path / "src", *CASES[name])
    assert qbridge.check(tmp_path / "src", "transformers").ok == ok


def test_other_classes_have_no_place_for_them(tmp_path):
    checkpoint(tmp_path / "src", mxfp4, architecture="DeepseekV3ForCausalLM")
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.convert(tmp_path / "src", tmp_path / "out", "fp8", allow=["incomplete", "unknown-tensors"])
    assert "QB110" in codes(refused) and "e2m1" in str(refused.value)


@pytest.mark.parametrize(
    "experts",
    [
        lambda rows, columns: mxfp4(rows, columns) | {"scale": exponents(rows, columns // 64)},
        lambda rows, columns: mxfp4(rows, columns) | {"scale": torch.ones(rows, columns // 32)},
        lambda rows, columns: nvfp4(rows, columns) | {"weight_scale": torch.ones(rows, columns // 16)},
    ],
)
def test_other_codes_are_not_taken_for_them(experts, tmp_path):
    checkpoint(tmp_path / "src", experts)
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.open(tmp_path / "src")
    assert "QB101" in codes(refused)


@pytest.mark.parametrize("name", ["mxfp4", "mxfp4 in unsigned bytes", "mxfp4, another name"])
def test_experts_are_cast_and_the_config_says_it(name, tmp_path):
    made = checkpoint(tmp_path / "src", *CASES[name])
    qbridge.convert(tmp_path / "src", tmp_path / "out", "fp8", cast="fp8", keep_undo=True)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["expert_dtype"] == "fp8"
    with qbridge.open(tmp_path / "out") as opened:
        for module, parts in made.items():
            assert np.array_equal(dequantize(opened.layer(module)), values(parts).numpy()), module
    qbridge.restore(tmp_path / "out", tmp_path / "back")
    was, now = load_file(tmp_path / "src" / SINGLE), load_file(tmp_path / "back" / SINGLE)
    assert was.keys() == now.keys()
    assert all(was[each].view(torch.uint8).equal(now[each].view(torch.uint8)) for each in was)
    assert json.loads((tmp_path / "back/config.json").read_text()) == json.loads(
        (tmp_path / "src/config.json").read_text()
    )


def test_vllm_is_asked_about_the_config_that_follows_the_cast(tmp_path):
    made = checkpoint(tmp_path / "src", *CASES["mxfp4"])
    qbridge.convert(tmp_path / "src", tmp_path / "out", "vllm", cast="fp8", keep_undo=True)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["expert_dtype"] == "fp8" and qbridge.check(tmp_path / "out", "vllm").ok
    with qbridge.open(tmp_path / "out") as opened:
        for module, parts in made.items():
            assert np.array_equal(dequantize(opened.layer(module)), values(parts).numpy()), module


def test_no_cast_computes_the_input_scales_that_nvfp4_experts_need(tmp_path):
    checkpoint(tmp_path / "src", *CASES["mxfp4"])
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.convert(tmp_path / "src", tmp_path / "out", "fp8", cast="nvfp4")
    assert codes(refused) == {"QB110"}
