"""Quantized experts that share tensors: read one by one, written one by one, fused again by restore."""

from __future__ import annotations

import json
from itertools import product

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import qbridge
from qbridge.codecs.arrays import Concatenated
from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.scheme import Granularity, WeightScheme
from qbridge.ir.slots import PLAIN, Slot
from qbridge.ir.values import dequantize
from qbridge.write.budget import Effort
from qbridge_formats import fp8
from stacked_experts import (
    BLOCKS,
    CASES,
    CHANNELS,
    DOWN,
    EXPERTS,
    F8,
    FP8,
    GATE_UP,
    HIDDEN,
    INNER,
    INTEGERS,
    NVFP4,
    by_blocks,
    channels,
    checkpoint,
    integers,
    nvfp4,
    random,
)
from support import SINGLE, codes, contents, edit_json

F4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def weights(stacks):
    """[E, out, in] of gate, up and down as float64, without qbridge."""
    if f"{DOWN}.weight" in stacks:
        found = []
        for name in ("gate_proj", "up_proj", "down_proj"):
            scale = stacks[f"{name}.weight_scale_inv"].double()
            full = scale.repeat_interleave(128, 1).repeat_interleave(128, 2)
            found.append(stacks[f"{name}.weight"].double() * full)
        return found
    for name, (kind, more) in INTEGERS.items():
        if stacks.keys() == CASES[name][0].keys() and all(stacks[k].equal(v) for k, v in CASES[name][0].items()):
            codes = integers(*kind, **more)[1]
            return [*codes[GATE_UP].split(INNER, dim=1), codes[DOWN]]
    columns = stacks[DOWN].shape[2] == HIDDEN
    found = []
    for name in (GATE_UP, DOWN):
        parts = {end.removeprefix(name): part for end, part in stacks.items() if end.startswith(name)}
        parts = {end: part.mT if part.dim() == 3 and columns else part for end, part in parts.items()}
        code = parts[""]
        if code.dtype is torch.uint8:
            code = F4[torch.stack((code & 15, code >> 4), -1).flatten(2).long()]
        scale = parts.get("_scale", parts.get("_weight_scale")).double()
        if scale.dim() == 3 and scale.shape[2] > 1:
            scale = scale.repeat_interleave(16, 2) * parts["_weight_scale_2"].double()
        found.append(code.double() * (scale if scale.dim() == 3 else scale.reshape(-1, 1, 1)))
    return [*found[0].split(INNER, dim=1), found[1]]


@pytest.fixture(params=CASES)
def stacked(request, tmp_path):
    stacks, block = CASES[request.param]
    return stacks, checkpoint(tmp_path / "src", stacks, block)


def test_every_expert_has_its_values(stacked):
    stacks, src = stacked
    with qbridge.open(src) as opened:
        assert not opened.findings.errors and len(opened.specs) == 3 * EXPERTS
        for leaf, wanted in zip(("gate_proj", "up_proj", "down_proj"), weights(stacks), strict=True):
            for expert in range(EXPERTS):
                found = dequantize(opened.layer(f"model.layers.0.feed_forward.experts.{expert}.{leaf}"))
                assert np.array_equal(found, wanted[expert].numpy()), (leaf, expert)


def test_dense_has_them_as_transformers_does(stacked, tmp_path):
    stacks, src = stacked
    qbridge.convert(src, tmp_path / "dense", "dense")
    found, (gate, up, down) = load_file(tmp_path / "dense" / SINGLE), weights(stacks)
    block = "model.layers.0.feed_forward.experts"
    assert found[f"{block}.{GATE_UP}"].equal(torch.cat((gate, up), 1).mT.bfloat16())
    assert found[f"{block}.{DOWN}"].equal(down.mT.bfloat16())
    assert {name for name in found if ".experts." in name} == {f"{block}.{GATE_UP}", f"{block}.{DOWN}"}


