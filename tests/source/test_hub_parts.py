"""Parts of a model of the Hub: one commit, no value twice, hardly a byte more than one run."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import qbridge
from support import ROOT

CASE = ROOT / "fixtures/gptq/llama_g128/model"


@pytest.fixture
def large(tmp_path):
    """A model whose weights are of some megabytes, in one file."""
    src = shutil.copytree(CASE, tmp_path / "large")
    (file,) = src.glob("*.safetensors")
    tensors = load_file(file)
    config = (src / "config.json").read_text()
    vocabulary = tensors["model.embed_tokens.weight"].shape[0]
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in tensors:
            tensors[name] = np.tile(tensors[name], (40, 1))
    (src / "config.json").write_text(
        config.replace(f'"vocab_size": {vocabulary}', f'"vocab_size": {vocabulary * 40}')
    )
    save_file(tensors, file, metadata={"format": "pt"})
    return src


def files_below(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_eight_parts_read_hardly_more_than_one_run(hub, large, tmp_path, dst):
    served = hub(large)
    options = {"max_shard_size": 500_000}
    qbridge.convert("fx/model", tmp_path / "one", "vllm", **options)
    one, served.sent = served.sent, 0
    qbridge.plan_parts("fx/model", dst, "vllm", **options)
    for part in (5, 1, 8, 2, 7, 3, 6, 4):
        qbridge.convert_part("fx/model", dst, "vllm", part, 8, **options)
    assert served.sent <= 1.02 * one, (served.sent, one)
    before = served.sent
    qbridge.convert_part("fx/model", dst, "vllm", 3, 8, **options)
    assert served.sent == before
    qbridge.finish(dst)
    assert files_below(dst) == files_below(tmp_path / "one")


def test_every_part_reads_the_commit_that_was_planned(hub, tmp_path, dst):
    served = hub()
    qbridge.convert(CASE, tmp_path / "one", "vllm", max_shard_size=200_000)
    qbridge.plan_parts("fx/model", dst, "vllm", max_shard_size=200_000)
    planned = served.root / "fx" / "model@planned"
    served.commits[planned] = served.commit_of(served.root / "fx" / "model")
    (served.root / "fx" / "model").rename(planned)
    shutil.copytree(ROOT / "fixtures/gptq/llama_desc_act/model", served.root / "fx" / "model")
    for part in (2, 1):
        qbridge.convert_part("hf://fx/model", dst, "vllm", part, 2, max_shard_size=200_000)
    qbridge.finish(dst)
    assert files_below(dst) == files_below(tmp_path / "one")


def test_a_part_of_another_repository_is_refused(hub, dst):
    served = hub()
    shutil.copytree(ROOT / "fixtures/gptq/llama_desc_act/model", served.root / "fx" / "other")
    qbridge.plan_parts("fx/model", dst, "vllm")
    with pytest.raises(qbridge.QBridgeError, match="QB066"):
        qbridge.convert_part("fx/other", dst, "vllm", 1, 1)
