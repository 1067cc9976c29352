"""What findings say fits the model that they are about: words, numbers and names of no other."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest

import qbridge
from qbridge.findings.catalogue import known
from qbridge.findings.finding import Findings
from qbridge.findings.hints import did_you_mean
from qbridge.formats.rules import LayerRule, Problem
from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.scheme import Granularity, WeightScheme
from qbridge.passes.counted import Counted
from qbridge.plan.repair import _note
from qbridge.render import tallied
from support import cli, copy_fixture, edit_json, facts, rewrite_tensors


@pytest.mark.parametrize("code", sorted(code for code, entry in known().items() if entry.severity == "error"))
def test_help_under_an_error_is_something_to_do(code):
    entry = known()[code]
    assert not entry.fix.startswith(("Nothing", "None needed"))


@pytest.mark.parametrize("code", sorted(known()))
def test_words_that_are_always_printed_name_no_other_models_dims(code):
    entry = known()[code]
    numbers = {int(number) for text in (entry.why, entry.fix) for number in re.findall(r"\b\d{4,6}\b", text)}
    assert not {number for number in numbers if number > 1024 and number not in range(2020, 2030)}


def test_a_finding_about_several_layers_says_whose_dims_they_are(tmp_path):
    found = qbridge.check(copy_fixture(tmp_path, "gptq/llama_g128"), "lmdeploy-turbomind", 4).findings
    said = [finding for finding in found if finding.code == "QB251"]
    assert said and len(said[0].where) == 7
    leaf = re.match(r"(\w+_proj): in_features (\d+)", facts(said))
    assert leaf and any(place.endswith(leaf[1]) for place in said[0].where)


def test_values_in_the_way_are_one_finding_whatever_their_counts():
    findings, rule = Findings(), LayerRule("QB110", lambda spec, model: None, "a test")
    for count, name in enumerate("abc", 1):
        spec = Spec(name, 8, 8, WeightScheme(4, Granularity.CHANNEL), DType.F16)
        fault = Counted(count, "zero-points are not zero")
        _note(findings, rule, spec, Problem(("it has no zero-points",)), fault)
    (finding,) = findings
    assert finding.where == ("a", "b", "c")
    assert finding.facts[:2] == ("it has no zero-points", "zero-points are not zero")
    assert "6 values in 3 places" in finding.facts[2]


def test_a_format_that_was_not_taken_is_no_error_in_a_report(tmp_path):
    src = copy_fixture(tmp_path, "compressed_tensors/llama_fp8_static")
    for target in ("lmdeploy", "vllm", "lmdeploy-turbomind", "gptqmodel", "transformers"):
        try:
            report = qbridge.convert(src, tmp_path / target, target, dry_run=True)
        except qbridge.QBridgeError:
            continue
        assert "error[" not in report.chosen


@pytest.mark.parametrize("case", ["compressed_tensors/llama_w4a16", "gptq/llama_g128", "fp8/llama_static"])
def test_no_report_of_success_speaks_of_errors(tmp_path, case):
    src = copy_fixture(tmp_path, case)
    for target in ("lmdeploy", "vllm", "vllm@0.5.4", "transformers"):
        done = cli("convert", src, tmp_path / "dst", "--to", target, "--dry-run")
        assert done.returncode or "error[" not in done.stdout


# long lists


def test_many_names_are_not_one_line():
    names = {f"QB{number:03}": None for number in range(200)}
    near, rest = did_you_mean("QB1999", names, "`qbridge explain`")
    assert near.startswith("did you mean 'QB199' or ") and near.count("'") == 6
    assert rest == "`qbridge explain` lists all 200"
    (line,) = did_you_mean("x", {f"n{n}": 1 for n in range(9)}, "a command")
    assert line == "known: " + ", ".join(f"n{n}" for n in range(9))


@pytest.mark.parametrize(
    "words",
    [
        ("explain", "QB999"),
        ("convert", "a", "b", "--to", "xyz"),
        ("check", ".", "--for", "vlm"),
        ("check", ".", "--for", "vllm", "--gpu", "abc"),
        ("convert", "a", "b", "--to", "vllm", "--allow", "abc"),
    ],
)
def test_no_line_about_a_name_is_long(words):
    done = cli(*words)
    assert done.returncode == 2 and max(map(len, done.stderr.splitlines())) < 200


def test_names_that_differ_in_numbers_are_one():
    names = [f"visual.blocks.{n}.attn.{leaf}" for n in range(32) for leaf in ("qkv", "proj")] + ["lm_head", "fc1"]
    assert tallied(names) == ["visual.blocks.*.attn.qkv (32)", "visual.blocks.*.attn.proj (32)", "lm_head", "fc1"]
    assert tallied([]) == [] and len(tallied([f"m{chr(97 + n)}" for n in range(26)])) == 13


def test_inspect_lists_unquantized_linears_by_kind(tmp_path):
    src = copy_fixture(tmp_path)
    edit_json(src / "config.json", lambda config: None)
    rewrite_tensors(
        src,
        lambda tensors: tensors.update(
            {f"visual.blocks.{n}.mlp.fc.weight": np.ones((8, 8), np.float16) for n in range(113)}
        ),
    )
    done = cli("inspect", src)
    assert "visual.blocks.*.mlp.fc (113)" in done.stdout and "visual.blocks.7" not in done.stdout


# codes that a list in a transcript alone named


def test_a_width_that_only_humming_has(tmp_path):
    src = copy_fixture(tmp_path, "compressed_tensors/llama_w3a16")
    assert "QB226" in {finding.code for finding in qbridge.check(src, "vllm").findings}


def test_a_tensor_that_one_side_lacks(tmp_path):
    src = copy_fixture(tmp_path)
    shutil.copytree(src, tmp_path / "other")
    rewrite_tensors(src, lambda tensors: tensors.update(more=np.ones(3, np.float16)))
    assert "QB502" in {finding.code for finding in qbridge.verify(src, tmp_path / "other").findings}


def test_a_rope_for_each_kind_of_layer_that_transformers_4_cannot_read(tmp_path):
    src = copy_fixture(tmp_path)
    ropes = {kind: {"rope_type": "default", "rope_theta": 1e4} for kind in ("sliding_attention", "full_attention")}
    edit_json(src / "config.json", lambda config: config.update(rope_parameters=ropes))
    found = qbridge.check(src, "lmdeploy").findings
    assert "QB207" in {finding.code for finding in found}
