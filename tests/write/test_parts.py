"""Conversions in parts: the same bytes as in one run, whoever makes which part when; nothing else passes for one."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

import qbridge
from qbridge.plan.objects import Objects
from qbridge.plan.shared_plan import PLAN
from qbridge.write.stores import FolderStore
from support import ROOT, cli

GPTQ = ROOT / "fixtures/gptq/llama_g128/model"
EVERY = sorted(path for path in ROOT.glob("fixtures/*/*/model"))
SMALL = {"max_shard_size": 200_000}


def files_below(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def codes(call, *arguments, **options):
    with pytest.raises(qbridge.QBridgeError) as caught:
        call(*arguments, **options)
    return [finding.code for finding in caught.value.findings]


def in_parts(src, dst, target, order, of, **options):
    for part in order:
        qbridge.convert_part(src, dst, target, part, of, **options)
    return qbridge.finish(dst)


@pytest.fixture
def planned(dst):
    qbridge.plan_parts(GPTQ, dst, "vllm", **SMALL)
    return dst


def test_eight_parts_in_any_order_give_the_bytes_of_one_run(tmp_path, dst):
    order = [*range(1, 9), 3, 5]
    random.Random(1).shuffle(order)
    qbridge.convert(GPTQ, tmp_path / "one", "compressed-tensors", **SMALL)
    done = in_parts(GPTQ, dst, "compressed-tensors", order, 8, **SMALL)
    assert files_below(dst) == files_below(tmp_path / "one")
    assert done.exactness == {"reversible": 7} and not done.already_done
    assert qbridge.verify(GPTQ, dst).same


@pytest.mark.parametrize("number", range(8))
def test_any_fixture_for_any_target_is_the_same_in_parts(number, tmp_path, dst):
    chosen = random.Random(number)
    for _ in range(40):
        src, target = chosen.choice(EVERY), chosen.choice(qbridge.list_targets()).name
        try:
            qbridge.convert(src, tmp_path / "one", target, **SMALL)
            break
        except qbridge.QBridgeError as fault:
            assert codes(qbridge.plan_parts, src, dst, target, **SMALL) == [each.code for each in fault.findings]
            assert not dst.exists()
    else:
        pytest.fail("nothing was converted")
    in_parts(src, dst, target, [2, 1, 3], 3, **SMALL)
    assert files_below(dst) == files_below(tmp_path / "one"), (src, target)


def test_parts_and_finish_may_be_run_again_when_all_is_done(dst):
    in_parts(GPTQ, dst, "vllm", [1, 2], 2, **SMALL)
    before = files_below(dst)
    late = qbridge.convert_part(GPTQ, dst, "vllm", 2, 2, **SMALL)
    assert late.missing == 0 and list(late.there) == list(late.files)
    assert qbridge.finish(dst).already_done and files_below(dst) == before
    assert codes(qbridge.convert_part, GPTQ, dst, "vllm", 2, 2) == ["QB031"]


def test_what_another_process_is_about_to_write_is_nothing_that_lies_there(dst):
    with FolderStore(dst)._written(PLAN, b"{}"):
        qbridge.plan_parts(GPTQ, dst, "vllm", **SMALL)
    in_parts(GPTQ, dst, "vllm", [1], 1, **SMALL)
    assert qbridge.verify(GPTQ, dst).same


def test_the_plan_says_nothing_of_the_machine_or_the_time(tmp_path, planned):
    moved = tmp_path / "elsewhere" / "copy"
    shutil.copytree(GPTQ, moved)
    other = tmp_path / "other"
    qbridge.plan_parts(moved, other, "vllm", jobs=1, **SMALL)
    assert (other / PLAN).read_bytes() == (planned / PLAN).read_bytes()
    assert str(tmp_path).encode() not in (other / PLAN).read_bytes()
    for file in moved.iterdir():
        os.utime(file, (1, 1))
    assert qbridge.convert_part(moved, planned, "vllm", 1, 2, **SMALL).there == []


@pytest.mark.parametrize(
    "options", [{"tp": 2}, {"max_shard_size": 300_000}, {"card": False}, {"allow": ["rounded"]}, {"pad": True}]
)
def test_a_part_with_other_options_is_refused(planned, options):
    assert codes(qbridge.convert_part, GPTQ, planned, "vllm", 1, 2, **{**SMALL, **options}) == ["QB066"]
    assert codes(qbridge.convert_part, GPTQ, planned, "awq", 1, 2, **SMALL) == ["QB066"]
    assert codes(qbridge.plan_parts, GPTQ, planned, "vllm", **{**SMALL, **options}) == ["QB066"]


def fine_tuned(src):
    """The same model with other values: headers and sizes do not change."""
    file = next(src.glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    begin = 8 + int.from_bytes(data[:8], "little")
    data[begin:] = bytes(byte ^ 1 for byte in data[begin:])
    file.write_bytes(data)


def test_a_part_of_another_source_is_refused(tmp_path, dst):
    src = tmp_path / "src"
    shutil.copytree(GPTQ, src)
    qbridge.plan_parts(src, dst, "vllm", **SMALL)
    fine_tuned(src)
    with pytest.raises(qbridge.QBridgeError, match="QB066"):
        for part in (1, 2):
            qbridge.convert_part(src, dst, "vllm", part, 2, **SMALL)
    shutil.rmtree(src)
    shutil.copytree(ROOT / "fixtures/gptq/llama_desc_act/model", src)
    assert codes(qbridge.convert_part, src, dst, "vllm", 1, 2, **SMALL) == ["QB066"]


def test_finish_wants_every_file_of_this_plan(tmp_path, planned):
    assert codes(qbridge.finish, planned) == ["QB067"]
    qbridge.convert_part(GPTQ, planned, "vllm", 1, 2, **SMALL)
    with pytest.raises(qbridge.QBridgeError, match="QB067") as caught:
        qbridge.finish(planned)
    missing = caught.value.findings[0].where
    qbridge.convert(GPTQ, tmp_path / "one", "vllm", **SMALL)
    for name in missing:  # the right bytes, and nobody says of which plan
        shutil.copy(tmp_path / "one" / name, planned / name)
    assert codes(qbridge.finish, planned) == ["QB067"]
    qbridge.convert_part(GPTQ, planned, "vllm", 2, 2, **SMALL)
    shard = next(planned.glob("*.safetensors"))
    whole = shard.read_bytes()
    for damaged in (whole[:-1], b"\0" * len(whole)):
        shard.write_bytes(damaged)
        assert codes(qbridge.finish, planned) == ["QB067"]
    shard.write_bytes(whole)
    assert not (planned / "config.json").exists()
    qbridge.finish(planned)
    assert files_below(planned) == files_below(tmp_path / "one")
    assert codes(qbridge.finish, tmp_path) == ["QB067"]


def test_what_is_at_the_destination_is_never_touched(tmp_path, dst):
    dst.mkdir()
    (dst / "notes.txt").write_text("mine")
    assert codes(qbridge.plan_parts, GPTQ, dst, "vllm") == ["QB031"]
    assert codes(qbridge.plan_parts, GPTQ, GPTQ / "inside", "vllm") == ["QB031"]
    assert files_below(dst) == {"notes.txt": b"mine"}
    (dst / "notes.txt").unlink()
    qbridge.plan_parts(GPTQ, dst, "vllm")
    assert codes(qbridge.convert, GPTQ, dst, "vllm") == ["QB031"]


def test_one_of_several_that_plan_at_the_same_time_wins(dst):
    reports, faults = [], []

    def make(part):
        try:
            reports.append(qbridge.convert_part(GPTQ, dst, "vllm", part, 4, jobs=1, **SMALL))
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=make, args=(part,)) for part in (1, 2, 3, 4, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults and len({report.plan for report in reports}) == 1
    qbridge.finish(dst)
    assert qbridge.verify(GPTQ, dst).same


def test_a_part_that_is_killed_leaves_no_half_file(tmp_path, dst):
    qbridge.convert(GPTQ, tmp_path / "one", "vllm", **SMALL)
    program = (
        f"import qbridge; qbridge.convert_part({str(GPTQ)!r}, {str(dst)!r}, 'vllm', 1, 1, max_shard_size=200_000)"
    )
    for wait in (0.9, 1.1, 1.3, 1.6, 2.0):
        process = subprocess.Popen([sys.executable, "-c", program])
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
        for name, data in files_below(dst).items() if dst.exists() else ():
            if name.endswith(".safetensors") and not name.startswith("."):
                assert data == (tmp_path / "one" / name).read_bytes()
    in_parts(GPTQ, dst, "vllm", [1], 1, **SMALL)
    assert files_below(dst) == files_below(tmp_path / "one")


def test_clean_removes_what_parts_have_left(planned):
    qbridge.convert_part(GPTQ, planned, "vllm", 1, 2, **SMALL)
    (planned / "mine.txt").write_text("mine")
    assert qbridge.clean(planned).removed
    assert files_below(planned) == {"mine.txt": b"mine"}


@pytest.mark.parametrize("change", ["cut", "class", "number", "nothing"])
def test_a_damaged_plan_is_refused(planned, change):
    body = json.loads((planned / PLAN).read_text())
    if change == "class":
        body["objects"][0][0] = "os:system"
    elif change == "number":
        body["objects"][-1][1:] = [[len(body["objects"]) + 5]]
    elif change == "nothing":
        body = {}
    text = json.dumps(body)
    (planned / PLAN).write_text(text[: len(text) // 2] if change == "cut" else text)
    assert codes(qbridge.convert_part, GPTQ, planned, "vllm", 1, 2, **SMALL) == ["QB066"]


def test_a_table_makes_objects_of_no_other_class():
    with pytest.raises(KeyError):
        Objects([["subprocess:Popen", "true"]], [])


def test_links_and_pickled_weights_have_no_parts(dst):
    assert codes(qbridge.plan_parts, GPTQ, dst, "vllm", link=True) == ["QB065"]
    assert codes(qbridge.plan_parts, GPTQ, dst.with_suffix(".gguf"), "gguf") == ["QB065"]
    with pytest.raises(ValueError, match="a part is 1"):
        qbridge.convert_part(GPTQ, dst, "vllm", 3, 2)


def test_the_commands(tmp_path, dst):
    options = ("--to", "vllm", "--max-shard-size", "200KB")
    assert cli("plan", GPTQ, dst, *options).returncode == 0
    for part in ("2/2", "1/2"):
        assert cli("convert", GPTQ, dst, *options, "--part", part).returncode == 0
    done = cli("finish", dst)
    assert done.returncode == 0 and "vllm serve" in done.stdout
    assert cli("convert", GPTQ, dst, *options, "--part", "3/2").returncode == 2
    assert cli("convert", GPTQ, dst, *options, "--part", "1/2", "--overwrite").returncode == 2
