"""The wheel, used from an environment that has never seen the checkout, nor torch."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

from support import ROOT


def run(*words: object, cwd: Path) -> str:
    done = subprocess.run([str(word) for word in words], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_wheel_installs_and_converts_outside_the_checkout(tmp_path, fixtures):
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"qbridge/cli/program.py", "qbridge/py.typed", "qbridge_formats/smooth_quant.py"} <= set(names)
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"qbridge", "qbridge_formats"}

    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv/bin/python"
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run(*pip, "--no-deps", wheel, cwd=tmp_path)
    run(*pip, "-c", ROOT / "constraints.txt", "numpy", "pyyaml", "typer", "rich", cwd=tmp_path)
    source = fixtures / "compressed_tensors/llama_w8a8/model"
    program = tmp_path / "venv/bin/qbridge"
    run(program, "convert", source, tmp_path / "out", "--to", "lmdeploy", cwd=tmp_path)
    assert "the same model" in run(program, "verify", source, tmp_path / "out", cwd=tmp_path)
    where = run(python, "-c", "import qbridge, qbridge_formats; print(qbridge.__file__)", cwd=tmp_path)
    assert str(tmp_path) in where
