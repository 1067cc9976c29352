"""What the tests of weight-only checkpoints share."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from engine import ROOT
from safetensors.numpy import load_file

import qbridge
from qbridge.ir.values import dequantize


def fixture(case: str) -> Path:
    """The checkpoint of a case such as gptq/llama_v1_sym."""
    return ROOT / "fixtures" / case / "model"


def method(folder: Path) -> str:
    """The quant_method that config.json names."""
    found: str = json.loads((folder / "config.json").read_text())["quantization_config"]["quant_method"]
    return found


def differences(dump: Path, source: Path) -> dict[str, float | str]:
    """{linear: largest difference} between an engine's weights and those of the source, for all that differ."""
    weights, found = load_file(dump), {}
    with qbridge.open(source) as opened:
        for name in opened.specs:
            values = dequantize(opened.layer(name)).astype(np.float32)
            weight = weights.get(f"{name}.weight")
            if weight is None or weight.shape != values.shape:
                found[name] = "absent" if weight is None else f"{weight.shape}, not {values.shape}"
            elif not np.array_equal(weight, values):
                found[name] = float(np.abs(weight - values).max())
    return found
