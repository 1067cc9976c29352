"""What every command has: help in few columns, -h, -V, -q, -v, and usage errors as JSON where JSON was asked for."""

from __future__ import annotations

import json

import pytest
from typer.main import get_command

from qbridge.cli import app
from support import cli

COMMANDS = [command.callback.__name__ for command in app.registered_commands]
SRC = "compressed_tensors/llama_w8a8/model"


@pytest.fixture
def help_of(monkeypatch, capsys):
    """What a terminal of so many columns shows for `qbridge WORDS -h`."""

    def shown(columns, *words):
        monkeypatch.setenv("COLUMNS", str(columns))
        get_command(app)([*words, "-h"], "qbridge", standalone_mode=False)
        return capsys.readouterr().out

    return shown


@pytest.mark.parametrize("columns", [60, 100])
def test_help_names_no_type_of_a_flag_and_fits(columns, help_of):
    for words in ([], *([command] for command in COMMANDS)):
        text = help_of(columns, *words)
        assert "<bool>" not in text and max(map(len, text.splitlines())) <= columns
        assert bool(words) == ("--quiet" in text)
        assert words not in (["convert"], ["check"]) or "Engine[@version]" in text


@pytest.mark.parametrize("columns", [40, 60, 79, 80, 100])
def test_help_cuts_no_name(columns, help_of):
    for name, command in get_command(app).commands.items():
        text = help_of(columns, name)
        assert "…" not in text
        assert all(option in text for param in command.params for option in param.opts if option.startswith("-"))


def test_version_has_a_short_option():
    assert cli("-V").stdout == cli("--version").stdout != ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["convert", "--json"], "Missing argument 'SRC'."),
        (["check", "SRC", "--for", "vllm", "--json", "--nope"], "No such option: --nope"),
        (["check", "SRC", "--for", "vllm", "--json", "--tp", "two"], "numbers with commas"),
        (["convert", "SRC", "DST", "--to", "vllm", "--to", "awq", "--json"], "more than once"),
        (["convert", "SRC", "DST", "--to", "vllm", "--progress", "loud", "--json"], "auto, json or none"),
        (["nope", "--json"], "No such command 'nope'."),
    ],
)
def test_usage_errors_are_json_where_json_was_asked_for(fixtures, tmp_path, words, said):
    names = {"SRC": fixtures / SRC, "DST": tmp_path / "out"}
    done = cli(*(names.get(word, word) for word in words))
    told = json.loads(done.stdout)
    assert done.returncode == 2 and done.stderr == ""
    assert told["schema"] == 1 and told["command"] == words[0]
    (finding,) = told["findings"]
    assert finding["code"] == "QB801" and said in finding["facts"][0]
    plain = cli(*(names.get(word, word) for word in words if word != "--json"))
    assert plain.returncode == 2 and plain.stdout == "" and "Usage:" in plain.stderr


def test_quiet_prints_the_answer_alone(fixtures, tmp_path):
    loud = cli("convert", fixtures / SRC, tmp_path / "a", "--to", "dense")
    quiet = cli("convert", fixtures / SRC, tmp_path / "b", "--to", "dense", "-q")
    assert quiet.returncode == loud.returncode == 0 and quiet.stderr == "" and "wrote" in quiet.stdout
    refused = cli("convert", fixtures / SRC, tmp_path / "c", "--to", "awq", "-q")
    assert refused.returncode == 1 and "error[" in refused.stderr


def test_verbose_shows_what_is_logged(fixtures, tmp_path):
    words = ["convert", fixtures / SRC, tmp_path / "out", "--to", "lmdeploy"]
    plain = cli(*words, "--dry-run")
    info, debug = cli(*words, "--dry-run", "-v"), cli(*words, "--dry-run", "-vv")
    assert plain.stderr == "" and "INFO qbridge." in info.stderr and "DEBUG" not in info.stderr
    assert "DEBUG qbridge." in debug.stderr and len(debug.stderr) > len(info.stderr)
    written = cli(*words, "-v")
    assert "smooth-quant" in written.stderr and str(tmp_path / "out") in written.stderr
