"""Paths that are no checkpoint: each is named for what it is, with a way out that works."""

from __future__ import annotations

import json
import shlex

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import qbridge
from support import SINGLE, cli, codes, copy_fixture, edit_json, facts, part, remedies

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 4998745\n"


@pytest.fixture
def src(tmp_path):
    return copy_fixture(tmp_path)


def refused(path, wanted="QB001"):
    with pytest.raises(qbridge.QBridgeError) as excinfo:
        qbridge.inspect(path)
    assert codes(excinfo) == {wanted}, str(excinfo.value)
    return facts(excinfo.value.findings), " ".join(remedies(excinfo.value.findings))


@pytest.mark.parametrize("name", ["config.json", SINGLE, "tokenizer.json"])
def test_pointers_of_git_lfs_are_named(src, name):
    (src / name).write_text(POINTER)
    with pytest.raises(qbridge.QBridgeError) as excinfo:
        qbridge.convert(src, src.parent / "dst", "lmdeploy")
    assert codes(excinfo) == {"QB045"} and excinfo.value.findings[0].where == (name,)
    assert "git lfs pull" in remedies(excinfo.value.findings)[-1]


@pytest.mark.parametrize("name", ["config.json", SINGLE])
def test_a_file_is_answered_with_its_folder(src, name):
    fact, fix = refused(src / name)
    assert "it is a file" in fact and str(src) in fix


@pytest.mark.parametrize("name", ["model.gguf", "model.bin"])
def test_gguf(tmp_path, name):
    (tmp_path / name).write_bytes(b"GGUF\3\0\0\0")
    refused(tmp_path / name, "QB049")
    with pytest.raises(qbridge.QBridgeError) as excinfo:
        qbridge.convert(tmp_path / name, tmp_path / "dst", "vllm")
    assert codes(excinfo) == {"QB049"}


def test_folder_of_gguf(tmp_path):
    (tmp_path / "model-Q4_K_M.gguf").write_bytes(b"GGUF\3\0\0\0")
    assert "GGUF" in refused(tmp_path)[0]


def test_adapter(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "meta/llama"}))
    fact, fix = refused(tmp_path)
    assert "adapter of meta/llama" in fact and "serve the adapter beside it" in fix


def test_mistral_own_files(tmp_path):
    (tmp_path / "params.json").write_text("{}")
    assert "Mistral" in refused(tmp_path)[0]


def test_mistral_own_names_beside_a_config(src):
    tensors = {f"layers.0.attention.w{leaf}.weight": np.ones((8, 8), np.float16) for leaf in "qkvo"}
    (src / SINGLE).unlink()
    save_file(tensors, src / "consolidated.safetensors")
    fact, fix = refused(src, "QB101")
    assert "Mistral" in fact and "config.json, model-*.safetensors" in fix


def test_pipeline_of_diffusers_names_its_language_models(tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    (tmp_path / "text_encoder").mkdir()
    (tmp_path / "text_encoder" / "config.json").write_text("{}")
    fact, fix = refused(tmp_path)
    assert "FluxPipeline" in fact and str(tmp_path / "text_encoder") in fix


def test_component_of_diffusers(src):
    (src / "config.json").write_text(json.dumps({"_class_name": "FluxTransformer2DModel", "_diffusers_version": "0"}))
    assert "FluxTransformer2DModel" in refused(src)[0]


@pytest.mark.parametrize("root", ["hub", "hub/models--meta--llama"])
def test_root_of_a_cache_is_answered_with_the_snapshot(src, tmp_path, root):
    model = tmp_path / "hub" / "models--meta--llama"
    for name in ("aaa", "bbb"):
        (model / "snapshots" / name).mkdir(parents=True)
        (model / "snapshots" / name / "config.json").write_text("{}")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("bbb\n")
    fact, fix = refused(tmp_path / root)
    assert "Hugging Face cache" in fact and fix.endswith(str(model / "snapshots" / "bbb"))


@pytest.mark.parametrize("partial", [".cache/huggingface/download/x.incomplete", f"{SINGLE}.aria2"])
@pytest.mark.parametrize("config", [True, False])
def test_download_that_has_not_ended(src, partial, config):
    (src / SINGLE).unlink()
    (src / partial).parent.mkdir(parents=True, exist_ok=True)
    (src / partial).write_bytes(b"half")
    if not config:
        (src / "config.json").unlink()
    fact, fix = refused(src, "QB008" if config else "QB001")
    assert partial in fact and "same download again" in fix


def test_absent_shard_says_that_its_download_has_not_ended(src):
    (src / f"{SINGLE}.index.json").write_text(json.dumps({"weight_map": {"a": "m-1.safetensors"}}))
    (src / SINGLE).unlink()
    (src / "m-1.safetensors.incomplete").write_bytes(b"half")
    assert "m-1.safetensors.incomplete" in refused(src, "QB003")[0]


def test_folder_above_checkpoints_names_them(src):
    assert str(src) in refused(src.parent)[1]


def test_name_of_a_repository_is_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Qwen").mkdir()  # else it would be asked for
    assert "hf://Qwen/Qwen2-7B" in refused("Qwen/Qwen2-7B")[1]
    assert "hf://" not in refused("../Qwen2-7B")[1]


def test_what_an_unfinished_conversion_left_is_named(tmp_path):
    dst = tmp_path / "a b'c"
    part(dst).mkdir()
    for path in (dst, part(dst)):
        fact, fix = refused(path)
        assert "unfinished conversion left" in fact
        command = fix.partition("remove it: ")[2]
        assert shlex.split(command) == ["qbridge", "clean", str(dst)]
    assert cli(*shlex.split(command)[1:]).returncode == 0 and not part(dst).exists()


def test_other_faults_of_a_header_are_no_pointers(src):
    load_file(src / SINGLE)
    (src / SINGLE).write_text("version 2 of the weights, which are elsewhere")
    refused(src, "QB004")


@pytest.mark.parametrize(
    ("names", "what"),
    [(("B_24", "B_meta", "s"), "Marlin-24")],
)
def test_formats_of_others_are_named_without_what_each_of_ours_lacks(src, names, what):
    linear = "model.layers.0.self_attn.q_proj"
    tensors = {f"{linear}.{name}": np.zeros((4, 4), np.uint32) for name in names}
    save_file(tensors, src / "model.safetensors")
    edit_json(src / "config.json", lambda config: config.pop("quantization_config") and None)
    fact, fix = refused(src, "QB011")
    assert fact.startswith(f"{what}, which qbridge does not read yet: 1 modules") and "dense:" not in fact
    assert fix.startswith("Take the unquantized model")
