"""what: what a checkpoint can become, target by target, in one planning run."""

from __future__ import annotations

import json
import shlex

import pytest

import qbridge
from support import cli, contents, copy_fixture

CASES = ["awq/llama_gemm", "compressed_tensors/llama_fp8_kv"]


@pytest.mark.parametrize("case", CASES)
def test_what_says_for_each_target_what_convert_does(fixtures, tmp_path, case):
    src = fixtures / case / "model"
    answers = qbridge.what(src)
    assert [each.target for each in answers.targets] == [target.name for target in qbridge.list_targets()]
    for each in answers.targets:
        try:
            report = qbridge.convert(src, tmp_path / "out", each.target, dry_run=True, allow=each.allow)
        except qbridge.QBridgeError as fault:
            assert each.outcome == "refused"
            errors = [found.code for found in fault.findings if found.severity is qbridge.Severity.ERROR]
            assert [reason.code for reason in each.reasons] == errors, each.target
        else:
            assert (each.format, each.exactness, each.passes, each.bytes) == (
                *(report.format, report.exactness, report.passes, report.tensor_bytes),
            )
            exact = set(report.exactness) <= {"reversible", "equal"}
            assert each.outcome == ("exact" if exact and not each.allow else "lossy")


def test_what_is_lost_is_named_with_the_word_that_allows_it(fixtures):
    answers = qbridge.what(fixtures / "compressed_tensors/llama_fp8_kv/model").by_target
    lossy = [each for each in answers.values() if "drop-kv-scales" in each.allow]
    assert lossy and all(each.outcome == "lossy" and each.reasons for each in lossy)
    assert answers["dense"].outcome == "lossy" and answers["dense"].exactness == {"dequantized": 7}
    assert answers["awq"].outcome == "refused" and answers["awq"].command == ""


def test_its_commands_work_when_pasted(fixtures, tmp_path):
    src = copy_fixture(tmp_path, "compressed_tensors/llama_fp8_kv")
    for each in qbridge.what(src).targets:
        if each.command and not each.target.partition("@")[2]:
            done = cli(*shlex.split(each.command)[1:], "--dry-run", cwd=tmp_path)
            assert done.returncode == 0, done.stderr


def test_it_reads_each_small_value_once_and_writes_nothing(tmp_path, bytes_read):
    src = copy_fixture(tmp_path, "awq/llama_gemm")
    before = contents(tmp_path)
    qbridge.what(src)
    read = dict(bytes_read)
    with qbridge.open(src) as opened:
        sizes = {name: tensor.end - tensor.begin for name, tensor in opened.source.tensors.items()}
    assert read and not {name for name, count in read.items() if count > sizes.get(name, count)}
    assert contents(tmp_path) == before


def test_sizes_are_part_of_the_question(fixtures):
    src = fixtures / "gptq/llama_v1_asym/model"
    assert qbridge.what(src, tp=[1, 2]).tp == (1, 2)
    split = qbridge.what(src, tp=64).by_target
    assert all(split[name].outcome == "refused" for name in ("vllm@0.33.0", "sglang@0.5.23"))


def test_the_program_prints_a_table_that_60_columns_hold(fixtures):
    done = cli("what", fixtures / "awq/llama_gemm/model")
    head = next(place for place, line in enumerate(done.stdout.splitlines()) if line.startswith("target"))
    table = done.stdout.splitlines()[head : head + 1 + len(qbridge.list_targets())]
    assert done.returncode == 0 and max(map(len, table)) <= 60
    told = json.loads(cli("what", fixtures / "awq/llama_gemm/model", "--json").stdout)
    assert told["command"] == "what" and len(told["targets"]) == len(table) - 1


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path):
    assert cli("what", tmp_path).returncode == 3


def test_casts_that_keep_every_weight_are_listed_and_work_when_pasted(tmp_path):
    src = copy_fixture(tmp_path, "compressed_tensors/llama_mxfp4a16")
    casts = qbridge.what(src).casts
    assert {"fp8", "nvfp4", "mxfp8", "int8"} == {each.cast for each in casts}
    assert {("fp8", "vllm@0.33.0"), ("fp8", "sglang@0.5.23")} <= {(each.cast, each.target) for each in casts}
    assert all(each.outcome == "exact" for each in casts)
    done = cli(*shlex.split(casts[0].command)[1:], "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "--cast fp8" in cli("what", src).stdout


@pytest.mark.parametrize(
    ("case", "casts"), [("llama_w4a16_channel", {"fp8"}), ("llama_w4a16_asym", set()), ("llama_fp8_dynamic", set())]
)
def test_a_cast_that_nothing_in_a_checkpoint_has_is_not_listed(case, casts, fixtures):
    assert {each.cast for each in qbridge.what(fixtures / f"compressed_tensors/{case}/model").casts} == casts
