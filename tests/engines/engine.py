"""Run a driver in its engine's environment and read its report."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import environments

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


def ask(environment: str, driver: str, checkpoint: Path, *options: object) -> dict[str, Any]:
    """The JSON report of one driver run; fails the test if the driver itself breaks."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        words = [environments.chosen(environment), HERE / "drivers" / driver, checkpoint, *options, "--json", report]
        done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(report.read_text())


def loaded_weights(environment: str, driver: str, checkpoints: list[Path], *options: object) -> dict[str, Any]:
    """{path: line} of a driver that reports many checkpoints, a line for each."""
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder) / "lines.json"
        words = [environments.chosen(environment), HERE / "drivers" / driver, *checkpoints, *options, "--json", lines]
        done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        reports = [json.loads(line) for line in lines.read_text().splitlines()]
    return {report["checkpoint"]: report for report in reports}


FAULTS = ("missing", "unexpected", "misshapen", "lossy_casts", "misfed")
LMDEPLOY_DRIVERS = {"0.18.0": "lmdeploy_018.py", "0.6.2": "lmdeploy_062.py"}


def lmdeploy(version: str, checkpoint: Path, tp: int, out: Path | None = None) -> dict[str, Any]:
    """What LMDeploy's own loader says of a checkpoint."""
    options: list[object] = ["--tp", tp, *(["--out", out] if out else [])]
    return ask(f"lmdeploy-{version}", LMDEPLOY_DRIVERS[version], checkpoint, *options)


def turbomind(checkpoint: Path, tp: int, out: Path | None = None) -> dict[str, Any]:
    """What the TurboMind engine of LMDeploy 0.18.0 says of a checkpoint."""
    options: list[object] = ["--tp", tp, *(["--out", out] if out else [])]
    return ask("lmdeploy-0.18.0", "lmdeploy_turbomind.py", checkpoint, *options)


def assert_loads(report: dict[str, Any], tp: int) -> None:
    """No parameter missing, unexpected, misshapen or changed by a cast, on any rank."""
    assert report["error"] is None, report["error"]
    assert len(report["ranks"]) == tp
    for rank in report["ranks"]:
        faults = {key: rank[key] for key in FAULTS if rank.get(key)}
        assert not faults, faults
