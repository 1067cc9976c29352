"""A user's defaults: environment variables and a config file, none that weakens a promise."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from qbridge.cli import app
from support import copy_fixture

SRC = "compressed_tensors/llama_w8a8_rope"
# Options that may have no default: they change what is kept of a model, or what is overwritten.
NEVER = ["allow", "overwrite", "dtype", "no-proof", "v1-zeros", "graft", "rename-prefix", "from", "to", "pad", "bits"]


@pytest.fixture
def home(tmp_path):
    """A user's folder of config files."""
    (tmp_path / "config/qbridge").mkdir(parents=True)
    return tmp_path / "config"


def ask(home, *words, file=None, **variables):
    if file is not None:
        (home / "qbridge/config.toml").write_text(file)
    return CliRunner().invoke(app, list(map(str, words)), env={"XDG_CONFIG_HOME": str(home), **variables})


def known(home, **asked):
    settings = json.loads(ask(home, "config", "--json", **asked).stdout)["settings"]
    return {each["name"]: (each["value"], each["origin"]) for each in settings}


def test_what_is_typed_comes_before_the_environment_and_that_before_the_file(home, fixtures):
    file = 'tp = "4"\ngpu = "h100"\njobs = 3\n'
    assert known(home, file=file, QBRIDGE_TP="2") == {
        "gpu": ("h100", "file"),
        "jobs": ("3", "file"),
        "max-shard-size": ("", "default"),
        "memory": ("512MB", "default"),
        "progress": ("auto", "default"),
        "tp": ("2", "environment"),
    }
    check = ("check", fixtures / SRC / "model", "--for", "vllm", "--json")
    told = [json.loads(ask(home, *check, *more, QBRIDGE_TP="2").stdout) for more in ((), ("--tp", "1"))]
    assert [(each["tp"], each["gpu"]) for each in told] == [(2, "h100"), (1, "h100")]


def test_settings_are_shown_with_their_origin(home):
    done = ask(home, "config", file="jobs = 3", QBRIDGE_MEMORY="1GB")
    assert "jobs            3  (from the file)" in done.stdout and "1GB  (from QBRIDGE_MEMORY)" in done.stdout
    assert str(home / "qbridge/config.toml") in done.stdout


@pytest.mark.parametrize("name", NEVER)
def test_what_weakens_a_promise_has_no_default(home, name):
    done = ask(home, "formats", file=f'{name} = "rounded"')
    assert done.exit_code == 2 and "error[QB803]" in done.stderr and name in done.stderr and done.stdout == ""
    variable = f"QBRIDGE_{name.replace('-', '_').upper()}"
    done = ask(home, "formats", "--json", file="", **{variable: "1"})
    assert done.exit_code == 2 and json.loads(done.stdout)["findings"][0]["where"] == [variable]


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ('tp = "two"', "numbers with commas"),
        ('memory = "1MB"', "at least 64MB"),
        ('gpu = "h1000"', "h1000"),
        ('progress = "loud"', "auto, json or none"),
        ("jobs = -1", "a number of threads"),
        ("jobs = true", "no text or number"),
        ('job = "1"', "did you mean 'jobs'?"),
        ("jobs = ", "Invalid value"),
        ("\x80", "config.toml"),
    ],
)
def test_settings_that_mean_nothing_are_said(home, file, said):
    done = ask(home, "formats", file=file)
    assert done.exit_code == 2 and "QB803" in done.stderr and said in done.stderr


def test_the_current_folder_has_no_say(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in (tmp_path, tmp_path / ".config/qbridge", tmp_path / "qbridge"):
        place.mkdir(parents=True, exist_ok=True)
        (place / "config.toml").write_text("jobs = 7")
        (place / ".qbridge.toml").write_text("jobs = 7")
    assert known(home)["jobs"] == ("0", "default")
    done = CliRunner().invoke(app, ["config", "--json"], env={"XDG_CONFIG_HOME": ".", "HOME": str(home)})
    assert json.loads(done.stdout)["file"] == str(home / ".config/qbridge/config.toml")


def test_help_needs_no_settings(home):
    assert ask(home, "--help", file="allow = 1").exit_code == 0


def test_settings_that_shape_an_output_are_in_its_manifest(home, tmp_path):
    src = copy_fixture(tmp_path, SRC)
    set_ = {"QBRIDGE_TP": "2", "QBRIDGE_MAX_SHARD_SIZE": "1MB", "QBRIDGE_JOBS": "1"}
    assert ask(home, "convert", src, tmp_path / "a", "--to", "lmdeploy", **set_).exit_code == 0
    typed = ("--tp", "2", "--max-shard-size", "1MB")
    assert ask(home, "convert", src, tmp_path / "b", "--to", "lmdeploy", *typed).exit_code == 0
    assert ask(home, "convert", src, tmp_path / "c", "--to", "lmdeploy").exit_code == 0
    manifests = [(tmp_path / name / "qbridge.json").read_bytes() for name in "abc"]
    assert manifests[0] == manifests[1]
    assert json.loads(manifests[0])["options"] == {"tp": [2], "max_shard_size": 1_000_000}
    assert "options" not in json.loads(manifests[2])
