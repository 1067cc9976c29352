"""What happens where PyPI's other project called qbridge is installed beside qbridge-llm."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import qbridge
from support import ROOT

CURE = "pip uninstall --yes qbridge qbridge-llm && pip install qbridge-llm"


def site(tmp_path, replaced):
    """A site-packages folder in which the other project was installed before this one, or after it."""
    home = tmp_path / "site"
    shutil.copytree(Path(qbridge.__file__).parent, home / "qbridge", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "formats/qbridge_formats", home / "qbridge_formats")
    info = home / "qbridge-0.5.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.4\nName: qbridge\nVersion: 0.5.1\n")
    (info / "RECORD").write_text("qbridge/__init__.py,,\nqbridge/core/__init__.py,,\n")
    if replaced:
        (home / "qbridge/__init__.py").write_text('"""A compiler for quantum computers."""\n')
    return home


def run(home, *arguments, fixtures):
    code = f"import sys; sys.path.insert(0, {str(home)!r}); from qbridge.cli import main; main()"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=fixtures)


@pytest.mark.parametrize("arguments", [["inspect", "awq/llama_gemm/model"], ["formats"]])
def test_the_other_projects_files_are_a_warning(tmp_path, fixtures, arguments):
    done = run(site(tmp_path, replaced=False), *arguments, fixtures=fixtures)
    assert done.returncode == 0 and done.stdout
    assert done.stderr.count("QB601") == 1 and CURE in done.stderr and "0.5.1" in done.stderr


def test_a_program_whose_package_was_replaced_says_so_and_runs_nothing(tmp_path, fixtures):
    done = run(site(tmp_path, replaced=True), "formats", fixtures=fixtures)
    assert done.returncode == 4 and done.stdout == ""
    assert "error[QB602]" in done.stderr and CURE in done.stderr and "Traceback" not in done.stderr


def test_another_project_in_another_folder_is_none_of_our_business(tmp_path, fixtures):
    home = site(tmp_path, replaced=False)
    shutil.rmtree(home / "qbridge")
    done = run(home, "formats", fixtures=fixtures)
    assert done.returncode == 0 and done.stderr == ""
