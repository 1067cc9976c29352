"""The house keeps its order: names agree, imports point one way, modules stay short."""

from __future__ import annotations

import ast
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import qbridge
from qbridge.catalogue import CATALOGUE
from qbridge.formats import BUILTIN, load

ROOT = Path(__file__).resolve().parent.parent
BRIDGE, FORMATS = ROOT / "bridge/qbridge", ROOT / "formats/qbridge_formats"
SOURCES = sorted([*BRIDGE.rglob("*.py"), *FORMATS.rglob("*.py")])
IDS = {name.replace("-", "_") for name in BUILTIN}

# Who may import whom: a module imports only from its own row or the rows above.
LAYERS = [
    {"floats"},
    {"dtypes", "catalogue", "compiling", "distribution", "exactness", "layout"},
    {"ir", "codes", "findings", "headers"},
    {"words"},
    {"blocks"},
    {"values", "passes", "tensors", "rope", "hf_config", "topology", "sharding", "patterns"},
    {"pickles", "decoder", "weight_files"},
    {"source"},
    {"rules"},
    {"formats"},
    {"padding"},
    {"targets"},
    {"checkpoint", "windows", "wishes"},
    {"plan"},
    {"repairs", "outputs"},
    {"planning"},
    {"manifest", "shards", "staging", "assumed", "completeness", "numbered", "serving"},
    {"jobs", "report"},
    {"sink"},
    {"conversion", "strategies"},
    {"checking", "inspection", "restoration", "verification", "testing"},
    {"render", "progress"},
    {"cli"},
    {"__main__"},
]


def imports(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_format_ids_files_fixtures_tests_and_docs_agree():
    def stems(folder, pattern):
        return {p.stem.removeprefix("test_") for p in (ROOT / folder).glob(pattern) if not p.name.startswith("_")}

    assert stems("formats/qbridge_formats", "*.py") == IDS
    assert stems("tests/formats", "test_*.py") == IDS
    assert stems("docs/formats", "*.md") == IDS
    written_only = {"dense"}
    assert {p.name for p in (ROOT / "fixtures").iterdir() if p.is_dir()} - {"makers"} == IDS - written_only


def engines():
    """The targets of each page: lmdeploy.md speaks of lmdeploy-turbomind too."""
    pages = {}
    for target in qbridge.list_targets():
        if target.version:
            pages.setdefault(target.engine.partition("-")[0], []).append(target)
    return pages


def test_every_engine_has_a_page():
    assert {page.stem for page in (ROOT / "docs/targets").glob("*.md")} == engines().keys()


def codes_of(text):
    return set(re.findall(r"QB\d{3}", text))


@pytest.mark.parametrize("name", engines())
def test_target_pages_name_exactly_the_codes_of_their_rules(name):
    rules = {rule.code for target in engines()[name] for rule in target.rules}
    if name == "lmdeploy":
        formats = {format_ for target in engines()[name] for format_ in target.formats}
        rules |= {rule.code for format_ in formats for rule in load(format_).RULES}
    assert codes_of((ROOT / f"docs/targets/{name}.md").read_text()) == rules


def test_format_pages_name_the_codes_of_their_rules():
    for name in BUILTIN:
        page = (ROOT / f"docs/formats/{name.replace('-', '_')}.md").read_text()
        assert {rule.code for rule in load(name).RULES} <= codes_of(page), name


def test_documentation_names_no_code_that_is_not_in_the_catalogue():
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        assert codes_of(page.read_text()) <= CATALOGUE.keys(), page.name


def test_format_names_are_their_module_names():
    for name in BUILTIN:
        assert name == qbridge.formats.load(name).NAME


@pytest.mark.parametrize("file", SOURCES, ids=lambda f: f.stem)
def test_modules_are_short(file):
    assert len(file.read_text().splitlines()) <= 400


@pytest.mark.parametrize("file", sorted(BRIDGE.rglob("*.py")), ids=lambda f: f.stem)
def test_imports_point_one_way(file):
    rows = {name: row for row, names in enumerate(LAYERS) for name in names}
    own = file.relative_to(BRIDGE).parts[0].removesuffix(".py")
    if own == "__init__":
        return
    for module in imports(file):
        package, _, rest = module.partition(".")
        assert package != "qbridge_formats", f"{own} knows a format by name"
        if package == "qbridge" and rest:
            assert rows[rest.split(".")[0]] <= rows[own], f"{own} imports {module}"


@pytest.mark.parametrize("file", sorted(FORMATS.glob("[a-z]*.py")), ids=lambda f: f.stem)
def test_formats_know_no_other_format(file):
    for module in imports(file):
        if module.startswith("qbridge_formats."):
            assert module.split(".")[1].startswith("_"), module


def test_no_public_name_is_a_submodule():
    assert not set(qbridge.__all__) & {module.name for module in pkgutil.iter_modules(qbridge.__path__)}


@pytest.mark.parametrize("words", [["--help"], ["convert", "SRC", "DST", "--to", "lmdeploy"], ["inspect", "SRC"]])
def test_no_command_imports_torch(words, fixtures, tmp_path):
    places = {"SRC": str(fixtures / "compressed_tensors/llama_w8a8/model"), "DST": str(tmp_path / "out")}
    code = f"""
import sys
sys.argv = ["qbridge", *{[places.get(word, word) for word in words]!r}]
from qbridge.cli import main
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
heavy = {{"torch", "transformers", "compressed_tensors", "numba", "click"}} & sys.modules.keys()
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_fixtures_stay_small():
    size = sum(file.stat().st_size for file in (ROOT / "fixtures").rglob("*") if file.is_file())
    assert size < 60e6


def test_every_fixture_says_where_it_comes_from():
    for case in (ROOT / "fixtures").glob("*/*/model"):
        origin = (case.parent / "ORIGIN.md").read_text()
        for file in case.rglob("*"):
            if file.is_file():
                assert str(file.relative_to(case)) in origin, f"{case}: {file.name}"
