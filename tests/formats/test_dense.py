"""Dense weights against exact values, against what the tools compute themselves, and in plain transformers."""

from __future__ import annotations

import hashlib
import json
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

import goldens
import qbridge
from qbridge.codecs.arrays import ScaledZeros
from qbridge.ir.dtypes import DType, to_float64
from qbridge.ir.layer import Layer, Spec
from qbridge.ir.scheme import DENSE, Granularity, WeightScheme
from qbridge.ir.values import code_values, dequantize, group_index, row_index
from qbridge.passes.dequantize import Dequantize
from qbridge.testing.strategies import layers
from qbridge.write.budget import Effort
from support import ROOT, codes, contents, copy_fixture, edit_json, rewrite_tensors

CASES = [
    (folder.name, case)
    for folder in sorted((ROOT / "fixtures").iterdir())
    if folder.name != "makers"
    for case in goldens.cases(folder.name)
    if folder.name != "mxfp4"
]
TORCH = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def tensors(folder):
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def to_dense(format_id, case, dst, dtype=""):
    allow = [*goldens.ALLOW.get(case, ()), "drop-kv-scales"]
    src = ROOT / "fixtures" / format_id / case / "model"
    qbridge.convert(src, dst, "dense", allow=allow, dtype=dtype)
    return tensors(dst)


@pytest.mark.parametrize(("format_id", "case"), CASES)
def test_float32_is_what_the_tool_computes(format_id, case, tmp_path):
    expected = json.loads((ROOT / "fixtures" / format_id / case / "expected.json").read_text())["weights"]
    found = to_dense(format_id, case, tmp_path / "dst", "float32")
    with qbridge.open(ROOT / "fixtures" / format_id / case / "model", allow=goldens.ALLOW.get(case, ())) as opened:
        for name, slots in opened.model.slots.items():
            if isinstance(slots["zero"].codec if "zero" in slots else None, ScaledZeros):
                continue  # the tool adds a product that float16 rounded, and so rounds twice
            weight = found[f"{name}.weight"].numpy()
            if format_id == "mlx":
                weight = weight + np.float32(0)  # the tool adds a bias, so that its zeros have no sign
            stored = slots["code"].tensor.rpartition(".")[0] + ".weight"
            assert hashlib.sha256(weight.tobytes()).hexdigest() == expected[stored]["sha256"], name


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(
    ("format_id", "case"),
    [
        ("compressed_tensors", "llama_w8a8"),
        ("compressed_tensors", "llama_w4a16_asym"),
        ("compressed_tensors", "llama_w4a16_g_idx"),
        ("gptq", "llama_desc_act"),
        ("awq", "llama_gemm"),
        ("smooth_quant", "llama_lite"),
        ("smooth_quant", "llama_lite_fp8"),
    ],
)
def test_every_weight_is_rounded_once(format_id, case, dtype, tmp_path):
    found = to_dense(format_id, case, tmp_path / "dst", dtype)
    with qbridge.open(ROOT / "fixtures" / format_id / case / "model") as opened:
        for name in opened.specs:
            assert_nearest(found[f"{name}.weight"], dequantize(opened.layer(name)), TORCH[dtype])


def assert_nearest(weights, exact, dtype):
    """No neighbour is nearer than the weight, and of two that are as near it is the even one."""
    bits = weights.view(torch.int16).numpy().astype(np.int64) & 0xFFFF
    values = weights.to(torch.float64).numpy()
    distance = np.abs(values - exact)
    for step in (-1, 1):
        other = torch.from_numpy(((bits + step) & 0xFFFF).astype(np.uint16)).view(dtype).to(torch.float64).numpy()
        nearer = np.abs(other - exact)
        ordinary = np.isfinite(other) & (np.signbit(other) == np.signbit(values))
        assert not (ordinary & (nearer < distance)).any()
        assert not (ordinary & (nearer == distance) & (bits % 2 == 1)).any()


@given(layers(), st.sampled_from(sorted(DENSE)))
def test_a_table_of_values_gives_what_each_code_gives(layer, name):
    exact = dequantize(layer)
    try:
        dense = Dequantize(DENSE[name]).apply(layer)
    except ValueError as fault:
        most = {"float16": 65520.0, "bfloat16": 2.0**128 * (1 - 2.0**-9), "float32": 2.0**128 * (1 - 2.0**-25)}
        assert np.abs(exact[np.isfinite(exact)]).max() >= most[name], fault
        return
    with np.errstate(over="ignore", invalid="ignore"):
        found = to_float64(dense.arrays["code"], DENSE[name])
        assert np.allclose(found, exact, rtol=2**-7, atol=2.0**-24, equal_nan=True)
        if name == "float32":
            assert np.array_equal(dense.arrays["code"], exact.astype(np.float32), equal_nan=True)
    assert dense.spec == Dequantize(DENSE[name]).plan(layer.spec) and dense.complete


