"""What check says of a model holds numbers and names of this model: a law over fixtures.

A number is the model's if it is in its config.json or its index, a dim, a group, a count of layers or tensors, what a
rank holds of these, or a number of groups. It may also be a limit of an engine: bits, tiles, groups.
LAWS=all takes every fixture for every target; LAWS=<seed> another sample.
"""

from __future__ import annotations

import json
import os
import random
import re

import pytest

import qbridge
from qbridge.architecture.architecture import Architecture
from qbridge.findings.catalogue import known
from support import ROOT

TARGETS = ("vllm", "vllm@0.23.0", "vllm@0.5.4", "lmdeploy", "lmdeploy-turbomind", "lmdeploy@0.6.2")
TARGETS += ("transformers", "gptqmodel", "marlin", "awq")
SIZES = (1, 2, 4)
SEED = os.environ.get("LAWS", "20261128")
FIXTURES = [str(path.parent.relative_to(ROOT / "fixtures")) for path in sorted(ROOT.glob("fixtures/*/*/model"))]
EVERY = [(fixture, target) for fixture in FIXTURES for target in TARGETS]
SAMPLE = EVERY if SEED == "all" else random.Random(SEED).sample(EVERY, 120)
LIMITS = frozenset({*range(17), 32, 64, 128, 256})

VERSION = re.compile(
    r"(?:(?:compute capability|vLLM|vllm|lmdeploy|LMDeploy|TurboMind|transformers|since|until|before|from|to|@)[ @]?)"
    r"\d+(?:\.\d+)*"
)
COMMAND = re.compile(r"qbridge convert \S+ \S+ --to \S+")
QUOTED = re.compile(r"'[^']*'|`[^`]*`|/\S+")
RATIO = re.compile(r"(\d+(?:\.\d+)?) (?:groups|blocks)")
GROWN = re.compile(r"(\d+) -> (\d+)")
NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?![\w%]|\.\d| %)")
LEAF = re.compile(r"\b(?:\w+_proj|lm_head|w[123])\b")
DIM = re.compile(r"(?:(\w+): )?(in_features|out_features) (\d+)")


def integers(value):
    """Every integer of a JSON value."""
    if isinstance(value, bool):
        return set()
    if isinstance(value, int):
        return {value}
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return set().union(*map(integers, children))


def own(model, config, where):
    """The numbers of a model: as they are, what ranks hold of them, and how many groups that is."""
    whole = integers(config) | {len(model.specs), len(model.tensors), len(where), len(SIZES), *SIZES}
    held = set()
    groups = {1}
    architecture = Architecture.of_model(model)
    for name, spec in model.specs.items():
        groups |= {spec.weight.group_size or 1, *(spec.weight.block or ())}
        for tp in SIZES:
            rank = architecture.rank(name, spec.dims, tp)
            held |= {*spec.dims, *((rank.out_features, rank.in_features) if rank else ())}
    fused = {a + b for a in held for b in held} | {a + 2 * b for a in held for b in held}
    ratios = {size / group for size in held | whole for group in groups}
    counts = set(range(len(model.specs) + len(model.tensors) + 1))  # of some layers or tensors
    return whole | held | fused | ratios | counts


def foreign(text, numbers):
    """Numbers in a text that are none of a model's, and no limit."""
    grown = {float(new) for old, new in GROWN.findall(text) if float(old) in numbers}
    plain = QUOTED.sub("", COMMAND.sub("", VERSION.sub("", text)))
    ratios = [float(number) for number in RATIO.findall(plain)]
    others = [float(number) for number in NUMBER.findall(RATIO.sub("", plain))]
    wrong = [number for number in others if number not in LIMITS | numbers | grown]
    return wrong + [number for number in ratios if number not in numbers]


@pytest.mark.parametrize(("fixture", "target"), SAMPLE)
def test_a_finding_holds_no_number_and_no_name_of_another_model(fixture, target):
    path = ROOT / "fixtures" / fixture / "model"
    try:
        table = qbridge.check(path, target, SIZES)
        with qbridge.open(path) as opened:
            model, stored = opened.model, list(opened.source.tensors)
    except qbridge.QBridgeError:
        return
    config = json.loads((path / "config.json").read_text())
    leaves = {part for name in (*model.specs, *model.tensors, *stored) for part in name.split(".")}
    for finding in table.findings:
        numbers = own(model, config, finding.where)
        for text in (*finding.facts, *finding.help):
            assert foreign(text, numbers) == [], (finding.code, text)
        for fact in finding.facts:
            assert set(LEAF.findall(QUOTED.sub("", fact))) <= leaves, (finding.code, fact)
            for leaf, axis, number in DIM.findall(fact):
                named = [n for n in model.specs if n.endswith(f".{leaf}")] if leaf else finding.where
                dims = {getattr(model.specs[n], axis) for n in named if n in model.specs}
                assert int(number) in dims, (finding.code, fact, dims)


@pytest.mark.parametrize("entry", known().values(), ids=known())
def test_what_is_said_of_every_model_holds_no_number_of_one(entry):
    """The title, the reason and the fix are printed with each finding; examples are not."""
    for text in (entry.title, entry.why, entry.fix):
        assert foreign(text, set()) == [], text
        names = re.findall(r"\b(?:Qwen|Llama|Mixtral|DeepSeek|GLM|Orca|Mistral|Phi|Gemma|Falcon)\b", text)
        assert names == [], text


def test_the_law_sees_numbers_of_other_models():
    assert foreign("in_features 29568, per rank 14784 = 115.5 groups of 128 (tp 2)", {512, 256}) == [
        29568,
        14784,
        115.5,
    ]
    assert foreign("640 -> 768, +20.00 %", {640}) == [] and foreign("29568 -> 29696", {640}) == [29568, 29696]
    assert foreign("vLLM 0.33: Marlin refuses it, since 0.22", set()) == []
