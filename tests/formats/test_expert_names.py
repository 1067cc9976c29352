"""Single experts under the names that another class has for their linears: written under those of their own class."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import qbridge
from support import ROOT, SINGLE

OTHER = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2", "w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
_LINEAR = re.compile(r"(experts\.\d+\.)(gate_proj|up_proj|down_proj|w[123])")
CASES = {
    "qwen3_moe": ("compressed_tensors/qwen3_moe_w4a16", ("Qwen3MoeForCausalLM", "qwen3_moe")),
    "mixtral": ("compressed_tensors/mixtral_w8a8_w123", ("MixtralForCausalLM", "mixtral")),
    "phimoe": ("compressed_tensors/mixtral_w8a8_w123", ("PhiMoEForCausalLM", "phimoe")),
    "gptq": ("gptq/qwen3_moe_v1_sym", ("Qwen3MoeForCausalLM", "qwen3_moe")),
}


def under_other_names(path, case, block=("", "")):
    """A fixture whose experts have the other class's names."""
    folder, (architecture, kind) = CASES[case]
    model = ROOT / "fixtures" / folder / "model"
    path.mkdir()
    stored = load_file(model / SINGLE)
    renamed = {_LINEAR.sub(lambda m: m[1] + OTHER[m[2]], name).replace(*block): part for name, part in stored.items()}
    save_file(renamed, path / SINGLE, {"format": "pt"})
    config = json.loads((model / "config.json").read_text())
    config.update(architectures=[architecture], model_type=kind)
    (path / "config.json").write_text(json.dumps(config))
    return stored, path


@pytest.mark.parametrize("case", ["qwen3_moe", "mixtral", "gptq"])
def test_they_get_the_names_of_their_class_and_come_back(case, tmp_path):
    stored, src = under_other_names(tmp_path / "src", case)
    qbridge.convert(src, tmp_path / "out", "vllm")
    assert load_file(tmp_path / "out" / SINGLE).keys() == stored.keys()
    assert qbridge.verify(src, tmp_path / "out").same and qbridge.check(tmp_path / "out", "vllm").ok
    qbridge.restore(tmp_path / "out", tmp_path / "back")
    first, back = (load_file(path / SINGLE) for path in (src, tmp_path / "back"))
    assert first.keys() == back.keys()
    assert all(torch.equal(back[name].view(torch.uint8), first[name].view(torch.uint8)) for name in first)


@pytest.mark.parametrize(
    ("case", "engine", "ok"),
    [
        ("qwen3_moe", "vllm", False),
        ("qwen3_moe", "transformers", False),
        ("mixtral", "vllm", True),  # its loader renames them itself
        ("phimoe", "vllm", False),
        ("gptq", "vllm", False),
    ],
)
def test_check_knows_which_names_a_loader_has(case, engine, ok, tmp_path):
    _, src = under_other_names(tmp_path / "src", case)
    found = qbridge.check(src, engine, allow=["incomplete"]).findings
    assert ("QB337" in {finding.code for finding in found}) != ok
    assert len(found) < 10  # one for each linear, not for each expert


@pytest.mark.parametrize("format_name", ["gptq", "awq", "auto-round"])
def test_every_format_of_weights_alone_is_written_under_the_names_of_the_class(format_name, tmp_path):
    folder = ROOT / "fixtures" / CASES["gptq"][0] / "model"
    qbridge.convert(folder, tmp_path / "usual", format_name)
    stored = load_file(tmp_path / "usual" / SINGLE)
    src, out = tmp_path / "src", tmp_path / "out"
    src.mkdir()
    renamed = {_LINEAR.sub(lambda m: m[1] + OTHER[m[2]], name): part for name, part in stored.items()}
    save_file(renamed, src / SINGLE, {"format": "pt"})
    shutil.copy(tmp_path / "usual/config.json", src)
    for target in (format_name, "compressed-tensors", "dense"):
        qbridge.convert(src, out / target, target)
        names = {name.rpartition(".")[0] for name in load_file(out / target / SINGLE)}
        assert {name.rpartition(".")[0] for name in stored} == names
    assert all(qbridge.verify(src, other).same for other in (tmp_path / "usual", out / format_name))
    qbridge.restore(out / format_name, tmp_path / "back")
    back = load_file(tmp_path / "back" / SINGLE)
    assert renamed.keys() == back.keys()
    assert all(torch.equal(back[name].view(torch.uint8), renamed[name].view(torch.uint8)) for name in renamed)


@pytest.mark.parametrize(("engine", "ok"), [("vllm", False), ("transformers", True)])
def test_the_block_in_memory_is_known_to_transformers_alone(engine, ok, tmp_path):
    _, src = under_other_names(tmp_path / "src", "mixtral", ("block_sparse_moe", "mlp"))
    names = {_LINEAR.sub(lambda m: m[1] + OTHER[m[2]], name): part for name, part in load_file(src / SINGLE).items()}
    save_file(names, src / SINGLE, {"format": "pt"})
    found = qbridge.check(src, engine, allow=["incomplete"]).findings
    assert ("QB337" in {finding.code for finding in found}) != ok
