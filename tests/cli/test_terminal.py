"""What a person at a terminal sees, and what a pipe does not."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
import threading

import pytest

from support import cli


def convert(fixtures, out, *options, source=None, **where):
    source = source or fixtures / "compressed_tensors/llama_w8a8/model"
    options = options if "--to" in options else ("--to", "lmdeploy", *options)
    words = [sys.executable, "-m", "qbridge", "convert", str(source), str(out), *options]
    return subprocess.run(words, check=True, **where)


def test_progress_is_shown_on_a_terminal(fixtures, tmp_path):
    master, slave = pty.openpty()
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    convert(fixtures, tmp_path / "out", stderr=slave, stdout=subprocess.DEVNULL, env=env)
    os.close(slave)
    seen = os.read(master, 1 << 16).decode()
    os.close(master)
    assert "MB" in seen or "bytes" in seen


@pytest.mark.parametrize("command", ["convert", "restore"])
def test_the_report_is_printed_after_the_bar_is_gone(fixtures, tmp_path, command):
    source = fixtures / "compressed_tensors/llama_w8a8/model"
    words = [str(source), str(tmp_path / "out"), "--to", "lmdeploy"]
    if command == "restore":
        convert(fixtures, tmp_path / "out", capture_output=True)
        words = [str(tmp_path / "out"), str(tmp_path / "back")]
    seen = on_a_terminal(command, *words)
    start = re.search(r"(\x1b\[[0-9;]*m)?source {4}", seen)
    report = seen[start.start() :]
    assert re.search(r"^(\x1b\[[0-9;]*m)?time ", report, re.MULTILINE)
    assert not re.search(r"\x1b\[[0-9;?]*[A-KhlJ]|━", report), report


def on_a_terminal(*words, **environment):
    """What a person sees of a command, stdout and stderr as they come, lines ended as on Unix."""
    master, slave = pty.openpty()
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", **environment}
    seen: list[bytes] = []

    def read():
        with contextlib.suppress(OSError):  # the end of a pseudo-terminal
            while part := os.read(master, 1 << 16):
                seen.append(part)

    reader = threading.Thread(target=read)
    reader.start()
    subprocess.run([sys.executable, "-m", "qbridge", *words], check=True, stdout=slave, stderr=slave, env=env)
    os.close(slave)
    reader.join()
    os.close(master)
    return b"".join(seen).decode().replace("\r\n", "\n")


@pytest.mark.parametrize("command", ["convert", "verify"])
def test_a_first_run_says_that_it_compiles_and_the_next_does_not(fixtures, tmp_path, command):
    source = fixtures / "awq/llama_gemm/model"
    words = ["convert", str(source), str(tmp_path / "out"), "--to", "compressed-tensors", "--overwrite"]
    if command == "verify":
        convert(fixtures, tmp_path / "out", "--to", "compressed-tensors", source=source, capture_output=True)
        words = ["verify", str(source), str(tmp_path / "out")]
    cold = {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    assert on_a_terminal(*words, **cold).count("compiling kernels") == 1
    assert "compiling kernels" not in on_a_terminal(*words, **cold)


def test_pipelines_are_told_of_compiling_too(fixtures, tmp_path):
    source = fixtures / "awq/llama_gemm/model"
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    options = ("--to", "compressed-tensors", "--progress", "json")
    done = convert(
        fixtures, tmp_path / "out", *options, source=source, capture_output=True, text=True, env=environment
    )
    events = [json.loads(line)["event"] for line in done.stderr.splitlines() if line.startswith("{")]
    assert events.count("compiling") == 1 and events[-1] == "progress"


def test_nothing_but_findings_goes_down_a_pipe(fixtures, tmp_path):
    done = convert(fixtures, tmp_path / "out", capture_output=True, text=True)
    assert "\x1b" not in done.stderr + done.stdout and "bytes" not in done.stderr


def test_progress_for_pipelines_is_lines_of_json(fixtures, tmp_path):
    done = convert(fixtures, tmp_path / "out", "--progress", "json", "--json", capture_output=True, text=True)
    lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    assert lines[-1]["bytes_done"] == lines[-1]["bytes_total"] > 2_000_000
    assert json.loads(done.stdout)["exactness"] == {"reversible": 14}


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_a_signal_leaves_nothing_where_no_shard_is_finished_and_says_130(fixtures, tmp_path, number):
    code = f"""
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # the background jobs of a shell start with it ignored
from qbridge.write.output import FileOutput
real = FileOutput.write
FileOutput.write = lambda *a: (real(*a), os.kill(os.getpid(), signal.{number}))
sys.argv = ["qbridge", "convert", {str(fixtures / "compressed_tensors/llama_w8a8/model")!r},
            {str(tmp_path / "out")!r}, "--to", "lmdeploy"]
from qbridge.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 130 and "interrupted" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "written"),
    [
        (["convert", "none", "out", "--to", "vllm"], True),
        (["restore", "none", "out"], True),
        (["check", "none", "--for", "vllm"], False),
        (["verify", "none", "none"], False),
        (["inspect", "none"], False),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_only_commands_that_write_say_that_nothing_was_written(words, written, tmp_path):
    done = cli(*words, cwd=tmp_path)
    assert "1 error" in done.stderr and ("nothing was written" in done.stderr) == written
