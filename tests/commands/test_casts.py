"""--cast: MXFP4 and int4 in other number formats, exact, undone with what is stored, or refused with the reason."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file as save_torch

import qbridge
from qbridge.commands.checkpoint import open_checkpoint
from qbridge.ir.values import dequantize
from qbridge.source.opening import RESIDUE
from support import copy_fixture, header_of
from test_restore import assert_restored

ROOT = Path(__file__).resolve().parent.parent.parent
CASTS = ["fp8-block", "fp8-channel", "fp8-tensor", "nvfp4", "mxfp8", "int8"]


def fixture(case):
    return ROOT / "fixtures" / case / "model"


def same_weights(a, b):
    """Whether every weight has the same value, whatever inputs are."""
    with open_checkpoint(a, None, ()) as left, open_checkpoint(b, None, ()) as right:
        pairs = [(left.layer(name), right.layer(name)) for name in left.specs]
        return all(np.array_equal(dequantize(one), dequantize(other)) for one, other in pairs)


def codes(refused):
    return [finding.code for finding in refused.value.findings if str(finding.severity) == "error"]


@pytest.mark.parametrize("cast", CASTS)
@pytest.mark.parametrize("case", ["llama_mxfp4", "llama_mxfp4a16", "llama_mxfp4_fp8"])
def test_a_cast_keeps_every_weight_and_is_undone_with_what_is_stored(case, cast, tmp_path):
    source = fixture(f"compressed_tensors/{case}")
    report = qbridge.convert(source, tmp_path / "equal", "vllm", cast=cast)
    assert set(report.exactness) == {"equal"} and not (tmp_path / "equal" / RESIDUE).exists()
    assert same_weights(source, tmp_path / "equal")
    assert any(finding.code == "QB313" for finding in report.findings) == bool(report.activations_changed)
    if not report.activations_changed:
        assert qbridge.verify(source, tmp_path / "equal").same
    report = qbridge.convert(source, tmp_path / "kept", "vllm", cast=cast, keep_undo=True)
    assert set(report.exactness) == {"reversible"}
    assert (
        header_of(tmp_path / "kept/model.safetensors").keys()
        == header_of(tmp_path / "equal/model.safetensors").keys()
    )
    again = qbridge.convert(source, tmp_path / "kept", "vllm", cast=cast, keep_undo=True)
    assert again.already_done
    qbridge.restore(tmp_path / "kept", tmp_path / "back")
    assert_restored(source, tmp_path / "back")


@pytest.mark.parametrize("cast", ["fp8", "int8"])
def test_without_what_is_stored_there_is_no_way_back(cast, tmp_path):
    qbridge.convert(fixture("compressed_tensors/llama_mxfp4a16"), tmp_path / "there", "compressed-tensors", cast=cast)
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.restore(tmp_path / "there", tmp_path / "back")
    assert codes(refused) == ["QB037"]


def test_a_lost_residue_is_no_way_back(tmp_path):
    source = fixture("compressed_tensors/llama_mxfp4a16")
    qbridge.convert(source, tmp_path / "there", "compressed-tensors", cast="fp8", keep_undo=True)
    (tmp_path / "there" / RESIDUE).unlink()
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.restore(tmp_path / "there", tmp_path / "back")
    assert codes(refused) == ["QB037"]


def test_the_residue_is_not_carried_over(tmp_path):
    source = fixture("compressed_tensors/llama_mxfp4a16")
    qbridge.convert(source, tmp_path / "there", "compressed-tensors", cast="fp8-channel", keep_undo=True)
    qbridge.convert(tmp_path / "there", tmp_path / "dense", "dense")
    assert not (tmp_path / "dense" / RESIDUE).exists()


@pytest.mark.parametrize(
    ("case", "cast", "why"),
    [
        ("compressed_tensors/llama_nvfp4a16", "fp8", "more significant bits than a float8"),
        ("compressed_tensors/llama_w8a16", "fp8", "integers up to 16 alone"),
        ("compressed_tensors/llama_w4a16_asym", "fp8", "zero-points"),
        ("compressed_tensors/llama_w4a16", "nvfp4", "only MXFP4 is cast to nvfp4"),
        ("compressed_tensors/llama_fp8_dynamic", "int8", "only MXFP4 is cast to int8"),
        ("compressed_tensors/llama_fp8_dynamic", "fp8", "every layer is fp8 already"),
    ],
)
def test_what_has_no_exact_cast_is_refused_with_the_reason(case, cast, why, tmp_path):
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.convert(fixture(case), tmp_path / "out", "compressed-tensors", cast=cast)
    assert "QB311" in codes(refused) and why in str(refused.value)
    assert not (tmp_path / "out").exists()


def apart(tmp_path, layers=("model.layers.0.mlp.down_proj",)):
    """A copy of a fixture in which groups of some layers are 2^-30 of what they were."""
    source = copy_fixture(tmp_path, "compressed_tensors/llama_mxfp4a16")
    tensors = load_torch(source / "model.safetensors")
    for name in layers:
        tensors[f"{name}.weight_scale"][0, 0] -= 30
        tensors[f"{name}.weight_packed"][0, 0] = 0x77
    save_torch(tensors, source / "model.safetensors", {"format": "pt"})
    return source


@pytest.mark.parametrize("cast", ["fp8", "nvfp4"])
def test_scales_too_far_apart_are_one_finding_with_their_exponents(cast, tmp_path):
    source = apart(tmp_path)
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.convert(source, tmp_path / "out", "compressed-tensors", cast=cast)
    (finding,) = (each for each in refused.value.findings if each.code == "QB312")
    assert finding.where == ("model.layers.0.mlp.down_proj",)
    assert finding.facts[0].startswith("1 of ") and "2^" in finding.facts[1]
    assert qbridge.convert(source, tmp_path / "mx", "compressed-tensors", cast="mxfp8").exactness


def test_symmetric_int4_per_channel_becomes_float8_and_comes_back(tmp_path):
    source = fixture("compressed_tensors/llama_w4a16_channel")
    qbridge.convert(source, tmp_path / "there", "vllm", cast="fp8")
    assert same_weights(source, tmp_path / "there") and qbridge.verify(source, tmp_path / "there").same
    weight = load_file_bytes(tmp_path / "there/model.safetensors", "model.layers.0.mlp.down_proj.weight")
    assert np.isin(weight & 0x7F, [0, 0x38, 0x40, 0x44, 0x48, 0x4A, 0x4C, 0x4E, 0x50]).all()  # 0 to 8
    qbridge.restore(tmp_path / "there", tmp_path / "back")
    assert_restored(source, tmp_path / "back")


def load_file_bytes(file, name):
    """The bytes of a tensor."""
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    begin, end = json.loads(data[8 : 8 + length])[name]["data_offsets"]
    return np.frombuffer(data[8 + length + begin : 8 + length + end], np.uint8)


def test_gpt_oss_is_cast_for_formats_and_refused_for_engines_that_take_its_experts_fused(tmp_path):
    source = fixture("mxfp4/gpt_oss")
    qbridge.convert(source, tmp_path / "fp8", "fp8", cast="fp8", keep_undo=True)
    assert same_weights(source, tmp_path / "fp8")
    qbridge.restore(tmp_path / "fp8", tmp_path / "back")
    assert_restored(source, tmp_path / "back")
    for target in ("vllm", "sglang"):
        with pytest.raises(qbridge.QBridgeError):
            qbridge.convert(source, tmp_path / "out", target, cast="fp8-block")


def test_options_that_mean_nothing_are_refused(tmp_path):
    source = fixture("compressed_tensors/llama_mxfp4a16")
    for options in ({"cast": "fp9"}, {"keep_undo": True}, {"cast": "fp8", "passes": False}):
        with pytest.raises(ValueError, match=r"cast|kept|passes"):
            qbridge.convert(source, tmp_path / "out", "vllm", **options)


def test_a_target_that_has_no_mxfp4_gets_the_cast_as_a_remedy_that_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = fixture("compressed_tensors/llama_mxfp4a16")
    (found,) = (each for each in qbridge.check(source, "sglang").findings if each.code == "QB293")
    (line,) = (str(way) for way in found.ways)
    words = shlex.split(line.partition("#")[0])
    assert words[-2:] == ["--cast", "fp8"] and words[:2] == ["qbridge", "convert"]
    qbridge.convert(words[2], words[3], words[5], cast=words[-1])
    assert qbridge.check(words[3], "sglang").ok and same_weights(source, tmp_path / words[3])
