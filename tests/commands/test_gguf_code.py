"""Python files of a checkpoint never run on the way to GGUF, whatever its configs say of them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from support import copy_fixture, edit_json

AUTO = {"AutoTokenizer": ["tokenization_x.Tokenizer", None], "AutoConfig": "configuration_x.Config"}


@pytest.mark.parametrize("command", ["convert", "check"])
def test_code_of_a_checkpoint_never_runs(command, tmp_path):
    src, canary = copy_fixture(tmp_path, "compressed_tensors/llama_w4a16"), tmp_path / "canary"
    for name in ("tokenization_x", "configuration_x", "modeling_x", "setup", "conftest"):
        (src / f"{name}.py").write_text(f"open({str(canary)!r}, 'w').close()\n")
    for name in ("config.json", "tokenizer_config.json"):
        edit_json(src / name, lambda config: config.update(auto_map=AUTO, tokenizer_class="Tokenizer"))
    words = {
        "convert": ["convert", ".", tmp_path / "a.gguf", "--to", "llama.cpp", "--allow", "no-tokenizer"],
        "check": ["check", ".", "--for", "llama.cpp"],
    }[command]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(src)])}
    done = subprocess.run(
        [sys.executable, "-m", "qbridge", *map(str, words)],
        cwd=src,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 1) and "Traceback" not in done.stderr, done.stderr
    assert (command == "check") or (tmp_path / "a.gguf").exists(), done.stdout + done.stderr
    assert not canary.exists()
