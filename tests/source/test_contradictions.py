"""What a checkpoint says of itself in two ways that differ is a finding, and what agrees is none."""

from __future__ import annotations

import json

import numpy as np
import pytest

import qbridge
from support import (
    copy_fixture,
    edit_json,
    facts,
    rewrite_tensors,
    small_checkpoint,
)

GPTQ, AWQ, PACKED = "gptq/llama_g128", "awq/llama_gemm_g128", "compressed_tensors/llama_w4a16_g128"
ROUND = "auto_round/llama_gptq_asym"


def found(src, code):
    try:
        every = qbridge.inspect(src).findings
    except qbridge.QBridgeError as fault:
        every = fault.findings
    return [finding for finding in every if finding.code == code]


def change(src, **keys):
    """Change a scheme in every file that says it."""
    for file in (src / "config.json", src / "quantize_config.json", src / "quantization_config.json"):
        if file.exists():
            edit_json(file, lambda value: _update(value, keys))


def _update(value, keys):
    block = value.get("quantization_config", value)
    groups = block.get("config_groups", {"": {"weights": block}})
    for group in groups.values():
        for key, said in keys.items():
            if key in group["weights"]:
                group["weights"][key] = said


# shapes


@pytest.mark.parametrize(
    ("case", "wrong", "looks"),
    [
        (GPTQ, {"bits": 8}, "4 bits in groups of 128"),
        (GPTQ, {"bits": 2}, "4 bits in groups of 128"),
        (GPTQ, {"group_size": 64}, "4 bits in groups of 128"),
        (GPTQ, {"group_size": 32}, "4 bits in groups of 128"),
        ("gptq/llama_8bit", {"bits": 4}, "8 bits"),
        ("gptq/llama_3bit", {"bits": 4}, "3 bits"),
        ("gptq/llama_channel", {"group_size": 128}, "in one group for each channel"),
        (AWQ, {"bits": 8}, "4 bits in groups of 128"),
        (AWQ, {"group_size": 32}, "4 bits in groups of 128"),
        (ROUND, {"bits": 8}, "4 bits"),
        (PACKED, {"num_bits": 8}, "4 bits in groups of 128"),
        (PACKED, {"group_size": 64}, "4 bits in groups of 128"),
    ],
    ids=str,
)
def test_shapes_that_belie_the_config(tmp_path, case, wrong, looks):
    src = copy_fixture(tmp_path, case)
    before = qbridge.inspect(src).schemes
    block = json.loads((src / "config.json").read_text())["quantization_config"]
    scheme = next(iter(block["config_groups"].values()))["weights"] if "config_groups" in block else block
    right = {key: scheme[key] for key in wrong}
    change(src, **wrong)
    said = found(src, "QB046")
    assert len(said) == 1 and looks in facts(said), facts(said)
    assert str(next(iter(wrong.values()))) in facts(said).partition("config says")[2]
    change(src, **right)  # what the finding says to do
    assert qbridge.inspect(src).schemes == before


def test_one_wrong_tensor_belies_nothing(tmp_path):
    src = copy_fixture(tmp_path, GPTQ)
    rewrite_tensors(
        src,
        lambda tensors: tensors.update({"model.layers.0.mlp.up_proj.scales": np.ones((3, 512), np.float16)}),
    )
    assert not found(src, "QB046") and found(src, "QB016")


# blocks and files


@pytest.mark.parametrize(
    ("key", "differs"),
    [
        ("compression_config", True),
        ("text_config.quantization_config", True),
        ("llm_config.quantization_config", True),
        ("text_config.quantization_config", False),
        ("compression_config", False),
    ],
)
def test_second_block(tmp_path, key, differs):
    src = copy_fixture(tmp_path, GPTQ)
    outer, _, inner = key.rpartition(".")

    def plant(config):
        block = {**config["quantization_config"], **({"bits": 8} if differs else {})}
        (config.setdefault(outer, {}) if outer else config)[inner] = block

    edit_json(src / "config.json", plant)
    said = found(src, "QB043")
    assert [finding.where for finding in said] == ([(key,)] if differs else [])
    assert not differs or "bits: 4 in quantization_config, which is read, and 8" in facts(said)


@pytest.mark.parametrize(
    ("case", "name", "value", "differs"),
    [
        (GPTQ, "quantize_config.json", {"bits": 8, "group_size": 128}, True),
        (GPTQ, "quantize_config.json", {"bits": 4, "group_size": 128, "damp_percent": 1}, False),
        (AWQ, "quant_config.json", {"w_bit": 4, "q_group_size": 64}, True),
        (AWQ, "quant_config.json", {"w_bit": 4, "q_group_size": 128, "version": "GEMM"}, False),
        (AWQ, "quant_config.json", [], False),
    ],
)
def test_file_beside_the_config(tmp_path, case, name, value, differs):
    src = copy_fixture(tmp_path, case)
    (src / name).write_text(json.dumps(value))
    assert bool(found(src, "QB043")) is differs


# the head


def heads(tmp_path, tied, same, files=("model-1.safetensors", "model-2.safetensors")):
    src = copy_fixture(tmp_path, "compressed_tensors/llama_w8a8_rope")
    edit_json(src / "config.json", lambda config: config.update(tie_word_embeddings=tied))

    def plant(tensors):
        table = tensors["model.embed_tokens.weight"]
        tensors["lm_head.weight"] = table.copy()
        if not same:
            tensors["lm_head.weight"][-1, -1] += np.float16(1)

    rewrite_tensors(src, plant)
    return src


@pytest.mark.parametrize(("tied", "same"), [(True, True), (True, False), (False, True), (False, False)])
def test_head_that_is_the_embedding_by_config_alone(tmp_path, tied, same):
    src = heads(tmp_path, tied, same)
    said = found(src, "QB047")
    assert bool(said) is (tied and not same)
    if said:
        assert said[0].where == ("lm_head.weight",) and said[0].severity is qbridge.Severity.WARNING
        assert qbridge.convert(src, tmp_path / "dst", "lmdeploy", dry_run=True).findings
        assert any(finding.code == "QB047" for finding in qbridge.check(src, "vllm").findings)


def test_quantized_head_of_a_tied_model(tmp_path):
    src = copy_fixture(tmp_path, "gptq/llama_lm_head")
    assert not found(src, "QB047")
    edit_json(src / "config.json", lambda config: config.update(tie_word_embeddings=True))
    assert "codes of its own" in facts(found(src, "QB047"))


# layers


@pytest.mark.parametrize(("layers", "code"), [(3, "QB263"), (1, "QB264")])
def test_number_of_layers(tmp_path, layers, code):
    src = small_checkpoint(tmp_path / "src", layers=2)
    edit_json(src / "config.json", lambda config: config.update(num_hidden_layers=layers))
    try:
        every = qbridge.convert(src, tmp_path / "dst", "compressed-tensors").findings
    except qbridge.QBridgeError as fault:
        every = fault.findings
    assert code in {finding.code for finding in every}
