"""A model that no format of a target holds is planned once for each of them, and its values are judged once."""

from __future__ import annotations

import contextlib
from collections import Counter

import pytest

import qbridge
from qbridge.commands.checkpoint import open_checkpoint
from qbridge.commands.planning import prepare
from qbridge.findings.finding import Findings
from qbridge.formats.rules import LayerRule, ModelRule, Problem, ValueRule, broken
from qbridge.plan import planner
from qbridge.targets.registry import find_target

FIXTURES = [
    "auto_round/llama_3bit_asym",
    "awq/llama_gemm",
    "compressed_tensors/llama_nvfp4",
    "compressed_tensors/llama_w4a16",
    "gptq/llama_desc_act",
    "gptq/llama_v1_asym",
    "modelopt/llama_nvfp4",
    "mxfp4/gpt_oss",
]
TARGETS = ["vllm", "lmdeploy", "lmdeploy-turbomind", "gptqmodel"]
REFUSED = [("gptq/llama_desc_act", "vllm"), ("modelopt/llama_nvfp4", "lmdeploy")]


@pytest.fixture
def planned(monkeypatch):
    """How often each step was done for each format."""
    counted = {step: Counter() for step in ("draft", "_begin", "_repair", "_check", "_lay_out", "values")}

    def counting(name, real, candidate_of):
        def step(first, *rest):
            counted[name][candidate_of(first).choice.format.NAME] += 1
            return real(first, *rest)

        return step

    for name in ("draft", "_begin", "_repair", "_check", "_lay_out"):
        of = (lambda draft: draft.candidate) if name == "_lay_out" else (lambda candidate: candidate)
        monkeypatch.setattr(planner, name, counting(name, getattr(planner, name), of))
    real = planner.broken

    def walked(rules, model, values=None):
        counted["values"][model.format] += values is not None
        return real(rules, model, values)

    monkeypatch.setattr(planner, "broken", walked)
    return counted


@pytest.mark.parametrize(("case", "target"), [*REFUSED, *((case, name) for case in FIXTURES for name in TARGETS)])
def test_each_format_is_planned_once_however_many_are_refused(fixtures, tmp_path, planned, case, target):
    choices = Counter(find_target(target).formats)
    done = False
    with contextlib.suppress(qbridge.QBridgeError):
        qbridge.convert(fixtures / case / "model", tmp_path / "out", target, dry_run=True)
        done = True
    assert not (done and (case, target) in REFUSED)
    if not done and planned["draft"]:  # not what reading refused
        assert planned["draft"] == choices
    for step, counts in planned.items():
        assert counts <= choices, step


def test_all_formats_that_were_tried_are_told(fixtures, tmp_path):
    done = qbridge.convert(fixtures / "gptq/llama_g128/model", tmp_path / "out", "lmdeploy", dry_run=True)
    formats = find_target("lmdeploy").formats
    before = formats[: formats.index(done.format)]
    assert len(before) > 1 and [f"not {name}: " in done.chosen for name in before] == [True] * len(before)
    assert done.chosen.count("QB") == len(before)


@pytest.mark.parametrize("copied", [False, True])
def test_a_cast_is_mild_for_a_copy_alone_and_found_out_once(fixtures, planned, copied):
    with open_checkpoint(fixtures / "gptq/llama_g128/model", plans=True) as opened:
        target = find_target("gptq")
        plan = prepare(opened, target)
        candidate = planner.Candidate(opened.source, opened.model, target, target.choices[0], {}, planner.DEFAULTS)
        problem = ValueRule("QB302", lambda model, values: [Problem(("fact",), where=("a",))], "a 1.0", casts=True)
        drafted = planner.draft(candidate, Findings())
        drafted._broken = tuple(broken((problem,), plan.model, object()))
        tried = Findings()
        drafted.plan(tried, copied=copied)
        assert bool(tried.errors) is not copied and [finding.code for finding in tried] == ["QB302"]


def test_the_walker_gives_every_kind_of_rule_with_its_places(fixtures):
    with qbridge.open(fixtures / "gptq/llama_g128/model") as opened:
        model = opened.model
    first = next(iter(model.specs))
    layer = LayerRule("QB110", lambda spec, model: Problem(("l",)) if spec.name == first else None, "a 1.0")
    whole = ModelRule("QB231", lambda model: [Problem(("m",), where=("a", "b"))], "a 1.0")
    value = ValueRule("QB302", lambda model, values: [Problem((values,), where=("c",), mild=True)], "a 1.0")
    found = list(broken((value, layer, whole), model, "v"))
    assert [(fault.rule, fault.where) for fault in found] == [
        (value, ("c",)),
        (layer, (first,)),
        (whole, ("a", "b")),
    ]
    assert [fault.rule for fault in broken((value, layer, whole), model)] == [layer, whole]
    findings = Findings()
    for fault in found:
        fault.note(findings)
    assert {finding.code: str(finding.severity) for finding in findings} == {
        "QB110": "error",
        "QB231": "error",
        "QB302": "warning",
    }
