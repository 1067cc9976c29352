"""Conversions on a cluster of two nodes, by Ray's own fixture: the bytes of one run, whatever is lost meanwhile."""

from __future__ import annotations

import shutil

import pytest
from engine import ROOT, ask

import qbridge

pytestmark = pytest.mark.engine

GPTQ = ROOT / "fixtures/gptq/llama_g128/model"
SIZE = 100_000  # bytes of an output file, so that there are ten


@pytest.fixture(autouse=True)
def installed(tmp_path, monkeypatch):
    """The environment of Ray with this checkout, at the version that runs here: a manifest says it."""
    metadata = tmp_path / "installed/qbridge_llm-0.dist-info/METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text(f"Metadata-Version: 2.1\nName: qbridge-llm\nVersion: {qbridge.__version__}\n")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'bridge'}:{ROOT / 'formats'}:{metadata.parent.parent}")


def files_below(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def converted(src, dst, *options):
    return ask("ray", "ray_cluster.py", src, dst, "--max-shard-size", SIZE, *options)


@pytest.fixture(scope="module")
def in_one_run(tmp_path_factory):
    dst = tmp_path_factory.mktemp("one") / "dst"
    qbridge.convert(GPTQ, dst, "vllm", max_shard_size=SIZE)
    return files_below(dst)


@pytest.mark.parametrize("fault", ["none", "node", "worker"])
def test_a_cluster_writes_the_bytes_of_one_run(fault, tmp_path, in_one_run):
    report = converted(GPTQ, tmp_path / "dst", "--fault", fault)
    assert report["findings"] is None
    assert report["struck"] == (fault != "none")
    assert files_below(tmp_path / "dst") == in_one_run
    assert len(report["files"]) == len(set(report["files"])) >= 8
    assert report["done"]["command"] == "convert" and report["done"]["serve"].startswith("vllm serve ")


def test_a_cluster_is_reached_by_its_address(tmp_path, in_one_run):
    report = converted(GPTQ, tmp_path / "dst", "--client")
    assert report["findings"] is None and files_below(tmp_path / "dst") == in_one_run


@pytest.mark.parametrize(
    ("fault", "code", "fact"),
    [
        ("blind", "QB069", "it does not see what this machine writes at DST"),
        ("version", "QB069", "0.0.1 here"),
        ("source", "QB401", "No such file"),
        ("workers", "QB070", "died"),
    ],
)
def test_a_cluster_that_cannot_make_the_files_is_refused(fault, code, fact, tmp_path):
    src = shutil.copytree(GPTQ, tmp_path / "src")
    report = converted(src, tmp_path / "dst", "--fault", fault)
    assert report["struck"] and [each["code"] for each in report["findings"]] == [code]
    assert fact in " ".join(report["findings"][0]["facts"])
    assert not (tmp_path / "dst/config.json").exists()


def test_a_task_that_no_node_can_take_is_refused_at_once(tmp_path):
    report = converted(GPTQ, tmp_path / "dst", "--jobs", 64)
    assert [each["code"] for each in report["findings"]] == ["QB069"] and "64 CPUs" in str(report["findings"])
