"""load: the model that transformers makes of the converted folder, tensor by tensor, with nothing written."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import qbridge
from support import copy_fixture

# Without accelerate float8 and MXFP4 do not load; transformers 5.24 refuses packed zero-points of asymmetric weights.
CASES = [
    "awq/llama_gptqmodel_sym",
    "auto_round/llama_gptq_sym",
    "compressed_tensors/qwen3_moe_fp8_dynamic",
    "gptq/llama_v1_sym",
    "marlin/llama_autogptq",
]
pytestmark = pytest.mark.filterwarnings("ignore")  # those of transformers and compressed-tensors


def raw(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8)


@pytest.mark.parametrize("case", CASES)
def test_a_loaded_model_is_that_of_the_converted_folder(case, tmp_path):
    src = copy_fixture(tmp_path, case)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    model = qbridge.load(src)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
    qbridge.convert(src, tmp_path / "out", "transformers")
    wanted = type(model).from_pretrained(tmp_path / "out", dtype="auto")
    mine, theirs = model.state_dict(), wanted.state_dict()
    assert mine.keys() == theirs.keys() and mine
    assert [
        name
        for name in mine
        if mine[name].dtype != theirs[name].dtype or not torch.equal(raw(mine[name]), raw(theirs[name]))
    ] == []
    assert model.dtype == wanted.dtype and model.config.quantization_config is not None


def test_a_tensor_of_a_stream_is_made_by_its_name(tmp_path):
    src = copy_fixture(tmp_path, "gptq/llama_v1_sym")
    qbridge.convert(src, tmp_path / "out", "transformers")
    stored = load_file(tmp_path / "out/model.safetensors")
    with qbridge.stream(src, "transformers") as tensors:
        for name in reversed(list(tensors.shapes)):
            assert torch.equal(raw(tensors.tensor(name)), raw(stored[name])), name
        with pytest.raises(KeyError):
            tensors.tensor("no.such.weight")


def test_what_convert_refuses_is_refused_in_the_same_words(tmp_path):
    src = copy_fixture(tmp_path, "modelopt/llama_nvfp4")
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.convert(src, tmp_path / "out", "transformers")
    with pytest.raises(qbridge.QBridgeError) as excinfo:
        qbridge.load(src)
    assert [each.code for each in excinfo.value.findings] == [each.code for each in refused.value.findings]


def test_an_old_transformers_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", SimpleNamespace(__version__="4.57.6"))
    with pytest.raises(qbridge.RefusedError) as excinfo:
        qbridge.load(copy_fixture(tmp_path, "gptq/llama_v1_sym"))
    (finding,) = excinfo.value.findings
    assert finding.code == "QB711" and "4.57.6" in finding.facts[0]
