"""Disks that fill, reads that fail, places that move: exit 4 or a refusal, and nothing of ours is left."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import qbridge
from qbridge.write import writer as sink
from support import SHARDED, cli, codes, contents, copy_fixture, journal, only_neighbours, part, small_checkpoint
from test_durability import PACKED, convert, cut

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")


@pytest.fixture
def src(tmp_path):
    return copy_fixture(tmp_path, SHARDED)


@pytest.fixture
def mount(tmp_path):
    """Mounts something at a folder for the time of a test."""
    mounted = []

    def at(folder, *options):
        folder.mkdir(exist_ok=True)
        if subprocess.run(["mount", *options, str(folder)], capture_output=True).returncode:
            pytest.skip("mounting is not permitted")
        mounted.append(folder)
        return folder

    yield at
    for folder in reversed(mounted):
        subprocess.run(["umount", "-l", str(folder)], check=True)


def failing(code, after=0, real=None):
    """A call of os that fails for good after some that succeed."""
    left = [after]

    def call(*arguments, **options):
        left[0] -= 1
        if left[0] >= 0 and real:
            return real(*arguments, **options)
        raise OSError(code, os.strerror(code))

    return call


def fails(src, dst, wanted="QB401", exit_code=4, **options):
    with pytest.raises(qbridge.QBridgeError) as excinfo:
        convert(src, dst, **options)
    assert codes(excinfo) == set(wanted.split()) and excinfo.value.exit_code == exit_code, str(excinfo.value)
    return str(excinfo.value)


# full disks


@ROOT_ONLY
@pytest.mark.parametrize("start", ["absent", "empty", "overwrite", "mounted"])
@pytest.mark.parametrize("size", ["64k", "300k"])
def test_disk_that_fills_is_said_and_nothing_is_left(src, tmp_path, mount, monkeypatch, start, size):
    disk = mount(tmp_path / "disk", "-t", "tmpfs", "-o", f"size={size}", "none")
    dst = disk if start == "mounted" else disk / "dst"
    if start == "empty":
        dst.mkdir()
    elif start == "overwrite":
        dst.mkdir()
        (dst / "config.json").write_text("{}")
    before = contents(disk)
    usage = shutil.disk_usage(src)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    for _ in range(2):
        assert "No space left" in fails(src, dst, overwrite=start == "overwrite")
        assert contents(disk) == before and len(list(disk.iterdir())) == len(before) + (start == "empty")
    assert os.statvfs(disk).f_bavail >= os.statvfs(disk).f_blocks - 2


@ROOT_ONLY
def test_disk_that_fills_in_the_middle_of_a_resumed_conversion_leaves_nothing(src, tmp_path, mount, monkeypatch):
    disk = mount(tmp_path / "disk", "-t", "tmpfs", "-o", "size=3m", "none")
    finished = cut(src, disk / "dst")
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_bsize
    (disk / "other").write_bytes(bytes(free - 8192))
    assert finished and set(os.listdir(disk)) == {part(disk / "dst").name, journal(disk / "dst").name, "other"}
    kept = {name: data for name, data in contents(part(disk / "dst")).items() if name in finished}
    fails(src, disk / "dst", "QB402")  # found before the first byte: what is finished is worth keeping
    assert kept == contents(part(disk / "dst"))
    usage = shutil.disk_usage(src)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    fails(src, disk / "dst")
    assert os.listdir(disk) == ["other"]


@pytest.mark.parametrize("after", [0, 1, 3])
def test_line_of_the_journal_that_a_full_disk_cuts_off_is_an_error(src, dst, monkeypatch, after):
    write, left = os.write, [after]

    def short(descriptor, data):
        left[0] -= 1
        return write(descriptor, data if left[0] >= 0 else data[:5])

    monkeypatch.setattr(os, "write", short)
    assert "No space left" in fails(src, dst)
    only_neighbours(src.parent, "src")


# reads, writes and renames that fail


@pytest.mark.parametrize("case", [SHARDED, PACKED])
@pytest.mark.parametrize("after", [0, 1, 5, 20])
@pytest.mark.parametrize("jobs", [1, 4])
def test_failing_read_is_said_and_nothing_is_left(tmp_path, dst, monkeypatch, case, after, jobs):
    src = copy_fixture(tmp_path, case)
    monkeypatch.setattr(os, "copy_file_range", failing(errno.EIO), raising=False)
    monkeypatch.setattr(os, "preadv", failing(errno.EIO, after, os.preadv))
    with pytest.raises(qbridge.QBridgeError) as excinfo:
        qbridge.convert(src, dst, "compressed-tensors", jobs=jobs)
    assert excinfo.value.exit_code == 4 and "Input/output error" in str(excinfo.value)
    only_neighbours(tmp_path, "src")


@pytest.mark.parametrize("call", ["pwrite", "fsync", "rename", "mkdir", "open", "ftruncate"])
@pytest.mark.parametrize("after", [0, 1, 3, 9])
def test_failing_call_leaves_nothing_and_hides_nothing(src, dst, monkeypatch, call, after):
    real, failed = getattr(os, call), []
    broken = failing(errno.EIO, after, real)

    def flaky(*arguments, **options):
        if call == "open" and not (arguments[1] & os.O_CREAT):
            return real(*arguments, **options)
        try:
            return broken(*arguments, **options)
        except OSError as fault:
            failed.append(fault.errno)
            raise

    with monkeypatch.context() as patch:
        patch.setattr(os, call, flaky)
        try:
            convert(src, dst)
        except qbridge.QBridgeError as fault:
            assert fault.exit_code == 4
    if errno.EIO in failed and not dst.exists():
        only_neighbours(src.parent, "src")
    else:
        assert (dst / "config.json").exists()
        convert(src, src.parent / "whole")
        assert contents(dst) == contents(src.parent / "whole")


@pytest.mark.parametrize("mode", ["removed", "folder removed"])
@pytest.mark.parametrize("jobs", [1, 2])
def test_source_that_vanishes_is_said_and_nothing_is_left(src, dst, mode, jobs):
    last = sorted(src.glob("*.safetensors"))[-1]

    def vanish(at):
        if at.shards_done == 1:
            last.unlink(missing_ok=True) if mode == "removed" else shutil.rmtree(src, ignore_errors=True)

    fails(src, dst, jobs=jobs, progress=vanish)
    assert sorted(entry.name for entry in dst.parent.iterdir()) in (["src"], [])


def test_error_while_files_move_into_an_empty_folder_is_finished_by_the_next_run(src, dst, tmp_path, monkeypatch):
    convert(src, tmp_path / "whole")
    dst.mkdir()
    rename = Path.rename

    def broken(here, there):
        if here.name.endswith("2-of-00004.safetensors"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(here, there)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", broken)
        fails(src, dst)
    assert not (dst / "config.json").exists() and part(dst / dst.name).exists()
    convert(src, dst)
    assert contents(dst) == contents(tmp_path / "whole")


def test_rename_that_is_refused_for_good_leaves_nothing(src, dst, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(Path, "rename", failing(errno.EACCES))
    fails(src, dst)
    only_neighbours(src.parent, "src")


def test_file_systems_without_locks_copies_and_folder_flushes_are_good_enough(src, dst, monkeypatch, tmp_path):
    convert(src, tmp_path / "whole")
    fsync, calls = os.fsync, []

    def no_folders(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            calls.append(descriptor)
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return fsync(descriptor)

    monkeypatch.setattr(os, "fsync", no_folders)
    monkeypatch.setattr(fcntl, "flock", failing(errno.EOPNOTSUPP))
    monkeypatch.delattr(os, "copy_file_range", raising=False)
    cut(src, dst)
    convert(src, dst)
    assert calls and contents(dst) == contents(tmp_path / "whole")
    only_neighbours(tmp_path, "src", "whole", "dst")


# places


@ROOT_ONLY
def test_read_only_disk_is_an_io_error(src, tmp_path, mount):
    disk = mount(tmp_path / "disk", "-t", "tmpfs", "-o", "size=1m,ro", "none")
    fails(src, disk / "dst")
    fails(src, disk / "deep" / "dst")
    fails(src, disk)
    assert not list(disk.iterdir())


@ROOT_ONLY
@pytest.mark.parametrize("kind", ["tmpfs", "bind"])
def test_mount_point_is_staged_inside(src, tmp_path, mount, kind):
    convert(src, tmp_path / "whole")
    (tmp_path / "volume").mkdir()
    options = ["-t", "tmpfs", "none"] if kind == "tmpfs" else ["--bind", str(tmp_path / "volume")]
    dst = mount(tmp_path / "dst", *options)
    finished = cut_inside(src, dst)
    before = {name: (dst / f".{dst.name}.qbridge-part" / name).stat().st_ino for name in finished}
    convert(src, dst)
    assert contents(dst) == contents(tmp_path / "whole")
    assert before == {name: (dst / name).stat().st_ino for name in finished} and before
    assert convert(src, dst).already_done
    fails(src, dst, "QB031", 1, overwrite=True)  # before an hour of work, not after it
    assert contents(dst) == contents(tmp_path / "whole")
    only_neighbours(tmp_path, "src", "whole", "volume", "dst")


def cut_inside(src, dst):
    def stop(at):
        if at.shards_done == 2 and at.bytes_done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(src, dst, jobs=1, progress=stop)
    return [file.name for file in (dst / f".{dst.name}.qbridge-part").glob("model-00001*")]


@pytest.mark.parametrize("name", [".", "../dst", "sub/.."])
def test_destination_without_a_name_of_its_own(src, dst, tmp_path, monkeypatch, name):
    convert(src, tmp_path / "whole")
    dst.mkdir()
    monkeypatch.chdir(dst)
    if "sub" in name:
        (dst / "sub").mkdir()
        with pytest.raises(qbridge.QBridgeError) as excinfo:
            convert(src, Path(name))
        assert codes(excinfo) == {"QB031"}
        only_neighbours(tmp_path, "src", "whole", "dst")
        return
    convert(src, Path(name))
    assert contents(dst) == contents(tmp_path / "whole")
    monkeypatch.chdir(src)
    convert(src, Path("..") / "dst", overwrite=True)
    assert contents(dst) == contents(tmp_path / "whole")
    only_neighbours(tmp_path, "src", "whole", "dst")


# what others do meanwhile


def once(function):
    done = []
    return lambda at: done or done.append(function())


def test_folder_that_appears_at_the_destination_meanwhile_is_not_removed(src, dst):
    def somebody():
        dst.mkdir()
        (dst / "thesis.txt").write_text("years")

    fails(src, dst, "QB031", 1, progress=once(somebody))
    assert contents(dst) == {"thesis.txt": b"years"}
    shutil.rmtree(dst)
    convert(src, dst)
    only_neighbours(src.parent, "src", "dst")


@pytest.mark.parametrize("name", ["thesis.txt", "config.json", "tokenizer.json"])
def test_file_that_appears_in_an_empty_destination_meanwhile_is_kept(src, dst, name):
    dst.mkdir()
    fails(src, dst, "QB031", 1, progress=once(lambda: (dst / name).write_text("years")))
    assert (dst / name).read_text() == "years"
    fails(src, dst, "QB031", 1)
    (dst / name).unlink()
    convert(src, dst)


def test_checkpoint_to_overwrite_that_is_no_checkpoint_any_more_is_kept(src, dst):
    shutil.copytree(src, dst)
    fails(src, dst, "QB031", 1, overwrite=True, progress=once((dst / "config.json").unlink))
    assert (dst / "tokenizer.json").exists()


def test_empty_folder_that_appears_meanwhile_gives_way(src, dst, tmp_path):
    convert(src, dst, progress=once(dst.mkdir))
    only_neighbours(tmp_path, "src", "dst")
    assert (dst / "config.json").exists()


def test_stage_beside_is_cleaned_where_the_destination_became_an_empty_folder(src, dst, tmp_path):
    cut(src, dst)
    dst.mkdir()
    convert(src, dst)
    only_neighbours(tmp_path, "src", "dst")


def test_rest_of_an_old_checkpoint_never_comes_back(src, dst, tmp_path, monkeypatch):
    shutil.copytree(src, dst)
    unlink = os.unlink

    def die(name, *, dir_fd=None):
        unlink(name, dir_fd=dir_fd) if dir_fd else unlink(name)
        if dir_fd:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "unlink", die)
        convert(src, dst, overwrite=True)
    shutil.rmtree(dst)
    convert(src, dst)
    convert(src, tmp_path / "whole")
    assert contents(dst) == contents(tmp_path / "whole")
    only_neighbours(tmp_path, "src", "dst", "whole")


def test_old_checkpoint_aside_is_not_removed_for_what_somebody_put_there(src, dst):
    old = dst.parent / ".dst.qbridge-old"
    shutil.copytree(src, old)
    before = contents(old)
    cut(src, src.parent / "other")
    part(src.parent / "other").rename(part(dst))
    journal(src.parent / "other").rename(journal(dst))
    dst.mkdir()
    (dst / "config.json").write_text("{}")
    fails(src, dst, "QB031", 1, overwrite=True)
    assert contents(old) == before and contents(dst) == {"config.json": b"{}"}


@pytest.mark.parametrize("suffix", ["old", "part", "trash"])
def test_what_a_killed_run_left_is_no_source(tmp_path, src, dst, suffix):
    here = src.rename(tmp_path / f".dst.qbridge-{suffix}")
    before = contents(here)
    fails(here, dst, "QB031", 1)
    assert contents(here) == before
    only_neighbours(tmp_path, here.name)


def test_shard_of_another_size_than_the_journal_says_is_written_again(src, dst, tmp_path):
    convert(src, tmp_path / "whole")
    os.truncate(part(dst) / cut(src, dst)[0], 100)
    convert(src, dst)
    assert contents(dst) == contents(tmp_path / "whole")


def test_stage_and_its_journal_reach_the_disk_before_a_shard_does(src, dst, monkeypatch):
    folders, fsync = [], os.fsync

    def noted(descriptor):
        folders.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        return fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    (src / "sub" / "inner").mkdir(parents=True)
    (src / "sub" / "inner" / "merges.txt").write_text("")
    convert(src, dst.parent / "new" / "dst")
    dst = dst.parent / "new" / "dst"
    shards = [number for number, name in enumerate(folders) if name.endswith(".safetensors")]
    assert folders.index(str(dst.parent)) < shards[0]
    assert {str(part(dst)), str(part(dst) / "sub" / "inner"), str(dst.parent.parent)} <= set(folders)


# processes


SLOW = """
import os, sys
import qbridge
from qbridge.write import writer as sink
real = os.fsync
def slow(descriptor):
    real(descriptor)
    print(flush=True)
    sys.stdin.readline()
