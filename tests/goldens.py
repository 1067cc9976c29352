"""Fixtures against the values that their own tools compute."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

import qbridge
from qbridge.values import dequantize

ROOT = Path(__file__).resolve().parent.parent


def cases(format_id: str) -> list[str]:
    return sorted(case.parent.name for case in (ROOT / "fixtures" / format_id).glob("*/expected.json"))


def check(format_id: str, case: str) -> None:
    """Every weight, as float32, has the digest that the tool's own dequantization has."""
    folder = ROOT / "fixtures" / format_id / case
    expected = json.loads((folder / "expected.json").read_text())["weights"]
    with qbridge.open(folder / "model") as checkpoint:
        assert checkpoint.format.replace("-", "_") == format_id
        assert {f"{name}.weight" for name in checkpoint.specs} == expected.keys()
        for name in checkpoint.specs:
            values = dequantize(checkpoint.layer(name)).astype("<f4")
            wanted = expected[f"{name}.weight"]
            assert list(values.shape) == wanted["shape"], name
            assert values[0, : len(wanted["head"])].tolist() == [np.float32(x) for x in wanted["head"]], name
            assert hashlib.sha256(values.tobytes()).hexdigest() == wanted["sha256"], name
