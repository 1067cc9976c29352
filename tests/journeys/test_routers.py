"""Quantized routers of classes that an engine builds unquantized: weights where these are exact, else a no."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import qbridge
from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.ir.scheme import Granularity, WeightScheme
from qbridge.passes.exactly import DequantizeExactly
from qbridge.targets.registry import find_target, rules_of
from support import SINGLE, copy_fixture, edit_quantization, facts, refusal

ROUTER = "model.layers.0.block_sparse_moe.gate"
DENSE = f"{ROUTER}.weight"


def planted(tmp_path, scales):
    """Mixtral in W8A8 whose router is quantized as the rest, with these scales; its tensors."""
    src = copy_fixture(tmp_path, "compressed_tensors/mixtral_w8a8_w123")
    edit_quantization(src, lambda block: block.update(ignore=["lm_head"]))
    tensors = load_file(src / SINGLE)
    codes = torch.arange(tensors[DENSE].numel()).reshape(tensors[DENSE].shape) % 256 - 128
    tensors[DENSE] = codes.to(torch.int8)
    tensors[f"{ROUTER}.weight_scale"] = torch.tensor(scales, dtype=torch.bfloat16)[:, None]
    save_file(tensors, src / SINGLE, metadata={"format": "pt"})
    return src, tensors


def same(folder, tensors):
    found = load_file(folder / SINGLE)
    return found.keys() == tensors.keys() and all(torch.equal(found[name], tensors[name]) for name in found)


def test_exact_routers_become_weights_that_restore_quantizes_again(tmp_path):
    src, tensors = planted(tmp_path, [0.5, 0.25, 2.0**-8, 2.0**-9])
    report = qbridge.convert(src, tmp_path / "dst", "vllm")
    assert report.exactness == {"reversible": 16, "equal": 1}
    written = load_file(tmp_path / "dst" / SINGLE)
    scale = tensors[f"{ROUTER}.weight_scale"].double()
    assert f"{ROUTER}.weight_scale" not in written and written[DENSE].dtype is torch.bfloat16
    assert torch.equal(written[DENSE].double(), tensors[DENSE].double() * scale)
    config = json.loads((tmp_path / "dst" / "config.json").read_text())
    assert ROUTER in config["quantization_config"]["ignore"]
    assert qbridge.check(tmp_path / "dst", "vllm").ok and qbridge.verify(src, tmp_path / "dst").same
    qbridge.restore(tmp_path / "dst", tmp_path / "back")
    assert same(tmp_path / "back", tensors)
    assert json.loads((tmp_path / "back/config.json").read_text()) == json.loads((src / "config.json").read_text())


def test_what_was_edited_since_is_another_model_and_is_not_restored(tmp_path):
    src, _ = planted(tmp_path, [0.5] * 4)
    qbridge.convert(src, tmp_path / "dst", "vllm")
    written = load_file(tmp_path / "dst" / SINGLE)
    written[DENSE][0, 0] = 0.3
    save_file(written, tmp_path / "dst" / SINGLE, metadata={"format": "pt"})
    said = qbridge.verify(src, tmp_path / "dst")
    assert not said.same and "1 weights" in facts(said.findings)
    with pytest.raises(qbridge.QBridgeError) as stopped:
        qbridge.restore(tmp_path / "dst", tmp_path / "back")
    assert {finding.code for finding in stopped.value.findings} == {"QB037"}


def test_routers_that_the_model_dtype_has_not_are_refused_with_how_many_weights(tmp_path):
    src, tensors = planted(tmp_path, [0.5, 0.3, 0.25, 0.125])
    row = tensors[DENSE][1].double() * tensors[f"{ROUTER}.weight_scale"][1].double()
    rounded = int((row.to(torch.bfloat16).double() != row).sum())
    (finding,) = refusal(src, 1, "QB281", "vllm")["QB281"]
    assert finding.where == (ROUTER,)
    assert "weights are no bfloat16" in facts([finding]) and f"{rounded} values" in facts([finding])


@pytest.mark.parametrize(
    ("architecture", "dtype"), [("MiniMaxM2ForCausalLM", DType.F32), ("MixtralForCausalLM", DType.BF16)]
)
def test_weights_get_the_dtype_that_the_engine_has_for_them(architecture, dtype):
    config = {"architectures": [architecture], "torch_dtype": "bfloat16"}
    spec = Spec(ROUTER, 4, 128, WeightScheme(8, Granularity.CHANNEL), DType.BF16)
    model = Model("compressed-tensors", config, {ROUTER: spec}, {}, {})
    rules = rules_of(find_target("vllm"), find_target("vllm").choice_of("compressed-tensors"))
    rule = next(rule for rule in rules if rule.code == "QB281")
    assert rule.first and rule.check(spec, model)
    assert rule.fix(spec, model) == DequantizeExactly(dtype)


def test_without_passes_they_are_refused(tmp_path):
    src, _ = planted(tmp_path, [0.5] * 4)
    refusal(src, 1, "QB281", "vllm", passes=False)
