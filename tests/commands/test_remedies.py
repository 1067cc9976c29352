"""Every conversion that check prints, pasted into a shell in another folder, on a path with a space and a quote.

LAWS=all takes every fixture for every target; LAWS=<seed> another sample.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import qbridge
from goldens import ROOT

TARGETS = ("vllm", "vllm@0.23.0", "vllm@0.5.4", "lmdeploy", "lmdeploy-turbomind", "lmdeploy@0.6.2", "transformers")
SEED = os.environ.get("LAWS", "20261128")
FIXTURES = [str(model.parent.relative_to(ROOT / "fixtures")) for model in sorted(ROOT.glob("fixtures/*/*/model"))]
ASKED = [
    (fixture, target, tp, gpu)
    for fixture in FIXTURES
    for target in TARGETS
    for tp in (1, 2)
    for gpu in ("sm80", "sm90")
]
ALWAYS = [
    ("gptq/llama_2bit", "vllm", 4, "sm80"),  # 2 heads: only fewer GPUs help
    ("gptq/llama_desc_act", "lmdeploy", 1, "sm80"),  # nothing helps
    ("compressed_tensors/llama_kv_int8", "vllm", 1, "sm80"),  # a word of --allow helps
    ("compressed_tensors/llama_w8a8", "lmdeploy", 1, "sm80"),
    ("gptq/llama_640", "vllm", 2, "sm80"),
]
SAMPLE = ASKED if SEED == "all" else [*ALWAYS, *random.Random(SEED).sample(ASKED, 12)]
COMMAND = re.compile(r"qbridge convert .*?(?=  # |$)")


def pasted(check: qbridge.Check, folder: Path) -> list[str]:
    """What is wrong with the commands among the ways out of a check's findings, each run by bash in `folder`."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    wrong = []
    lines = [line for finding in check.findings for line in finding.help]
    for line in dict.fromkeys(line for line in lines if line.startswith("qbridge convert")):
        folder.mkdir()
        done = subprocess.run(
            ["bash", "-c", line], cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True
        )
        tp = int((re.search(r"--tp (\d+)", line) or ["", "1"])[1])
        if tp != check.tp and "fewer GPUs" not in line:
            wrong.append(f"{line}: it is for {tp} GPUs")
        if done.returncode:
            wrong.append(f"{line}: {done.stderr}")
        else:
            (dst,) = folder.iterdir()
            after = qbridge.check(dst, check.target, tp, check.gpu)
            wrong += [f"{line}: {finding}" for finding in after.findings if finding.severity == "error"]
        shutil.rmtree(folder)
    return wrong


@pytest.mark.parametrize(("fixture", "target", "tp", "gpu"), SAMPLE, ids=lambda value: str(value).replace("/", "-"))
def test_a_printed_conversion_works_when_pasted(fixture, target, tp, gpu, tmp_path):
    src = tmp_path / "it's a model"
    shutil.copytree(ROOT / "fixtures" / fixture / "model", src)
    assert pasted(qbridge.check(src, target, tp, gpu), tmp_path / "elsewhere") == []


def helps(src, target, **options):
    answer = qbridge.check(src, target, **options)
    assert not answer.ok
    return [line for finding in answer.findings for line in finding.help]


def model(fixture):
    return ROOT / "fixtures" / fixture / "model"


def test_a_conversion_that_is_refused_is_not_printed():
    lines = helps(model("gptq/llama_desc_act"), "lmdeploy")
    assert not [line for line in lines if line.startswith("qbridge convert")]
    assert "No conversion helps: qbridge convert refuses it too, by QB110." in lines


def test_fewer_gpus_are_named_as_such():
    (command,) = {
        line for line in helps(model("gptq/llama_2bit"), "vllm", tp=4) if line.startswith("qbridge convert")
    }
    assert "--tp 2 " in command and "fewer GPUs" in command


def test_what_a_conversion_leaves_out_is_named_and_no_word_makes_check_say_yes():
    for allow in ((), ("drop-kv-scales",)):
        lines = helps(model("compressed_tensors/llama_kv_int8"), "vllm", allow=allow)
        (command,) = [line for line in lines if line.startswith("qbridge convert")]
        assert "--allow drop-kv-scales" in command
    assert (
        "drop-kv-scales: leave out stored kv-cache scales"
        in helps(model("compressed_tensors/llama_kv_int8"), "vllm")[0]
    )


def test_nothing_is_promised_of_a_config_alone(tmp_path):
    shutil.copy(model("gptq/llama_2bit") / "config.json", tmp_path)
    commands = [line for line in helps(tmp_path, "vllm") if line.startswith("qbridge convert")]
    assert commands and all(line.endswith("# once its weights are there") for line in commands)


def test_an_output_that_is_there_gets_another_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model-lmdeploy").mkdir()
    lines = helps(model("compressed_tensors/llama_w8a8"), "lmdeploy")
    assert any(" model-lmdeploy-2 --to lmdeploy@" in line for line in lines)


def test_a_repository_of_the_cache_lends_its_name(tmp_path):
    src = tmp_path / "models--Qwen--Qwen2-7B" / "snapshots" / "0123abcd"
    shutil.copytree(model("compressed_tensors/llama_w8a8"), src)
    assert any(" Qwen2-7B-lmdeploy --to lmdeploy@" in line for line in helps(src, "lmdeploy"))


def test_values_are_read_once_for_all_that_is_tried(monkeypatch):
    from qbridge.commands import remedies

    looks = []
    look = remedies.look_at_values
    monkeypatch.setattr(remedies, "look_at_values", lambda opened, **k: (looks.append(opened), look(opened, **k)))
    assert (
        len({line for line in helps(model("gptq/llama_640"), "vllm", tp=2) if "--pad" in line or "--regroup" in line})
        == 2
    )
    assert len(looks) == 1
