"""check at several tensor-parallel sizes: a row each, what is found once, and the cheapest exact way out of a no."""

from __future__ import annotations

import json
import shlex

import pytest

import qbridge
from support import ROOT, cli, copy_fixture

CASES = [
    ("gptq/llama_640", "vllm"),
    ("gptq/llama_g128", "vllm"),
    ("gptq/llama_v1_asym", "vllm"),
    ("gptq/llama_desc_act", "vllm"),
    ("awq/llama_gemm_g128", "vllm@0.23.0"),
    ("awq/llama_gemm", "lmdeploy"),
    ("compressed_tensors/llama_w8a8", "lmdeploy"),
    ("compressed_tensors/qwen3_moe_w8a8", "vllm"),
    ("compressed_tensors/llama_kv_int8", "vllm"),
    ("fp8/llama_blocks", "lmdeploy"),
]


def model(case):
    return ROOT / "fixtures" / case / "model"


def errors(findings):
    return [finding for finding in findings if finding.severity == "error"]


@pytest.mark.parametrize(("case", "target"), CASES)
def test_each_row_is_the_answer_at_its_size_and_each_finding_is_there_once(case, target):
    sizes = (1, 2, 4)
    table = qbridge.check(model(case), target, sizes)
    singles = {tp: qbridge.check(model(case), target, tp) for tp in sizes}
    assert [row.tp for row in table.sizes] == list(sizes)
    for tp, single in singles.items():
        row = table.by_tp[tp]
        assert (row.ok, row.serve, row.kernels) == (single.ok, single.serve, single.kernels)
        assert set(row.codes) == {finding.code for finding in errors(single.findings)}
        assert row.remedy is None or not row.ok
    assert table.ok == all(single.ok for single in singles.values())
    named = [(finding.code, finding.severity, finding.where) for finding in table.findings]
    assert len(named) == len(set(named))
    alone = {(f.code, f.severity, f.where) for single in singles.values() for f in single.findings}
    assert set(named) == alone
    facts = {fact for single in singles.values() for finding in single.findings for fact in finding.facts}
    shown = {fact for finding in table.findings for fact in finding.facts}
    assert facts <= shown and all(fact.startswith("at tp ") for fact in shown - facts)


@pytest.mark.parametrize(("case", "target"), [case for case in CASES if case[0].startswith(("gptq", "awq"))])
def test_a_remedy_of_a_row_works_and_costs_what_it_says(case, target, tmp_path):
    src = copy_fixture(tmp_path, case)
    for row in qbridge.check(src, target, [1, 2, 4]).sizes:
        if row.remedy is None:
            continue
        words = shlex.split(str(row.remedy.way).partition("  # ")[0])
        words[3] = str(tmp_path / f"out{row.tp}")
        report = json.loads(cli(*words[1:], "--json").stdout)
        assert report["tensor_bytes"]["after"] == row.remedy.written
        assert report["tensor_bytes"]["after"] - report["tensor_bytes"]["before"] == row.remedy.added
        assert set(report["exactness"]) <= {"reversible", "equal"}
        assert qbridge.check(tmp_path / f"out{row.tp}", target, row.tp).ok


def test_the_remedy_is_the_cheapest_of_all_that_single_sizes_offer(tmp_path):
    src = copy_fixture(tmp_path, "gptq/llama_640")
    row = qbridge.check(src, "vllm", [1, 2]).by_tp[2]
    costs = {}
    for options in ({}, {"pad": True}, {"regroup": 64}):
        report = qbridge.convert(src, tmp_path / "dst", "vllm", dry_run=True, tp=2, **options)
        costs[tuple(options)] = report.tensor_bytes["after"] - report.tensor_bytes["before"]
    assert row.remedy.added == min(costs.values()) == costs[tuple(row.remedy.way.keyword)]


def test_nothing_is_planned_twice_and_nothing_read_where_headers_refuse(monkeypatch):
    from qbridge.commands import remedies

    looks, plans = [], []
    look, plan = remedies.look_at_values, remedies.planned
    monkeypatch.setattr(remedies, "look_at_values", lambda opened, **k: (looks.append(opened), look(opened, **k)))
    monkeypatch.setattr(remedies, "planned", lambda *a, **k: (plans.append(a[2]), plan(*a, **k))[1])
    qbridge.check(model("gptq/llama_640"), "vllm", [1, 2])
    assert len(looks) == 1 and len(plans) == len(set(plans)) == 3  # as it is, --regroup and --pad
    looks.clear(), plans.clear()
    qbridge.check(model("gptq/llama_desc_act"), "vllm", [1, 2, 4])
    assert looks == plans == []


