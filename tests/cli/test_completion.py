"""Completion of values, asked of the program and typed into bash, zsh and fish."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qbridge.cli import completion
from qbridge.findings.catalogue.code import ALLOW

BIN = Path(sys.executable).parent
SET_UP = {
    "bash": 'PS1="> "; eval "$(_QBRIDGE_COMPLETE=source_bash qbridge)"',
    "zsh": 'PS1="> "; autoload -U compinit; compinit -u -D; eval "$(_QBRIDGE_COMPLETE=source_zsh qbridge)"',
    "fish": "_QBRIDGE_COMPLETE=source_fish qbridge | source",
}
START = {"bash": ["bash", "--norc", "-i"], "zsh": ["zsh", "-f", "-i"], "fish": []}


def words(pairs):
    return [word for word, _ in pairs]


def test_values_are_completed_from_the_tables():
    assert {"vllm", "vllm@0.33.0", "vllm-gptq"} <= set(words(completion.targets("vllm")))
    assert {"vllm", "lmdeploy", "llama.cpp"} <= set(words(completion.provers(""))) and not completion.provers("awq")
    assert words(completion.targets("compressed")) == ["compressed-tensors"]
    assert "llm-compressor" in words(completion.formats("llm"))
    assert words(completion.allowed("")) == list(ALLOW)
    assert words(completion.allowed("rounded,drop-kv")) == ["rounded,drop-kv-scales"]
    assert "rounded,rounded" not in words(completion.allowed("rounded,r"))
    assert "QB202" in words(completion.known_codes("QB2")) and words(completion.known_codes("qb202")) == ["qb202"]
    assert {"H100", "H200"} <= set(words(completion.gpus("H"))) and "rtx-4090" in words(completion.gpus("rtx"))
    assert "sm90" in words(completion.gpus("sm"))


@pytest.mark.parametrize("name", words(completion.gpus("")))
def test_completed_gpus_are_known(name, fixtures):
    from qbridge.targets.gpus import gpu_of

    assert gpu_of(name)


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("convert a b --to vllm-g", "vllm-gptq"),
        ("check a --for lmdeploy-t", "lmdeploy-turbomind"),
        ("inspect a --from compressed", "compressed-tensors"),
        ("inspect a --allow rounded,pi", "rounded,pickle"),
        ("check a --gpu rtx-40", "rtx-4090"),
        ("explain QB10", "QB101"),
        ("convert a b --progress j", "json"),
        ("convert a b --dtype bf", "bfloat16"),
        ("convert a b --experts s", "separate"),
        ("inspect a --v1-zeros w", "wrap"),
        ("wha", "what"),
        ("check a --gp", "--gpu"),
    ],
)
def test_the_program_completes(line, wanted):
    line = f"qbridge {line}"
    asked = {"_QBRIDGE_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}
    done = subprocess.run([BIN / "qbridge"], env={**os.environ, **asked}, capture_output=True, text=True)
    assert wanted in done.stdout.split()


@pytest.mark.parametrize(
    ("pieces", "wanted"),
    [(["vllm", "@", "0.3"], "0.33.0"), (["vllm", "@"], "@0.33.0"), (["vllm-marlin", "@", ""], "0.33.0")],
)
def test_bash_takes_words_apart_at_the_version(pieces, wanted):
    words = ["qbridge", "check", "a", "--for", *pieces]
    asked = {"_QBRIDGE_COMPLETE": "complete_bash", "COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)}
    done = subprocess.run([BIN / "qbridge"], env={**os.environ, **asked}, capture_output=True, text=True)
    assert wanted in done.stdout.split()


def typed_into(shell, line, wanted, tmp_path):
    """What a shell shows after a line was typed into it and Tab was pressed, until `wanted` is there."""
    master, slave = pty.openpty()
    env = {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(tmp_path), "TERM": "dumb", "COLUMNS": "200"}
    process = subprocess.Popen(START[shell], stdin=slave, stdout=slave, stderr=slave, env=env, cwd=tmp_path)
    os.close(slave)
    shown = ""

    def see(text, seconds):
        nonlocal shown
        shown, end = "", time.monotonic() + seconds
        while text not in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown) and time.monotonic() < end:
            if select.select([master], [], [], 0.2)[0]:
                with contextlib.suppress(OSError):
                    shown += os.read(master, 1 << 16).decode(errors="replace")
        return text in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)

    try:
        os.write(master, f"{SET_UP[shell]}; echo set'-up'\n".encode())
        assert see("set-up", 60), shown
        os.write(master, f"{line}\t".encode())
        if not see(wanted, 20):
            os.write(master, b"\t")
            see(wanted, 20)
        return shown
    finally:
        process.kill()
        process.wait()
        os.close(master)


@pytest.mark.parametrize("shell", START)
@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("qbridge convert a b --to lmdeploy-", "turbomind"),
        ("qbridge check a --for vllm@0.3", "3.0"),
        ("qbridge inspect a --allow drop-k", "drop-kv-scales"),
        ("qbridge explain QB25", "QB254"),
    ],
)
def test_shells_complete(shell, line, wanted, tmp_path):
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    if shell == "fish":  # it answers without a terminal, too
        script = f"{SET_UP[shell]}; complete -C '{line}'"
        env = {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(tmp_path)}
        done = subprocess.run(["fish", "--no-config", "-c", script], env=env, capture_output=True, text=True)
        shown = done.stdout + done.stderr
    else:
        shown = typed_into(shell, line, wanted, tmp_path)
    assert wanted in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown), shown


def test_completion_imports_nothing_heavy():
    code = (
        "import sys; from qbridge.cli import completion as c; "
        "c.targets(''), c.formats(''), c.allowed(''), c.known_codes(''), c.gpus(''); "
        "print({'torch', 'transformers', 'compressed_tensors', 'numba'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


def test_scripts_are_shown_for_each_shell():
    for shell in START:
        env = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
        done = subprocess.run([BIN / "qbridge", "--show-completion", shell], env=env, capture_output=True, text=True)
        assert done.returncode == 0 and "_QBRIDGE_COMPLETE" in done.stdout.upper()
