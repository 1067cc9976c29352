"""`choose` against vLLM's own chooser, on CUDA devices that it believes in."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import islice, product

import pytest
from engine import ask

from qbridge.targets.vllm.kernels import Linear, choose

pytestmark = pytest.mark.engine

# K per rank, K before the split: whole, in 2, 4 and 8; of no whole number of 64s, 128s or groups
COLUMNS = [(4096, 4096), (14784, 29568), (7392, 29568), (3696, 29568), (2152, 4304), (128, 256), (96, 96), (100, 100)]
ROWS = [8192, 4160, 4104, 4100]
GROUPS = [-1, 16, 32, 64, 96, 128, 256]
DEVICES = [75, 80, 86, 89, 90, 100, 120]
TYPES = {
    "gptq": [(4, True), (8, True), (4, False), (3, True)],
    "awq": [(4, False), (4, True)],
    "compressed-tensors": [(4, True), (4, False), (8, True), (8, False), (3, True)],
}
NAMES = {"AutoAWQLinearMethod": "AWQ", "TritonW4A16LinearKernel": "Triton", "CutlassW4A8LinearKernel": None}
GATES = {"vLLM", "gptq", "compressed-tensors", "AWQ-Marlin", "AWQ"}  # refusals before and after the kernels


def short(name):
    return NAMES.get(name, name and name.removesuffix("LinearKernel"))


def cells(format_):
    """Every 29th of all combinations: 29 divides no list's length, so each value meets each other one."""
    every = product(COLUMNS, ROWS, GROUPS, DEVICES, ["float16", "bfloat16"], [False, True], TYPES[format_])
    for (k, whole), n, group, device, dtype, humming, (bits, symmetric) in islice(every, 0, None, 29):
        yield Linear(k, whole, n, bits, symmetric, group, dtype, format_), device, humming


def compared(linear, device, humming, real):
    """What the two say, as far as both say it."""
    verdict = choose(linear, device, real["vllm"], humming)
    ours = {
        "kernel": verdict.kernel,
        "refused": [name for name in (line.partition(":")[0] for line in verdict.reasons) if name not in GATES],
    }
    theirs = {
        "kernel": short(real["kernel"]),
        "refused": [short(name) for name, _ in real["refused"] if short(name)],
    }
    if real["groups"] is not None:  # all scales there: as many rows as the rank's columns need
        ours["straddles"] = verdict.straddles
        columns = linear.group_size if linear.group_size > 0 else linear.in_features
        theirs["straddles"] = real["groups"] * columns != linear.in_features
    return ours, theirs


@pytest.mark.parametrize("format_", TYPES)
def test_vllm_chooses_what_we_say(format_, tmp_path):
    asked = list(cells(format_))
    file = tmp_path / "cells.json"
    file.write_text(
        json.dumps(
            [{**asdict(linear), "capability": device, "humming": humming} for linear, device, humming in asked]
        )
    )
    report = ask("vllm", "vllm_kernels.py", file)
    assert len(asked) >= 300
    unlike = []
    for cell, real in zip(asked, report["cells"], strict=True):
        ours, theirs = compared(*cell, {**real, "vllm": report["vllm"]})
        if ours != theirs:
            unlike.append((*cell, ours, theirs, real["error"]))
    assert not unlike, f"{len(unlike)} of {len(asked)}: {unlike[:5]}"
