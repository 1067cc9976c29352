"""CLI transcripts: every `$ qbridge` line in tests/cli/*.md, README.md and docs/commands.md is what the program says.

`pytest --accept` rewrites them.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from support import ROOT

PAGES = [*sorted((ROOT / "tests/cli").glob("*.md")), ROOT / "README.md", ROOT / "docs/commands.md"]
BLOCK = re.compile(r"(?ms)^```console\n(.*?)^```$")
VOLATILE = [
    (re.compile(r"(?m)^(time +)[\d.]+ s$"), r"\g<1>0.0 s"),
    (re.compile(r"(?m)^(plan +)[0-9a-f]{64}$"), r"\g<1>DIGEST"),
    (re.compile(r"(?m)^(python +)\S*$"), r"\g<1>PYTHON"),
    (re.compile(r'"seconds": [\d.]+'), '"seconds": 0.0'),
]


def run(line: str, folder: Path) -> str:
    """What a terminal shows: findings (stderr), then data (stdout), then the exit code if it is not 0."""
    words = shlex.split(line)
    if words[0] == "qbridge":
        words[:1] = [sys.executable, "-m", "qbridge"]
    env = {**os.environ, "NO_COLOR": "1", "COLUMNS": "100", "TERM": "dumb"}
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, env=env, timeout=120)
    text = done.stderr + done.stdout
    for pattern, constant in VOLATILE:
        text = pattern.sub(constant, text)
    if text and not text.endswith("\n"):
        text += "\n"
    return text + (f"[exit {done.returncode}]\n" if done.returncode else "")


def replay(block: str, folder: Path) -> str:
    commands = [line for line in block.splitlines() if line.startswith("$ ")]
    return "".join(f"{line}\n{run(line[2:], folder)}" for line in commands)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_transcript(page, tmp_path, accept):
    (tmp_path / "fixtures").symlink_to(ROOT / "fixtures")
    text = page.read_text()
    said = BLOCK.sub(lambda match: f"```console\n{replay(match[1], tmp_path)}```", text)
    if accept:
        page.write_text(said)
    assert said == text


def test_every_command_has_a_transcript():
    from qbridge.cli import app

    names = {command.callback.__name__ for command in app.registered_commands}
    shown = {word for page in PAGES for word in re.findall(r"(?m)^\$ qbridge (\w+)", page.read_text())}
    assert names <= shown
