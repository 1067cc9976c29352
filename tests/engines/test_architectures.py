"""Checkpoints of many model classes, converted, and taken by the engines' own loaders for what they were.

The checkpoints are a sample of what tests/architectures/make.py makes, or all folders NAME/model below
QBRIDGE_CHECKPOINTS. What is held, and what a cell of the printed table says, is in prove_all.py and verdicts.py.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import prove_all
import pytest
import verdicts
from engine import ROOT

pytestmark = pytest.mark.engine

MAKER = ROOT / "tests/architectures/make.py"
SAMPLE = ("Llama-gptq", "Mixtral-awq", "Qwen3-w8a8", "Gemma2-w4a16", "Granite-fp8-dynamic")
TARGETS = ("vllm", "lmdeploy", "transformers", "dense")


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders that hold `model`, and `ref.safetensors` where the exact values are known."""
    if given := os.environ.get("QBRIDGE_CHECKPOINTS"):
        return sorted(path.parent for path in Path(given).glob("*/model"))
    folder = tmp_path_factory.mktemp("made")
    subprocess.run([sys.executable, MAKER, folder, *SAMPLE], check=True)
    made = sorted(path.parent for path in folder.glob("*/model"))
    assert len(made) == len(SAMPLE)
    return made


def test_every_output_loads_as_its_source(cases, tmp_path):
    results = {case.name: prove_all.convert_case(case, TARGETS, tmp_path, quick=False) for case in cases}
    with contextlib.closing(prove_all.Provers()) as provers:
        for case in cases:
            prove_all.judge_case(case, results[case.name], provers)
            print("\n".join(verdicts.lines_of(case.name, results[case.name])))
    entries = {f"{name}, {target}": entry for name, r in results.items() for target, entry in r["targets"].items()}
    assert {name: entry["cell"] for name, entry in entries.items() if entry["cell"].startswith("WRONG")} == {}
    assert {name: entry["disagreement"] for name, entry in entries.items() if entry["disagreement"]} == {}
