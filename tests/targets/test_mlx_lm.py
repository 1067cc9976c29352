"""What mlx_lm takes: keys that it asks for, tensors that it knows, scales that it multiplies with."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest

import qbridge
from qbridge.architecture.config import spell
from qbridge.targets.mlx import READER
from qbridge.targets.registry import find_target, of_format
from qbridge.testing import check_target
from support import codes, copy_fixture, edit_json, rewrite_tensors

CT = "compressed_tensors"
TARGET = "mlx"


def refused(src, tmp_path):
    with pytest.raises(qbridge.QBridgeError) as excinfo:
        qbridge.convert(src, tmp_path / "out", TARGET)
    return codes(excinfo)


def test_laws():
    check_target(find_target(TARGET))


def test_keys_without_a_default_are_asked_for(tmp_path):
    src = copy_fixture(tmp_path, f"{CT}/llama_w4a16")
    edit_json(src / "config.json", lambda config: config.update(model_type="stablelm"))
    assert "QB256" in refused(src, tmp_path)


def test_a_head_that_scores_has_no_place(tmp_path):
    src = copy_fixture(tmp_path, "gptq/llama_g128")
    rewrite_tensors(src, lambda tensors: tensors.update({"score.weight": np.ones((1, 4), np.float16)}))
    assert "QB257" in refused(src, tmp_path)


def test_scales_of_another_dtype_are_warned_of(tmp_path):
    src = copy_fixture(tmp_path, "gptq/llama_g128")
    edit_json(src / "config.json", lambda config: config.update(torch_dtype="bfloat16", dtype="bfloat16"))
    report = qbridge.convert(src, tmp_path / "out", TARGET)
    assert "QB258" in {finding.code for finding in report.findings}


def untied(config):
    config.pop("tie_word_embeddings", None)


def test_a_head_of_its_own_stays_one(tmp_path):
    src = copy_fixture(tmp_path, "gptq/llama_g128")
    edit_json(src / "config.json", untied)
    qbridge.convert(src, tmp_path / "out", TARGET)
    assert json.loads((tmp_path / "out/config.json").read_text())["tie_word_embeddings"] is False


def test_what_it_reads_elsewhere_or_asks_for_is_written():
    moe = {"model_type": "qwen3_moe", "hidden_size": 64, "num_attention_heads": 4}
    assert spell(moe, READER)["head_dim"] == 16
    assert spell({**moe, "head_dim": 32}, READER)["head_dim"] == 32
    gemma = {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "vocab_size": 512}}
    assert spell(gemma, READER)["vocab_size"] == 512
    text = {"model_type": "qwen3_5_text", "layer_types": ["linear_attention", "full_attention"]}
    assert (
        spell({"model_type": "qwen3_5", "text_config": text}, READER)["text_config"]["full_attention_interval"] == 2
    )


def test_the_name_is_that_of_the_engine_and_the_format_has_no_limits_of_it():
    assert find_target(TARGET).version and of_format("mlx").is_format
    assert find_target("mlx-lm") == find_target(TARGET)
    assert pickle.loads(pickle.dumps(of_format("mlx"))) == of_format("mlx")


def test_the_server_is_started_with_the_folder(tmp_path):
    src = copy_fixture(tmp_path, "mlx/llama_affine")
    assert qbridge.check(src, TARGET).ok
    target = find_target(TARGET)
    with qbridge.open(src) as opened:
        assert target.command(opened.model, "mlx", "/models/it's", 1) == "mlx_lm.server --model '/models/it'\"'\"'s'"
