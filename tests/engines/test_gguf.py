"""What is written as GGUF, decoded by the gguf package, and by ggml's C code where npm brings it."""

from __future__ import annotations

import shutil

import environments
import numpy as np
import pytest
from engine import ROOT, ask
from weight_only import fixture

import qbridge
from qbridge.architecture.gguf_names import GgufNames
from qbridge.architecture.names import module_of
from qbridge.ir.dtypes import to_float64
from qbridge.ir.values import dequantize

pytestmark = pytest.mark.engine
# What blocks, names, scales, a kv cache or a broken source refuse.
REFUSALS = {"QB007", "QB021", "QB023", "QB101", "QB110", "QB113", "QB117", "QB301", "QB305"}

CASES = sorted(str(path.parent.relative_to(ROOT / "fixtures")) for path in ROOT.glob("fixtures/*/*/model"))


def in_gguf(values, names, tensor):
    """Values of a tensor as llama.cpp has them: (name, expert or -1, rows in its order)."""
    place, leaf = names.tensor(tensor)
    if place.head and leaf in ("weight", "bias"):
        heads = values.reshape(-1, 2, place.head // 2, *values.shape[1:])
        values = heads.swapaxes(1, 2).reshape(values.shape)
    one = leaf == "weight" and names.adds_one(module_of(tensor)[0])
    return f"{place.name}.{leaf}", place.expert, values + np.float32(one)


def expected(src):
    """float32 tensors of a checkpoint by (name in GGUF, expert)."""
    found = {}
    with qbridge.open(src) as opened:
        names = GgufNames(opened.model.config)
        for name, spec in opened.specs.items():
            layer = opened.layer(name)
            found[f"{name}.weight"] = dequantize(layer)
            if spec.bias is not None:
                found[f"{name}.bias"] = to_float64(layer.arrays["bias"], spec.bias)
        found |= {name: to_float64(opened.tensor(name), info.dtype) for name, info in opened.model.tensors.items()}
    moved = {}
    for name, values in found.items():
        there, expert, rows = in_gguf(values.astype(np.float32), names, name)
        moved[there, expert] = rows
    return moved


@pytest.mark.parametrize("case", CASES)
def test_llama_cpp_decodes_the_weights_of_the_source(case, tmp_path):
    """Every fixture that is written; the others are refused for what their blocks, names or scales are."""
    try:
        qbridge.convert(fixture(case), tmp_path / "out", "llama.cpp", allow=["no-tokenizer"])
    except qbridge.QBridgeError as fault:
        codes = {finding.code for finding in fault.findings if str(finding.severity) == "error"}
        print(case, "refused", *sorted(codes))
        assert codes and codes <= REFUSALS
        return
    library = environments.ggml() if shutil.which("npm") else None
    options = ["--out", tmp_path / "weights.npz", *(["--library", library] if library else [])]
    report = ask("gguf", "gguf_decode.py", tmp_path / "out/model.gguf", *options)
    assert report["unlike"] == [] and report["in_c"] == bool(library)
    weights = np.load(tmp_path / "weights.npz")
    wanted = expected(fixture(case))
    for (name, expert), values in wanted.items():
        whole = weights[name]
        if (
            outer := name.replace(".weight", ".scale")
        ) != name and outer in weights:  # of NVFP4, as llama.cpp applies it
            factors = weights[outer].astype(np.float64).reshape(-1, *[1] * (whole.ndim - 1))
            whole = (whole * factors).astype(np.float32)
        written = whole if expert < 0 else whole[expert]
        assert np.array_equal(written, values), name
    print(case, "equal", len(wanted), *sorted(report["types"]))