os.fsync = slow
from qbridge.cli import main
sys.argv = ["qbridge", *sys.argv[1:]]
main()
"""


def slowly(*words):
    """A conversion that says a line at every flush and waits for one, or for the end of its input."""
    command = [sys.executable, "-c", SLOW, "convert", *map(str, words), "--jobs", "1"]
    pipe = subprocess.PIPE

    def heed_interrupts():  # a suite that runs in the background of a shell has them ignored, and would pass that on
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, preexec_fn=heed_interrupts)


def wait_for_flush(process, number):
    """Let a slow conversion go on until it waits at a flush with this number."""
    for passed in range(number):
        if passed:
            process.stdin.write("\n")
            process.stdin.flush()
        assert process.stdout.readline()


def test_second_process_is_refused_and_the_first_unharmed(src, dst, tmp_path):
    convert(src, tmp_path / "whole")
    with slowly(src, dst, "--to", "lmdeploy") as first:
        wait_for_flush(first, 4)
        first.send_signal(signal.SIGSTOP)  # however long the second takes to start
        second = cli("convert", src, dst, "--to", "lmdeploy", "--overwrite")
        first.send_signal(signal.SIGCONT)
        assert second.returncode == 1 and "QB031" in second.stderr and "another qbridge" in second.stderr
        assert not first.poll()
        first.communicate(timeout=60)
    assert first.returncode == 0
    assert contents(dst) == contents(tmp_path / "whole")
    only_neighbours(tmp_path, "src", "whole", "dst")


@pytest.mark.parametrize("signals", [[signal.SIGINT], [signal.SIGTERM], [signal.SIGTERM, signal.SIGINT]])
def test_signal_is_answered_with_130_and_the_next_run_goes_on(src, dst, tmp_path, signals):
    convert(src, tmp_path / "whole")
    with slowly(src, dst, "--to", "lmdeploy") as process:
        wait_for_flush(process, 8)
        for number in signals:
            process.send_signal(number)
            time.sleep(0.02)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130 or (len(signals) > 1 and process.returncode in (-2, -15)), said
    assert "Traceback" not in said or len(signals) > 1
    assert not dst.exists() and journal(dst).exists()
    convert(src, dst)
    assert contents(dst) == contents(tmp_path / "whole")
    only_neighbours(tmp_path, "src", "whole", "dst")


@pytest.mark.parametrize(("jobs", "size"), [(1, "1KB"), (16, "1KB"), (16, "1GB")])
def test_many_shards_and_threads_need_few_open_files(tmp_path, dst, jobs, size):
    src = small_checkpoint(tmp_path / "src", 30, 200)

    def limited():
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

    options = ["--to", "lmdeploy", "--jobs", jobs, "--max-shard-size", size]
    done = cli("convert", src, dst, *options, preexec_fn=limited)
    assert done.returncode == 0, done.stderr
    assert (len(list(dst.glob("*.safetensors"))) == 1) == (size == "1GB")


def test_second_interrupt_closes_no_file_under_a_thread_that_writes(src, dst, monkeypatch):
    closed, real, close = [], sink.ThreadPoolExecutor.shutdown, sink._Writer.close

    def interrupted(pool, *arguments, **options):
        raise KeyboardInterrupt

    def watched(writer):
        outputs = list(writer._outputs)
        close(writer)
        closed.append(outputs != writer._outputs)

    monkeypatch.setattr(sink.ThreadPoolExecutor, "shutdown", interrupted)
    monkeypatch.setattr(sink._Writer, "close", watched)
    monkeypatch.setattr(sink._Writer, "_flush", failing(errno.EIO))
    with pytest.raises(KeyboardInterrupt):
        convert(src, dst)
    monkeypatch.setattr(sink.ThreadPoolExecutor, "shutdown", real)
    with pytest.raises(qbridge.QBridgeError):
        convert(src, dst)
    assert closed == [False, True] and not dst.exists()
