"""vLLM loads exports of AMD Quark whose tensors are called by the modules that made them, once these are renamed."""

from __future__ import annotations

import environments
import pytest
from engine import ROOT

import qbridge

pytestmark = pytest.mark.engine


@pytest.mark.parametrize("case", ["llama_old_fp8", "llama_old_uint4"])
def test_vllm_loads_what_was_renamed_and_not_what_was_not(case, tmp_path):
    source, python = ROOT / f"fixtures/quark/{case}/model", str(environments.chosen("vllm"))
    qbridge.convert(source, tmp_path / "out", "quark")
    proof = qbridge.prove(tmp_path / "out", "vllm", python=python, emulate="sm90", original=source)
    assert proof.ok, str(proof)
    assert not qbridge.prove(source, "vllm", python=python, emulate="sm90").ok
