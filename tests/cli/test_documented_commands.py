"""Commands in README and the docs: blocks that can run here are run by bash as they stand, every line is parsed.

Blocks with output ($ lines) are transcripts, which test_transcripts.py runs.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys

import pytest
import typer

from documented import blocks, lines
from qbridge.cli import app
from support import ROOT

FIXTURES = ROOT / "fixtures"
PACKED, GPTQ = "compressed_tensors/llama_w4a16/model", "gptq/llama_g128/model"
W8A8, MXFP4 = "compressed_tensors/llama_w8a8/model", "compressed_tensors/llama_mxfp4a16/model"
EXPERTS = "compressed_tensors/qwen3_moe_w4a16/model"
GLM = "compressed_tensors/glm4_moe_lost_mtp"
QWEN = "compressed_tensors/qwen2_w4a16_tied/model"  # has a tokenizer that llama.cpp knows
Q4_0 = "gguf/qwen3_moe_q4_0"
# Page: what stands for a checkpoint there, and the fixture in its place.
PAGES = {
    "docs/architecture.md": {},
    "docs/casts.md": {"SRC": MXFP4},
    "docs/check.md": {"Qwen2-72B-GPTQ-Int4": GPTQ},
    "docs/explain.md": {"Orca-2-13b-W8A8": W8A8},
    "docs/formats/dense.md": {"SRC": PACKED},
    "docs/formats/gguf.md": {"SRC": QWEN, "MODEL-Q4_0.gguf": f"{Q4_0}/model.gguf", "ORIGINAL": EXPERTS},
    "docs/formats/mlx.md": {"SRC": PACKED},
    "docs/index.md": {"MODEL": W8A8},
    "docs/parts.md": {"SRC": PACKED},
    "docs/report.md": {"MODEL": W8A8},
    "docs/structure.md": {"GLM-4.5-W4A16": f"{GLM}/quantized", "GLM-4.5": f"{GLM}/original", "SRC": EXPERTS},
    "docs/targets/llama.cpp.md": {"SRC": QWEN},
    "docs/targets/mlx.md": {"SRC": PACKED},
    "docs/what.md": {"Qwen2-72B-GPTQ-Int4": GPTQ},
}
# Lines that do the same another way, so that each begins with nothing written.
ALTERNATIVES = {"docs/casts.md", "docs/formats/gguf.md", "docs/check.md"}
# Programs that are not here; what they are given is not looked at, but for what runs qbridge.
OTHERS = dict.fromkeys(
    ("hf", "llama-server", "mlx_lm.generate", "mlx_lm.server", "ollama", "pip", "sbatch", "vllm"), "true"
)
OTHERS["parallel"] = 'shift 2; while read -r each; do $(echo "$@" | sed "s#{}#$each#g"); done'
NOT_HERE = "--rename-prefix"  # asks for a multimodal model: test_rename_prefix.py
LOG = "  File loader.py\nKeyError: 'model.layers.30.mlp.down_proj.weight_scale'\n"


@pytest.fixture
def programs(tmp_path):
    """A folder with qbridge and stand-ins for what the docs call beside it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, does in {**OTHERS, "qbridge": f'exec {shlex.quote(sys.executable)} -m qbridge "$@"'}.items():
        (folder / name).write_text(f"#!/bin/sh\n{does}\n")
        (folder / name).chmod(0o755)
    return folder


@pytest.mark.parametrize("page", PAGES)
def test_blocks_run_as_they_stand(page, programs, tmp_path):
    env = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "NO_COLOR": "1"}
    env |= {"SRC": "SRC", "DST": "DST", "SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "8"}
    shells = [block for block in blocks(ROOT / page) if NOT_HERE not in block]
    if page in ALTERNATIVES:
        shells = [line for block in shells for line in block.splitlines()]
    assert shells
    for number, shell in enumerate(shells):
        folder = prepared(tmp_path / str(number), PAGES[page])
        done = subprocess.run(
            ["bash", "-c", f"set -eo pipefail\n{shell}"],
            cwd=folder,
            env=env,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0 or is_a_no(shell, done), f"{shell}\n{done.stdout}{done.stderr}"


def prepared(folder, names):
    """A folder in which the checkpoints of a page lie, and the log of a server."""
    folder.mkdir()
    (folder / "fixtures").symlink_to(FIXTURES)
    (folder / "server.log").write_text(LOG)
    for name, fixture in names.items():
        there = FIXTURES / fixture
        shutil.copytree(there, folder / name) if there.is_dir() else shutil.copy(there, folder / name)
    return folder


def is_a_no(shell, done):
    """Whether a check answered no, which is an answer: what it is asked of a large model is asked of a small one."""
    return done.returncode == 1 and "qbridge check" in shell and "error[QB" in done.stderr


@pytest.mark.parametrize(("page", "line"), list(lines("qbridge")), ids=lambda each: str(each)[:60])
def test_every_line_is_a_command(page, line):
    command = typer.main.get_command(app)
    words = shlex.split(line.partition(" < ")[0].replace("...", ""))[1:]
    if not words[0].startswith("-"):
        command.commands[words[0]].make_context(words[0], words[1:])
