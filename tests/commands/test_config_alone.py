"""check from config.json alone, in every format: what it assumes, and that it claims no more than it can know.

LAWS=all compares every fixture for every target; LAWS=<seed> another sample.
"""

from __future__ import annotations

import os
import random
import shutil

import pytest

import qbridge
from goldens import ALLOW
from qbridge.formats.assumed import assumed_model
from qbridge.source.folder import Folder
from support import ROOT, SINGLE, cli, copy_fixture, edit_json, facts

CASES = [
    "auto_round/llama_gptq_sym",
    "awq/llama_gemm",
    "compressed_tensors/llama_fp8_block",
    "compressed_tensors/llama_fp8_dynamic",
    "compressed_tensors/llama_nvfp4",
    "compressed_tensors/llama_mxfp4",
    "compressed_tensors/llama_w8a8",
    "compressed_tensors/llama_float_mixed",
    "fp8/llama_blocks",
    "fp8/llama_blocks_ue8m0",
    "fp8/llama_fbgemm",
    "fp8/llama_static",
    "gptq/llama_v1_sym",
    "modelopt/llama_fp8",
    "modelopt/llama_fp8_block",
    "modelopt/llama_mixed",
    "modelopt/llama_mxfp8",
    "modelopt/llama_nvfp4",
    "modelopt/llama_w4a16_nvfp4",
    "mxfp4/gpt_oss",
]


def bare(tmp_path, case, keep=("config.json",)):
    src = copy_fixture(tmp_path, case)
    for file in src.iterdir():
        if file.name not in keep:
            file.unlink()
    return src


@pytest.mark.parametrize("case", CASES)
def test_schemes_are_those_of_the_checkpoint_activations_included(case, tmp_path):
    with qbridge.open(ROOT / "fixtures" / case / "model") as whole:
        said = {name: (str(spec.weight), str(spec.activation)) for name, spec in whole.specs.items()}
    alone = assumed_model(Folder(bare(tmp_path, case)))
    assert {name: (str(spec.weight), str(spec.activation)) for name, spec in alone.specs.items()} == said


@pytest.mark.parametrize("target", ["vllm", "lmdeploy", "transformers"])
@pytest.mark.parametrize("case", ["fp8/llama_blocks", "fp8/llama_static", "modelopt/llama_nvfp4"])
def test_it_is_no_more_generous_than_the_checkpoint(case, target, tmp_path):
    whole = qbridge.check(ROOT / "fixtures" / case / "model", target)
    alone = qbridge.check(bare(tmp_path, case), target)
    refused = {f.code for f in whole.findings if f.severity == "error"}
    known = {f.code for f in alone.findings if f.severity == "error"}
    assert refused - known <= {*alone.needs_tensors, *alone.needs_values, "QB287"}
    assert alone.assumed and "QB263" in alone.needs_tensors and not whole.needs_tensors


TARGETS = ("vllm", "vllm@0.23.0", "vllm@0.5.4", "vllm-gptq", "lmdeploy", "lmdeploy@0.6.2", "lmdeploy-turbomind")
TARGETS += ("transformers", "gptqmodel", "sglang", "mlx", "llama.cpp")
SEED = os.environ.get("LAWS", "20261201")
PAIRS = [
    (str(path.parent.relative_to(ROOT / "fixtures")), target)
    for path in sorted(ROOT.glob("fixtures/*/*/model"))
    for target in TARGETS
]
# Heads, layouts and words that the block names; linears that lists leave out or make otherwise, ordered inputs, and a
# kv cache of integers.
ALWAYS = [
    ("auto_round/llama_awq_6bit_sym", "vllm"),
    ("auto_round/llama_lm_head_claimed", "vllm"),
    ("awq/llama_gemv", "vllm"),
    ("awq/llama_llm_awq", "lmdeploy"),
    ("compressed_tensors/llama_lm_head", "vllm"),
    ("compressed_tensors/llama_lm_head", "sglang"),
    ("compressed_tensors/llama_w4a16_old_zp", "sglang"),
    ("gptq/llama_int8_words", "transformers"),
    ("gptq/llama_lm_head", "transformers"),
    ("auto_round/llama_mixed", "vllm"),
    ("auto_round/llama_odd_bits_sym", "vllm"),
    ("auto_round/llama_regex", "vllm"),
    ("awq/qwen2_gemm_skipped", "lmdeploy"),
    ("compressed_tensors/llama_kv_int8", "vllm"),
    ("compressed_tensors/llama_w4a16_g_idx", "vllm"),
    ("gptq/llama_autogptq_asym", "gptqmodel"),
    ("gptq/llama_autoround_mixed", "vllm-gptq"),
    ("gptq/llama_desc_act", "vllm-gptq"),
    ("marlin/llama_autoawq", "vllm"),
    ("marlin/llama_autogptq", "vllm-gptq"),
]
SAMPLE = PAIRS if SEED == "all" else [*ALWAYS, *random.Random(SEED).sample(PAIRS, 20)]


