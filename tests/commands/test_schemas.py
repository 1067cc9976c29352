"""Every command's --json and every line of --progress json fit the schemas that are shipped."""

from __future__ import annotations

import json
from importlib.resources import files

import pytest
from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from typer.testing import CliRunner

import qbridge
from qbridge.cli import app
from qbridge.progress import progress
from qbridge.write.writer import Advance
from support import ROOT, cli, copy_fixture

SCHEMAS = {file.name: json.loads(file.read_text()) for file in (files("qbridge") / "schemas").iterdir()}
COMMANDS = [command.callback.__name__ for command in app.registered_commands]
REGISTRY = Registry().with_resources((name, Resource.from_contents(value)) for name, value in SCHEMAS.items())


def faults(name, value):
    """How a value does not fit a schema, in words."""
    return [each.message for each in Draft202012Validator(SCHEMAS[name], registry=REGISTRY).iter_errors(value)]


def every_object(schema):
    """Every schema of an object with named properties inside a schema."""
    if isinstance(schema, dict):
        if "properties" in schema:
            yield schema
        for value in schema.values():
            yield from every_object(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from every_object(value)


def test_there_is_a_schema_for_every_command():
    assert {f"{name}.json" for name in (*COMMANDS, "finding", "error", "progress")} == SCHEMAS.keys()
    page = (ROOT / "docs/json.md").read_text()
    assert all(f"schemas/{name}" in page for name in SCHEMAS)


@pytest.mark.parametrize("name", SCHEMAS)
def test_schemas_are_valid_and_leave_nothing_open(name):
    Draft202012Validator.check_schema(SCHEMAS[name])
    for schema in every_object(SCHEMAS[name]):
        assert schema["additionalProperties"] is False and set(schema["required"]) == schema["properties"].keys()


def told(*words):
    """What a command prints with --json, as a value."""
    done = CliRunner().invoke(app, [*map(str, words), "--json"])
    return json.loads(done.stdout)


@pytest.fixture
def src(tmp_path):
    return copy_fixture(tmp_path)


def test_answers_fit(fixtures, tmp_path, src):
    out, gptq = tmp_path / "out", fixtures / "gptq/llama_v1_asym/model"
    asked = [
        ("convert", src, out, "--to", "lmdeploy", "--dry-run"),
        ("convert", src, out, "--to", "lmdeploy"),
        ("convert", src, out, "--to", "lmdeploy"),
        ("plan", src, tmp_path / "parts", "--to", "lmdeploy"),
        ("convert", src, tmp_path / "parts", "--to", "lmdeploy", "--part", "1/1"),
        ("finish", tmp_path / "parts"),
        ("finish", tmp_path / "parts"),
        ("restore", out, tmp_path / "back"),
        ("check", src, "--for", "vllm"),
        ("check", src, "--for", "lmdeploy"),
        ("check", gptq, "--for", "vllm", "--tp", "1,2,64", "--gpu", "h100"),
        ("check", gptq, "--for", "vllm@0.28"),
        ("what", src),
        ("prove", src, "--in", "vllm"),
        ("inspect", gptq),
        ("verify", src, out),
        ("verify", src, gptq),
        ("clean", out),
        ("formats",),
        ("targets",),
        ("explain", "QB202"),
        ("explain", "KeyError: 'model.layers.30.mlp.down_proj.weight_scale'"),
        ("explain", "all is well"),
        ("explain",),
    ]
    for words in asked:
        answer = told(*words)
        assert faults(f"{words[0]}.json", answer) == [], words
        assert faults("error.json", answer), words


@pytest.mark.parametrize(
    "words",
    [
        ("convert", "SRC", "DST", "--to", "awq"),
        ("convert", "SRC", "DST", "--to", "nothing"),
        ("convert", "SRC"),
        ("restore", "SRC", "DST"),
        ("check", "DST", "--for", "vllm"),
        ("what", "DST"),
        ("inspect", "DST"),
        ("verify", "SRC", "DST"),
        ("explain", "QB999"),
        ("verify", "SRC"),
        ("nothing",),
    ],
)
def test_refusals_and_usage_errors_fit(src, words):
    names = {"SRC": src, "DST": src.parent / "dst"}
    answer = told(*(names.get(word, word) for word in words))
    assert faults("error.json", answer) == []
    if words[0] in COMMANDS:
        assert faults(f"{words[0]}.json", answer) == []


def test_progress_fits(src):
    done = cli("convert", src, src.parent / "dst", "--to", "lmdeploy", "--progress", "json")
    lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    assert lines and not [fault for line in lines for fault in faults("progress.json", line)]


def test_there_is_no_rate_before_anything_is_done(capsys, monkeypatch):
    clock = iter([0.0, 0.0, 5.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    with progress("json", None) as advance:
        advance(Advance(0, 100, "a", 0, 1))
        advance(Advance(50, 100, "a", 0, 2))
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert first["bytes_per_second"] is None and first["seconds_left"] is None
    assert second["bytes_per_second"] == 10 and second["seconds_left"] == 5.0
    assert faults("progress.json", first) == faults("progress.json", second) == []


def test_what_an_earlier_run_has_written_is_no_rate(capsys, monkeypatch):
    clock = iter([0.0, 0.0, 5.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    with progress("json", None) as advance:
        advance(Advance(80, 100, "b", 1, 2))
        advance(Advance(90, 100, "b", 1, 3))
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert first["bytes_per_second"] is None and first["seconds_left"] is None
    assert second["bytes_per_second"] == 2 and second["seconds_left"] == 5.0


def test_a_field_that_no_schema_names_is_seen(src):
    answer = qbridge.inspect(src).as_dict()
    assert faults("inspect.json", json.loads(json.dumps({**answer, "more": 1})))
    assert faults("inspect.json", json.loads(json.dumps({**answer, "schema": 2})))
