"""Formats of other packages: whatever one of them raises is one warning, and nobody else's crash."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

WORKING = """
from qbridge_formats.gptq import *
from qbridge_formats.gptq import read, settle, layout, config, RULES, SUMMARY
NAME, ALIASES = "other", ()
def sniff(source):
    return "never"
"""
BROKEN = {
    "no module": None,
    "syntax": "def broken(:\n",
    "import error": "import no_such_module\n",
    "value error": "raise ValueError('bad day')\n",
    "exit": "import sys; sys.exit(3)\n",
    "assertion": "assert False, 'not here'\n",
    "lacks members": "NAME = 'other'\n",
    "no aliases": WORKING + "del ALIASES\n",
    "recursion": "def f(): return f()\nf()\n",
    "sniff": WORKING.replace('return "never"', "raise KeyError('qweight')"),
    "sniff exits": WORKING.replace('return "never"', "raise SystemExit(5)"),
    "sniff of a wrong type": WORKING.replace('return "never"', "return 42"),
    "module getattr": WORKING + "del CONFIG_FILES\ndef __getattr__(name):\n    raise RuntimeError(name)\n",
}


@pytest.fixture
def program(tmp_path):
    """The program beside an installed package that has a format called other, of the given text."""

    def run(text, *arguments, name="other"):
        home = tmp_path / "plugin"
        shutil.rmtree(home, ignore_errors=True)
        info = home / "other_format-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-format\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[qbridge.formats]\n{name} = other_format\n")
        if text is not None:
            (home / "other_format.py").write_text(text)
        code = f"import sys; sys.path.insert(0, {str(home)!r}); from qbridge.cli import main; main()"
        command = [sys.executable, "-c", code, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)

    return run


def commands(fixtures, tmp_path):
    model = fixtures / "gptq/llama_v1_sym/model"
    return {
        "inspect": ["inspect", model],
        "convert": ["convert", model, tmp_path / "out", "--to", "vllm", "--overwrite"],
        "check": ["check", model, "--for", "vllm"],
        "verify": ["verify", model, model],
        "formats": ["formats"],
        "targets": ["targets"],
    }


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        *(("inspect", kind) for kind in BROKEN),
        *(("convert", kind) for kind in ("exit", "sniff")),
        ("formats", "exit"),
    ],
)
def test_a_broken_plugin_is_one_warning(program, fixtures, tmp_path, command, kind):
    done = program(BROKEN[kind], *commands(fixtures, tmp_path)[command])
    assert done.returncode == 0 and done.stdout, done.stderr
    assert done.stderr.count("warning[QB035]") == 1 and "other" in done.stderr
    assert "Traceback" not in done.stderr and "error" not in done.stderr.replace("import error", "")


@pytest.mark.parametrize("command", ["check", "verify", "targets"])
def test_the_other_commands_go_on_too(program, fixtures, tmp_path, command):
    done = program(BROKEN["value error"], *commands(fixtures, tmp_path)[command])
    assert done.returncode == 0 and done.stderr.count("warning[QB035]") == 1 and "bad day" in done.stderr


def test_a_working_plugin_is_a_format_and_a_target_and_no_warning(program, fixtures, tmp_path):
    model = fixtures / "gptq/llama_v1_sym/model"
    done = program(WORKING, "convert", model, tmp_path / "out", "--to", "other")
    assert done.returncode == 0 and "QB035" not in done.stderr
    assert "other" in program(WORKING, "formats").stdout and "other" in program(WORKING, "targets").stdout


@pytest.mark.parametrize("verb", ["read", "layout", "config"])
def test_a_plugin_that_is_asked_for_by_name_fails_by_name(program, fixtures, tmp_path, verb):
    text = WORKING + f"def {verb}(*arguments):\n    raise ZeroDivisionError('oops')\n"
    model = fixtures / "gptq/llama_v1_sym/model"
    arguments = ["inspect", model, "--from", "other"]
    if verb != "read":
        arguments = ["convert", model, tmp_path / "out", "--to", "other"]
    done = program(text, *arguments)
    assert done.returncode == 2 and "error[QB032]" in done.stderr
    assert "ZeroDivisionError: oops" in done.stderr and "other_format" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["inspect", "convert", "check", "verify", "formats", "targets"])
def test_a_plugin_with_the_name_of_a_format_is_one_warning(program, fixtures, tmp_path, command):
    done = program(WORKING, *commands(fixtures, tmp_path)[command], name="gptq")
    assert done.returncode == 0 and done.stderr.count("warning[QB035]") == 1, done.stderr
    assert "another format has this name" in done.stderr
