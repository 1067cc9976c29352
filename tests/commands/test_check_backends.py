"""LMDeploy's two engines, each with a verdict of its own: the whole is a yes where one of them is."""

from __future__ import annotations

import contextlib
import json

import pytest

import qbridge
from support import ROOT, cli

FIXTURES = [str(path.parent.relative_to(ROOT / "fixtures")) for path in sorted(ROOT.glob("fixtures/*/*/model"))]


def model(case):
    return ROOT / "fixtures" / case / "model"


@pytest.mark.parametrize("case", FIXTURES)
def test_it_is_served_where_one_engine_serves_it_and_by_that_one(case):
    with contextlib.suppress(qbridge.QBridgeError):
        for row in qbridge.check(model(case), "lmdeploy", [1, 2]).sizes:
            assert {each.backend for each in row.backends} == {"turbomind", "pytorch"}
            assert row.ok == any(each.ok for each in row.backends)
            assert bool(row.serve) == row.ok and (not row.ok or row.serve in [each.serve for each in row.backends])
            for each in row.backends:
                assert each.ok == (not each.codes) == bool(each.serve)
                assert not each.ok or f"--backend {each.backend}" in each.serve


@pytest.mark.parametrize("case", FIXTURES)
def test_turbomind_is_judged_as_the_target_of_its_name_is(case):
    with contextlib.suppress(qbridge.QBridgeError):
        done = qbridge.check(model(case), "lmdeploy", 2)
        alone = qbridge.check(model(case), "lmdeploy-turbomind", 2)
        (turbomind,) = (each for each in done.backends if each.backend == "turbomind")
        assert turbomind.ok == alone.ok and turbomind.serve == alone.serve


@pytest.mark.parametrize(
    ("case", "turbomind", "pytorch"),
    [
        ("awq/llama_gemm_g128", (), ()),
        ("awq/llama_gemm", ("QB240",), ()),
        ("compressed_tensors/llama_w4a16_g128", (), ("QB260",)),
        ("smooth_quant/llama_lite", ("QB260",), ()),
    ],
)
def test_each_engine_has_its_own_reason(case, turbomind, pytorch):
    verdicts = {each.backend: tuple(each.codes) for each in qbridge.check(model(case), "lmdeploy").backends}
    assert verdicts == {"turbomind": turbomind, "pytorch": pytorch}


def test_shares_that_only_turbomind_takes_are_a_yes_with_it(tmp_path):
    """A rank's 64 outputs of k_proj are no whole group of 128, which the PyTorch engine alone wants."""
    config = json.loads((model("awq/llama_gemm_g128") / "config.json").read_text())
    config |= {"head_dim": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 256}
    (tmp_path / "config.json").write_text(json.dumps({**config, "intermediate_size": 512}))
    done = qbridge.check(tmp_path, "lmdeploy", 2)
    assert {each.backend: each.ok for each in done.backends} == {"turbomind": True, "pytorch": False}
    assert done.ok and "--backend turbomind --tp 2" in done.serve
    (finding,) = (each for each in done.findings if each.code == "QB251")
    assert finding.severity == "warning" and "it is served with --backend turbomind" in finding.facts


def test_the_program_prints_a_line_for_each_and_a_column_of_those_that_serve_it():
    told = cli("check", model("awq/llama_gemm"), "--for", "lmdeploy").stdout
    assert "turbomind     no: QB240, " in told and "pytorch       yes\n" in told
    table = cli("check", model("awq/llama_gemm"), "--for", "lmdeploy", "--tp", "1,2").stdout
    assert "backends" in table and "pytorch" in table and "turbomind" not in table.split("\n\n")[1]


def test_other_targets_have_no_engines_to_choose_among():
    assert qbridge.check(model("awq/llama_gemm"), "vllm").backends == []
    assert qbridge.check(model("awq/llama_gemm"), "lmdeploy@0.6.2").backends == []
