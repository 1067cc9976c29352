"""What is written: shards planned to the byte, the same bytes every time, and nothing unless all of it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from pathlib import Path

import pytest
from safetensors import safe_open

import qbridge
from qbridge.ir.dtypes import DType, nbytes
from qbridge.plan.output_files import index_of, plan_shards
from qbridge.plan.plan import OutputTensor
from qbridge.source.storage import File
from qbridge.testing import Memory
from qbridge.write.budget import Effort
from support import INDEX, SHARDED, SINGLE, cli, codes, contents, copy_fixture, journal, only_neighbours, part

TIED = "compressed_tensors/qwen2_w8a8_tied"


@pytest.fixture
def src(tmp_path):
    return copy_fixture(tmp_path, SHARDED)


def header_of(path):
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), 8 + length, len(data)


PLACE = Memory({})


def file(name):
    """A shard of the source that is never read."""
    return File(PLACE, name)


def outputs(*sizes, dtype=DType.I8, shard="s"):
    return [OutputTensor(f"t{number:02}", dtype, (size,), file(shard)) for number, size in enumerate(sizes)]


def names(shards):
    return [[tensor.name for tensor in shard.tensors] for shard in shards]


# what it may use


@pytest.mark.parametrize("memory", [64 * 10**6, 512 * 10**6, 4 * 10**9])
@pytest.mark.parametrize("jobs", [0, 1, 2, 16, 256])
def test_threads_are_as_many_as_the_memory_is_enough_for(jobs, memory):
    """On a node of 192 cores each thread's floats took 20 MB of the 512."""
    effort = Effort(jobs, memory)
    assert 1 <= effort.threads <= (jobs or os.cpu_count())
    assert effort.threads * max(24 << 20, 4 * effort.block) <= memory
    assert Effort(256, memory).threads == memory // (24 << 20)


def test_less_memory_than_any_conversion_takes_is_refused(src, dst):
    with pytest.raises(ValueError, match="64 MB at least"):
        qbridge.convert(src, dst, "lmdeploy", memory=63 * 10**6)
    done = cli("convert", src, dst, "--to", "lmdeploy", "--memory", "63MB")
    assert done.returncode == 2 and "--memory" in done.stderr and not dst.exists()


# planning


def test_shards_end_where_the_source_ends_its_own():
    one, two, three = (OutputTensor(name, DType.I8, (1,), file(shard)) for name, shard in ("aq", "bp", "cq"))
    shards = plan_shards([one, two, three])
    assert names(shards) == [["b"], ["a", "c"]]
    assert [shard.name for shard in shards] == [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]


def test_one_shard_has_the_plain_name():
    assert [shard.name for shard in plan_shards(outputs(1, 2))] == [SINGLE]


@pytest.mark.parametrize(
    ("limit", "wanted"),
    [
        (10, [["t00", "t01"], ["t02"], ["t03"]]),
        (9, [["t00"], ["t01"], ["t02"], ["t03"]]),
        (16, [["t00", "t01", "t02"], ["t03"]]),
        (100, [["t00", "t01", "t02", "t03"]]),
        (1, [["t00"], ["t01"], ["t02"], ["t03"]]),
    ],
)
def test_shards_are_filled_up_to_the_limit(limit, wanted):
    assert names(plan_shards(outputs(5, 5, 6, 30), limit)) == wanted


def test_tensor_beyond_the_limit_has_a_shard_of_its_own():
    assert names(plan_shards(outputs(2, 50, 2, 2), 10)) == [["t00"], ["t01"], ["t02", "t03"]]


def test_limit_counts_across_the_shards_of_the_source():
    small = [OutputTensor(name, DType.I8, (1,), file(name)) for name in "abcd"]
    assert names(plan_shards(small, 2)) == [["a", "b"], ["c", "d"]]


