"""Experts of a layer share one tensor of GGUF: all of one type, and all of them there."""

from __future__ import annotations

from dataclasses import replace

import pytest

import qbridge
from qbridge.formats.registry import find
from qbridge.formats.rules import broken
from support import ROOT

EXPERT = "model.layers.0.mlp.experts.1.down_proj"


def codes_of(change):
    """The codes of GGUF's limits that a mixture breaks once `change` was made to its specs."""
    with qbridge.open(ROOT / "fixtures/compressed_tensors/qwen3_moe_w4a16/model") as opened:
        model = opened.model
    specs = dict(model.specs)
    change(specs)
    rules = [rule for rule in find("gguf").RULES if rule.code == "QB117"]
    return {fault.rule.code for fault in broken(rules, replace(model, specs=specs))}


def widen(specs):
    specs[EXPERT] = replace(specs[EXPERT], weight=replace(specs[EXPERT].weight, bits=8))


@pytest.mark.parametrize(("change", "refused"), [(lambda specs: None, False), (widen, True)])
def test_experts_of_two_types_are_refused(change, refused):
    assert ("QB117" in codes_of(change)) is refused


def test_an_expert_that_is_not_there_is_missed():
    assert codes_of(lambda specs: specs.pop(EXPERT)) == {"QB117"}
