"""Names of the text model that no class takes, and linears stored as one that a class has one by one."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file

import qbridge
from qbridge.architecture.architecture import Architecture
from qbridge.architecture.prefixes import text_models
from qbridge.ir.dtypes import DType
from qbridge.ir.model import Model, TensorInfo
from qbridge.targets.stored_names import one_by_one_rule, text_model_rule
from support import ROOT, SINGLE, codes, edit_header

# A name of the text model, a fixture to get it, and the prefix to rename.
AROUND = {
    "model.language_model": ("compressed_tensors/llama_w4a16", "model.language_model", "model"),
    "language_model.model": ("gptq/llama_v1_sym", "language_model", ""),
    "base_model.model.model": ("awq/llama_gemm", "base_model.model", ""),
    "module.model": ("compressed_tensors/llama_w8a8", "module", ""),
}


def under(case, prefix, folder):
    """A copy of a fixture whose text model lies under another name."""
    src = shutil.copytree(ROOT / "fixtures" / case / "model", folder)
    outer = prefix.removesuffix(".model") if prefix.endswith(".model") else ""

    def rename(header):
        return {
            (name if name == "__metadata__" else prefix + name[5:] if name.startswith("model.") else name)
            if not outer or name == "__metadata__" or name.startswith("model.")
            else f"{outer}.{name}": entry
            for name, entry in header.items()
        }

    edit_header(src / SINGLE, rename)
    return src


@pytest.mark.parametrize("prefix", AROUND)
@pytest.mark.parametrize("target", ["vllm", "lmdeploy", "transformers"])
def test_a_name_that_no_class_takes_is_refused_and_the_remedy_works(target, prefix, tmp_path):
    case, old, new = AROUND[prefix]
    src = under(case, prefix, tmp_path / "src")
    with pytest.raises(qbridge.QBridgeError) as excinfo:
        qbridge.convert(src, tmp_path / "dst", target)
    assert "QB338" in codes(excinfo)
    (finding,) = (finding for finding in excinfo.value.findings if finding.code == "QB338")
    assert finding.help == (f"convert it with --rename-prefix {old}={new}",)
    qbridge.convert(src, tmp_path / "dst", target, rename_prefix={old: new}, allow=["rounded"])
    qbridge.restore(tmp_path / "dst", tmp_path / "back")
    before, after = load_file(src / SINGLE), load_file(tmp_path / "back" / SINGLE)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def named(architecture, kind, names, **config):
    """A model of a class with unquantized linears of these names."""
    tensors = {f"{name}.weight": TensorInfo(DType.F16, (8, 8), f"{name}.weight") for name in names}
    return Model("gptq", {"architectures": [architecture], "model_type": kind, **config}, {}, {}, tensors)


def linears(prefix):
    return [f"{prefix}.layers.{layer}.self_attn.{leaf}_proj" for layer in (0, 1) for leaf in "qkvo"]


@pytest.mark.parametrize(
    ("prefix", "right"),
    [("model.language_model", True), ("language_model.model", True), ("model", False), ("base.model", False)],
)
def test_a_multimodal_class_takes_what_its_loader_renames(prefix, right):
    model = named(
        "Qwen3VLForConditionalGeneration", "qwen3_vl", linears(prefix), text_config={"num_hidden_layers": 2}
    )
    assert bool(list(text_model_rule("").check(model))) is not right


def test_the_way_out_names_the_head_and_the_towers_too():
    names = [*linears("language_model.model"), "visual.blocks.0.attn.qkv", "language_model.lm_head"]
    model = named("Qwen3VLForConditionalGeneration", "qwen3_vl", names, text_config={"num_hidden_layers": 2})
    (problem,) = text_model_rule("", lambda model: ("model.language_model",)).check(model)
    flags = "language_model.model=model.language_model", "visual=model.visual", "language_model.lm_head=lm_head"
    assert problem.help == (f"convert it with {' '.join(f'--rename-prefix {flag}' for flag in flags)}",)


@pytest.mark.parametrize(
    ("architecture", "kind", "expected"),
    [
        ("Qwen3ForCausalLM", "qwen3", ("model", "")),
        ("Qwen3_5ForCausalLM", "qwen3_5_text", ()),
        ("FalconForCausalLM", "falcon", ()),
        ("NobodysForCausalLM", "nobody", ()),
        ("KimiK25ForConditionalGeneration", "kimi_k25", ()),
    ],
)
def test_what_is_not_known_is_not_judged(architecture, kind, expected):
    config = {"architectures": [architecture], "model_type": kind}
    assert text_models(Architecture.of(config)) == expected


@pytest.mark.parametrize(
    ("architecture", "leaf", "wrong"),
    [
        ("Qwen3ForCausalLM", "self_attn.qkv_proj", True),
        ("Qwen3ForCausalLM", "mlp.gate_up_proj", True),
        ("Qwen3MoeForCausalLM", "mlp.experts.0.gate_up_proj", True),
        ("Phi3ForCausalLM", "self_attn.qkv_proj", False),
        ("Glm4ForCausalLM", "mlp.gate_up_proj", False),
        ("FalconForCausalLM", "self_attention.query_key_value", False),
        ("NobodysForCausalLM", "self_attn.qkv_proj", False),
    ],
)
def test_linears_stored_as_one_are_refused_where_the_class_has_them_one_by_one(architecture, leaf, wrong):
    model, rule = named(architecture, "", [f"model.layers.0.{leaf}"], num_hidden_layers=1), one_by_one_rule("")
    assert rule.code == "QB339" and bool(list(rule.check(model))) is wrong


def test_check_says_so_too(tmp_path):
    src = under("compressed_tensors/llama_w4a16", "model.language_model", tmp_path / "src")
    verdict = qbridge.check(src, target="vllm")
    assert "QB338" in {finding.code for finding in verdict.findings} and not verdict.ok


@pytest.mark.parametrize("target", ["vllm", "lmdeploy"])
def test_experts_in_a_block_of_another_name_are_refused(target, tmp_path):
    src = shutil.copytree(ROOT / "fixtures/compressed_tensors/mixtral_w8a8_w123/model", tmp_path / "src")
    edit_header(
        src / SINGLE,
        lambda header: {name.replace(".block_sparse_moe.", ".mlp."): entry for name, entry in header.items()},
    )
    with pytest.raises(qbridge.QBridgeError) as excinfo:
        qbridge.convert(src, tmp_path / "dst", target)
    assert "QB337" in codes(excinfo)