def test_they_go_one_by_one_and_come_back_as_they_were(stacked, tmp_path):
    _, src = stacked
    qbridge.convert(src, tmp_path / "out", "vllm")
    found = load_file(tmp_path / "out" / SINGLE)
    linears = {f"experts.{n}.{leaf}" for n, leaf in product(range(EXPERTS), ("gate_proj", "up_proj", "down_proj"))}
    assert {name.partition("feed_forward.")[2].rpartition(".")[0] for name in found if ".experts." in name} == linears
    assert all(tensor.dim() < 3 for tensor in found.values())
    assert qbridge.verify(src, tmp_path / "out").same
    assert qbridge.check(tmp_path / "out", "vllm").ok
    qbridge.restore(tmp_path / "out", tmp_path / "back")
    wanted, back = (load_file(path / SINGLE) for path in (src, tmp_path / "back"))
    assert wanted.keys() == back.keys()
    for name, tensor in wanted.items():
        assert (tensor.dtype, tensor.shape) == (back[name].dtype, back[name].shape), name
        assert tensor.reshape(-1).view(torch.uint8).equal(back[name].reshape(-1).view(torch.uint8)), name
    assert json.loads((tmp_path / "back/config.json").read_text()) == json.loads((src / "config.json").read_text())


@pytest.mark.parametrize("case", ["channels by columns", "channels by rows", "nvfp4 by columns"])
def test_windows_give_the_same_bytes(case, tmp_path, monkeypatch):
    src = checkpoint(tmp_path / "src", *CASES[case])
    for target in ("dense", "vllm"):
        qbridge.convert(src, tmp_path / target, target)
    qbridge.restore(tmp_path / "vllm", tmp_path / "back")
    whole = [contents(tmp_path / name)[SINGLE] for name in ("dense", "vllm", "back")]
    monkeypatch.setattr(Effort, "block", property(lambda effort: 1 << 12))
    monkeypatch.setattr("qbridge.write.jobs.CODES", 1 << 9)
    for target in ("dense", "vllm"):
        qbridge.convert(src, tmp_path / f"{target}2", target)
    qbridge.restore(tmp_path / "vllm2", tmp_path / "back2")
    assert [contents(tmp_path / name)[SINGLE] for name in ("dense2", "vllm2", "back2")] == whole


def test_a_scale_of_all_experts_that_one_has_otherwise_does_not_come_back(tmp_path):
    src = checkpoint(tmp_path / "src", *CASES["one scale for all"])
    qbridge.convert(src, tmp_path / "out", "modelopt")
    found = load_file(tmp_path / "out" / SINGLE)
    found["model.layers.0.feed_forward.experts.1.up_proj.weight_scale"] *= 2
    save_file(found, tmp_path / "out" / SINGLE, {"format": "pt"})
    with pytest.raises(qbridge.QBridgeError, match="share it, and differ") as refused:
        qbridge.restore(tmp_path / "out", tmp_path / "back")
    assert codes(refused) == {"QB304"} and not (tmp_path / "back").exists()


def unlike(stacks, name, *shape, dtype=None):
    changed = dict(stacks)
    changed[name] = torch.zeros(shape).to(dtype or stacks[name].dtype)
    return changed


def without(stacks, name):
    return {other: tensor for other, tensor in stacks.items() if other != name}


