"""MLX against what mlx_lm.convert wrote, and what is written as MLX."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.torch import load_file

import goldens
import qbridge
from qbridge.codecs.affine import Biases, MiddleBiases, zeros_of
from qbridge.ir.dtypes import DType, from_float64
from qbridge.ir.slots import Slot
from qbridge.ir.values import dequantize
from qbridge.testing import check_format
from support import ROOT, codes, copy_fixture, edit_json, rewrite_tensors

CT = "compressed_tensors"
# Case, what config.json says of its linears, the class of exactness.
WRITTEN = [
    (f"{CT}/llama_w4a16", (4, 32, "affine"), "reversible"),
    (f"{CT}/llama_w4a16_g128", (4, 128, "affine"), "reversible"),
    (f"{CT}/llama_w4a16_channel", (4, 128, "affine"), "equal"),
    (f"{CT}/llama_w4a16_asym", (5, 32, "affine"), "equal"),
    ("auto_round/llama_3bit_asym", (4, 32, "affine"), "equal"),
    (f"{CT}/llama_w5a16", (5, 32, "affine"), "reversible"),
    (f"{CT}/llama_w7a16", (8, 32, "affine"), "equal"),
    (f"{CT}/llama_w8a8", (8, 128, "affine"), "equal"),
    (f"{CT}/llama_mxfp4a16", (4, 32, "mxfp4"), "reversible"),
    (f"{CT}/llama_mxfp8", (8, 32, "mxfp8"), "equal"),
    (f"{CT}/qwen2_w4a16_tied", (4, 32, "affine"), "reversible"),
    (f"{CT}/qwen3_moe_w4a16", (4, 32, "affine"), "reversible"),
    (f"{CT}/mixtral_w8a8", (8, 128, "affine"), "equal"),
    ("gptq/llama_v2_asym", (5, 32, "affine"), "equal"),
    ("awq/llama_gemm", (5, 32, "affine"), "equal"),
]


@pytest.mark.parametrize("case", goldens.cases("mlx"))
def test_values_are_those_of_mlx(case):
    goldens.check("mlx", case)


def test_laws():
    check_format("mlx")


def weights(folder):
    """Every weight under its name in transformers, quantized or not."""
    with qbridge.open(folder) as opened:
        found = {name: dequantize(opened.layer(name)) for name in opened.specs}
        plain = {name: opened.tensor(name).tobytes() for name in opened.model.tensors}
    return found, plain


@pytest.mark.parametrize(("case", "entry", "exactness"), WRITTEN, ids=[case for case, *_ in WRITTEN])
def test_every_value_is_the_source_s(case, entry, exactness, tmp_path):
    src = ROOT / "fixtures" / case / "model"
    report = qbridge.convert(src, tmp_path / "out", "mlx")
    assert set(report.exactness) == {exactness}
    (layers, plain), (wanted, tensors) = weights(tmp_path / "out"), weights(src)
    assert layers.keys() == wanted.keys() and plain == tensors
    assert all(np.array_equal(layers[name], wanted[name]) for name in wanted)
    said = json.loads((tmp_path / "out/config.json").read_text())
    base = said["quantization"]
    assert (base["bits"], base["group_size"], base["mode"]) == entry and base == said["quantization_config"]
    if not any(passes == "unquantized-inputs" for passes in report.passes):
        assert qbridge.verify(src, tmp_path / "out").same


@pytest.mark.parametrize("case", [f"{CT}/llama_w4a16", f"{CT}/qwen3_moe_w4a16", f"{CT}/llama_mxfp4a16"])
def test_what_is_reversible_comes_back(case, tmp_path):
    src = ROOT / "fixtures" / case / "model"
    qbridge.convert(src, tmp_path / "out", "mlx")
    qbridge.restore(tmp_path / "out", tmp_path / "back")
    with qbridge.open(src) as was, qbridge.open(tmp_path / "back") as now:
        stored = {name: was.source.read(name).tobytes() for name in was.source.tensors}
        assert stored == {name: now.source.read(name).tobytes() for name in now.source.tensors}


def test_mlx_is_copied(tmp_path):
    src = ROOT / "fixtures/mlx/llama_affine/model"
    qbridge.convert(src, tmp_path / "out", "mlx")
    assert qbridge.verify(src, tmp_path / "out").same
    with qbridge.open(src) as was, qbridge.open(tmp_path / "out") as now:
        for name in was.source.tensors:
            assert was.source.read(name).tobytes() == now.source.read(name).tobytes()


def test_zero_points_become_gptq_and_come_back(tmp_path):
    src = ROOT / "fixtures/mlx/llama_zero_points/model"
    qbridge.convert(src, tmp_path / "out", "gptq")
    assert qbridge.verify(src, tmp_path / "out").same
    qbridge.restore(tmp_path / "out", tmp_path / "back")
    with qbridge.open(src) as was, qbridge.open(tmp_path / "back") as now:
        for name in was.source.tensors:
            assert was.source.read(name).tobytes() == now.source.read(name).tobytes()


@pytest.mark.parametrize("target", ["gptq", "awq", "compressed-tensors", "auto-round", "gguf", "smooth-quant", "fp8"])
def test_offsets_have_no_place_in_integer_formats(target, tmp_path):
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.convert(ROOT / "fixtures/mlx/qwen3_moe_affine/model", tmp_path / "out", target)
    facts = [fact for finding in refused.value.findings for fact in finding.facts]
    assert any("affine4 with float offsets" in fact for fact in facts)


def test_offsets_become_dense(tmp_path):
    src = ROOT / "fixtures/mlx/llama_affine/model"
    report = qbridge.convert(src, tmp_path / "out", "dense", dtype="float32")
    assert set(report.exactness) == {"dequantized"}
    written = load_file(tmp_path / "out/model.safetensors")
    for name, values in weights(src)[0].items():
        assert np.array_equal(written[f"{name}.weight"].numpy(), values.astype(np.float32)), name


def test_unquantized_modules_are_named(tmp_path):
    qbridge.convert(ROOT / f"fixtures/{CT}/llama_partial/model", tmp_path / "out", "mlx")
    said = json.loads((tmp_path / "out/config.json").read_text())["quantization"]
    assert said["model.embed_tokens"] is False and said["lm_head"] is False


def test_experts_are_stacked(tmp_path):
    qbridge.convert(ROOT / f"fixtures/{CT}/mixtral_w8a8/model", tmp_path / "out", "mlx")
    with qbridge.open(tmp_path / "out") as opened:
        stored = {name for slots in opened.model.slots.values() for name in (slots["code"].tensor,)}
    assert any(name.endswith("experts.0.w1.weight") for name in stored)
    header = json.loads((tmp_path / "out/model.safetensors").read_bytes()[8:].split(b"}}")[0] + b"}}")
    stack = header["model.layers.0.block_sparse_moe.switch_mlp.gate_proj.weight"]
    assert stack["dtype"] == "U32" and len(stack["shape"]) == 3


def test_a_model_type_without_names_is_refused(tmp_path):
    src = copy_fixture(tmp_path, f"{CT}/llama_w4a16")
    edit_json(src / "config.json", lambda config: config.update(model_type="qwen3_next"))
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.convert(src, tmp_path / "out", "mlx")
    assert "QB126" in codes(refused)


def test_a_model_type_without_names_is_read_under_its_own(tmp_path):
    src = copy_fixture(tmp_path, "mlx/llama_affine")
    edit_json(src / "config.json", lambda config: config.update(model_type="qwen3_next"))
    with qbridge.open(src) as opened:
        assert "QB128" in {finding.code for finding in opened.findings}
        assert "model.layers.0.mlp.gate_proj" in opened.specs


def test_a_bias_beyond_the_range_is_refused(tmp_path):
    src = copy_fixture(tmp_path, "gptq/llama_8bit")

    def large(tensors):
        name = next(name for name in tensors if name.endswith(".scales"))
        tensors[name] = tensors[name] * 0 + np.float16(60000)

    rewrite_tensors(src, large)
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.convert(src, tmp_path / "out", "mlx")
    assert "QB127" in codes(refused)


def test_biases_that_are_rounded_are_no_zero_points():
    scale = from_float64(np.array([[-0.016723633]]), DType.BF16)
    rounded = from_float64(np.array([[9 * 0.016723633]]), DType.BF16)
    assert zeros_of(rounded, scale, DType.BF16, 8)[1] == 1


def test_biases_are_exact_or_refused():
    scale, slot = np.array([[3.0]], np.float16), Slot("t", DType.F16, (1, 1))
    stored = MiddleBiases(8, DType.F16).encode(np.empty(0), slot, {"scale": scale})
    assert stored.tolist() == [[-24.0]]
    with pytest.raises(ValueError, match="not those of symmetric codes"):
        MiddleBiases(8, DType.F16).decode(stored + 1, DType.F16, (1, 1), {"scale": scale})
    zeros = np.array([[3]], np.int16)
    again = Biases(8, DType.F16).encode(zeros, slot, {"scale": scale})
    assert Biases(8, DType.F16).decode(again, DType.I16, (1, 1), {"scale": scale}).tolist() == [[3]]
    with pytest.raises(ValueError, match="no F16"):
        Biases(128, DType.F16).encode(zeros, slot, {"scale": np.array([[1001.0]], np.float16)})
