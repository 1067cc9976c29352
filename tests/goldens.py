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
    found = {case.parent.name for case in (ROOT / "fixtures" / format_id).glob("*/expected.json")}
    return sorted(found - NOT_READ)


ALLOW = {"llama_no_block": ["assumed-activations"], "llama_lite062": ["pickle"]}
NOT_READ = {"llama_fp8_dynamic", "llama_autogptq_zero0", "llama_gemv", "llama_gemv_fast"}


def check(format_id: str, case: str) -> None:
    """Every weight, as float32, has the digest that the tool's own dequantization has."""
    folder = ROOT / "fixtures" / format_id / case
    expected = json.loads((folder / "expected.json").read_text())["weights"]
    with qbridge.open(folder / "model", allow=ALLOW.get(case, ())) as checkpoint:
        assert checkpoint.format.replace("-", "_") == format_id
        slots = checkpoint.model.slots
        stored = {
            name: slots[name]["code"].tensor.removesuffix("_packed").replace(".qweight", ".weight")
            for name in checkpoint.specs
        }
        assert set(stored.values()) == expected.keys()
        for name, tensor in stored.items():
            values = dequantize(checkpoint.layer(name)).astype("<f4")
            wanted = expected[tensor]
            assert list(values.shape) == wanted["shape"], name
            assert values[0, : len(wanted["head"])].tolist() == [np.float32(x) for x in wanted["head"]], name
            assert hashlib.sha256(values.tobytes()).hexdigest() == wanted["sha256"], name
