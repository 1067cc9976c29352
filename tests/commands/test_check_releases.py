"""check for a version of an engine that is in no table: judged by the releases on both sides."""

from __future__ import annotations

import json

import pytest

import qbridge
from qbridge.targets.registry import builtin, find_target, nearer, neighbours
from support import ROOT, cli


def model(case):
    return ROOT / "fixtures" / case / "model"


@pytest.mark.parametrize(
    ("name", "around"),
    [
        ("vllm@0.28", ("vllm@0.23.0", "vllm@0.33.0")),
        ("vLLM@0.23.1", ("vllm@0.23.0", "vllm@0.33.0")),
        ("vllm@0.6.3.post1", None),
        ("vllm@0.6.3", ("vllm@0.5.4", "vllm@0.23.0")),
        ("lmdeploy@0.7", ("lmdeploy@0.6.2", "lmdeploy@0.18.0")),
        ("vllm@0.33", None),
        ("vllm@0.23.0", None),
        ("vllm", None),
        ("vllm@0.40", None),
        ("vllm@0.4", None),
        ("vllm@", None),
        ("vllm@latest", None),
        ("gptq@1", None),
        ("transformers@4", None),
    ],
)
def test_a_version_between_two_tables_has_neighbours(name, around):
    found = neighbours(name)
    assert (found and tuple(target.name for target in found)) == around


@pytest.mark.parametrize(
    ("version", "name"),
    [("0.24", "vllm@0.23.0"), ("0.32", "vllm@0.33.0"), ("0.28", "vllm@0.23.0"), ("0.28.1", "vllm@0.33.0")],
)
def test_the_nearer_one_is_so_by_numbers_and_the_older_one_of_equals(version, name):
    assert nearer(version, neighbours(f"vllm@{version}")).name == name


def answers(case, name, tp, **options):
    return [qbridge.check(model(case), target.name, tp, **options) for target in neighbours(name)]


def found(done):
    return {(finding.code, finding.severity, finding.where) for finding in done.findings}


CASES = ["gptq/llama_640", "gptq/llama_g128", "gptq/llama_v1_asym", "awq/llama_gemm_g128", "awq/llama_gptqmodel_3bit"]
CASES += ["compressed_tensors/llama_w8a8", "compressed_tensors/llama_nvfp4", "fp8/llama_blocks", "gptq/llama_3bit"]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["vllm@0.28", "vllm@0.6", "lmdeploy@0.10"])
def test_it_is_known_where_both_find_the_same_and_not_where_they_differ(case, name):
    for tp in (1, 2):
        older, newer = answers(case, name, tp)
        done = qbridge.check(model(case), name, tp)
        own = {finding.code for finding in done.findings} & {"QB237", "QB238"}
        assert done.target == name and done.releases == (older.target, newer.target)
        if found(older) == found(newer):
            assert own == {"QB238"} and done.ok == older.ok == newer.ok and done.known
            assert found(older) <= found(done)
        else:
            assert own == {"QB237"} and not done.ok and done.serve == ""
            agreed = {entry for entry in found(older) & found(newer) if entry[1] == "error"}
            assert done.known == bool(agreed)
            (finding,) = (each for each in done.findings if each.code == "QB237")
            for code, _, where in found(older) ^ found(newer):
                assert any(f" alone: {code}, " in fact for fact in finding.facts), (code, where)


def test_a_word_takes_the_nearer_one():
    case, name = "gptq/llama_640", "vllm@0.32"
    differ = qbridge.check(model(case), name, 2)
    assert not differ.known or not differ.ok
    taken = qbridge.check(model(case), name, 2, allow=["assumed-version"])
    assert found(taken) - {("QB237", "warning", (name,))} == found(qbridge.check(model(case), "vllm@0.33.0", 2))
    assert not any("assumed-version" in line for each in taken.findings for line in each.help)


def test_a_version_that_serves_it_on_both_sides_exits_0_and_says_that_it_is_assumed():
    done = cli("check", model("gptq/llama_g128"), "--for", "vllm@0.28", "--tp", "1,2", "--json")
    answer = json.loads(done.stdout)
    assert done.returncode == 0 and answer["ok"] and answer["releases"] == ["vllm@0.23.0", "vllm@0.33.0"]
    assert [finding["code"] for finding in answer["findings"]] == ["QB238"]
    told = cli("check", model("gptq/llama_g128"), "--for", "vllm@0.28")
    assert "for           vllm@0.28 (judged by vllm@0.23.0 and vllm@0.33.0), tp 1, sm80\n" in told.stdout
    assert "assumed" in told.stderr


def test_no_other_command_takes_such_a_version():
    for name in ("vllm@0.28", "lmdeploy@0.7"):
        with pytest.raises(qbridge.QBridgeError):
            find_target(name)
    assert all(neighbours(target.name) is None for target in builtin())