def test_what_no_size_changes_is_asked_once(monkeypatch):
    from qbridge.commands import judging

    opened = []
    open_ = judging.open_checkpoint
    monkeypatch.setattr(judging, "open_checkpoint", lambda *a, **k: (opened.append(a), open_(*a, **k))[1])
    qbridge.check(model("gptq/llama_g128"), "vllm", [1, 2])
    assert len(opened) == 1


def table_of(*arguments):
    done = cli("check", *arguments)
    lines = done.stdout.splitlines()
    head = next(number for number, line in enumerate(lines) if line.startswith("tp "))
    return done, lines[head : lines.index("", head)]


def test_the_program_prints_a_row_for_each_size_and_exits_1_unless_all_are_a_yes():
    done, rows = table_of(model("gptq/llama_640"), "--for", "vllm", "--tp", "1,2")
    assert done.returncode == 1 and [row.split()[:2] for row in rows[1:]] == [["1", "yes"], ["2", "no"]]
    assert all(len(row) <= 80 for row in rows)
    assert done.stderr.count("error[QB251]") == 1
    done, _ = table_of(model("gptq/llama_g128"), "--for", "vllm", "--tp", "2,1")
    assert done.returncode == 0 and done.stderr == ""


def test_memory_counts_where_the_gpu_has_one():
    done, rows = table_of(model("gptq/llama_g128"), "--for", "vllm", "--tp", "1,2", "--gpu", "rtx 4090")
    assert "fits" in rows[0] and all(" yes " in row for row in rows[1:])
    assert "counts the weights alone" in done.stdout
    _, rows = table_of(model("gptq/llama_g128"), "--for", "vllm", "--tp", "1,2", "--gpu", "a100")
    assert "fits" not in rows[0]


def test_json_has_a_list_by_size():
    done = cli("check", model("gptq/llama_640"), "--for", "vllm", "--tp", "1,2", "--gpu", "h100", "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 1 and (found["schema"], found["command"], found["ok"]) == (1, "check", False)
    first, second = found["sizes"]
    assert (first["tp"], first["ok"], first["remedy"], first["fits"]) == (1, True, None, True)
    assert second["weights"]["exact"] and second["weights"]["bytes"] < first["weights"]["bytes"]
    assert {"command", "bytes_written", "bytes_added", "percent"} <= second["remedy"].keys()
    assert [finding["code"] for finding in found["findings"]] == ["QB251"]


@pytest.mark.parametrize("typed", ["0", "1,0", "", "1,,2", "two", "1;2"])
def test_sizes_that_are_none_are_a_usage_error(typed):
    assert cli("check", model("gptq/llama_g128"), "--for", "vllm", "--tp", typed).returncode == 2


def test_one_size_in_a_list_is_a_table_and_repeated_sizes_are_one():
    assert [row.tp for row in qbridge.check(model("gptq/llama_g128"), "vllm", [2]).sizes] == [2]
    assert [row.tp for row in qbridge.check(model("gptq/llama_g128"), "vllm", [2, 1, 2]).sizes] == [2, 1]


def test_a_config_alone_is_no_yes(tmp_path):
    src = tmp_path / "src"
    src.mkdir()
    (src / "config.json").write_bytes((model("gptq/llama_640") / "config.json").read_bytes())
    table = qbridge.check(src, "vllm", [1, 2], "h100")
    assert table.assumed and [row.ok for row in table.sizes] == [True, False]
    assert all(row.fits is None and not row.weights.exact and row.remedy is None for row in table.sizes)
    _, rows = table_of(src, "--for", "vllm", "--tp", "1,2")
    assert rows[1].split()[1] == "maybe"


def test_what_is_found_comes_after_the_table(tmp_path):
    """Both go to one terminal: the order in which they arrive there."""
    import subprocess
    import sys

    words = [sys.executable, "-m", "qbridge", "check", str(model("gptq/llama_640")), "--for", "vllm", "--tp", "1,2"]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert 0 <= done.stdout.index("cheapest exact remedy") < done.stdout.index("error[QB251]")
