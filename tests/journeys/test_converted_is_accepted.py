"""What `convert` calls done for a target, `check` accepts on every GPU: a sample by a seed; all by `make laws`.

LAWS=all runs every fixture and every made checkpoint, LAWS=<seed> another sample.
"""

from __future__ import annotations

import os
import random

import pytest

import qbridge
from goldens import ALLOW, ROOT
from qbridge.findings.catalogue.code import ALLOW as WORDS

TARGETS = ("vllm", "lmdeploy", "lmdeploy-turbomind", "transformers", "gptqmodel", "sglang")
SEED = os.environ.get("LAWS", "20261127")
FIXTURES = [str(model.parent.relative_to(ROOT / "fixtures")) for model in sorted(ROOT.glob("fixtures/*/*/model"))]
OLDER = ("vllm@0.23.0", "vllm@0.5.4", "vllm-gptq", "lmdeploy@0.6.2")
PAIRS = [(fixture, target) for fixture in FIXTURES for target in (*TARGETS, *OLDER)]
# A head held by its class alone; widths and zero-points for which an older engine has no kernel.
ALWAYS = [
    ("compressed_tensors/llama_lm_head", "vllm"),
    ("compressed_tensors/llama_w5a16", "vllm@0.23.0"),
    ("compressed_tensors/llama_w1a16", "vllm"),
    ("compressed_tensors/llama_w3a16", "vllm"),  # of two ranks, words of 3 bits
    ("compressed_tensors/llama_w2a16", "vllm@0.5.4"),
    ("compressed_tensors/llama_w4a16_asym", "vllm@0.5.4"),
    ("awq/llama_gptqmodel_8bit", "vllm@0.23.0"),
    ("compressed_tensors/llama_w3a16_asym", "vllm"),  # groups of 8, which its AWQ kernel stops at
]
SAMPLE = PAIRS if SEED == "all" else [*ALWAYS, *random.Random(SEED).sample(PAIRS, 20)]
# Mixers that no list makes quantized, a tower, a mixture, a tied head, and modules of other names in memory.
MADE = ["Jamba-fp8-dynamic", "Gemma3_cg-w4a16", "Qwen3Moe-awq", "Qwen2-gptq", "Qwen2_5_VL_cg-fp8-dynamic"]
# What a user can allow and a fixture may need; "incomplete" would take anything.
ALLOWED = ("assumed-activations", "drop-activation-details", "drop-kv-scales", "rounded", "unknown-tensors")


def refusals(src, dst, target, allow=(), tp=1):
    """The errors with which `check` refuses what `convert` wrote on each GPU; none where it refuses to convert."""
    try:
        qbridge.convert(src, dst, target, tp=tp, allow={*ALLOWED, *allow}, jobs=1, proof=False)
    except qbridge.QBridgeError:
        return []
    return [error for gpu in ("sm80", "sm90") for error in errors(dst, target, tp, gpu)]


def errors(dst, target, tp, gpu):
    try:
        answer = qbridge.check(dst, target, tp, gpu)
    except qbridge.QBridgeError as error:
        return [str(finding) for finding in error.findings]
    return [] if answer.ok else [str(finding) for finding in answer.findings if finding.severity == "error"]


def test_what_is_allowed_are_words_that_there_are():
    assert set(ALLOWED) <= WORDS.keys()


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize(("fixture", "target"), SAMPLE, ids=lambda value: value.replace("/", "-"))
def test_a_converted_fixture_is_accepted(fixture, target, tp, dst):
    allow = ALLOW.get(fixture.rpartition("/")[2], ())
    assert refusals(ROOT / "fixtures" / fixture / "model", dst, target, allow, tp) == []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["every case"] if SEED == "all" else MADE)
def test_a_converted_model_of_any_class_is_accepted(name, tmp_path):
    import make  # it imports transformers, which takes seconds

    wrong = {}
    for case in make.cases():
        if name in ("every case", case.name):
            case.build(tmp_path / case.name)
            for target in TARGETS:
                dst = tmp_path / f"{case.name}-{target}"
                if said := refusals(tmp_path / case.name / "model", dst, target):
                    wrong[case.name, target] = said
    assert wrong == {}
