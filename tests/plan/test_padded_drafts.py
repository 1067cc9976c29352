"""Layers for multi-token prediction grow with the decoder's MLPs, quantized or not, and get their sizes back."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from math import lcm

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import qbridge
from padding import MLP, mlp
from qbridge.formats.registry import find
from qbridge.targets.parallel import Parallel
from qbridge.testing.laws import write_model
from qbridge.testing.strategies import random_layer
from support import ROOT, SINGLE, edit_json, facts, refusal
from test_conversion import assert_same_tensors, config

HIDDEN, SIZE, GROWN, COUNT = 192, 96, 128, 2
ALLOW = ["incomplete"]  # MLPs alone


@dataclass(frozen=True)
class Case:
    """A model class, its draft layer's MLP, and the key of config.json that has its size."""

    architecture: str
    model_type: str
    draft: str
    key: str = "moe_intermediate_size"

    @property
    def experts(self):
        return self.key.startswith("moe")


CASES = {
    "numbered": Case("Glm4MoeForCausalLM", "glm4_moe", "model.layers.1.mlp"),
    "mtp": Case("Qwen3NextForCausalLM", "qwen3_next", "mtp.layers.0.mlp"),
    "dense": Case("MiMoForCausalLM", "mimo", "model.mtp_layers.0.mlp", "intermediate_size"),
}
LAYOUTS = [(name, how) for name in CASES for how in ("quantized", "plain", "fused", "mixed")]
LAYOUTS.remove(("dense", "fused"))


def blocks(case, parent):
    return [f"{parent}.experts.{expert}" for expert in range(COUNT)] if case.experts else [parent]


def plain(case, how):
    """The draft's MLPs in float16, one by one or the experts in the tensors of the class."""
    random, found = np.random.default_rng(1), {}
    for block in blocks(case, case.draft):
        for leaf in MLP:
            shape = (HIDDEN, SIZE) if leaf == "down_proj" else (SIZE, HIDDEN)
            found[f"{block}.{leaf}.weight"] = random.normal(size=shape).astype(np.float16)
    if how != "fused":
        return found
    gate, up, down = (
        np.stack([found[f"{block}.{leaf}.weight"] for block in blocks(case, case.draft)]) for leaf in MLP
    )
    both = np.concatenate((gate, up), axis=1)
    return {f"{case.draft}.experts.gate_up_proj": both, f"{case.draft}.experts.down_proj": down}


def checkpoint(folder, case, how, size=SIZE, group=32):
    """A decoder layer and a draft layer; of a mixed one, gate is not quantized."""
    specs = {}
    for parent in ("model.layers.0.mlp", case.draft):
        for block in blocks(case, parent):
            specs |= mlp(block, HIDDEN, SIZE if parent != case.draft else size, group)
    dense = {} if how == "quantized" else plain(case, how)
    if how == "mixed":
        dense = {name: array for name, array in dense.items() if ".gate_proj." in name}
    gone = {name.removesuffix(".weight") for name in (plain(case, "plain") if how == "fused" else dense)}
    written = [random_layer(spec, number) for number, (name, spec) in enumerate(specs.items()) if name not in gone]
    others = {"lm_head.weight": np.ones((4, 4), np.float16), **dense}
    write_model(folder, find("compressed-tensors"), written, others)
    described = {"architectures": [case.architecture], "model_type": case.model_type, "num_hidden_layers": 1}
    described |= {"hidden_act": "silu", "hidden_size": HIDDEN, "intermediate_size": 4 * HIDDEN, case.key: SIZE}
    described |= {"num_attention_heads": 8, "num_key_value_heads": 8, "num_nextn_predict_layers": 1}
    described |= {"n_routed_experts": COUNT, "num_experts": COUNT} if case.experts else {}
    edit_json(folder / "config.json", lambda found: found.update(described))
    return folder


def padded(source, out, target="compressed-tensors"):
    return qbridge.convert(source, out, target, tp=2, pad=True, allow=ALLOW)


@pytest.mark.parametrize(("name", "how"), LAYOUTS)
def test_a_draft_layer_grows_with_the_decoder_and_is_restored(name, how, tmp_path):
    case = CASES[name]
    source, out = checkpoint(tmp_path / "src", case, how), tmp_path / "out"
    padded(source, out)
    assert config(out)[case.key] == GROWN
    tensors = load_file(out / SINGLE)
    names = [name for name in tensors if name.startswith(case.draft) and "shape" not in name]
    assert names and all(GROWN in tensors[name].shape or 2 * GROWN in tensors[name].shape for name in plain_of(names))
    for first, second in ((source, out), (out, source)):
        assert qbridge.verify(first, second, allow=ALLOW).same
    qbridge.restore(out, tmp_path / "back", allow=ALLOW)
    assert_same_tensors(source, tmp_path / "back")
    assert config(tmp_path / "back") == config(source)


