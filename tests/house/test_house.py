"""The house keeps its order: names agree, imports point one way, modules stay short."""

from __future__ import annotations

import pkgutil
import re
import subprocess
import sys

import pytest

import house_rules
import qbridge
from qbridge.codecs import arrays, bits
from qbridge.formats.registry import BUILTIN, load
from qbridge.ir import slots
from qbridge.ir.slots import Codec
from qbridge.passes.dequantize import Dequantize
from qbridge.passes.recorded import REVERSIBLE
from qbridge.passes.undo import Undo
from qbridge.targets.registry import codes as every_code
from support import ROOT

CATALOGUE = every_code()


def every_subclass(cls):
    for child in cls.__subclasses__():
        yield child
        yield from every_subclass(child)


BRIDGE, FORMATS = ROOT / "bridge/qbridge", ROOT / "formats/qbridge_formats"
SOURCES = sorted([*BRIDGE.rglob("*.py"), *FORMATS.rglob("*.py")])
IDS = {name.replace("-", "_") for name in BUILTIN}

PATHS = {str(file.relative_to(ROOT)): file.read_text() for file in SOURCES}
ROOMS = {path: text for path, text in PATHS.items() if path.startswith("bridge/")}
INSIDE = {path: text for path, text in PATHS.items() if path.startswith("formats/")}
NAMES = {*BUILTIN, *(target.engine for target in qbridge.list_targets() if target.version), "turbomind"}
CODECS = {name for name in vars(arrays) | vars(bits) | vars(slots) if name[:1].isupper()} & {
    cls.__name__ for cls in every_subclass(Codec)
}
PASSES = {kind.__name__ for kind in (*REVERSIBLE, Dequantize, Undo)}


def test_format_ids_files_fixtures_tests_and_docs_agree():
    def stems(folder, pattern):
        return {p.stem.removeprefix("test_") for p in (ROOT / folder).glob(pattern) if not p.name.startswith("_")}

    folders = {p.name for p in FORMATS.iterdir() if (p / "__init__.py").exists() and not p.name.startswith("_")}
    assert stems("formats/qbridge_formats", "*.py") | folders == IDS
    of_several = {"bad_weight_only", "contradicting_blocks", "kv_cache", "patterns", "plugins", "side_files"}
    of_several |= {"expert_names", "float4_experts", "stacked_experts"}
    of_several |= {"float_zero_points", "gguf_classes", "likeness", "unquantized"}
    assert stems("tests/formats", "test_*.py") == IDS | of_several
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
    rules |= {code for target in engines()[name] if target.derivation for code in target.derivation.codes}
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


def dotted(path):
    return path.split("/", 1)[1].removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def all_of(rule, paths, *arguments):
    return [wrong for path, text in paths.items() for wrong in rule(path, text, *arguments)]


def test_imports_point_one_way():
    assert all_of(house_rules.against_the_order, ROOMS) == []
    assert all_of(house_rules.formats_against_the_order, INSIDE) == []


def test_no_room_names_what_another_one_knows():
    assert all_of(house_rules.foreign_names, PATHS, NAMES) == []
    assert all_of(house_rules.foreign_classes, PATHS) == []


def test_files_are_opened_where_bytes_are_read_and_written():
    assert all_of(house_rules.opened_files, PATHS) == []


def test_codecs_are_asked_and_not_told_apart():
    assert all_of(house_rules.kind_tests, PATHS, "codecs", CODECS) == []


def test_passes_are_asked_and_not_told_apart():
    assert {"Pad", "Invert", "Undo", "Widen"} <= PASSES
    assert all_of(house_rules.kind_tests, PATHS, "passes", PASSES) == []


def test_what_a_model_is_like_is_asked_of_its_architecture():
    assert all_of(house_rules.bare_architectures, PATHS) == []


def test_nobody_takes_help_text_apart():
    assert all_of(house_rules.parsed_help, PATHS) == []


def test_imports_have_no_circle():
    faces = {dotted(path) for path in PATHS if path.endswith("__init__.py") and not path.startswith("formats")}
    assert house_rules.circle({dotted(p): text for p, text in PATHS.items() if dotted(p) not in faces}) == []