@pytest.mark.parametrize(
    ("stacks", "block"),
    [
        (without(channels(True), DOWN), CHANNELS),
        (unlike(channels(True), DOWN, EXPERTS, INNER, HIDDEN, dtype=torch.bfloat16), CHANNELS),
        (unlike(channels(True), DOWN, EXPERTS, INNER + 1, HIDDEN), CHANNELS),
        (unlike(channels(True), DOWN, EXPERTS + 1, INNER, HIDDEN), CHANNELS),
        (unlike(channels(True), f"{DOWN}_scale", EXPERTS + 1, 1, HIDDEN), CHANNELS),
        (unlike(channels(True), f"{DOWN}_scale", EXPERTS, 1, 1, HIDDEN), CHANNELS),
        (unlike(channels(True), f"{GATE_UP}_scale", EXPERTS, 1, 2 * INNER + 1), CHANNELS),
        (without(nvfp4(True), DOWN), NVFP4),
        (unlike(by_blocks(), "up_proj.weight_scale_inv", EXPERTS + 1, 1, 2), BLOCKS),
        (channels(True) | {"1.up_proj.weight": random(INNER, HIDDEN).to(F8)}, CHANNELS),
    ],
)
def test_what_does_not_fit_together_is_refused(stacks, block, tmp_path):
    src = checkpoint(tmp_path / "src", stacks, block)
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.open(src)
    half = GATE_UP in stacks and (DOWN not in stacks or stacks[DOWN].dtype is torch.bfloat16)
    assert ("QB018" if half else "QB016") in codes(refused)
    with pytest.raises(qbridge.QBridgeError):
        qbridge.convert(src, tmp_path / "out", "dense", allow=["unknown-tensors"])


def test_a_lost_scale_is_named(tmp_path):
    src = checkpoint(tmp_path / "src", without(channels(True), f"{DOWN}_scale"), CHANNELS)
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.open(src)
    assert "QB015" in codes(refused)


@pytest.mark.parametrize(
    ("case", "engine", "ok"),
    [
        ("channels by columns", "vllm", True),
        ("channels by rows", "vllm", False),
        ("channels, longer names", "vllm", False),  # w2_weight_weight_scale is no parameter
        ("nvfp4 by columns", "vllm", False),
        ("one scale for all", "vllm", False),
        ("int4 by columns", "vllm", True),
        ("int4 with zero-points by columns", "vllm", True),
        ("int8 by columns", "vllm", True),
        ("int4 in groups", "vllm", False),
        ("int4 as modules", "vllm", False),
        ("nvfp4 by rows", "vllm", False),
        ("channels by columns", "transformers", False),
        ("blocks, each linear apart", "vllm", False),
        ("blocks, each linear apart", "transformers", False),
    ],
)
def test_check_knows_which_loaders_take_them(case, engine, ok, tmp_path):
    src = checkpoint(tmp_path / "src", *CASES[case])
    assert qbridge.check(src, engine).ok == ok


@pytest.mark.parametrize(
    ("case", "ok"),
    [
        ("channels by columns", True),
        ("channels, longer names", False),  # it takes them for one scale of each expert
        ("nvfp4 by columns", True),
        ("nvfp4 by rows", False),
        ("one scale for all", True),
        ("one scale for each", False),
    ],
)
def test_the_multimodal_class_knows_the_names_of_modelopt(case, ok, tmp_path):
    src = checkpoint(tmp_path / "src", *CASES[case], architecture="Llama4ForConditionalGeneration", kind="llama4")
    facts = [fact for finding in qbridge.check(src, "vllm").findings for fact in finding.facts]
    assert any("share a tensor" in fact or "no parameter" in fact for fact in facts) != ok


def test_experts_of_a_class_that_has_them_by_rows(tmp_path):
    fields = {"architecture": "Gemma4ForCausalLM", "kind": "gemma4_text"}
    src = checkpoint(tmp_path / "src", channels(False), CHANNELS, **fields)
    edit_json(src / "config.json", lambda config: config.update(num_experts=EXPERTS))
    qbridge.convert(src, tmp_path / "dense", "dense")
    found, (gate, up, down) = load_file(tmp_path / "dense" / SINGLE), weights(channels(False))
    block = "model.layers.0.feed_forward.experts"
    assert found[f"{block}.{GATE_UP}"].equal(torch.cat((gate, up), 1).bfloat16())
    assert found[f"{block}.{DOWN}"].equal(down.bfloat16())