def plain_of(names):
    return [name for name in names if name.endswith((".weight", "gate_up_proj", ".down_proj"))]


@pytest.mark.parametrize("how", ["plain", "fused"])
def test_what_a_plain_draft_layer_gets_is_zero(how, tmp_path):
    case = CASES["mtp"]
    source = checkpoint(tmp_path / "src", case, how)
    padded(source, tmp_path / "out")
    before, after = load_file(source / SINGLE), load_file(tmp_path / "out" / SINGLE)
    for name in before:
        if not name.startswith(case.draft):
            continue
        parts = np.split(after[name], 2, axis=1) if name.endswith("gate_up_proj") else [after[name]]
        olds = np.split(before[name], 2, axis=1) if name.endswith("gate_up_proj") else [before[name]]
        for part, old in zip(parts, olds, strict=True):
            inner = tuple(slice(length) for length in old.shape)
            assert part[inner].tobytes() == old.tobytes()
            part[inner] = 0
            assert part.size > old.size and not part.any()


@pytest.mark.parametrize("how", ["plain", "fused"])
@pytest.mark.parametrize(("place", "code"), [((0, 0), "QB501"), ((-1, -1), "QB501")])
def test_a_weight_of_a_plain_draft_layer_that_was_edited_makes_another_model(how, place, code, tmp_path):
    case = CASES["mtp"]
    source = checkpoint(tmp_path / "src", case, how)
    padded(source, tmp_path / "out")
    tensors = load_file(tmp_path / "out" / SINGLE)
    name = next(name for name in tensors if name.startswith(case.draft) and "down_proj" in name)
    tensors[name][(..., *place)] += 1
    save_file(tensors, tmp_path / "out" / SINGLE, metadata={"format": "pt"})
    checked = qbridge.verify(source, tmp_path / "out", allow=ALLOW)
    assert not checked.same and {finding.code for finding in checked.findings} & {code}


@pytest.mark.parametrize("how", ["plain", "fused", "quantized"])
def test_what_was_padded_is_padded_for_more_ranks_or_cropped(how, tmp_path):
    case = CASES["numbered"]
    source = checkpoint(tmp_path / "src", case, how)
    padded(source, tmp_path / "out")
    for ranks, size in ((2, GROWN), (8, 2 * GROWN), (1, SIZE)):
        again = tmp_path / f"for {ranks}"
        qbridge.convert(tmp_path / "out", again, "compressed-tensors", tp=ranks, pad=ranks > 1, allow=ALLOW)
        assert config(again)[case.key] == size
        assert qbridge.verify(tmp_path / "out", again, allow=ALLOW).same
    assert_same_tensors(source, tmp_path / "for 1")


def test_a_draft_layer_of_another_size_is_refused(tmp_path):
    case = CASES["numbered"]
    source = checkpoint(tmp_path / "src", case, "quantized", size=2 * SIZE)
    found = refusal(source, 1, "QB254", "compressed-tensors", tp=2, pad=True, allow=ALLOW)["QB254"]
    assert "moe_intermediate_size" in facts(found) and {f.where[0].partition(".mlp")[0] for f in found} == {
        "model.layers.1"
    }


def test_a_draft_layer_that_need_not_grow_stays(tmp_path):
    case = CASES["mtp"]
    source = checkpoint(tmp_path / "src", case, "plain", group=16)
    report = qbridge.convert(source, tmp_path / "out", "compressed-tensors", tp=1, pad=True, allow=ALLOW)
    assert "pad" not in report.passes and qbridge.verify(source, tmp_path / "out", allow=ALLOW).same


LOST = ROOT / "fixtures/compressed_tensors/glm4_moe_lost_mtp"


def test_a_grafted_draft_layer_is_padded_in_a_second_conversion(tmp_path, monkeypatch):
    monkeypatch.setattr(Parallel, "multiple", lambda self, spec, tp: lcm(spec.weight.group_size or 1, 480))
    wanted = {"graft": LOST / "original", "pad": True}
    source = tmp_path / "src"
    shutil.copytree(LOST / "quantized", source)
    found = refusal(source, 1, "QB254", "compressed-tensors", **wanted)["QB254"]
    assert "graft first" in facts(found) and ".layers." in found[0].where[0]
    grafted, out, back = (tmp_path / name for name in ("grafted", "padded", "back"))
    qbridge.convert(source, grafted, "compressed-tensors", graft=wanted["graft"])
    qbridge.convert(grafted, out, "compressed-tensors", pad=True)
    assert config(out)["moe_intermediate_size"] % 480 == 0 and qbridge.verify(grafted, out).same
    qbridge.restore(out, back)
    assert_same_tensors(grafted, back)