def test_parts_of_a_layer_stay_in_one_shard_where_the_limit_allows():
    parts = [
        OutputTensor(f"l{n}.{part}", DType.I8, (1,), file("s"), layer=f"l{n}") for part in "xy" for n in range(3)
    ]
    assert names(plan_shards(parts, 2)) == [["l0.x", "l0.y"], ["l1.x", "l1.y"], ["l2.x", "l2.y"]]


def test_tensors_lie_aligned_without_holes_and_the_header_says_where():
    kinds = (DType.I8, DType.F16, DType.F32, DType.F64, DType.BF16, DType.BOOL, DType.I64)
    drawn = [OutputTensor(f"t{n}", kind, (n % 4, 3), file("s")) for n, kind in enumerate(kinds * 3)]
    (shard,) = plan_shards(drawn)
    position = len(shard.header)
    header = json.loads(shard.header[8:])
    for tensor, offset in zip(shard.tensors, shard.offsets, strict=True):
        assert offset == position and offset % tensor.dtype.itemsize == 0
        position += nbytes(tensor.dtype, tensor.shape)
        begin, end = header[tensor.name]["data_offsets"]
        assert (len(shard.header) + begin, len(shard.header) + end) == (offset, position)
    assert shard.size == position and len(shard.tensors) == len(drawn)


@pytest.mark.parametrize("count", range(1, 9))
def test_header_is_padded_to_eight_bytes(count):
    (shard,) = plan_shards([OutputTensor("t" * count, DType.F64, (1,), file("s"))])
    assert len(shard.header) % 8 == 0
    assert int.from_bytes(shard.header[:8], "little") == len(shard.header) - 8


def test_index_counts_the_bytes_of_tensors_only():
    shards = plan_shards(outputs(5, 5, 6, dtype=DType.F32), 24)
    assert index_of(shards)["metadata"] == {"total_size": 64}
    assert index_of(shards)["weight_map"] == {t.name: s.name for s in shards for t in s.tensors}


# files


@pytest.mark.parametrize("limit", [None, 10**5, 3 * 10**5, 10**9])
def test_written_shards_load_and_agree_with_their_index(src, dst, limit):
    done = qbridge.convert(src, dst, "lmdeploy", max_shard_size=limit)
    total, found = 0, {}
    for file in dst.glob("*.safetensors"):
        with safe_open(file, "np") as opened:
            assert opened.metadata() == {"format": "pt"}
            assert opened.keys()
        header, start, size = header_of(file)
        del header["__metadata__"]
        begins = {name: start + entry["data_offsets"][0] for name, entry in header.items()}
        assert all(begin % DType(header[name]["dtype"]).itemsize == 0 for name, begin in begins.items())
        assert size == done.files[file.name]
        assert limit is None or size - start <= limit or len(header) == 1
        total += size - start
        found.update(dict.fromkeys(header, file.name))
    assert len(found) == done.tensors
    if len(done.files) > 1:
        index = json.loads((dst / INDEX).read_text())
        assert index == {"metadata": {"total_size": total}, "weight_map": found}
    else:
        assert not (dst / INDEX).exists() and list(done.files) == [SINGLE]


@pytest.mark.parametrize("case", [SHARDED, TIED, "compressed_tensors/llama_w8a8_rope"])
def test_output_is_the_same_wherever_it_lies(tmp_path, monkeypatch, case):
    one, two = copy_fixture(tmp_path / "one", case), copy_fixture(tmp_path / "two" / "deeper", case)
    qbridge.convert(one, tmp_path / "a", "lmdeploy")
    qbridge.convert(one, tmp_path / "b", "lmdeploy")
    monkeypatch.chdir(two.parent)
    qbridge.convert("src", "c", "lmdeploy")
    assert contents(tmp_path / "a") == contents(tmp_path / "b") == contents(two.parent / "c")


