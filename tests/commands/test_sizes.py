"""Sizes of config.json that the tensors belie: no engine builds such a model, so check never says yes."""

from __future__ import annotations

import pytest

import qbridge
from support import ROOT, copy_fixture, edit_json, facts

# A fixture, and a key with a value that is not the model's.
CASES = [
    ("gptq/llama_g128", {"hidden_size": 512}),
    ("gptq/llama_g128", {"vocab_size": 999}),
    ("gptq/llama_g128", {"intermediate_size": 2048}),
    ("gptq/llama_g128", {"num_key_value_heads": 1}),
    ("gptq/llama_g128", {"head_dim": 128}),
    ("compressed_tensors/llama_w8a8", {"hidden_size": 128}),
    ("fp8/llama_blocks", {"vocab_size": 8}),
    ("awq/qwen2_gemm_skipped", {"intermediate_size": 64}),
    ("gptq/qwen3_moe_v1_sym", {"moe_intermediate_size": 32}),
    ("mxfp4/gpt_oss", {"hidden_size": 96}),
]


@pytest.mark.parametrize(("case", "wrong"), CASES, ids=str)
def test_sizes_that_tensors_belie_are_no_yes(case, wrong, tmp_path):
    src = copy_fixture(tmp_path, case)
    edit_json(src / "config.json", lambda config: config.update(wrong))
    for target in ("vllm", "transformers"):
        answer = qbridge.check(src, target)
        found = [finding for finding in answer.findings if finding.code == "QB052"]
        assert not answer.ok and "by config.json" in facts(found), target


def test_a_conversion_says_it_and_goes_on(tmp_path):
    src = copy_fixture(tmp_path, "gptq/llama_g128")
    edit_json(src / "config.json", lambda config: config.update(vocab_size=999))
    done = qbridge.convert(src, tmp_path / "dst", "vllm")
    (found,) = (finding for finding in done.findings if finding.code == "QB052")
    assert found.severity == "warning" and "999 x 256" in facts([found])


@pytest.mark.parametrize("model", sorted(ROOT.glob("fixtures/*/*/model")), ids=lambda path: path.parent.name)
def test_no_size_of_a_sound_checkpoint_is_wrong(model):
    allow = ("pickle", "assumed-activations", "v1-zeros-wrap")
    try:
        answer = qbridge.check(model, "transformers", allow=allow)
    except qbridge.QBridgeError:
        return
    assert "QB052" not in {finding.code for finding in answer.findings}


@pytest.mark.parametrize("value", ["four", True, {}], ids=str)
def test_a_size_that_is_no_number_is_no_yes(value, tmp_path):
    src = copy_fixture(tmp_path, "gptq/llama_g128")
    edit_json(src / "config.json", lambda config: config.update(num_attention_heads=value))
    answer = qbridge.check(src, "vllm", 2)
    assert not answer.ok and f"num_attention_heads is {value!r}" in facts(answer.findings)
