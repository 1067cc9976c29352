"""What we write of gpt-oss, fused MXFP4 blocks and dense experts, loaded by transformers and by TurboMind."""

from __future__ import annotations

import numpy as np
import pytest
from engine import ask, turbomind
from safetensors.numpy import load_file
from weight_only import fixture

import qbridge

pytestmark = pytest.mark.engine

SOURCE = "mxfp4/gpt_oss"


def loaded(checkpoint, folder):
    """(parameters, logits) of a checkpoint that transformers took as a whole."""
    dump = folder / f"{checkpoint.name}.safetensors"
    report = ask("llm-compressor", "transformers_gpt_oss.py", checkpoint, "--out", dump)
    assert report["error"] is None, report["error"]
    assert not any(report["loading"].values()), report["loading"]
    assert np.isfinite(report["logits"]).all()
    return load_file(dump), report["logits"]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return loaded(fixture(SOURCE), tmp_path_factory.mktemp("original"))


@pytest.fixture(scope="module")
def linear(tmp_path_factory):
    """The same experts one by one, as llm-compressor has them."""
    folder = tmp_path_factory.mktemp("linear") / "ct"
    qbridge.convert(fixture(SOURCE), folder, "compressed-tensors")
    return folder


@pytest.mark.parametrize("target", ["mxfp4", "dense"])
@pytest.mark.parametrize("fused", [True, False])
def test_transformers_loads_the_parameters_of_the_original(target, fused, original, linear, tmp_path):
    qbridge.convert(fixture(SOURCE) if fused else linear, tmp_path / "out", target)
    parameters, logits = loaded(tmp_path / "out", tmp_path)
    assert parameters.keys() == original[0].keys()
    assert all(np.array_equal(parameters[name], wanted) for name, wanted in original[0].items())
    assert logits == original[1]


@pytest.mark.parametrize("target", ["mxfp4", "dense"])
def test_what_llm_compressor_makes_of_it_is_fused_again(target, original, tmp_path):
    """The tool takes our dense experts apart and quantizes them; they are MXFP4 already, so no weight moves."""
    qbridge.convert(fixture(SOURCE), tmp_path / "dense", "dense")
    report = ask("llm-compressor", "llm_compressor_gpt_oss.py", tmp_path / "dense", "--out", tmp_path / "linear")
    assert report["error"] is None, report["error"]
    qbridge.convert(tmp_path / "linear", tmp_path / "out", target)
    parameters, logits = loaded(tmp_path / "out", tmp_path)
    assert all(np.array_equal(parameters[name], wanted) for name, wanted in original[0].items())
    assert logits == original[1]


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("fused", [True, False])
def test_turbomind_loads_the_experts(fused, tp, linear, tmp_path):
    qbridge.convert(fixture(SOURCE) if fused else linear, tmp_path / "out", "lmdeploy-turbomind", tp=(tp,))
    report = turbomind(tmp_path / "out", tp)
    problems = {key: report[key] for key in ("error", "missing", "unexpected", "lossy_casts") if report.get(key)}
    assert (problems, report["model_format"], report["formats"]["mxfp4"]) == ({}, "mxfp4", 4)
