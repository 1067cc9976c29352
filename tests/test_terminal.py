"""What a person at a terminal sees, and what a pipe does not."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys

import pytest

from support import cli


def convert(fixtures, out, *options, **where):
    source = fixtures / "compressed_tensors/llama_w8a8/model"
    words = [sys.executable, "-m", "qbridge", "convert", str(source), str(out), "--to", "lmdeploy", *options]
    return subprocess.run(words, check=True, **where)


def test_progress_is_shown_on_a_terminal(fixtures, tmp_path):
    master, slave = pty.openpty()
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    convert(fixtures, tmp_path / "out", stderr=slave, stdout=subprocess.DEVNULL, env=env)
    os.close(slave)
    seen = os.read(master, 1 << 16).decode()
    os.close(master)
    assert "MB" in seen or "bytes" in seen


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
import qbridge.sink as sink
real = sink.write_all
sink.write_all = lambda *a: (real(*a), os.kill(os.getpid(), signal.{number}))
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
