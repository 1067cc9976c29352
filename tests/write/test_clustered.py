"""A conversion on a cluster of Ray: two nodes, one of them lost in the middle; clusters that cannot be used.

Ray is an extra; where it is not installed, nothing but the words of a command is tested.
"""

from __future__ import annotations

import sys

import pytest

import qbridge
from support import ROOT, cli

GPTQ = ROOT / "fixtures/gptq/llama_g128/model"
SMALL = {"max_shard_size": 100_000}


def files_below(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("word", ["dask", "ray://", "ray:", "Ray"])
def test_an_executor_that_there_is_not_is_a_usage_error(word, dst):
    done = cli("convert", GPTQ, dst, "--to", "vllm", "--executor", word)
    assert done.returncode == 2 and "ray://host:port" in " ".join(done.stderr.split()) and not dst.exists()
    with pytest.raises(ValueError, match="ray://host:port"):
        qbridge.convert_on_cluster(GPTQ, dst, "vllm", executor=word)


@pytest.mark.parametrize("other", [["--part", "1/2"], ["--dry-run"], ["--overwrite"], ["--config", "x"]])
def test_options_that_a_cluster_does_not_have_are_usage_errors(other, dst):
    done = cli("convert", GPTQ, dst, "--to", "vllm", "--executor", "ray", *other)
    assert done.returncode == 2 and "--executor" in done.stderr and not dst.exists()


def test_without_ray_the_extra_is_named_and_nothing_is_written(dst, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(qbridge.QBridgeError) as caught:
        qbridge.convert_on_cluster(GPTQ, dst, "vllm")
    assert [each.code for each in caught.value.findings] == ["QB603"] and "[ray]" in str(
        caught.value.findings[0].remedies
    )
    assert not dst.exists()
