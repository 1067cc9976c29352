"""What lies beside a model and changes what it computes: an adapter, and AWQ's scales of activations."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

import qbridge
from support import copy_fixture, rewrite_tensors

BASE = "meta-llama/Llama-2-7b-hf"


@pytest.fixture
def adapted(tmp_path):
    src = copy_fixture(tmp_path, "awq/llama_gemm_g128")
    (src / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": BASE}))
    lora = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": np.zeros((8, 16), np.float16)}
    save_file(lora, src / "adapter_model.safetensors")
    return src


def findings(done, code):
    return [finding for finding in done.findings if finding.code == code]


def test_an_adapter_beside_a_model_is_named_and_its_config_is_not_carried_over(adapted, tmp_path):
    """transformers 4 would follow a copied adapter_config.json to another model."""
    for done in (qbridge.check(adapted, "vllm"), qbridge.inspect(adapted)):
        (finding,) = findings(done, "QB351")
        assert finding.where == ("adapter_config.json", "adapter_model.safetensors")
        assert finding.facts == (f"an adapter of {BASE}",) and finding.severity == "warning"
        assert not findings(done, "QB009")
    assert qbridge.check(adapted, "vllm").ok
    report = qbridge.convert(adapted, tmp_path / "out", "gptq")
    assert findings(report, "QB351")
    assert not list((tmp_path / "out").glob("adapter*"))


def test_files_of_an_adapter_without_its_config_are_left_behind_as_before(adapted):
    (adapted / "adapter_config.json").unlink()
    done = qbridge.check(adapted, "vllm")
    assert not findings(done, "QB351") and findings(done, "QB009")


def test_an_adapter_of_no_name_is_named_too(adapted):
    (adapted / "adapter_config.json").write_text("{}")
    (finding,) = findings(qbridge.check(adapted, "vllm"), "QB351")
    assert finding.facts == ()


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.mlp.act.scales",
        "model.layers.0.mlp.act_fn.scales",
        "model.layers.0.mlp.gelu_impl.scales",
        "model.layers.0.mlp.act_scales",
        "model.layers.0.mlp.down_proj.act_scales",
    ],
)
def test_scales_of_activations_are_named_and_never_dropped(name, tmp_path):
    src = copy_fixture(tmp_path, "awq/llama_gemm_g128")
    rewrite_tensors(src, lambda tensors: tensors.update({name: np.ones(256, np.float16)}))
    done = qbridge.check(src, "vllm")
    (finding,) = findings(done, "QB350")
    assert not done.ok and finding.where == (name,) and not findings(done, "QB018")
    for allow in ((), ("unknown-tensors",)):
        with pytest.raises(qbridge.QBridgeError) as fault:
            qbridge.convert(src, tmp_path / "out", "vllm", allow=allow)
        assert "QB350" in {each.code for each in fault.value.findings}


def test_scales_of_codes_are_still_parts_of_layers(tmp_path):
    src = copy_fixture(tmp_path, "awq/llama_gemm_g128")
    rewrite_tensors(src, lambda tensors: tensors.update({"model.layers.0.mlp.x.scales": np.ones((2, 8), np.int8)}))
    assert {finding.code for finding in qbridge.check(src, "vllm").findings} == {"QB018"}
