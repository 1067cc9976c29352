"""Renamed and grafted checkpoints in the engines' own loaders: every parameter is filled, nothing is unexpected."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import judges
import pytest
from engine import ROOT

import qbridge

pytestmark = pytest.mark.engine

MAKER = ROOT / "tests/architectures/make.py"
LOST = ROOT / "fixtures/compressed_tensors/glm4_moe_lost_mtp"
MODERN = ("model.language_model", "model.vision_tower", "model.multi_modal_projector", "lm_head")
FORMER = ("language_model.model", "vision_tower", "multi_modal_projector", "language_model.lm_head")
ENGINES = ("vllm", "transformers")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("made")
    names = ("Gemma3_cg-w4a16", "Llava_cg-w4a16")
    subprocess.run([sys.executable, MAKER, folder, *names], check=True)
    return {name: folder / name / "model" for name in names}


def faults(report: dict[str, Any]) -> tuple[str, str]:
    """The verdict, and how many tensors are at fault in which way, without their names."""
    return report["verdict"], " ".join(f"{kind} {len(report[kind])}" for kind in judges.FAULTS if report.get(kind))


@pytest.mark.parametrize("engine", ENGINES)
def test_both_names_of_a_multimodal_model_are_loaded(engine, made, tmp_path):
    checkpoints = []
    for name, source in made.items():
        pairs = dict(zip(FORMER, MODERN, strict=True))
        with qbridge.open(source) as opened:
            names = list(opened.source.tensors)
        pairs = {old: new for old, new in pairs.items() if any(name.startswith(f"{old}.") for name in names)}
        other, back = tmp_path / f"{name}-other", tmp_path / f"{name}-back"
        qbridge.convert(source, other, engine, rename_prefix=pairs)
        qbridge.convert(other, back, engine, rename_prefix={new: old for old, new in pairs.items()})
        assert pairs and qbridge.verify(source, other).same and qbridge.verify(source, back).same
        checkpoints.append((source, other, back))
    reports = judges.judge(engine, [path for paths in checkpoints for path in paths])
    for paths in checkpoints:  # what transformers saves is not always what vLLM loads, nor its list what either reads
        own, renamed, back = (faults(reports[str(path)]) for path in paths)
        assert {renamed, back} <= {("clean", ""), own}


def test_a_grafted_head_is_no_parameter_too_many(tmp_path):
    qbridge.convert(LOST / "quantized", tmp_path / "out", "vllm", graft=LOST / "original")
    assert judges.short(judges.judge("vllm", [tmp_path / "out"])[str(tmp_path / "out")]) == "clean"
