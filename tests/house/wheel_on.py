"""What a wheel takes in an empty environment, and whether it converts there.

python tests/house/wheel_on.py dist/*.whl [--extra torch] python3.10 python3.13
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SRC = ROOT / "fixtures/compressed_tensors/llama_w4a16/model"


def run(*words: object, cwd: Path) -> str:
    done = subprocess.run([str(word) for word in words], cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, words))}\n{done.stdout}{done.stderr}")
    return done.stdout


def size_of(folder: Path, pattern: str = "*") -> int:
    """Bytes of the files below a folder."""
    return sum(file.lstat().st_size for file in folder.rglob(pattern) if file.is_file())


def sizes(folder: Path) -> tuple[int, int]:
    """(what is installed, what pip compiled of it), in bytes."""
    bytecode = size_of(folder, "*.pyc")
    return size_of(folder) - bytecode, bytecode


def tried(wheel: Path, extra: str, python: str, home: Path) -> str:
    """Install, convert, verify; a line of what that took."""
    run(python, "-m", "venv", home / "venv", cwd=home)
    inside = home / "venv/bin/python"
    packages = Path(run(inside, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=home).strip())
    before, start = sizes(packages), time.monotonic()
    what = f"{wheel}[{extra}]" if extra else wheel
    run(inside, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", what, cwd=home)
    seconds = time.monotonic() - start
    files, bytecode = (after - was for after, was in zip(sizes(packages), before, strict=True))
    program = home / "venv/bin/qbridge"
    for target in ("vllm-gptq", "dense"):
        run(program, "convert", SRC, home / target, "--to", target, cwd=home)
    same = run(program, "verify", SRC, home / "vllm-gptq", cwd=home)
    if "the same model" not in same:
        raise SystemExit(same)
    version = run(inside, "-c", "import platform; print(platform.python_version())", cwd=home).strip()
    size = f"{files / 1e6:6.0f} MB and {bytecode / 1e6:3.0f} MB of bytecode"
    return f"Python {version:8} {extra or 'base':13}{size}  {seconds:5.0f} s  converts and verifies"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--extra", default="")
    parser.add_argument("pythons", nargs="*", default=[sys.executable])
    asked = parser.parse_args()
    for python in asked.pythons:
        with tempfile.TemporaryDirectory() as home:
            print(tried(asked.wheel.resolve(), asked.extra, python, Path(home)), flush=True)


if __name__ == "__main__":
    main()
