"""The JSON of every command's result, byte for byte as tests/commands/results.json keeps it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qbridge.commands.checking import Check
from qbridge.commands.inspection import Inspection
from qbridge.commands.report import Report, Verification
from qbridge.commands.verdicts import BackendVerdict
from qbridge.findings.finding import Finding, Severity
from qbridge.targets.serving import Served

KEPT = Path(__file__).with_name("results.json")
FINDINGS = (
    Finding("QB302", ("model.norm.weight",), ("2 values",), ("--allow rounded",)),
    Finding("QB216", (), ("TurboMind loads it",), (), Severity.WARNING, final=True),
)
KERNEL = Served("q+k+v", 4096, 1024, "int4", 2, None, False, "", ("Marlin: no",), ("a", "b"), "--dtype float16")
BACKEND = BackendVerdict("turbomind", False, ("QB240",), "no kernel", "")
SIDES = {"before": 3, "after": 4}
RESULTS = [
    Report(
        *("src", "dst", "gptq", "config", "vllm@0.33.0", "awq", "not gptq", "LlamaForCausalLM"),
        *(7, 23, {"equal": 7}, {"widen": 7}, {"model.safetensors": 99}, SIDES, SIDES, SIDES, True, 0.25),
        findings=FINDINGS,
        command="restore",
    ),
    Verification("a", "b", ("gptq", "awq"), 6, 1, 23, 1.5, FINDINGS, True),
    Inspection(
        *("src", "gptq", "config", "LlamaForCausalLM", [{"scheme": "int4", "dims": [(8, 16)]}], ["lm_head"]),
        *(3, 100, 50, {"model.safetensors": 150}, ["tokenizer.json"], FINDINGS),
    ),
]


def made():
    """Every result, whose class says in which order its fields come."""
    fields = {name: name for name in Check.__dataclass_fields__}
    return [*RESULTS, Check(**{**fields, "kernels": (KERNEL,), "backends": (BACKEND,), "findings": FINDINGS})]


@pytest.mark.parametrize("index", range(4))
def test_json_is_the_same_byte_for_byte(index):
    kept = KEPT.read_text().splitlines()
    assert len(kept) == 4 and json.dumps(made()[index].as_dict()) == kept[index]
