"""Scales of the kv cache: written where the destination's readers look for them, and brought back as they were."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import qbridge
from qbridge.architecture.names import canonical_tensor, is_kv_scale
from qbridge.formats.common_rules import FLOAT8_CACHE
from support import ROOT, codes, copy_fixture, edit_quantization
from test_conversion import assert_same_tensors, config, tensors

ATTENTION = "model.layers.0.self_attn"
SOURCES = {"modelopt": "modelopt/llama_fp8_kv", "compressed-tensors": "compressed_tensors/llama_fp8_kv"}
# where each format's readers look for them
NAMES = {
    "modelopt": {f"{ATTENTION}.k_proj.k_scale", f"{ATTENTION}.v_proj.v_scale"},
    "compressed-tensors": {f"{ATTENTION}.k_scale", f"{ATTENTION}.v_scale"},
    "fp8": {f"{ATTENTION}.k_scale", f"{ATTENTION}.v_scale"},
}
# what other tools, and older releases, call k_scale and v_scale
SPELLINGS = ["k_scale v_scale", "k_proj.k_scale v_proj.v_scale", "k_proj.output_scale v_proj.output_scale"]
SPELLINGS += ["qkv_proj.k_scale qkv_proj.v_scale"]


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors(folder).items() if is_kv_scale(name)}


def rename(folder: Path, names: dict[str, str]) -> None:
    found = load_file(folder / "model.safetensors")
    save_file({names.get(name, name): t for name, t in found.items()}, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("target", NAMES)
def test_they_are_the_same_bytes_in_the_spelling_of_the_destination(source, target, tmp_path):
    src = ROOT / "fixtures" / SOURCES[source] / "model"
    qbridge.convert(src, tmp_path / "there", target)
    before, after = stored(src), stored(tmp_path / "there")
    assert after.keys() == NAMES[target] and before.keys() == NAMES[source]
    for name, tensor in before.items():
        (other,) = [own for own in after if canonical_tensor(own) == canonical_tensor(name)]
        assert after[other].dtype == tensor.dtype and torch.equal(after[other], tensor)
    assert qbridge.verify(src, tmp_path / "there").same
    qbridge.restore(tmp_path / "there", tmp_path / "back")
    assert_same_tensors(src, tmp_path / "back")


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("source", SOURCES)
def test_every_spelling_that_vllm_knows_is_read_and_restored(source, spelling, tmp_path):
    src = copy_fixture(tmp_path, SOURCES[source])
    names = sorted(NAMES[source])
    rename(src, dict(zip(names, (f"{ATTENTION}.{name}" for name in spelling.split()), strict=True)))
    assert qbridge.verify(src, ROOT / "fixtures" / SOURCES[source] / "model").same
    qbridge.convert(src, tmp_path / "there", "compressed-tensors")
    assert stored(tmp_path / "there").keys() == NAMES["compressed-tensors"]
    qbridge.restore(tmp_path / "there", tmp_path / "back")
    assert_same_tensors(src, tmp_path / "back")


def test_a_scheme_is_written_in_full():
    """vLLM refuses a kv_cache_scheme of compressed-tensors that does not say strategy and symmetric."""
    with qbridge.open(ROOT / "fixtures" / SOURCES["modelopt"] / "model") as opened:
        assert opened.model.kv_cache == FLOAT8_CACHE


def test_modelopt_s_scheme_reaches_compressed_tensors_and_comes_back(tmp_path):
    src = ROOT / "fixtures" / SOURCES["modelopt"] / "model"
    qbridge.convert(src, tmp_path / "there", "compressed-tensors")
    scheme = config(tmp_path / "there")["quantization_config"]["kv_cache_scheme"]
    assert scheme["strategy"] == "tensor" and scheme["symmetric"] is True
    qbridge.convert(tmp_path / "there", tmp_path / "back", "modelopt")
    own = config(src)["quantization_config"]["kv_cache_scheme"]
    assert config(tmp_path / "back")["quantization_config"]["kv_cache_scheme"] == own


# kv_scale is AutoFP8's, of keys and values alike: the scheme of compressed-tensors asks for one of each.
SPELLINGS = {"kv_scale": "QB263", "k_cache.scale": "QB018", "v_proj.k_scale": "QB018", "k_proj.k_zero_point": "QB018"}


@pytest.mark.parametrize("name", SPELLINGS)
def test_other_spellings_are_refused(name, tmp_path):
    src = copy_fixture(tmp_path, SOURCES["compressed-tensors"])
    rename(src, {f"{ATTENTION}.k_scale": f"{ATTENTION}.{name}"})
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.convert(src, tmp_path / "out", "compressed-tensors")
    assert codes(refused) == {SPELLINGS[name]}


def test_two_spellings_of_one_scale_are_refused(tmp_path):
    src = copy_fixture(tmp_path, SOURCES["compressed-tensors"])
    rename(src, {f"{ATTENTION}.v_scale": f"{ATTENTION}.k_proj.k_scale"})
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.convert(src, tmp_path / "out", "compressed-tensors")
    assert codes(refused) == {"QB033"}


@pytest.mark.parametrize("key", [{"type": "int"}, {"symmetric": False}, {"dynamic": True}])
@pytest.mark.parametrize("target", ["modelopt", "fp8"])
def test_a_cache_that_the_destination_cannot_say_is_refused_or_left_out(target, key, tmp_path):
    src = copy_fixture(tmp_path, SOURCES["compressed-tensors"])
    edit_quantization(src, lambda block: block["kv_cache_scheme"].update(key))
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.convert(src, tmp_path / "out", target)
    assert codes(refused) == {"QB113"}
    qbridge.convert(src, tmp_path / "out", target, allow=["drop-kv-scales"])
    assert not stored(tmp_path / "out")


def without_scales(folder: Path) -> Path:
    found = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in found.items() if not is_kv_scale(name)}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("target", ["compressed-tensors", "dense"])
def test_a_cache_that_is_declared_and_has_no_scales_is_refused_or_left_out(target, tmp_path):
    """ModelOpt's readers take 1.0; our own reader of compressed-tensors refused what was written (QB015)."""
    src = without_scales(copy_fixture(tmp_path, SOURCES["modelopt"]))
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.convert(src, tmp_path / "out", target)
    assert codes(refused) == {"QB113"}
    qbridge.convert(src, tmp_path / "out", target, allow=["drop-kv-scales"])
    assert not config(tmp_path / "out").get("quantization_config", {}).get("kv_cache_scheme")


def test_what_is_left_of_it_is_read_again(tmp_path):
    src = without_scales(copy_fixture(tmp_path, SOURCES["modelopt"]))
    qbridge.convert(src, tmp_path / "out", "compressed-tensors", allow=["drop-kv-scales"])
    assert qbridge.verify(src, tmp_path / "out").same


def test_modelopt_takes_a_cache_without_scales_as_it_is(tmp_path):
    src = without_scales(copy_fixture(tmp_path, SOURCES["modelopt"]))
    qbridge.convert(src, tmp_path / "out", "modelopt")
    own = config(src)["quantization_config"]["kv_cache_scheme"]
    assert config(tmp_path / "out")["quantization_config"]["kv_cache_scheme"] == own
    report = qbridge.convert(src, tmp_path / "vllm", "vllm")
    assert "kv_cache_scheme" in config(tmp_path / "vllm")["quantization_config"], report


def test_a_dynamic_cache_is_not_lost_in_silence(tmp_path):
    src = without_scales(copy_fixture(tmp_path, SOURCES["compressed-tensors"]))
    edit_quantization(src, lambda block: block["kv_cache_scheme"].update(dynamic=True))
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.convert(src, tmp_path / "out", "dense")
    assert codes(refused) == {"QB113"}
