"""What the fuzzer found stays found, and a few seconds of it run with every suite (an hour: `make fuzz`)."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from fuzz import answers, inputs, targets

FOLDERS, HEADERS = (sorted((inputs.CORPUS / name).iterdir()) for name in ("folder", "header"))


def run_all(data, folder):
    """An input by every command, so that a new command does not change which one an old input is for."""
    picked, rest = data.split(inputs.SEPARATOR, 1)
    readers = {1, picked[1] if len(picked) > 1 else 1}
    for command in range(len(inputs.COMMANDS)):
        for reader in readers:
            made = bytes((command + 1, reader)) + picked[2:] + inputs.SEPARATOR + rest
            assert inputs.run_folder(made, folder) in (0, 1, 3)


@pytest.mark.parametrize("file", FOLDERS, ids=lambda file: file.name)
def test_folders_that_the_fuzzer_kept(file, tmp_path):
    (tmp_path / "src").mkdir()
    run_all(file.read_bytes(), tmp_path / "src")


@pytest.mark.parametrize("file", HEADERS, ids=lambda file: file.name)
def test_headers_that_the_fuzzer_kept(file, tmp_path):
    assert inputs.run_header(file.read_bytes(), tmp_path) in (0, 3)


def test_seeds_are_mostly_sound(tmp_path):
    (tmp_path / "src").mkdir()
    said = [inputs.run_folder(seed, tmp_path / "src") for seed in inputs.seeds()]
    assert said.count(0) > len(said) / 2
    assert {inputs.run_header(seed, tmp_path) for seed in inputs.header_seeds()} == {0}
    said = [inputs.run_gguf(seed, tmp_path) for seed in inputs.gguf_seeds()]
    assert said.count(0) > len(said) / 2
    said = [answers.run_hub(seed, tmp_path) for seed in answers.hub_seeds()]
    assert said.count(0) > len(said) / 2 and 4 not in said


def test_corpus_stays_small():
    assert sum(file.stat().st_size for file in (*FOLDERS, *HEADERS)) < 200_000


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris, the extra `fuzz`, is not installed")
@pytest.mark.parametrize("target", targets.SEEDS)
def test_a_few_seconds_of_fuzzing(target, tmp_path):
    command = [sys.executable, str(inputs.ROOT / "tests/fuzz/run.py"), target, "5", "--keep", str(tmp_path)]
    cold = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cold")}  # instrumented kernels do not compile
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=cold)
    said = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr[-4000:]
    assert said["executions"] > 100 and said["crashes"] == said["hangs"] == 0
    assert said["exit codes"].keys() <= {"0", "1", "3", "4"}
