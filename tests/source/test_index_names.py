"""Indexes of other base names, heads that are not stored, files beside the shards."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import qbridge
from support import INDEX, SINGLE, cli, copy_fixture, edit_json, facts, places, refusal, rewrite_tensors, split

HEAD = "lm_head.weight"
SHARDS = "{}-00001-of-00002.safetensors", "{}-00002-of-00002.safetensors"


@pytest.fixture
def src(tmp_path):
    return copy_fixture(tmp_path)


def halve(src, base="model", index=INDEX):
    """Spread the checkpoint over two shards of a base name, with an index of any name."""
    names = sorted(load_file(src / SINGLE))
    first, second = (name.format(base) for name in SHARDS)
    split(src, {first: names[::2], second: names[1::2]})
    if index != INDEX:
        (src / INDEX).rename(src / index)
    return src / index


@pytest.mark.parametrize(
    ("base", "index"),
    [
        ("gptq_model-4bit-32g", "gptq_model-4bit-32g.safetensors.index.json"),
        ("model.fp8", "model.fp8.safetensors.index.json"),
        ("consolidated", "consolidated.safetensors.index.json"),
        ("model", "weights.safetensors.index.json"),
    ],
)
def test_an_index_of_another_base_name_is_followed(base, index, src, tmp_path):
    with qbridge.open(src) as opened:
        wanted = set(opened.source.tensors)
    halve(src, base, index)
    with qbridge.open(src) as opened:
        assert set(opened.source.tensors) == wanted and len(opened.source.shards) == 2
    qbridge.convert(src, tmp_path / "out", "vllm")
    assert not (tmp_path / "out" / index).exists() and qbridge.verify(src, tmp_path / "out").same
    (src / SHARDS[0].format(base)).unlink()
    refusal(src, 3, "QB003")


def test_an_index_of_other_files_gives_way_to_one_whose_files_are_there(src):
    halve(src, "gptq_model", "gptq_model.safetensors.index.json")
    stale = {"weight_map": {"model.norm.weight": "model-00001-of-00009.safetensors"}}
    (src / INDEX).write_text(json.dumps(stale))
    assert {name.partition("-")[0] for name in qbridge.inspect(src).shards} == {"gptq_model"}


def test_an_index_of_which_a_shard_is_absent_does_not_give_way(src):
    index = halve(src)
    held = json.loads(index.read_text())
    save_file({"other.weight": np.ones(2, np.float16)}, src / "consolidated.safetensors")
    (src / "consolidated.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"other.weight": "consolidated.safetensors"}})
    )
    assert held and not [f for f in qbridge.inspect(src).findings if f.code != "QB009"]
    (src / SHARDS[1].format("model")).unlink()
    refusal(src, 3, "QB003")


@pytest.mark.parametrize("name", ["gptq_model-4bit-32g.safetensors", "quantized.safetensors"])
def test_an_index_of_other_files_gives_way_to_the_only_file_if_that_is_whole(name, src, tmp_path):
    modules = {tensor.rpartition(".")[0] for tensor in load_file(src / SINGLE)}
    (src / SINGLE).rename(src / name)
    stale = {f"{module}.weight": "model-00001-of-00002.safetensors" for module in modules}
    (src / INDEX).write_text(json.dumps({"weight_map": stale}))
    (warning,) = qbridge.inspect(src).findings
    assert warning.code == "QB040" and f"{name} is read" in facts([warning])
    report = qbridge.convert(src, tmp_path / "out", "vllm")
    assert report.layers == 14
    stale["model.gone.weight"] = "model-00001-of-00002.safetensors"
    (src / INDEX).write_text(json.dumps({"weight_map": stale}))
    refusal(src, 3, "QB003")


def test_a_single_file_comes_before_an_index_of_another_name(src):
    (src / "consolidated.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "consolidated.00.pth"}}))
    assert list(qbridge.inspect(src).shards) == [SINGLE]


def unstored_head(src, **config):
    rewrite_tensors(src, lambda tensors: tensors.pop(HEAD) is None)
    index = halve(src)
    edit_json(index, lambda value: value["weight_map"].update({HEAD: SHARDS[0].format("model")}))
    others = json.loads((src / "config.json").read_text())
    others.pop("tie_word_embeddings", None)
    (src / "config.json").write_text(json.dumps({**others, **config}))


@pytest.mark.parametrize("config", [{"tie_word_embeddings": True}, {"architectures": ["Gemma2ForCausalLM"]}])
def test_a_tied_head_may_stand_in_the_index_alone(config, src):
    unstored_head(src, **config)
    (warning,) = [f for f in qbridge.inspect(src).findings if f.code == "QB005"]
    assert warning.where == (HEAD,) and warning.severity is qbridge.Severity.WARNING


@pytest.mark.parametrize("config", [{}, {"tie_word_embeddings": False}, {"architectures": ["NobodysForCausalLM"]}])
def test_a_head_of_its_own_that_no_shard_holds_is_lost(config, src):
    unstored_head(src, **config)
    assert places(refusal(src, 3, "QB005")["QB005"]) == {HEAD}


def test_nothing_but_a_head_may_stand_in_the_index_alone(src):
    unstored_head(src, tie_word_embeddings=True)
    edit_json(src / INDEX, lambda value: value["weight_map"].update({"model.gone.weight": SHARDS[0].format("model")}))
    assert places(refusal(src, 3, "QB005")["QB005"]) == {"model.gone.weight"}


def test_an_adapter_beside_the_model_is_no_shard(src):
    (src / SINGLE).rename(src / "gptq_model-4bit-32g.safetensors")
    save_file({"q_proj.lora_A.weight": np.ones((2, 4), np.float16)}, src / "adapter_model.safetensors")
    report = qbridge.inspect(src)
    assert list(report.shards) == ["gptq_model-4bit-32g.safetensors"]
    assert [(f.code, f.where) for f in report.findings] == [("QB009", ("adapter_model.safetensors",))]
    (src / "gptq_model-4bit-32g.safetensors").unlink()
    assert "an adapter" in facts(refusal(src, 3, "QB008")["QB008"])


DRAFT = "mtp.fc.weight", "mtp.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize("names", [DRAFT, ("model.layers.2.mlp.down_proj.weight",)])
@pytest.mark.parametrize("sharded", [True, False])
def test_layers_for_multi_token_prediction_outside_of_the_index_are_read_and_written(names, sharded, src, tmp_path):
    if sharded:
        halve(src)
    save_file({name: np.ones((8, 16), np.float16) for name in names}, src / "mtp.safetensors")
    report = qbridge.convert(src, tmp_path / "out", "compressed-tensors", max_shard_size=100_000)
    assert [f.where for f in report.findings if f.code == "QB044"] == [("mtp.safetensors",)]
    assert not [f for f in report.findings if f.code == "QB009"]
    with qbridge.open(tmp_path / "out") as opened:
        assert set(names) <= set(opened.model.tensors)
    assert set(names) <= set(json.loads((tmp_path / "out" / INDEX).read_text())["weight_map"])
    assert qbridge.verify(src, tmp_path / "out").same
    qbridge.restore(tmp_path / "out", tmp_path / "back")
    assert qbridge.verify(src, tmp_path / "back").same


@pytest.mark.parametrize(
    "names",
    [
        (*DRAFT, "model.norm.weight"),  # which a shard holds
        (*DRAFT, "other.weight"),
        ("model.layers.1.mlp.other.weight",),
    ],
)
def test_other_files_are_left_behind(names, src):
    halve(src)
    save_file({name: np.ones((8, 16), np.float16) for name in names}, src / "more.safetensors")
    assert [f.code for f in qbridge.inspect(src).findings] == ["QB009"]


def test_shares_of_ranks_are_named(src):
    (src / SINGLE).rename(src / "model-rank-0-part-0.safetensors")
    save_file({"a": np.ones(2, np.float16)}, src / "model-rank-1-part-0.safetensors")
    assert "tensor-parallel ranks" in facts(refusal(src, 1, "QB101")["QB101"])


def test_mistrals_own_files_are_named(src):
    (src / "config.json").rename(src / "params.json")
    done = cli("inspect", src)
    assert done.returncode == 3 and "Mistral's own format" in done.stderr
