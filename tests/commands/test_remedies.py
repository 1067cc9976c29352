"""Every conversion that check prints, pasted into a shell in another folder, on a path with a space and a quote.

LAWS=all takes every fixture for every target; LAWS=<seed> another sample.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import qbridge
from goldens import ROOT
from qbridge.cli import app
from support import edit_json

TARGETS = ("vllm", "vllm@0.23.0", "vllm@0.5.4", "lmdeploy", "lmdeploy-turbomind", "lmdeploy@0.6.2", "transformers")
TARGETS += ("vllm-gptq", "gptqmodel", "sglang")
SEED = os.environ.get("LAWS", "20261128")
FIXTURES = [str(model.parent.relative_to(ROOT / "fixtures")) for model in sorted(ROOT.glob("fixtures/*/*/model"))]
GPUS = ("sm80", "sm90")
PAIRS = [(fixture, target) for fixture in FIXTURES for target in TARGETS]
ALWAYS = [
    ("gptq/llama_2bit", "vllm", 4, "sm80"),  # 2 heads: only fewer GPUs help
    ("gptq/llama_desc_act", "lmdeploy", 1, "sm80"),  # nothing helps
    ("compressed_tensors/llama_kv_int8", "vllm", 1, "sm80"),  # a word of --allow helps
    ("compressed_tensors/llama_w8a8", "lmdeploy", 1, "sm80"),
    ("gptq/llama_640", "vllm", 2, "sm80"),
]
SAMPLE = PAIRS if SEED == "all" else random.Random(SEED).sample(PAIRS, 12)
HELP, CONVERT = "  help: ", "  help: qbridge convert"
WORDS = '#!/bin/sh\nprintf "%s\\0" "$@" > "$QBRIDGE_WORDS"\n'  # a program that notes what it is asked


@contextlib.contextmanager
def inside(folder):
    """Work in a folder; contextlib.chdir came with Python 3.11."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


class Shell:
    """A folder in which bash runs what was printed. The same text runs once, and what it wrote is kept.

    Bash calls the program itself where that is `real`; else one that notes its words, which the program in this
    process then gets: to start it takes longer than most conversions here.
    """

    def __init__(self, home, real):
        self.folder, self.kept, self.real, self.runs = home / "else where", home / "kept", real, {}
        self.words, tools = home / "words", home / "bin"
        for path in (self.folder, self.kept, tools):
            path.mkdir(parents=True)
        (tools / "qbridge").write_text(WORDS)
        (tools / "qbridge").chmod(0o755)
        first = Path(sys.executable).parent if real else tools
        self.environment = {**os.environ, "PATH": f"{first}:{os.environ['PATH']}", "QBRIDGE_WORDS": str(self.words)}

    def qbridge(self, *words):
        """The program in this process, started in the folder: (exit code, what it said of findings)."""
        with inside(self.folder):
            done = CliRunner().invoke(app, [str(word) for word in words])
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done.exit_code, done.stderr

    def paste(self, line):
        """(the checkpoint that a command wrote, what went wrong)."""
        if line not in self.runs:
            done = subprocess.run(
                ["bash", "-c", line], cwd=self.folder, env=self.environment, capture_output=True, text=True
            )
            code, said = done.returncode, done.stderr
            if not self.real and not code:
                code, said = self.qbridge(*self.words.read_text().split("\0")[:-1])
            self.runs[line] = self._written(len(self.runs), code, said)
        return self.runs[line]

    def _written(self, number, code, said):
        written = list(self.folder.iterdir())
        if code or len(written) != 1:
            for path in written:
                shutil.rmtree(path)
            return None, f"exit {code}, wrote {len(written)}: {said}"
        return shutil.move(written[0], self.kept / str(number)), ""


def pasted(shell, src, target, tp, gpu):
    """What is wrong with the conversions that `check` prints as ways out."""
    asked = ("--for", target, "--gpu", gpu)
    _, said = shell.qbridge("check", src, *asked, "--tp", tp)
    wrong = []
    for line in dict.fromkeys(line.removeprefix(HELP) for line in said.splitlines() if line.startswith(CONVERT)):
        size = int((re.search(r"--tp (\d+)", line) or ["", "1"])[1])
        if size != tp and "fewer GPUs" not in line:
            wrong.append(f"{line}: it is for {size} GPUs")
        if re.search(r"\b(SRC|DST|N)\b", line):
            wrong.append(f"{line}: it has a placeholder")
        written, fault = shell.paste(line)
        if written is None:
            wrong.append(f"{line}: {fault}")
            continue
        code, said = shell.qbridge("check", written, *asked, "--tp", size)
        wrong += [f"{line}: {said}"] if code else []
    return wrong


@pytest.mark.parametrize(("fixture", "target"), SAMPLE, ids=lambda value: value.replace("/", "-"))
def test_a_printed_conversion_works_when_pasted(fixture, target, tmp_path):
    src = tmp_path / "it's a folder" / "it's a model"
    shutil.copytree(ROOT / "fixtures" / fixture / "model", src)
    shell = Shell(tmp_path, real=False)
    assert [fault for tp in (1, 2) for gpu in GPUS for fault in pasted(shell, src, target, tp, gpu)] == []


@pytest.mark.parametrize(("fixture", "target", "tp", "gpu"), ALWAYS, ids=lambda value: str(value).replace("/", "-"))
def test_a_printed_conversion_works_in_a_process_of_its_own(fixture, target, tp, gpu, tmp_path):
    src = tmp_path / "it's a model"
    shutil.copytree(ROOT / "fixtures" / fixture / "model", src)
    assert pasted(Shell(tmp_path, real=True), src, target, tp, gpu) == []


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


def test_a_fix_that_is_a_conversion_goes_where_none_helps(tmp_path):
    src = tmp_path / "src"
    shutil.copytree(model("compressed_tensors/llama_nvfp4a16"), src)
    edit_json(src / "config.json", lambda config: config.update(rope_parameters={"rope_type": "default"}))
    answer = qbridge.check(src, "lmdeploy")
    (finding,) = (finding for finding in answer.findings if finding.code == "QB265")
    (line,) = finding.remedies
    assert line.startswith("No conversion helps: qbridge convert refuses it too, by QB")


def test_what_an_engine_rounds_is_not_called_exact():
    lines = helps(model("modelopt/llama_fp8"), "transformers")
    assert any("--allow rounded" in line for line in lines if line.startswith("qbridge convert"))
    assert not any("--allow rounded" in line and "# exact" in line for line in lines)


def test_a_name_like_an_option_stays_a_path(tmp_path, monkeypatch):
    shutil.copytree(model("compressed_tensors/llama_w8a8"), tmp_path / "--x")
    monkeypatch.chdir(tmp_path)
    (command,) = {line for line in helps("--x", "lmdeploy") if line.startswith("qbridge convert")}
    assert command == "qbridge convert ./--x ./--x-lmdeploy --to lmdeploy@0.18.0  # exact"
    subprocess.run(["bash", "-c", f"{Path(sys.executable).parent}/{command}"], check=True)


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
