"""A GGUF file by its path as SRC: what check prints works where the file lies."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest

import qbridge
from support import ROOT, cli, edit_json

FIXTURE = ROOT / "fixtures/compressed_tensors/llama_mxfp4/model"


@pytest.fixture
def file(tmp_path, monkeypatch):
    """A file in the current folder, whose name is not the one that convert gives."""
    made = tmp_path / "made"
    qbridge.convert(FIXTURE, made, "llama.cpp", allow={"no-tokenizer"})
    monkeypatch.chdir(tmp_path)
    return (made / "model.gguf").rename(tmp_path / "tiny-MXFP4.gguf").name


def commands(said):
    return [line.partition("help: ")[2] for line in said.splitlines() if "help: qbridge convert" in line]


def test_a_printed_conversion_of_a_file_works_in_its_folder(file):
    done = cli("check", file, "--for", "vllm")
    (command,) = set(commands(done.stderr))
    words = shlex.split(command, comments=True)
    assert words[2:4] == [file, "tiny-MXFP4-vllm"]
    assert cli(*words[1:]).returncode == 0
    assert cli("check", words[3], "--for", "vllm").returncode == 0


def test_the_server_gets_the_file(file, tmp_path):
    assert qbridge.check(file, "llama.cpp").serve == f"llama-server -m {file}"
    folder = tmp_path / "a folder"
    folder.mkdir()
    Path(file).rename(folder / file)
    shutil.copy(FIXTURE / "config.json", folder)
    edit_json(folder / "config.json", lambda config: config.pop("quantization_config") and None)
    assert qbridge.check("a folder", "llama.cpp").serve == f"llama-server -m 'a folder/{file}'"


def test_the_server_gets_the_first_split(tmp_path):
    done = qbridge.convert(FIXTURE, tmp_path / "out", "llama.cpp", allow={"no-tokenizer"}, max_shard_size=100_000)
    first = min(file.name for file in (tmp_path / "out").glob("*.gguf"))
    assert first.startswith("model-00001-of-") and done.serve == f"llama-server -m {tmp_path / 'out' / first}"


def test_a_folder_that_is_no_gguf_is_refused_as_such():
    with pytest.raises(qbridge.QBridgeError, match="QB018"):
        qbridge.inspect(FIXTURE, "gguf")
    with pytest.raises(qbridge.QBridgeError):
        qbridge.open(FIXTURE, "gguf")