def test_what_is_allowed_is_there():
    """An exception that nothing needs any more is taken out."""
    for path, name in house_rules.NAMES_ALLOWED:
        assert name in set(house_rules.constants(PATHS[path])), (path, name)
    for start in (*house_rules.CLASSES_ALLOWED, *house_rules.FILES_ALLOWED):
        assert any(path.startswith(start) for path in PATHS), start


def test_the_top_is_rooms_and_at_most_six_files():
    rooms = {path.parent.name for path in BRIDGE.glob("*/__init__.py")}
    assert rooms == set().union(*house_rules.ORDER) - {"render", "progress", "display", "__main__"}
    assert len([path for path in BRIDGE.iterdir() if path.is_file()]) <= 6


ORDER, NAME, CLASS = house_rules.against_the_order, house_rules.foreign_names, house_rules.foreign_classes
INNER, FILE, ASKED = house_rules.formats_against_the_order, house_rules.opened_files, house_rules.kind_tests
BARE, HELP = house_rules.bare_architectures, house_rules.parsed_help
PLAN, FORMAT = "bridge/qbridge/plan/x.py", "formats/qbridge_formats/x.py"
PLANTED = {
    "ir imports a room": (ORDER, "bridge/qbridge/ir/x.py", "from qbridge.findings.hints import a"),
    "up": (ORDER, "bridge/qbridge/source/x.py", "from qbridge.codecs.bits import BitPacked"),
    "up, inside a function": (ORDER, PLAN, "def f():\n import qbridge.write.jobs"),
    "a format": (ORDER, PLAN, "from qbridge_formats import gptq"),
    "a face": (ORDER, PLAN, "from qbridge.formats import find"),
    "no room": (ORDER, PLAN, "from qbridge.attic import find"),
    "another format": (INNER, FORMAT, "import qbridge_formats.awq"),
    "a target": (INNER, FORMAT, "import qbridge.targets.vllm"),
    "a name": (NAME, PLAN, "a = 'compressed_tensors'", {"compressed-tensors"}),
    "an engine": (NAME, "bridge/qbridge/commands/x.py", "if a == 'vllm': pass", {"vllm"}),
    "a class": (CLASS, PLAN, "a = ('LlamaForCausalLM',)"),
    "a class in text": (CLASS, FORMAT, "a = 'A GptOssForCausalLM B'"),
    "a file": (FILE, PLAN, "with open('config.json') as a: pass"),
    "a path": (FILE, FORMAT, "(source.path / 'a').read_bytes()"),
    "a text config": (BARE, PLAN, "from qbridge.architecture.decoder import text_config"),
    "a split": (BARE, FORMAT, "from qbridge.architecture.architecture import family"),
    "a row": (BARE, "bridge/qbridge/commands/x.py", "import qbridge.architecture.classes"),
    "rows": (BARE, PLAN, "def f():\n from qbridge.architecture import classes as rows"),
    "an option of help": (HELP, PLAN, "def f(line):\n return line.startswith('--tp ')"),
    "a note of help": (HELP, PLAN, "def f(line):\n return line.partition('  #')[0]"),
    "a line of help": (HELP, "bridge/qbridge/cli/command.py", "[line.split() for line in finding.help]"),
    "a part of help": (HELP, FORMAT, "for line in p.help:\n word = line\n if word.endswith(' 2'): pass"),
    "advice by a pattern": (HELP, PLAN, "import re\nre.match(a, problem.advice[0])"),
    "a codec": (ASKED, PLAN, "isinstance(a.codec, BitPacked | int)", "codecs", {"BitPacked"}),
    "a pass": (ASKED, PLAN, "isinstance(step, (Pad, Undo))", "passes", {"Pad", "Undo"}),
}


@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_violation_is_seen(kind):
    rule, path, text, *arguments = PLANTED[kind]
    assert rule(path, text, *arguments)


def test_a_planted_circle_is_seen():
    texts = {"a.x": "from a.y import f", "a.y": "from a import z", "a.z": "from a.x import g", "a.w": "import os"}
    assert house_rules.circle(texts) == ["a.x", "a.y", "a.z", "a.x"]
    assert house_rules.circle({**texts, "a.z": "def f():\n from a.x import g"}) == []


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
