"""The catalogue against the code that speaks in it and the tests that trigger it."""

from __future__ import annotations

import importlib.util
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

from qbridge.findings.catalogue import CATALOGUE as STATIC
from qbridge.findings.catalogue.code import ALLOW
from qbridge.findings.finding import error
from qbridge.targets.registry import builtin
from qbridge.targets.registry import codes as every_code
from support import ROOT, cli

CATALOGUE = every_code()
ENGINES = ("lmdeploy", "vllm", "gptqmodel", "transformers")
CODE = re.compile(r"QB\d{3}")
ENTRIES = pytest.mark.parametrize("entry", CATALOGUE.values(), ids=CATALOGUE)
LIBRARY = [file for folder in ("bridge", "formats") for file in (ROOT / folder).rglob("*.py")]
PAGES = [file for file in LIBRARY if "catalogue" in (file.stem, file.parent.name) or file.stem == "codes"]
ENTRY = re.compile(r'\bCode\(\s*"(QB\d{3})"')


def codes_in(files):
    return {code for file in files for code in CODE.findall(file.read_text())}


@ENTRIES
def test_entry_says_everything(entry):
    assert CODE.fullmatch(entry.code)
    assert all((entry.title, entry.what, entry.why, entry.example, entry.fix, entry.source))
    assert not entry.title.endswith(".") and "\n" not in entry.title
    assert entry.severity in ("error", "warning", "note")
    assert entry.exit in (1, 2, 3, 4, 70)
    assert entry.allow is None or entry.severity == "error"


@ENTRIES
def test_modules_that_are_a_source_are_there(entry):
    for name in re.findall(r"qbridge(?:\.\w+)+", entry.source):
        assert importlib.util.find_spec(name), name


def test_no_code_is_given_twice():
    given = [code for file in LIBRARY for code in ENTRY.findall(file.read_text())]
    assert sorted(given) == sorted(CATALOGUE) and all(code == entry.code for code, entry in CATALOGUE.items())


def test_every_code_is_triggered_by_a_test():
    here, all_tests = Path(__file__), ROOT / "tests"
    tests = [file for file in (*all_tests.rglob("*.py"), *all_tests.glob("cli/*.md")) if file != here]
    assert sorted(CATALOGUE.keys() - codes_in(tests)) == []


def test_library_and_catalogue_name_the_same_codes():
    texts = (ENTRY.sub("", file.read_text()) for file in set(LIBRARY) - set(PAGES))
    assert {code for text in texts for code in CODE.findall(text)} == CATALOGUE.keys()


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_brings_the_codes_that_no_other_engine_has(engine):
    """Those of shared rules, and those that a format says, are in the catalogue."""
    own = {entry.code for target in builtin() if target.engine == engine for entry in target.codes}
    others = {entry.code for target in builtin() if not target.engine.startswith(engine) for entry in target.codes}
    assert own and not own & STATIC.keys() and not own & others


def test_a_process_without_engines_reads_their_findings():
    """An error says the same in another process, which asked for no target and so imported no engine."""
    program = (
        "import pickle, sys, qbridge; assert 'qbridge.targets.vllm' not in sys.modules; "
        "error = pickle.load(sys.stdin.buffer); print(error.exit_code, error)"
    )
    told = subprocess.run(
        [sys.executable, "-c", program], input=pickle.dumps(error("QB220", "m")), capture_output=True, check=True
    )
    assert told.stdout.decode().split(None, 1) == ["1", f"{error('QB220', 'm')}\n"]


def test_words_of_allow_are_those_of_the_entries():
    assert {entry.allow for entry in CATALOGUE.values() if entry.allow} == ALLOW.keys()
    assert all(ALLOW.values())


@ENTRIES
def test_explain_prints_the_entry(entry, capsys, monkeypatch):
    from qbridge.cli import main

    monkeypatch.setattr("sys.argv", ["qbridge", "explain", entry.code.lower()])
    with pytest.raises(SystemExit) as excinfo:
        main()
    assert excinfo.value.code == 0
    told = capsys.readouterr().out
    assert told.startswith(f"{entry.code}: {entry.title}\n")
    assert all(text in told for text in (entry.what, entry.why, entry.example, entry.fix, entry.source))


def test_program_explains_a_code():
    done = cli("explain", "QB015")
    assert done.returncode == 0 and done.stdout.startswith("QB015: ") and done.stderr == ""