def verdict(src, target, tp, gpu, allow):
    """(the answer of check, the codes of its errors)."""
    try:
        answer = qbridge.check(src, target, tp, gpu, allow=allow)
    except qbridge.QBridgeError as error:
        return None, {finding.code for finding in error.findings}
    return answer, {finding.code for finding in answer.findings if finding.severity == "error"}


@pytest.mark.parametrize(("fixture", "target"), SAMPLE, ids=lambda value: value.replace("/", "-"))
def test_its_yes_is_no_more_generous_than_the_checkpoint(fixture, target, tmp_path):
    src = ROOT / "fixtures" / fixture / "model"
    if not (src / "config.json").is_file():
        return
    shutil.copy(src / "config.json", tmp_path)
    allow = ALLOW.get(fixture.rpartition("/")[2], ())
    for tp, gpu in ((1, "sm80"), (2, "sm80"), (1, "sm90"), (2, "sm90")):
        answer, _ = verdict(tmp_path, target, tp, gpu, allow)
        if answer is not None and answer.ok:
            _, refused = verdict(src, target, tp, gpu, allow)
            assert refused == set()


def test_what_it_cannot_know_is_said_and_is_no_yes(tmp_path):
    done = cli("check", bare(tmp_path, "fp8/llama_blocks"), "--for", "vllm")
    assert "needs tensors" in done.stdout and "QB280" in done.stdout and "it would be served" not in done.stdout


def test_a_side_file_says_what_config_json_leaves_out(tmp_path):
    src = bare(tmp_path, "modelopt/llama_nvfp4", ("config.json", "hf_quant_config.json"))
    edit_json(src / "config.json", lambda config: config.pop("quantization_config", None) and None)
    assert {spec.weight.type for spec in assumed_model(Folder(src)).specs.values()} == {"e2m1"}


def test_where_the_block_lies_is_judged(tmp_path):
    src = bare(tmp_path, "fp8/llama_blocks")
    edit_json(
        src / "config.json", lambda c: c.update(llm_config={**c, "quantization_config": c.pop("quantization_config")})
    )
    assert "QB283" in {f.code for f in qbridge.check(src, "vllm").findings}


@pytest.mark.parametrize(
    "partial", [".cache/huggingface/download/x.incomplete", "model.safetensors.incomplete", f"{SINGLE}.aria2"]
)
def test_a_download_that_has_not_ended_is_said(partial, tmp_path):
    src = bare(tmp_path, "fp8/llama_blocks")
    assert "download" not in facts(qbridge.check(src, "vllm").findings)
    (src / partial).parent.mkdir(parents=True, exist_ok=True)
    (src / partial).write_bytes(b"half")
    answer = qbridge.check(src, "vllm")
    (found,) = (finding for finding in answer.findings if finding.code == "QB261")
    assert found.facts[0] == f"a download has not ended: {partial}" and "it goes on where it stopped" in found.fix
    assert answer.assumed and answer.needs_tensors


def test_an_adapter_beside_a_config_is_said_to_be_no_model(tmp_path):
    src = bare(tmp_path, "fp8/llama_blocks")
    (src / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    assert "it holds an adapter of org/base and not the model" in facts(qbridge.check(src, "vllm").findings)


@pytest.mark.parametrize("case", ["llama_affine", "llama_floats", "qwen3_moe_affine"])
def test_a_block_without_a_method_is_no_other_format(case, tmp_path):
    src = bare(tmp_path, f"mlx/{case}")
    for target in TARGETS:
        with pytest.raises(qbridge.QBridgeError) as excinfo:
            qbridge.check(src, target)
        assert {finding.code for finding in excinfo.value.findings} == {"QB262"}


def test_bits_without_a_method_are_of_no_format(tmp_path):
    src = bare(tmp_path, "gptq/llama_g128")
    edit_json(src / "config.json", lambda config: config["quantization_config"].pop("quant_method") and None)
    assert not qbridge.check(src, "transformers").ok
