"""The same command again on its own output, and what `clean` removes."""

from __future__ import annotations

import fcntl
import json
import os
import shutil

import pytest

import qbridge
from support import SHARDED, SINGLE, cli, codes, contents, copy_fixture, journal, only_neighbours, part
from test_durability import convert, cut


@pytest.fixture
def src(tmp_path):
    return copy_fixture(tmp_path, SHARDED)


@pytest.fixture
def dst(tmp_path):
    return tmp_path / "dst"


# done already


def test_same_command_again_finds_its_output(src, dst):
    first = qbridge.convert(src, dst, "lmdeploy")
    before = {file: file.stat().st_mtime_ns for file in dst.rglob("*")}
    again = qbridge.convert(src, dst, "lmdeploy")
    assert again.already_done and not first.already_done and again.files == first.files
    assert before == {file: file.stat().st_mtime_ns for file in dst.rglob("*")}
    done = cli("convert", src, dst, "--to", "lmdeploy")
    assert done.returncode == 0 and "already done" in done.stdout and "wrote" not in done.stdout


def flipped(path, name):
    """One bit of one tensor's last byte, the file as old as it was."""
    stamp = path.stat()
    with open(path, "r+b") as stream:
        length = int.from_bytes(stream.read(8), "little")
        end = json.loads(stream.read(length))[name]["data_offsets"][1]
        stream.seek(8 + length + end - 1)
        byte = stream.read(1)[0]
        stream.seek(8 + length + end - 1)
        stream.write(bytes([byte ^ 1]))
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.0.mlp.down_proj.weight"])
def test_another_model_of_the_same_headers_is_not_done_already(src, dst, name):
    """Two fine-tunes differ in values alone: what stands there is the other one's."""
    qbridge.convert(src, dst, "lmdeploy")
    flipped(next(file for file in sorted(src.glob("*.safetensors")) if name.encode() in file.read_bytes()), name)
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.convert(src, dst, "lmdeploy")
    assert [finding.code for finding in refused.value.findings] == ["QB031"]


