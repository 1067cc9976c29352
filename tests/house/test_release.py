"""What is released: two builds of one tree are the same bytes, and the metadata says what was tried."""

from __future__ import annotations

import ast
import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import licences
from support import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())
TEMPLATES = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("[!c]*.yml"))


def built(folder: Path) -> dict[str, str]:
    """The sha256 of wheel and sdist, by name."""
    words = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    date = {"SOURCE_DATE_EPOCH": "1764288000"}
    subprocess.run(words, check=True, capture_output=True, env={**os.environ, **date})
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def test_two_builds_are_the_same_bytes(tmp_path):
    first = built(tmp_path / "first")
    assert len(first) == 2 and built(tmp_path / "second") == first


def test_the_base_installation_is_small():
    names = {re.split(r"[<>=;\s]", each)[0] for each in PROJECT["dependencies"]}
    assert names == {"numpy", "numba", "pyyaml", "typer", "rich", "tomli"}


def test_extras_are_those_that_findings_and_pages_name():
    extras = PROJECT["optional-dependencies"]
    assert {"torch", "transformers", "hub", "gguf", "all", "laws"} <= extras.keys()
    files = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("bridge/**/*.py")]
    named = {
        extra.strip()
        for file in files
        for words in re.findall(r"qbridge-llm\[([a-z,\- ]+)\]", file.read_text())
        for extra in words.split(",")
    }
    assert named and named <= extras.keys()


def test_classifiers_name_the_pythons_that_the_workflow_runs():
    prefix = "Programming Language :: Python :: 3."
    named = {each.removeprefix(prefix) for each in PROJECT["classifiers"] if each.startswith(prefix)}
    run = WORKFLOW["jobs"]["wheel"]["strategy"]["matrix"]["python"]
    assert {f"3.{minor}" for minor in named} == set(run)


def test_only_what_was_tried_is_no_experiment():
    matrix = WORKFLOW["jobs"]["wheel"]["strategy"]["matrix"]
    assert matrix["os"] == ["ubuntu-latest"] and all(each["experimental"] for each in matrix["include"])


def test_publishing_needs_every_other_job_and_no_token():
    jobs = WORKFLOW["jobs"]
    assert set(jobs["publish"]["needs"]) | {"distributions"} == jobs.keys() - {"publish"}
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert "secrets" not in (ROOT / ".github/workflows/release.yml").read_text()


@pytest.mark.parametrize("job", WORKFLOW["jobs"])
def test_make_targets_of_the_workflow_are_there(job):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for step in WORKFLOW["jobs"][job]["steps"]:
        words = step.get("run", "").split()
        assert words[:1] != ["make"] or set(words[1:]) <= targets


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda file: file.stem)
def test_issues_ask_for_what_inspect_prints(template):
    asked = [each["attributes"]["label"] for each in yaml.safe_load(template.read_text())["body"]]
    assert any("qbridge inspect SRC --json" in label for label in asked)


def test_versions_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"] and citation["license"] == PROJECT["license"]


def test_containers_copy_files_that_are_there():
    lines = (ROOT / "Containerfile").read_text().splitlines()
    copied = [
        word for line in lines if line.startswith("COPY ") and "--from" not in line for word in line.split()[1:-1]
    ]
    assert copied and [name for name in copied if not (ROOT / name).exists()] == []


def test_licences_are_a_table():
    component = {"name": "Numpy", "version": "2.0", "licenses": [{"license": {"name": "BSD\nand a long text"}}]}
    lines = licences.table({"components": [component, {"name": "a"}]}).splitlines()
    assert lines[2:] == ["| a |  | unknown |", "| numpy | 2.0 | BSD |"]


NEWER = {
    *(
        "typing.Self",
        "typing.Never",
        "typing.LiteralString",
        "typing.Required",
        "typing.NotRequired",
        "typing.Unpack",
    ),
    *("typing.assert_never", "typing.assert_type", "typing.override", "typing.TypeVarTuple", "enum.StrEnum"),
    *("datetime.UTC", "contextlib.chdir", "itertools.batched", "warnings.deprecated", "hashlib.file_digest"),
}


def newer_names(text: str) -> set[str]:
    """What a module uses of the standard library that Python 3.10 lacks, unless it asks for the version."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found.add(f"{node.value.id}.{node.attr}")
        elif type(node).__name__ == "TryStar":
            found.add("except*")
    return found & {*NEWER, "except*"}


def test_modules_use_nothing_that_the_oldest_python_lacks():
    assert PROJECT["requires-python"] == ">=3.10"
    files = [*ROOT.glob("bridge/**/*.py"), *ROOT.glob("formats/**/*.py")]
    assert {str(file): names for file in files if (names := newer_names(file.read_text()))} == {}
    assert newer_names("from typing import Any, Self\nimport hashlib\nhashlib.file_digest(x)") == {
        "typing.Self",
        "hashlib.file_digest",
    }