def test_tensors_that_are_not_quantized_keep_their_bytes(src, dst):
    def tensors(folder):
        for file in folder.glob("*.safetensors"):
            (header, start, _), data = header_of(file), file.read_bytes()
            for name, entry in header.items():
                if name != "__metadata__" and "scale" not in name:
                    begin, end = entry["data_offsets"]
                    yield name, (entry["dtype"], entry["shape"], data[start + begin : start + end])

    qbridge.convert(src, dst, "lmdeploy")
    assert dict(tensors(src)) == dict(tensors(dst))


def test_output_of_a_format_by_itself_is_the_source(src, dst):
    qbridge.convert(src, dst, "compressed-tensors")
    before, after = contents(src), contents(dst)
    assert {k: v for k, v in before.items() if k.endswith("safetensors")} == {
        k: v for k, v in after.items() if k.endswith("safetensors")
    }


def test_side_files_are_carried_over_byte_for_byte(src, dst):
    extra = {"sub/inner/merges.bin.txt": bytes(range(256)), "empty.txt": b"", "name with ümlaut.md": b"\r\n\0"}
    for name, data in extra.items():
        (src / name).parent.mkdir(parents=True, exist_ok=True)
        (src / name).write_bytes(data)
    (src / ".git").mkdir()
    (src / ".git" / "config").write_text("hidden")
    (src / ".gitignore").write_text("hidden")
    qbridge.convert(src, dst, "smooth-quant")
    written = contents(dst)
    kept = {name: data for name, data in contents(src).items() if not name.startswith((".git", "model", "config."))}
    assert extra.keys() <= kept.keys() and "tokenizer.json" in kept
    assert {name: written.get(name) for name in kept} == kept
    assert not any(name.startswith(".") for name in written)


def test_manifest_of_the_source_is_not_taken_for_a_side_file(src, tmp_path):
    qbridge.convert(src, tmp_path / "there", "lmdeploy")
    qbridge.convert(tmp_path / "there", tmp_path / "back", "compressed-tensors")
    assert json.loads((tmp_path / "back" / "qbridge.json").read_text())["target"]["name"] == "compressed-tensors"


@pytest.mark.parametrize("target", ["lmdeploy", "compressed-tensors"])
def test_source_is_never_written(src, dst, target):
    def state():
        return {
            path: (path.stat().st_mtime_ns, path.stat().st_mode, path.is_file() and path.read_bytes())
            for path in [src, *src.rglob("*")]
        }

    before = state()
    qbridge.convert(src, dst, target, max_shard_size=10**5)
    assert state() == before


def test_files_have_the_permissions_of_the_umask(src, dst):
    before = os.umask(0o022)
    try:
        qbridge.convert(src, dst, "lmdeploy")
    finally:
        os.umask(before)
    assert {file.name: oct(file.stat().st_mode & 0o777) for file in dst.iterdir()} == dict.fromkeys(
        (file.name for file in dst.iterdir()), oct(0o644)
    )


def test_dry_run_plans_the_files_that_are_written(src, dst):
    planned = qbridge.convert(src, dst, "lmdeploy", dry_run=True)
    only_neighbours(src.parent, "src")
    written = qbridge.convert(src, dst, "lmdeploy")
    assert planned.files == written.files == {file.name: file.stat().st_size for file in dst.glob("*.safetensors")}


def test_progress_rises_to_all_of_the_bytes(src, dst):
    calls = []
    qbridge.convert(src, dst, "lmdeploy", progress=lambda at: calls.append((at.bytes_done, at.bytes_total)))
    assert calls == sorted(calls) and len({total for _, total in calls}) == 1
    assert calls[-1][0] == calls[-1][1]


# copying


def broken_copy(*arguments):
    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))