@pytest.mark.parametrize(
    "kind", [("gptq/llama_640", "awq"), ("awq/llama_gemm", "dense"), ("compressed_tensors/llama_w4a16", "gptq")]
)
def test_codes_that_move_or_are_decoded_are_compared(tmp_path, dst, kind):
    fixture, target = kind
    src = copy_fixture(tmp_path, fixture)
    qbridge.convert(src, dst, target)
    assert qbridge.convert(src, dst, target).already_done
    codes_of = (".qweight", ".weight_packed")
    for file in src.glob("*.safetensors"):
        with open(file, "rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        for name in [name for name in header if name.endswith(codes_of)][:1]:
            flipped(file, name)
    with pytest.raises(qbridge.QBridgeError, match="QB031"):
        qbridge.convert(src, dst, target)


def test_another_side_file_of_the_same_size_is_not_done_already(src, dst):
    (src / "notes.txt").write_text("one")
    qbridge.convert(src, dst, "lmdeploy")
    stamp = (src / "notes.txt").stat()
    (src / "notes.txt").write_text("two")
    os.utime(src / "notes.txt", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    with pytest.raises(qbridge.QBridgeError):
        qbridge.convert(src, dst, "lmdeploy")


def test_same_restoration_again_finds_its_output(src, dst, tmp_path):
    qbridge.convert(src, dst, "lmdeploy")
    assert not qbridge.restore(dst, tmp_path / "back").already_done
    assert qbridge.restore(dst, tmp_path / "back").already_done


def test_overwrite_writes_again(src, dst):
    qbridge.convert(src, dst, "lmdeploy")
    assert not qbridge.convert(src, dst, "lmdeploy", overwrite=True).already_done


@pytest.mark.parametrize(
    "change",
    [
        lambda src, dst: (dst / "config.json").write_text("{}"),
        lambda src, dst: (dst / "qbridge.json").write_text("{}"),
        lambda src, dst: os.truncate(next(dst.glob("*.safetensors")), 1000),
        lambda src, dst: next(dst.glob("*.safetensors")).unlink(),
        lambda src, dst: (dst / "more.txt").write_text("mine"),
        lambda src, dst: (dst / "tokenizer.json").unlink(),
        lambda src, dst: os.utime(next(src.glob("*.safetensors"))),
        lambda src, dst: (src / "tokenizer.json").write_text("{}"),
    ],
    ids=["config", "manifest", "shard-cut", "shard-gone", "more", "side-gone", "source-touched", "side-changed"],
)
def test_any_other_output_is_in_the_way(src, dst, change):
    qbridge.convert(src, dst, "lmdeploy")
    change(src, dst)
    before = contents(dst)
    with pytest.raises(qbridge.QBridgeError) as excinfo:
        qbridge.convert(src, dst, "lmdeploy")
    assert codes(excinfo) == {"QB031"} and contents(dst) == before


def test_output_for_another_target_is_in_the_way(src, dst):
    qbridge.convert(src, dst, "lmdeploy")
    with pytest.raises(qbridge.QBridgeError) as excinfo:
        qbridge.convert(src, dst, "vllm")
    assert codes(excinfo) == {"QB031"}


# clean


def test_clean_removes_an_interrupted_run(src, dst, tmp_path):
    assert cut(src, dst)
    left = {str(part(dst)), str(journal(dst))}
    assert set(qbridge.clean(dst).removed) == left
    only_neighbours(tmp_path, "src")
    assert qbridge.clean(dst).removed == ()


def test_clean_removes_what_lies_inside_an_empty_folder(dst, tmp_path):
    dst.mkdir()
    stage = dst / part(dst).name
    stage.mkdir()
    (dst / journal(dst).name).write_text('{"identity": "x"}\n')
    (stage / SINGLE).write_bytes(b"half")
    assert list(dst.iterdir())
    qbridge.clean(dst)
    assert not list(dst.iterdir())
    only_neighbours(tmp_path, "dst")


def test_clean_leaves_a_finished_output(src, dst, tmp_path):
    convert(src, dst)
    before = contents(dst)
    cut(src, tmp_path / "other")
    assert qbridge.clean(dst).removed == () and contents(dst) == before
    assert part(tmp_path / "other").is_dir()


def test_clean_brings_back_what_was_moved_aside(src, dst, tmp_path):
    convert(src, dst)
    before = contents(dst)
    dst.rename(tmp_path / f".{dst.name}.qbridge-old")
    part(dst).mkdir()
    (part(dst) / SINGLE).write_bytes(b"half")
    journal(dst).write_text('{"identity": "x"}\n')
    qbridge.clean(dst)
    assert contents(dst) == before
    only_neighbours(tmp_path, "src", "dst")


def test_clean_waits_for_nobody_and_removes_nothing_of_others(dst, tmp_path):
    part(dst).mkdir()
    with open(journal(dst), "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = cli("clean", dst)
    assert done.returncode == 1 and "another qbridge is writing" in done.stderr and "--overwrite" not in done.stderr
    journal(dst).unlink()
    (part(dst) / "thesis.txt").write_text("years")
    with pytest.raises(qbridge.QBridgeError) as excinfo:
        qbridge.clean(dst)
    assert codes(excinfo) == {"QB031"} and (part(dst) / "thesis.txt").exists()
    shutil.rmtree(part(dst))


def test_clean_says_what_it_removed(src, dst):
    cut(src, dst)
    done = cli("clean", dst)
    assert done.returncode == 0 and str(part(dst)) in done.stdout and "freed" in done.stdout
    assert "nothing" in cli("clean", dst).stdout


# what the system refuses


@pytest.mark.parametrize("name", ["n" * 300, "n" * 245])
def test_name_that_is_too_long_is_said(src, name):
    done = cli("convert", src, src.parent / name, "--to", "lmdeploy")
    assert done.returncode == 4 and "shorter name" in done.stderr and "permission" not in done.stderr


def test_destination_below_a_file_is_said(src):
    done = cli("convert", src, src / "config.json" / "dst", "--to", "lmdeploy")
    assert done.returncode in (1, 4) and "permission" not in done.stderr and "room" not in done.stderr
    (src.parent / "file").touch()
    done = cli("convert", src, src.parent / "file" / "dst", "--to", "lmdeploy")
    assert done.returncode == 4 and "Correct the path" in done.stderr