def test_a_class_of_single_experts_gets_single_ones(tmp_path):
    fields = {"architecture": "Qwen3MoeForCausalLM", "kind": "qwen3_moe"}
    src = checkpoint(tmp_path / "src", channels(False), CHANNELS, **fields)
    qbridge.convert(src, tmp_path / "dense", "dense", allow=["incomplete", "unknown-tensors"])
    found, (gate, _, _) = load_file(tmp_path / "dense" / SINGLE), weights(channels(False))
    assert found["model.layers.0.feed_forward.experts.2.gate_proj.weight"].equal(gate[2].bfloat16())


def test_codecs_and_names():
    with pytest.raises(ValueError, match="not written from one"):
        Concatenated(PLAIN, 0, 2).encode(np.zeros(2), Slot("a", DType.U8, (2,)))
    weight = WeightScheme(8, Granularity.CHANNEL, type="e4m3fn")
    spec = Spec("model.layers.0.mlp.up_proj", 8, 8, weight, DType.F32, dialect=(("experts", "rows"),))
    with pytest.raises(ValueError, match="no linear of an expert"):
        fp8.layout(spec)


def numbered_last(scale):
    """Experts whose number is the last of their names, as of a list of linears."""
    sizes = {"gate_proj": (INNER, HIDDEN), "up_proj": (INNER, HIDDEN), "down_proj": (HIDDEN, INNER)}
    found = {}
    for seed, (name, expert) in enumerate(product(sizes, range(EXPERTS))):
        found[f"{name}.{expert}.weight"] = random(*sizes[name], seed=seed).to(F8)
        found |= {f"{name}.{expert}.{leaf}": part.clone() for leaf, part in scale(*sizes[name]).items()}
    return found


NUMBERED = {
    "compressed-tensors": (lambda rows, columns: {"weight_scale": torch.full((rows, 1), 0.5).bfloat16()}, CHANNELS),
    "modelopt": (lambda *_: {"weight_scale": torch.tensor(0.5), "input_scale": torch.tensor(0.25)}, FP8),
    "fp8": (
        lambda rows, columns: {"weight_scale_inv": torch.full((rows // 128, columns // 128), 0.5)},
        BLOCKS,
    ),
}


@pytest.mark.parametrize("format_name", NUMBERED)
def test_experts_numbered_last_get_the_names_that_engines_have(format_name, tmp_path):
    scale, block = NUMBERED[format_name]
    src = checkpoint(tmp_path / "src", numbered_last(scale), block)
    refused = qbridge.check(src, "vllm")
    assert not refused.ok and "a name that no engine has" in str([f.facts for f in refused.findings])
    qbridge.convert(src, tmp_path / "out", "vllm")
    stored, found = load_file(src / SINGLE), load_file(tmp_path / "out" / SINGLE)
    block = "model.layers.0.feed_forward.experts"
    for name, expert in product(("gate_proj", "up_proj", "down_proj"), range(EXPERTS)):
        code = found[f"{block}.{expert}.{name}.weight"].view(torch.uint8)
        assert code.equal(stored[f"{block}.{name}.{expert}.weight"].view(torch.uint8))
    assert qbridge.verify(src, tmp_path / "out").same and qbridge.check(tmp_path / "out", "vllm").ok
    qbridge.restore(tmp_path / "out", tmp_path / "back")
    back = load_file(tmp_path / "back" / SINGLE)
    assert back.keys() == stored.keys()
    assert all(
        back[name].view(torch.uint8).equal(part.view(torch.uint8)) for name, part in stored.items() if part.dim()
    )


def test_a_name_that_is_taken_is_not_given(tmp_path):
    scale, block = NUMBERED["compressed-tensors"]
    stacks = numbered_last(scale)
    stacks |= {f"1.up_proj.{leaf}": stacks[f"up_proj.1.{leaf}"].clone() for leaf in ("weight", "weight_scale")}
    src = checkpoint(tmp_path / "src", stacks, block)
    with pytest.raises(qbridge.QBridgeError):
        qbridge.convert(src, tmp_path / "out", "vllm")
