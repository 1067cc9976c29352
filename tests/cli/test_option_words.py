"""Words of a command line and arguments of the library: what they mean, and what means nothing."""

from __future__ import annotations

import json

import pytest

import qbridge
from support import cli, copy_fixture


@pytest.fixture
def src(tmp_path):
    return copy_fixture(tmp_path)


@pytest.mark.parametrize("name", ["LMDeploy", "LMDEPLOY@0.18", "vLLM", "vLLM-GPTQ", "Compressed-Tensors", "GPTQ-v1"])
def test_names_of_targets_ignore_case(src, name):
    assert qbridge.check(src, name).target.partition("@")[0] == name.lower().partition("@")[0]


@pytest.mark.parametrize("name", ["LLM-Compressor", "compressed_tensors", "Compressed-Tensors"])
def test_names_of_formats_ignore_case(src, name):
    assert qbridge.inspect(src, name).format == "compressed-tensors"


def test_unknown_names_stay_unknown(src):
    for name in ("VLLM@9", "lm deploy", ""):
        with pytest.raises(qbridge.QBridgeError, match="QB030"):
            qbridge.check(src, name)


def test_words_of_allow_in_one_option(src):
    shown = {}
    for words in (["--allow", "Rounded,incomplete"], ["--allow", "rounded", "--allow", "incomplete"]):
        done = cli("convert", src, src.parent / "dst", "--to", "lmdeploy", "--dry-run", "--json", *words)
        assert done.returncode == 0
        shown[len(words)] = {**json.loads(done.stdout), "seconds": 0}
    assert shown[2] == shown[4]
    done = cli("inspect", src, "--allow", "rounded,everything")
    assert done.returncode == 2 and "--allow everything" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("convert", "SRC", "DST", "--to", "lmdeploy", "--to", "vllm"),
        ("convert", "SRC", "DST", "--to", "lmdeploy", "--to=vllm"),
        ("convert", "SRC", "DST", "--to", "vllm", "--tp", "1", "--tp", "2"),
        ("check", "SRC", "--for", "lmdeploy", "--for", "vllm"),
        ("inspect", "SRC", "--from", "awq", "--from", "gptq"),
        ("verify", "SRC", "SRC", "--memory", "1GB", "--memory", "2GB"),
    ],
)
def test_second_value_of_an_option_is_an_error(src, words):
    names = {"SRC": src, "DST": src.parent / "dst"}
    done = cli(*(names.get(word, word) for word in words))
    assert done.returncode == 2 and "more than once" in done.stderr
    assert not (src.parent / "dst").exists()


def test_options_that_may_be_repeated_still_may(src):
    done = cli("convert", src, src.parent / "dst", "--to", "lmdeploy", "--dry-run", "--pad", "--pad", "--dry-run")
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("size", "ok"), [("5", False), ("999999", False), ("5000000", True), ("5GB", True), ("5B", True), ("5e3", False)]
)
def test_size_without_a_unit_is_an_error(src, size, ok):
    done = cli("convert", src, src.parent / "dst", "--to", "lmdeploy", "--dry-run", "--max-shard-size", size)
    assert done.returncode == (0 if ok else 2)
    assert ok or "GB" in done.stderr


def test_verify_has_progress_jobs_and_memory(src):
    done = cli("verify", src, src, "--jobs", "2", "--memory", "64MB", "--progress", "json")
    last = json.loads(done.stderr.splitlines()[-1])
    assert done.returncode == 0 and last["bytes_done"] == last["bytes_total"] > 0
    assert last["shards_done"] == last["shards_total"] == 1
    assert cli("verify", src, src, "--memory", "1MB").returncode == 2


def test_progress_of_verify_comes_to_its_end(src):
    seen = []
    assert qbridge.verify(src, src, progress=seen.append).same
    steps = [at.bytes_done for at in seen]
    assert steps == sorted(steps) and steps[-1] == seen[-1].bytes_total


# the library


@pytest.mark.parametrize(
    "wrong",
    [
        {"allow": "rounded"},
        {"allow": None},
        {"allow": [1]},
        {"tp": "2"},
        {"tp": 2.0},
        {"tp": True},
        {"tp": [2, "4"]},
        {"max_shard_size": "5GB"},
        {"memory": "512MB"},
        {"jobs": 1.5},
        {"pad": "no"},
        {"regroup": "64"},
        {"bits": "8"},
        {"dtype": 16},
        {"target": None},
        {"source": 3},
        {"src": None},
        {"dst": 3},
    ],
    ids=str,
)
def test_wrong_types_are_said(src, wrong):
    arguments = {"src": src, "dst": src.parent / "dst", "target": "lmdeploy", "dry_run": True, **wrong}
    with pytest.raises(TypeError) as excinfo:
        qbridge.convert(**arguments)
    name, value = next(iter(wrong.items()))
    given = value[-1] if isinstance(value, list) else value
    said = str(excinfo.value)
    assert repr(given) in said and (name in said or (name == "source" and "format" in said)), said


@pytest.mark.parametrize("command", [qbridge.inspect, qbridge.open])
def test_wrong_types_of_other_commands(src, command):
    for arguments in ((3,), (src, 3)):
        with pytest.raises(TypeError):
            command(*arguments)
    with pytest.raises(TypeError, match=r"allow is a collection of words, such as \['rounded'\]"):
        command(src, allow="rounded")


def test_wrong_types_of_check_verify_and_stream(src):
    for call in (
        lambda: qbridge.check(src, "lmdeploy", "2"),
        lambda: qbridge.check(src, "lmdeploy", 1, 90),
        lambda: qbridge.check(src, "lmdeploy", allow="rounded"),
        lambda: qbridge.verify(src, src, allow="rounded"),
        lambda: qbridge.verify(src, src, jobs="2"),
        lambda: qbridge.stream(src, "lmdeploy", tp="2"),
        lambda: qbridge.restore(src, src.parent / "dst", allow="rounded"),
        lambda: qbridge.convert(src, src.parent / "dst", "lmdeploy", overwrite="no"),
        lambda: qbridge.convert(src, src.parent / "dst", "lmdeploy", dry_run="no"),
        lambda: qbridge.explain(5),
    ):
        with pytest.raises(TypeError):
            call()


def test_sizes_of_shards_are_positive(src):
    with pytest.raises(ValueError, match="max_shard_size"):
        qbridge.convert(src, src.parent / "dst", "lmdeploy", max_shard_size=0)