def test_the_definition_of_a_value_is_the_same_in_both_places():
    spec = Spec("l", 4, 8, WeightScheme(4, Granularity.GROUP, False, group_size=4), DType.F16, g_idx=True)
    random = np.random.default_rng(0)
    arrays = {p: random.integers(-8, 8, shape).astype(dtype.numpy) for p, (dtype, shape) in spec.parts().items()}
    arrays["g_idx"] = np.array([1, 0, 1, 0, 0, 0, 1, 1], np.int32)
    rows, columns = row_index(spec)[:, None], group_index(spec, arrays["g_idx"])[None, :]
    by_hand = code_values(arrays["code"], "int") - arrays["zero"][rows, columns]
    by_hand = by_hand * arrays["scale"].astype(np.float64)[rows, columns]
    found = Dequantize(DType.F32).apply(Layer(spec, arrays)).arrays["code"]
    assert np.array_equal(found, by_hand.astype(np.float32))


@pytest.mark.parametrize("name", sorted(DENSE))
def test_a_quotient_is_rounded_as_if_it_were_exact(name):
    weight = WeightScheme(4, Granularity.GROUP, type="e2m1", group_size=16, global_scale="divide")
    spec, random = Spec("l", 16, 64, weight, DType.F8_E4M3), np.random.default_rng(1)
    arrays = {
        "code": random.integers(0, 16, (16, 64)).astype(np.uint8),
        "scale": random.integers(1, 0x7F, (16, 4)).astype(np.uint8),
        "global_scale": np.array([1327.3], np.float32),
    }
    layer = Layer(spec, arrays)
    found = Dequantize(DENSE[name]).apply(layer).arrays["code"]
    values = to_float64(found, DENSE[name])
    scales = to_float64(arrays["scale"], DType.F8_E4M3)
    for (row, column), value in np.ndenumerate(values):
        if value == 0:
            continue
        exact = Fraction(code_values(arrays["code"], "e2m1")[row, column]) * Fraction(scales[row, column // 16])
        exact /= Fraction(float(arrays["global_scale"][0]))
        for step in (-1, 1):
            bits = np.array([int(found.view(f"<u{found.itemsize}")[row, column]) + step], f"<u{found.itemsize}")
            neighbour = to_float64(bits.view(found.dtype), DENSE[name])[0]
            assert not np.isfinite(neighbour) or abs(Fraction(value) - exact) <= abs(Fraction(neighbour) - exact)


def test_plain_transformers_loads_it(tmp_path):
    from transformers import AutoModelForCausalLM

    found = to_dense("compressed_tensors", "llama_w8a8", tmp_path / "dst", "bfloat16")
    config = json.loads((tmp_path / "dst/config.json").read_text())
    named = {config[key] for key in ("dtype", "torch_dtype") if key in config}
    assert "quantization_config" not in config and named == {"bfloat16"}
    model, said = AutoModelForCausalLM.from_pretrained(tmp_path / "dst", dtype="auto", output_loading_info=True)
    assert not said["missing_keys"] and not said["unexpected_keys"] and not said["mismatched_keys"]
    loaded = model.state_dict()
    assert model.dtype is torch.bfloat16
    name = "model.layers.0.mlp.down_proj.weight"
    assert torch.equal(loaded[name], found[name]) and found[name].dtype is torch.bfloat16


def test_windows_give_the_same_bytes(tmp_path, monkeypatch):
    to_dense("gptq", "llama_desc_act", tmp_path / "whole")
    monkeypatch.setattr(Effort, "block", property(lambda effort: 1 << 12))
    monkeypatch.setattr("qbridge.write.jobs.CODES", 1 << 11)
    to_dense("gptq", "llama_desc_act", tmp_path / "windows")
    assert contents(tmp_path / "whole") == contents(tmp_path / "windows")


def test_a_weight_beyond_float16_is_refused_and_nothing_is_left(tmp_path):
    src = copy_fixture(tmp_path, "compressed_tensors/llama_w8a8_rope")

    def enlarge(tensors):
        tensors["model.layers.0.mlp.down_proj.weight_scale"][:] = 60000

    rewrite_tensors(src, enlarge)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.convert(src, tmp_path / "dst", "dense", dtype="float16")
    assert codes(refused) == {"QB304"} and "beyond the range of float16" in str(refused.value)
    assert sorted(tmp_path.iterdir()) == before
    qbridge.convert(src, tmp_path / "dst", "dense", dtype="bfloat16")


def test_without_a_dtype_in_config_weights_are_bfloat16(tmp_path):
    src = copy_fixture(tmp_path)
    edit_json(
        src / "config.json", lambda config: [config.pop(key, None) for key in ("dtype", "torch_dtype")] and None
    )
    report = qbridge.convert(src, tmp_path / "dst", "dense")
    assert tensors(tmp_path / "dst")["model.layers.0.mlp.down_proj.weight"].dtype is torch.bfloat16
    assert set(report.exactness) == {"dequantized"}


GPT_OSS = ROOT / "fixtures/mxfp4/gpt_oss"


def assert_experts_of_transformers(found):
    """Fused tensors hold the weights that transformers dequantizes to, and the biases that it loads."""
    expected = json.loads((GPT_OSS / "expected.json").read_text())["weights"]
    stored = load_file(GPT_OSS / "model/model.safetensors")
    for name, wanted in expected.items():
        block, expert, leaf, _ = name.rsplit(".", 3)
        rows = {"gate_proj": slice(0, None, 2), "up_proj": slice(1, None, 2)}.get(leaf, slice(None))
        fused = found[f"{block}.{'down_proj' if leaf == 'down_proj' else 'gate_up_proj'}"]
        weight = fused[int(expert)].float().T[rows].contiguous().numpy()
        assert hashlib.sha256(weight.tobytes()).hexdigest() == wanted["sha256"], name
    for name, tensor in stored.items():
        if not name.endswith(("_blocks", "_scales")):
            assert found.pop(name).equal(tensor), name
    fused = {name.removesuffix("_blocks") for name in stored if name.endswith("_blocks")}
    assert found.keys() == fused


def test_experts_of_gpt_oss_are_fused_as_transformers_has_them(tmp_path):
    found = to_dense("mxfp4", "gpt_oss", tmp_path / "dst")
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    assert_experts_of_transformers(found)
    qbridge.convert(GPT_OSS / "model", tmp_path / "ct", "compressed-tensors")
    qbridge.convert(tmp_path / "ct", tmp_path / "again", "dense")
    assert contents(tmp_path / "again")["model.safetensors"] == contents(tmp_path / "dst")["model.safetensors"]


def test_windows_of_fused_experts_give_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(Effort, "block", property(lambda effort: 1 << 12))
    monkeypatch.setattr("qbridge.write.jobs.CODES", 1 << 9)
    assert_experts_of_transformers(to_dense("mxfp4", "gpt_oss", tmp_path / "dst"))


def test_plain_transformers_loads_gpt_oss(tmp_path):
    from transformers import AutoModelForCausalLM

    found = to_dense("mxfp4", "gpt_oss", tmp_path / "dst")
    model, said = AutoModelForCausalLM.from_pretrained(tmp_path / "dst", dtype="auto", output_loading_info=True)
    assert not said["missing_keys"] and not said["unexpected_keys"] and not said["mismatched_keys"]
    loaded = model.state_dict()
    assert loaded.keys() == found.keys() and all(loaded[name].equal(tensor) for name, tensor in found.items())


def test_experts_that_make_up_no_tensor_of_transformers_are_refused(tmp_path):
    qbridge.convert(GPT_OSS / "model", tmp_path / "src", "compressed-tensors")
    edit_json(tmp_path / "src/config.json", lambda config: config.update(num_experts=5))
    with pytest.raises(qbridge.QBridgeError, match="12 of the 15 linears") as refused:
        qbridge.convert(tmp_path / "src", tmp_path / "dst", "dense", allow=["incomplete"])
    assert codes(refused) == {"QB110"}


def test_kv_scales_are_dropped_only_when_told(tmp_path):
    src = ROOT / "fixtures/compressed_tensors/llama_kv_int8/model"
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.convert(src, tmp_path / "dst", "dense")
    assert codes(refused) == {"QB113"}


def test_nothing_leads_back(tmp_path):
    to_dense("compressed_tensors", "llama_w8a8", tmp_path / "dst")
    with pytest.raises(qbridge.QBridgeError):
        qbridge.restore(tmp_path / "dst", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_dtype_goes_with_dense_alone(tmp_path):
    src = ROOT / "fixtures/compressed_tensors/llama_w8a8/model"
    with pytest.raises(ValueError, match="dense"):
        qbridge.convert(src, tmp_path / "dst", "lmdeploy", dtype="bfloat16")
    with pytest.raises(ValueError, match="bfloat16"):
        qbridge.convert(src, tmp_path / "dst", "dense", dtype="int8")
