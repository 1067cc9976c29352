"""A conversion on a cluster of Ray: two nodes, one of them lost in the middle; clusters that cannot be used.

Ray is an extra; where it is not installed, nothing but the words of a command is tested.
"""

from __future__ import annotations

import sys

import pytest

import qbridge
from qbridge.commands.clustered import _task_faults
from qbridge.findings.finding import error
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


class _Faults:
    """The names of Ray's errors, of which one carries what a task raised."""

    class exceptions:
        class RayError(Exception):
            pass

        class RayTaskError(RayError):
            cause = None


def test_a_task_that_the_cluster_lost_is_said_with_its_file():
    with pytest.raises(qbridge.StorageError) as caught, _task_faults(_Faults, "model-00001.safetensors"):
        raise _Faults.exceptions.RayError("the worker died\nand more")
    (finding,) = caught.value.findings
    assert (finding.code, finding.where, finding.facts) == (
        "QB070",
        ("model-00001.safetensors",),
        ("RayError: the worker died",),
    )


@pytest.mark.parametrize("code", ["QB066", "QB401"])
def test_what_a_task_refuses_arrives_as_it_was_raised(code):
    fault = _Faults.exceptions.RayTaskError("far away")
    fault.cause = error(code, "x")
    with pytest.raises(qbridge.QBridgeError) as caught, _task_faults(_Faults, "file"):
        raise fault
    assert caught.value is fault.cause
