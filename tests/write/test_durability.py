"""DST is absent or complete at every instant, and what was cut goes on where it stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import kills
import qbridge
from dying import DIED, clear, die, forked, stepping
from support import SHARDED, SINGLE, codes, contents, copy_fixture, journal, only_neighbours, part

PACKED = "awq/llama_gemm"


@pytest.fixture
def src(tmp_path):
    return copy_fixture(tmp_path, SHARDED)


def convert(src, dst, **options):
    return qbridge.convert(src, dst, "lmdeploy", **options)


def stop_after(shards):
    """Interrupts as soon as so many shards are in the journal."""

    def advance(at):
        if at.shards_done == shards and at.bytes_done:
            raise KeyboardInterrupt

    return advance


def cut(src, dst, shards=2, **options):
    """A conversion that is interrupted with some shards finished; their names."""
    with pytest.raises(KeyboardInterrupt):
        convert(src, dst, jobs=1, progress=stop_after(shards), **options)
    lines = [json.loads(line) for line in journal(dst).read_text().splitlines()]
    return [line["shard"] for line in lines if "shard" in line]


# resuming


def test_interrupted_conversion_goes_on_after_the_last_finished_shard(src, dst, tmp_path):
    convert(src, tmp_path / "whole")
    finished = cut(src, dst)
    assert finished and not dst.exists()
    stamps = {name: (part(dst) / name).stat().st_mtime_ns for name in finished}
    advances = []
    convert(src, dst, progress=advances.append)
    assert {name: (dst / name).stat().st_mtime_ns for name in finished} == stamps
    assert contents(dst) == contents(tmp_path / "whole")
    assert advances[-1].bytes_done == advances[-1].bytes_total
    only_neighbours(tmp_path, "src", "whole", "dst")


def test_resuming_forgets_no_finished_shard_when_it_is_cut_itself(src, dst):
    finished, step = set(cut(src, dst)), 0
    while not dst.exists():
        step += 1

        def dying(step=step):
            with stepping(step, die):
                convert(src, dst, jobs=1)
            return 0

        assert forked(dying) in (0, DIED)
        if part(dst).exists():
            named = {json.loads(line).get("shard") for line in journal(dst).read_text().splitlines()}
            assert finished <= named, f"step {step}"
            finished = named - {None}
    assert finished and step > 5 and (dst / "config.json").exists()


@pytest.mark.parametrize("change", ["touched", "rewritten", "options"])
def test_of_another_conversion_nothing_is_kept(src, dst, tmp_path, change):
    finished = cut(src, dst)
    shard = sorted(src.glob("*.safetensors"))[0]
    options = {}
    if change == "touched":
        os.utime(shard, ns=(1, 1))
    elif change == "rewritten":
        data = bytearray(shard.read_bytes())
        data[-1] ^= 1
        shard.write_bytes(data)
    else:
        options["max_shard_size"] = 10**5
    convert(src, tmp_path / "whole", **options)
    stale = part(dst) / finished[0]
    stale.write_bytes(b"stale")
    convert(src, dst, **options)
    assert contents(dst) == contents(tmp_path / "whole")


def test_shard_that_the_journal_names_and_that_is_gone_is_written_again(src, dst, tmp_path):
    convert(src, tmp_path / "whole")
    (part(dst) / cut(src, dst)[0]).unlink()
    convert(src, dst)
    assert contents(dst) == contents(tmp_path / "whole")


@pytest.mark.parametrize("tail", [b'{"shard": "model-0000', b"\xff\xfe\n", b"[1]\n", b'{"shard": "no-such-shard"}\n'])
def test_torn_end_of_a_journal_is_not_believed(src, dst, tmp_path, tail):
    convert(src, tmp_path / "whole")
    cut(src, dst)
    with open(journal(dst), "ab") as stream:
        stream.write(tail)
    convert(src, dst)
    assert contents(dst) == contents(tmp_path / "whole")
    only_neighbours(tmp_path, "src", "whole", "dst")


def test_source_that_changes_while_it_is_converted_is_refused(src, dst):
    def touch(at):
        os.utime(sorted(src.glob("*.safetensors"))[0], ns=(1, 1))

    with pytest.raises(qbridge.QBridgeError) as excinfo:
        convert(src, dst, progress=touch)
    assert codes(excinfo) == {"QB038"} and excinfo.value.exit_code == 3
    only_neighbours(src.parent, "src")


# the moment at which DST appears


def test_empty_folder_becomes_the_checkpoint_and_stays_the_same_folder(src, dst, tmp_path):
    convert(src, tmp_path / "whole")
    dst.mkdir(mode=0o751)
    before = dst.stat()
    convert(src, dst)
    assert contents(dst) == contents(tmp_path / "whole")
    assert (dst.stat().st_ino, dst.stat().st_mode) == (before.st_ino, before.st_mode)


def test_interrupt_in_an_empty_folder_is_gone_on_with(src, dst, tmp_path):
    convert(src, tmp_path / "whole")
    dst.mkdir()
    with pytest.raises(KeyboardInterrupt):
        convert(src, dst, jobs=1, progress=stop_after(2))
    assert not [name for name in os.listdir(dst) if not name.startswith(".")]
    convert(src, dst)
    assert contents(dst) == contents(tmp_path / "whole")


@pytest.mark.parametrize("start", ["absent", "empty", "overwrite"])
def test_cut_at_any_step_the_next_run_finishes(src, dst, tmp_path, start):
    convert(src, tmp_path / "whole")
    whole = contents(tmp_path / "whole")
    old = copy_fixture(tmp_path / "kept", PACKED)
    step, done = 0, DIED
    while done:
        step += 1
        clear(dst)
        if start == "empty":
            dst.mkdir()
        elif start == "overwrite":
            shutil.copytree(old, dst)

        def dying(step=step):
            with stepping(step, die):
                convert(src, dst, overwrite=start == "overwrite", jobs=1)
            return 0

        done = forked(dying)
        assert done in (0, DIED)
        there = contents(dst) if (dst / "config.json").exists() else {}
        there = {name: data for name, data in there.items() if not name.startswith(".")} or None
        assert there in (None, whole, contents(old)), f"step {step}: half of an output"
        try:
            convert(src, dst, overwrite=start == "overwrite")
        except qbridge.QBridgeError as fault:
            assert there == whole and {f.code for f in fault.findings} == {"QB031"}
        assert contents(dst) == whole, f"step {step}"
        only_neighbours(tmp_path, "src", "whole", "kept", "dst")
    assert step > 30


def test_rename_that_is_refused_at_first_is_tried_again(src, dst, monkeypatch):
    rename, tries = Path.rename, []

    def scanner(here, there):
        tries.append(here)
        if len(tries) < 3:
            raise PermissionError(13, "a virus scanner looks at it")
        return rename(here, there)

    monkeypatch.setattr(Path, "rename", scanner)
    assert convert(src, dst).layers == 14 and len(tries) == 3


def test_mount_point_with_content_is_refused_before_anything_is_written(src, dst, monkeypatch):
    shutil.copytree(src, dst)
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == dst)
    with pytest.raises(qbridge.QBridgeError) as excinfo:
        convert(src, dst, overwrite=True)
    assert codes(excinfo) == {"QB031"}
    only_neighbours(src.parent, "src", "dst")


# the disk


def test_disk_that_is_too_small_is_said_before_the_first_byte(src, dst, monkeypatch):
    usage = shutil.disk_usage(src)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10_000))
    with pytest.raises(qbridge.QBridgeError) as excinfo:
        convert(src, dst)
    assert codes(excinfo) == {"QB402"} and excinfo.value.exit_code == 4
    assert "10000 are free" in excinfo.value.findings[0].facts[0]
    only_neighbours(src.parent, "src")


@pytest.mark.parametrize("case", [SHARDED, PACKED])
def test_what_the_disk_does_not_give_back_is_found(tmp_path, dst, monkeypatch, case):
    src, pwrite = copy_fixture(tmp_path, case), os.pwrite
    monkeypatch.setattr(os, "copy_file_range", lambda *a: 0, raising=False)

    def damaged(out, data, offset):
        data = bytearray(data)
        if offset:
            data[len(data) // 2] ^= 1
        return pwrite(out, bytes(data), offset)

    monkeypatch.setattr(os, "pwrite", damaged)
    with pytest.raises(qbridge.QBridgeError) as excinfo:
        qbridge.convert(src, dst, "compressed-tensors")
    assert codes(excinfo) == {"QB403"} and excinfo.value.exit_code == 4
    only_neighbours(tmp_path, "src")
    assert qbridge.convert(src, dst, "compressed-tensors", proof=False).layers
    assert (dst / SINGLE).exists() or list(dst.glob("*.safetensors"))


def test_killed_program_is_gone_on_with(src, dst, tmp_path):
    convert(src, tmp_path / "whole")
    slow = "import os, time, sys; import qbridge; real = os.fsync\n"
    slow += "os.fsync = lambda f: (real(f), print(flush=True), time.sleep(0.1))\n"
    slow += f"qbridge.convert({str(src)!r}, {str(dst)!r}, 'lmdeploy', jobs=1)"
    with subprocess.Popen([sys.executable, "-c", slow], stdout=subprocess.PIPE) as process:
        for _ in range(6):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    assert not dst.exists() and journal(dst).exists()
    convert(src, dst)
    assert contents(dst) == contents(tmp_path / "whole")
    only_neighbours(tmp_path, "src", "whole", "dst")


def test_kills_at_random_instants_leave_no_half_output(tmp_path):
    seen = kills.kill(tmp_path, 8, layers=1, cases=("awq", "w8a8"))
    assert seen["kills"] == 8 and not any(kills.faults(seen).values()), seen
