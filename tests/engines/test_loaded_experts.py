"""Experts in every layout that is read, as they are and as qbridge writes them, taken by the engines' own loaders."""

from __future__ import annotations

import json
import shutil

import judges
import pytest
import torch
from engine import ROOT
from safetensors.torch import save_file

import plain_experts
import qbridge
import stacked_experts

pytestmark = pytest.mark.engine

BLACKWELL = ("--gpu", "100")  # which has kernels for float4
# Whether vLLM loads the stacks of Llama 4 as they are; what qbridge writes of them it always loads.
AS_THEY_ARE = {
    "channels by columns": True,
    "channels by rows": False,
    "channels, longer names": False,
    "nvfp4 by columns": False,
    "nvfp4 by rows": False,
    "one scale for all": False,
    "int4 in groups": False,
    "int4 in groups, a shape for each": False,
    "int4 with zero-points": False,
    "int4 with zero-points as modules": False,
    "int8 of channels": False,
    "int8 by columns": True,
    "int8 by rows": False,
}
FOR_TRANSFORMERS = (
    "channels by columns",
    "channels by rows",
    "int4 in groups",
    "int4 as modules",
    "int8 of channels",
)


def verdicts(engine, folders, options=()):
    """The verdict of each folder in a word, or what is wrong in a line."""
    reports = judges.judge(engine, folders, options=options)
    return {path.name: judges.short(reports[str(path)]) for path in folders}


def written(src, folder, target):
    qbridge.convert(src, folder, target)
    return folder


def test_vllm_loads_stacks_that_were_taken_apart(tmp_path):
    sources = {name: tmp_path / f"{number} as it is" for number, name in enumerate(AS_THEY_ARE)}
    for name, src in sources.items():
        stacked_experts.checkpoint(src, *stacked_experts.CASES[name])
    written_ = [written(src, tmp_path / src.name.replace("as it is", "written"), "vllm") for src in sources.values()]
    found = verdicts("vllm", [*sources.values(), *written_], BLACKWELL)
    assert {found[folder.name] for folder in written_} == {"clean"}
    assert {name: found[src.name] == "clean" for name, src in sources.items()} == AS_THEY_ARE
    answers = {name: qbridge.check(src, "vllm", gpu="sm100").ok for name, src in sources.items()}
    assert answers == AS_THEY_ARE


@pytest.mark.parametrize("target", ["transformers", "dense"])
def test_transformers_loads_them(target, tmp_path):
    folders = []
    for number, name in enumerate(FOR_TRANSFORMERS):
        src = stacked_experts.checkpoint(tmp_path / f"src{number}", *stacked_experts.CASES[name])
        folders.append(written(src, tmp_path / f"out{number}", target))
    assert set(verdicts("transformers", folders).values()) == {"clean"}


@pytest.mark.parametrize(("engine", "target"), [("vllm", "vllm"), ("transformers", "transformers")])
def test_unquantized_experts_are_stored_as_the_loader_takes_them(engine, target, tmp_path):
    folders, answers = [], {}
    for name, way in ((name, way) for name in ("qwen3_moe", "mixtral", "llama4") for way in ("fused", "separate")):
        experts = plain_experts.both_ways(name)[way]
        src = plain_experts.checkpoint(tmp_path / f"{name} {way}", name, experts)
        answers[src.name] = qbridge.check(src, target).ok
        folders += [src, written(src, tmp_path / f"{name} {way} written", target)]
    found = verdicts(engine, folders)
    assert {name: found[name] == "clean" for name in answers} == answers
    assert {verdict for name, verdict in found.items() if name.endswith("written")} == {"clean"}


def test_dense_experts_are_stored_as_transformers_has_them(tmp_path):
    folders = []
    for name in ("qwen3_moe", "mixtral", "llama4"):
        experts = plain_experts.both_ways(name)["separate"]
        src = plain_experts.checkpoint(tmp_path / f"{name} source", name, experts)
        folders.append(written(src, tmp_path / name, "dense"))
    assert set(verdicts("transformers", folders).values()) == {"clean"}


def gpt_oss(folder, hidden=256, inner=256, experts=2):
    """A gpt-oss of one layer with MXFP4 experts of random codes, wide enough that no kernel pads them."""
    torch.manual_seed(0)
    source = ROOT / "fixtures/mxfp4/gpt_oss/model"
    config = json.loads((source / "config.json").read_text())
    config |= {"hidden_size": hidden, "intermediate_size": inner, "num_local_experts": experts, "head_dim": 64}
    config |= {"num_hidden_layers": 1, "layer_types": ["full_attention"], "num_experts_per_tok": 1}
    layer, heads = "model.layers.0", 128
    sizes = {f"{layer}.self_attn.{n}_proj": (heads, hidden) for n in "qkv"} | {
        f"{layer}.self_attn.o_proj": (hidden, heads),
        f"{layer}.mlp.router": (experts, hidden),
    }
    tensors = {f"{name}.weight": torch.randn(shape).bfloat16() for name, shape in sizes.items()}
    tensors |= {f"{name}.bias": torch.randn(shape[0]).bfloat16() for name, shape in sizes.items()}
    tensors[f"{layer}.self_attn.sinks"] = torch.randn(2).bfloat16()
    norms = ("model.norm", f"{layer}.input_layernorm", f"{layer}.post_attention_layernorm")
    tensors |= {f"{name}.weight": torch.randn(hidden).bfloat16() for name in norms}
    tensors |= {f"{name}.weight": torch.randn(256, hidden).bfloat16() for name in ("lm_head", "model.embed_tokens")}
    for name, rows, inputs in (("gate_up_proj", 2 * inner, hidden), ("down_proj", hidden, inner)):
        place = f"{layer}.mlp.experts.{name}"
        tensors[f"{place}_blocks"] = torch.randint(0, 256, (experts, rows, inputs // 32, 16), dtype=torch.uint8)
        tensors[f"{place}_scales"] = torch.randint(120, 128, (experts, rows, inputs // 32), dtype=torch.uint8)
        tensors[f"{place}_bias"] = torch.randn(experts, rows).bfloat16()
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_vllm_loads_float4_experts_on_blackwell(tmp_path):
    made = {"gpt_oss": gpt_oss(tmp_path / "gpt_oss"), "qwen3": tmp_path / "qwen3"}
    shutil.copytree(ROOT / "fixtures/compressed_tensors/qwen3_moe_nvfp4/model", made["qwen3"])
    folders = [*made.values()]
    for name, target in (
        ("gpt_oss", "vllm"),
        ("gpt_oss", "mxfp4"),
        ("qwen3", "vllm"),
        ("qwen3", "compressed-tensors"),
    ):
        folders.append(written(made[name], tmp_path / f"{name} {target}", target))
    single = written(made["gpt_oss"], tmp_path / "single", "compressed-tensors")
    found = verdicts("vllm", [*folders, single], BLACKWELL)
    assert {found[folder.name] for folder in folders} == {"clean"}
    assert "KeyError" in found["single"] and not qbridge.check(single, "vllm", gpu="sm100").ok
    folders.append(written(single, tmp_path / "fused again", "vllm"))
    assert verdicts("vllm", folders[-1:], BLACKWELL) == {"fused again": "clean"}