def half_a_copy():
    """The kernel's copy, which fails after its first call."""
    real, calls = os.copy_file_range, []

    def copy(source, target, size, *offsets):
        calls.append(size)
        return broken_copy() if len(calls) % 2 == 0 else real(source, target, max(1, size // 3), *offsets)

    return copy


@pytest.mark.skipif(not hasattr(os, "copy_file_range"), reason="the operating system has no copy_file_range")
@pytest.mark.parametrize(
    "copy",
    [broken_copy, half_a_copy(), lambda *arguments: 0, None],
    ids=["fails", "fails midway", "ends", "is missing"],
)
@pytest.mark.parametrize("case", [SHARDED, TIED])
def test_buffered_copy_writes_the_same_bytes(tmp_path, monkeypatch, case, copy):
    src, reads, preadv = copy_fixture(tmp_path, case), [], os.preadv
    qbridge.convert(src, tmp_path / "kernel", "lmdeploy")

    def counted(*arguments):
        reads.append(preadv(*arguments))
        return reads[-1]

    monkeypatch.setattr(os, "preadv", counted)
    monkeypatch.setattr("qbridge.write.jobs._COMPARED", 1000)
    qbridge.convert(src, tmp_path / "counted", "lmdeploy", proof=False)
    before = sum(reads)
    if copy:
        monkeypatch.setattr(os, "copy_file_range", copy)
    else:
        monkeypatch.delattr(os, "copy_file_range")
    qbridge.convert(src, tmp_path / "buffered", "lmdeploy", proof=False)
    assert sum(reads) > 3 * before
    assert contents(tmp_path / "kernel") == contents(tmp_path / "counted") == contents(tmp_path / "buffered")


def test_short_writes_are_finished(src, tmp_path, monkeypatch):
    qbridge.convert(src, tmp_path / "whole", "lmdeploy")
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda out, data, offset: pwrite(out, memoryview(data)[:4099], offset))
    monkeypatch.setattr(os, "copy_file_range", broken_copy, raising=False)
    qbridge.convert(src, tmp_path / "short", "lmdeploy")
    assert contents(tmp_path / "whole") == contents(tmp_path / "short")


def test_source_that_shrinks_while_it_is_copied_is_an_error(src, dst, monkeypatch):
    monkeypatch.setattr(os, "copy_file_range", broken_copy, raising=False)
    shards, done = sorted(src.glob("*.safetensors")), []

    def shrink(at):
        if not done:
            done.append(os.truncate(shards[-1], 5000))

    with pytest.raises(qbridge.QBridgeError) as excinfo:
        qbridge.convert(src, dst, "lmdeploy", progress=shrink)
    assert excinfo.value.exit_code == 3 and excinfo.value.findings[0].where == (shards[-1].name,)
    only_neighbours(src.parent, "src")


# one moment at which DST appears


def test_stale_part_is_cleaned(src, dst, tmp_path):
    qbridge.convert(src, tmp_path / "clean", "lmdeploy")
    (part(dst) / "folder").mkdir(parents=True)
    journal(dst).write_text("stale")
    for name in ("model-00001-of-00004.safetensors", "junk", "folder/junk"):
        (part(dst) / name).write_text("stale")
    (part(dst) / "link").symlink_to(src)
    before = contents(src)
    qbridge.convert(src, dst, "lmdeploy")
    assert contents(dst) == contents(tmp_path / "clean") and contents(src) == before
    only_neighbours(tmp_path, "src", "clean", "dst")


def test_part_that_another_process_writes_is_refused_and_kept(src, dst):
    part(dst).mkdir()
    (part(dst) / "model.safetensors").write_text("half")
    with open(journal(dst), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(qbridge.QBridgeError) as excinfo:
            qbridge.convert(src, dst, "lmdeploy")
    assert codes(excinfo) == {"QB031"}
    assert (part(dst) / "model.safetensors").read_text() == "half"
    only_neighbours(src.parent, "src", part(dst).name, journal(dst).name)


def test_two_conversions_to_one_destination_do_not_mix(src, dst):
    refused = []

    def again(at):
        if not refused:
            with pytest.raises(qbridge.QBridgeError) as excinfo:
                qbridge.convert(src, dst, "compressed-tensors")
            refused.extend(codes(excinfo))

    assert qbridge.convert(src, dst, "lmdeploy", progress=again).layers == 14
    assert refused == ["QB031"]
    only_neighbours(src.parent, "src", "dst")


def test_part_that_is_a_link_does_not_lead_elsewhere(src, dst):
    elsewhere = src.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "thesis.txt").write_text("years")
    part(dst).symlink_to(elsewhere)
    try:
        qbridge.convert(src, dst, "lmdeploy")
    except qbridge.QBridgeError as fault:
        assert fault.exit_code in (1, 4)
    assert contents(elsewhere) == {"thesis.txt": b"years"}
    assert not dst.is_symlink()


def interrupt(at):
    raise KeyboardInterrupt


def test_interrupt_leaves_nothing(src, dst):
    with pytest.raises(KeyboardInterrupt):
        qbridge.convert(src, dst, "lmdeploy", progress=interrupt)
    only_neighbours(src.parent, "src")
    assert qbridge.convert(src, dst, "lmdeploy").layers == 14


@pytest.fixture
def old(src, dst):
    """A checkpoint at DST that must outlive a failure; its contents."""
    shutil.copytree(src, dst)
    (dst / "old.txt").write_text("old")
    return contents(dst)


def test_interrupted_overwrite_keeps_the_old_checkpoint(src, dst, old):
    with pytest.raises(KeyboardInterrupt):
        qbridge.convert(src, dst, "lmdeploy", overwrite=True, progress=interrupt)
    assert contents(dst) == old
    only_neighbours(src.parent, "src", "dst")


def no_room(*arguments, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["pwrite", "fsync"])
def test_overwrite_that_fails_keeps_the_old_checkpoint(src, dst, old, monkeypatch, call):
    with monkeypatch.context() as patch, pytest.raises(qbridge.QBridgeError) as excinfo:
        patch.setattr(os, call, no_room)
        qbridge.convert(src, dst, "lmdeploy", overwrite=True)
    assert excinfo.value.exit_code == 4 and contents(dst) == old
    only_neighbours(src.parent, "src", "dst")


def test_overwrite_that_fails_at_the_last_rename_puts_the_old_checkpoint_back(src, dst, old, monkeypatch):
    rename, os_rename, os_replace = Path.rename, os.rename, os.replace

    def unless_part(real):
        return lambda one, other, **o: no_room() if Path(one) == part(dst) else real(one, other, **o)

    with monkeypatch.context() as patch, pytest.raises(qbridge.QBridgeError):
        patch.setattr(Path, "rename", unless_part(rename))
        patch.setattr(os, "rename", unless_part(os_rename))
        patch.setattr(os, "replace", unless_part(os_replace))
        qbridge.convert(src, dst, "lmdeploy", overwrite=True)
    assert dst.exists() and contents(dst) == old
    only_neighbours(src.parent, "src", "dst")


def test_old_checkpoint_that_a_killed_run_moved_aside_is_removed_by_the_next(src, dst, old):
    dst.rename(dst.parent / f".{dst.name}.qbridge-old")
    qbridge.convert(src, dst, "lmdeploy", overwrite=True)
    assert "old.txt" not in contents(dst)
    only_neighbours(src.parent, "src", "dst")


def test_overwrite_of_a_link_leaves_no_half_done_state(src, dst, old):
    real = dst.rename(dst.parent / "real")
    dst.symlink_to(real)
    try:
        qbridge.convert(src, dst, "lmdeploy", overwrite=True)
    except qbridge.QBridgeError:
        assert dst.is_symlink() and contents(dst) == old
    assert contents(real) == old
    only_neighbours(src.parent, "src", "dst", "real")


def test_missing_parents_of_the_destination_are_made(src):
    dst = src.parent / "a" / "b" / "dst"
    qbridge.convert(src, dst, "lmdeploy")
    only_neighbours(dst.parent, "dst")
