"""--link: files whose bytes do not change are linked, the rest is written, and no source is ever written to."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

import qbridge
from qbridge.commands.planning import prepare
from qbridge.plan.links import rewritten_layers
from qbridge.plan.options import Options
from qbridge.plan.survey import survey
from qbridge.targets.registry import find_target
from qbridge.write import links, writer
from support import (
    INDEX,
    SHARDED,
    cli,
    codes,
    contents,
    copy_fixture,
    edit_json,
    facts,
    only_neighbours,
    rewrite_tensors,
)
from test_graft import LOST, raw

W8A8 = "compressed-tensors"


@pytest.fixture(autouse=True)
def without_shared_blocks(monkeypatch):
    """As on ext4, whatever file system the tests run on."""
    monkeypatch.setattr(links, "_share_blocks", refuse)


@pytest.fixture
def src(tmp_path):
    """A checkpoint in several files, each to be written by no one."""
    return copy_fixture(tmp_path, SHARDED)


def shards(folder):
    return sorted(folder.glob("*.safetensors"))


def refuse(*arguments):
    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))


def share(file, to):
    """What a file system that shares blocks gives: a file of its own."""
    shutil.copyfile(file, to)


def test_unchanged_files_are_the_same_files_and_only_small_ones_are_written(src, tmp_path):
    before = contents(src)
    edit_json(src / "config.json", lambda config: config["quantization_config"]["ignore"].append("nothing.such"))
    report = qbridge.convert(src, tmp_path / "dst", W8A8, link=True)
    assert report.links == {"hard link": len(shards(src))}
    assert all(os.path.samefile(*pair) for pair in zip(shards(src), shards(tmp_path / "dst"), strict=True))
    assert qbridge.verify(src, tmp_path / "dst").same
    plain = qbridge.convert(src, tmp_path / "plain", W8A8)
    assert not plain.links and raw(tmp_path / "plain") == raw(tmp_path / "dst")
    for name in ("config.json", INDEX, "qbridge.json"):
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "dst" / name).read_bytes()
    qbridge.restore(tmp_path / "dst", tmp_path / "back", link=True)
    assert all(os.path.samefile(*pair) for pair in zip(shards(src), shards(tmp_path / "back"), strict=True))
    assert {n: d for n, d in contents(src).items() if n != "config.json"} == {
        n: d for n, d in before.items() if n != "config.json"
    }


def test_blocks_are_shared_where_the_file_system_can(src, tmp_path, monkeypatch):
    monkeypatch.setattr(links, "_share_blocks", share)
    assert qbridge.convert(src, tmp_path / "dst", W8A8, link=True).links == {"shared blocks": len(shards(src))}
    assert not any(os.path.samefile(*pair) for pair in zip(shards(src), shards(tmp_path / "dst"), strict=True))
    assert raw(src) == raw(tmp_path / "dst")


def test_shared_blocks_of_another_file_are_no_link(src, tmp_path, monkeypatch):
    monkeypatch.setattr(links, "_share_blocks", lambda file, to: to.write_bytes(file.read_bytes()[:-1] + b"?!"))
    with pytest.raises(qbridge.QBridgeError, match="QB403"):
        qbridge.convert(src, tmp_path / "dst", W8A8, link=True)
    only_neighbours(tmp_path, "src")


def test_symbolic_links_need_the_source_and_are_read_if_they_are_allowed(src, tmp_path, monkeypatch):
    monkeypatch.setattr(links.os, "link", refuse)
    report = qbridge.convert(src, tmp_path / "dst", W8A8, link=True)
    assert report.links == {"symbolic link": len(shards(src))}
    assert "QB327" in {finding.code for finding in report.findings}
    assert all(file.is_symlink() and file.readlink().is_absolute() for file in shards(tmp_path / "dst"))
    with pytest.raises(qbridge.QBridgeError, match="QB006"):
        qbridge.verify(src, tmp_path / "dst")
    assert qbridge.verify(src, tmp_path / "dst", allow=["outside-links"]).same
    qbridge.restore(tmp_path / "dst", tmp_path / "back", allow=["outside-links"])
    assert raw(tmp_path / "back") == raw(src)


def test_a_name_that_leaves_the_folder_is_never_allowed(src):
    edit_json(src / INDEX, lambda index: index["weight_map"].update({"lm_head.weight": "../x.safetensors"}))
    with pytest.raises(qbridge.QBridgeError, match="QB006"):
        qbridge.convert(src, src.parent / "dst", W8A8, allow=["outside-links"])


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no second file system")
def test_another_file_system_gets_symbolic_links(src, tmp_path):
    if os.stat("/dev/shm").st_dev == os.stat(tmp_path).st_dev:
        pytest.skip("the same file system")
    out = Path("/dev/shm") / f"{tmp_path.parent.name}-{tmp_path.name}"
    try:
        report = qbridge.convert(src, out, W8A8, link=True)
        assert report.links == {"symbolic link": len(shards(src))}
        assert raw(out) == raw(src)
    finally:
        shutil.rmtree(out)


def test_without_any_link_the_conversion_is_refused_and_nothing_stays(src, tmp_path, monkeypatch):
    monkeypatch.setattr(links.os, "link", refuse)
    monkeypatch.setattr(links.os, "symlink", refuse)
    with pytest.raises(qbridge.QBridgeError, match="QB326"):
        qbridge.convert(src, tmp_path / "dst", W8A8, link=True)
    only_neighbours(tmp_path, "src")


def test_files_of_a_cache_are_linked_not_the_links_to_them(src, tmp_path):
    home = tmp_path / "models--a--b"
    blobs, snapshot = home / "blobs", home / "snapshots" / "0f"
    blobs.mkdir(parents=True)
    shutil.copytree(src, snapshot)
    for number, file in enumerate(shards(snapshot)):
        blob = blobs / f"{number:064x}"
        file.rename(blob)
        file.symlink_to(Path("../../blobs") / blob.name)
    report = qbridge.convert(snapshot, tmp_path / "dst", W8A8, link=True)
    assert report.links == {"hard link": len(shards(src))}
    assert not any(file.is_symlink() for file in shards(tmp_path / "dst"))
    shutil.rmtree(home)
    assert raw(tmp_path / "dst") == raw(src)


def test_where_every_file_changes_nothing_is_linked_and_it_is_said_why(src, tmp_path):
    for options in ({"rename_prefix": {"model": "m"}}, {"max_shard_size": 10**5}):
        with pytest.raises(qbridge.QBridgeError) as refused:
            qbridge.convert(src, tmp_path / "dst", W8A8, link=True, allow=["incomplete"], **options)
        assert codes(refused) == {"QB326"} and ".safetensors: " in facts(refused.value.findings)
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.convert(src, tmp_path / "dst", "lmdeploy", link=True)
    assert codes(refused) == {"QB326"} and "is made" in facts(refused.value.findings)
    only_neighbours(tmp_path, "src")


def test_where_some_files_change_the_others_are_linked(src, tmp_path):
    report = qbridge.convert(src, tmp_path / "dst", W8A8, link=True, rename_prefix={"lm_head": "model.lm_head"})
    found = [finding for finding in report.findings if finding.code == "QB325"]
    assert len(found) == 1 and report.links == {"hard link": len(shards(src)) - 1}
    assert "lm_head.weight is called model.lm_head.weight" in facts(found)
    assert qbridge.verify(src, tmp_path / "dst").same


def test_a_graft_adds_a_file_beside_linked_ones(tmp_path):
    src = shutil.copytree(LOST / "quantized", tmp_path / "src")  # on the file system of the output
    report = qbridge.convert(src, tmp_path / "dst", "vllm", graft=LOST / "original", link=True)
    assert report.links == {"hard link": 1} and len(report.files) == 2
    assert "QB325" not in {finding.code for finding in report.findings}
    assert qbridge.verify(src, tmp_path / "dst").same


def test_what_lies_in_no_safetensors_file_is_not_linked(tmp_path):
    torch = pytest.importorskip("torch")
    src = copy_fixture(tmp_path, "compressed_tensors/llama_w8a8")
    from safetensors.torch import load_file

    torch.save(load_file(src / "model.safetensors"), src / "pytorch_model.bin")
    (src / "model.safetensors").unlink()
    with pytest.raises(qbridge.QBridgeError, match="QB326"):
        qbridge.convert(src, tmp_path / "dst", W8A8, link=True, allow=["pickle"])


def test_an_interrupted_run_never_opens_a_link_for_writing(src, tmp_path, monkeypatch):
    before = contents(src)
    real = writer.write_document

    def cut(path, value):
        raise KeyboardInterrupt

    monkeypatch.setattr(writer, "write_document", cut)
    with pytest.raises(KeyboardInterrupt):
        qbridge.convert(src, tmp_path / "dst", W8A8, link=True)
    monkeypatch.setattr(writer, "write_document", real)
    assert contents(src) == before
    qbridge.convert(src, tmp_path / "dst", W8A8)  # the same names, written this time
    assert contents(src) == before
    assert not any(os.path.samefile(*pair) for pair in zip(shards(src), shards(tmp_path / "dst"), strict=True))
    qbridge.convert(src, tmp_path / "dst", W8A8, link=True, overwrite=True)
    qbridge.convert(src, tmp_path / "dst", W8A8, overwrite=True)
    assert contents(src) == before and raw(tmp_path / "dst") == raw(src)


def test_a_stage_of_links_that_was_left_behind_is_not_written_through(src, tmp_path):
    """A journal that claims another conversion, and links to the source where files are to be written."""
    before, part = contents(src), tmp_path / ".dst.qbridge-part"
    part.mkdir()
    for file in shards(src):
        os.link(file, part / file.name)
    (tmp_path / ".dst.qbridge-journal").write_text(json.dumps({"identity": "another"}) + "\n")
    qbridge.convert(src, tmp_path / "dst", W8A8)
    assert contents(src) == before and all(os.stat(file).st_nlink == 1 for file in shards(src))


def test_links_read_no_scales_and_need_no_room(src, tmp_path, monkeypatch):
    """What is not written is not surveyed, and does not count against the disk."""
    asked = []
    monkeypatch.setattr("qbridge.write.staging._check_space", lambda paths, size: asked.append(size))
    monkeypatch.setattr("qbridge.plan.survey._check_finite", lambda *arguments: asked.append("survey"))
    qbridge.convert(src, tmp_path / "dst", W8A8, link=True)
    assert len(asked) == 1 and asked[0] < 10**5 < sum(file.stat().st_size for file in shards(src))


def test_scales_of_layers_that_are_written_are_surveyed_all_the_same(tmp_path):
    src = copy_fixture(tmp_path, "gptq/llama_640")
    with qbridge.open(src) as opened:
        plan = prepare(opened, find_target("vllm"), Options(tp=(2,), link=True))
    written = rewritten_layers(plan)
    assert "model.layers.0.mlp.down_proj" in written
    name = "model.layers.0.mlp.down_proj.scales"
    rewrite_tensors(src, lambda tensors: tensors[name].fill(float("nan")))
    with qbridge.open(src) as opened:
        survey(opened.source, opened.model, opened.findings, {"model.layers.0.mlp.up_proj"})
        assert not opened.findings.errors
        survey(opened.source, opened.model, opened.findings, written)
        assert [finding.code for finding in opened.findings.errors] == ["QB017"]
    with pytest.raises(qbridge.QBridgeError, match="QB017"):
        qbridge.convert(src, tmp_path / "dst", "vllm", tp=2, link=True)


def test_a_dry_run_links_nothing_and_the_command_line_says_what_was(src, tmp_path):
    assert not qbridge.convert(src, tmp_path / "dst", W8A8, link=True, dry_run=True).links
    only_neighbours(tmp_path, "src")
    done = cli("convert", src, tmp_path / "dst", "--to", W8A8, "--link")
    assert done.returncode == 0 and f"linked     {len(shards(src))} by hard link" in done.stdout
    assert cli("restore", tmp_path / "dst", tmp_path / "back", "--link").returncode == 0
