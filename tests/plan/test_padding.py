"""MLPs of real checkpoints that grow to be legal on every rank, what becomes of edits, and what must not grow."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from math import lcm

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import qbridge
from goldens import ALLOW
from padding import (
    DOWN,
    MLP,
    assert_same_model_in_more_features,
    cut,
    deepseek,
    edited,
    fixture,
    flip,
    mlp,
    model,
    put,
)
from qbridge.formats.registry import find
from qbridge.ir.values import dequantize
from qbridge.targets.parallel import Parallel
from qbridge.testing.laws import write_model
from qbridge.testing.strategies import random_layer
from support import ROOT, copy_fixture, edit_json, edit_quantization, facts, only_neighbours, refusal
from test_conversion import config, tensors

# conversions


def to_480(monkeypatch):
    """Every engine wants intermediate sizes that no fixture has."""
    monkeypatch.setattr(Parallel, "multiple", lambda self, spec, tp: lcm(spec.weight.group_size or 1, 480))


TARGETS = ["gptq", "awq", "compressed-tensors", "auto-round", "vllm", "vllm-gptq", "lmdeploy"]


@pytest.mark.parametrize("target", TARGETS)
def test_groups_that_two_ranks_would_cut_are_filled_up(target, tmp_path):
    source, out = fixture("gptq/llama_640"), tmp_path / "out"
    report = qbridge.convert(source, out, target, tp=2, pad=True)
    assert report.passes == {"pad": 3} and report.exactness == {"equal": 3, "reversible": 4}
    assert config(out)["intermediate_size"] == 768 and config(source)["intermediate_size"] == 640
    assert assert_same_model_in_more_features(source, out) == 3
    with qbridge.open(out) as opened:
        assert {spec.weight.group_size for spec in opened.specs.values()} == {128}
    steps = json.loads((out / "qbridge.json").read_text())["steps"]
    assert {tuple(step["dims"][0]): tuple(step["dims"][1]) for step in steps if step["passes"]} == {
        (640, 256): (768, 256),
        (256, 640): (256, 768),
    }


@pytest.mark.parametrize("target", TARGETS)
def test_a_short_group_is_filled_up_and_attention_is_split(target, tmp_path):
    """o_proj has one group of 128, so that each of two ranks has half of one, which no padding mends."""
    source, out = fixture("gptq/llama_short_group"), tmp_path / "out"
    report = qbridge.convert(source, out, target, tp=2, pad=True)
    alike = target in ("awq", "lmdeploy")  # formats in which all groups have one size
    assert report.passes == {"pad": 3, "regroup": 7 if alike else 1}
    assert config(out)["intermediate_size"] % (64 * 2 if alike else 128 * 2) == 0
    assert assert_same_model_in_more_features(source, out) == 3


ALL = sorted(path.parent for path in ROOT.glob("fixtures/*/*/model"))


# What padding makes of a fixture in its own format where it is not padded.
NOT_GROWN = {
    "auto_round/llama_regex": "QB254",  # up_proj is not quantized
    "awq/llama_gptqmodel_8bit": "QB110",
    "compressed_tensors/llama_mxfp6a16": "QB101",
    "compressed_tensors/llama_w4a16_g_idx": "QB110",
    "marlin/llama_autoawq": "QB110",
    "marlin/llama_autogptq": "QB110",
    "marlin/llama_autogptq_channel": "QB110",
    "marlin/llama_checkpoint_format": "QB110",
    "mxfp4/gpt_oss": "QB254",  # its MLP adds one to up
}


DENSE_DOWN = (
    "compressed_tensors/llama_partial",
    "compressed_tensors/qwen3_partial",
    "mlx/llama_affine",
    "mlx/llama_zero_points",
)


@pytest.mark.parametrize("case", ALL, ids=lambda case: f"{case.parent.name}/{case.name}")
def test_every_fixture_grows_in_its_own_format(case, tmp_path, monkeypatch):
    to_480(monkeypatch)
    name, allow = f"{case.parent.name}/{case.name}", ALLOW.get(case.name, ())
    source, own = case / "model", case.parent.name.replace("_", "-")
    if name in NOT_GROWN:
        with pytest.raises(qbridge.QBridgeError, match=NOT_GROWN[name]):
            qbridge.convert(source, tmp_path / "out", own, pad=True, allow=allow)
        only_neighbours(tmp_path)
        return
    report = qbridge.convert(source, tmp_path / "out", own, pad=True, allow=allow)
    if name in DENSE_DOWN:
        assert not report.passes
        return
    assert report.passes["pad"] % 3 == 0 and report.exactness["equal"] >= report.passes["pad"]
    assert assert_same_model_in_more_features(source, tmp_path / "out", allow) == report.passes["pad"]
    before, after = config(source), config(tmp_path / "out")
    key = "moe_intermediate_size" if "moe" in name else "intermediate_size"
    with qbridge.open(tmp_path / "out", allow=allow) as opened:
        downs = {spec.in_features for n, spec in opened.specs.items() if n.rpartition(".")[2] in ("down_proj", "w2")}
        weights = [spec.weight for spec in opened.specs.values()]
        groups = {size for own in weights for size in (own.group_size or 1, *(own.block or ()))}
    assert downs == {after[key]} and after[key] > before[key] and after[key] % 480 == 0
    assert after[key] < before[key] + lcm(480, *groups)
    assert {k for k in before.keys() & after.keys() if before[k] != after[k]} <= {
        key,
        "quantization_config",
        "quantization",
    }


@pytest.mark.parametrize(
    ("case", "target", "key"),
    [
        ("gptq/qwen3_moe_v1_sym", "vllm", "moe_intermediate_size"),
        ("compressed_tensors/qwen3_moe_w4a16", "gptq", "moe_intermediate_size"),
        ("compressed_tensors/mixtral_w8a8_w123", "lmdeploy", "intermediate_size"),
        ("compressed_tensors/qwen3_moe_w8a8", "smooth-quant", "moe_intermediate_size"),
    ],
)
def test_all_experts_grow_and_the_router_does_not(case, target, key, tmp_path):
    edit_heads = copy_fixture(tmp_path, case)
    edit_json(edit_heads / "config.json", lambda keys: keys.update(num_attention_heads=4, num_key_value_heads=4))
    report = qbridge.convert(edit_heads, tmp_path / "out", target, tp=(2, 4), pad=True)
    assert report.passes["pad"] == 12 * config(edit_heads)["num_hidden_layers"]
    assert config(tmp_path / "out")[key] == 128 and config(edit_heads)[key] == 64
    assert assert_same_model_in_more_features(edit_heads, tmp_path / "out") == report.passes["pad"]
    routers = {name: value for name, value in tensors(tmp_path / "out").items() if name.endswith(".gate.weight")}
    assert routers and all((value == tensors(edit_heads)[name]).all() for name, value in routers.items())


def biased(tmp_path):
    """A checkpoint whose linears all have biases that are not zero."""
    source = copy_fixture(tmp_path, "gptq/llama_autogptq_sym")
    file = next(source.glob("*.safetensors"))
    stored, random = load_file(file), np.random.default_rng(1)
    for name in [name for name in stored if name.endswith(".bias")]:
        stored[name] = random.normal(size=stored[name].shape).astype(np.float16)
    save_file(stored, file, metadata={"format": "pt"})
    edit_json(source / "config.json", lambda keys: keys.update(attention_bias=True, mlp_bias=True))
    return source


@pytest.mark.parametrize("target", ["gptq", "compressed-tensors", "vllm-gptq"])
def test_biases_grow_with_zeros_and_only_where_outputs_do(target, tmp_path, monkeypatch):
    to_480(monkeypatch)
    source = biased(tmp_path)
    qbridge.convert(source, tmp_path / "out", target, pad=True)
    assert assert_same_model_in_more_features(source, tmp_path / "out") == 3
    before, after = tensors(source), tensors(tmp_path / "out")
    for leaf, length in zip(MLP, (480, 480, 128), strict=True):
        was, bias = (found[f"model.layers.0.mlp.{leaf}.bias"].numpy() for found in (before, after))
        assert bias.shape == (length,) and bias[: was.size].tobytes() == was.tobytes() and not bias[was.size :].any()


@pytest.mark.parametrize(
    ("case", "target", "tensor", "change"),
    [
        ("gptq/llama_short_group", "gptq", f"{DOWN}.qweight", flip((-1, 0))),
        ("gptq/llama_short_group", "gptq", f"{DOWN}.qweight", flip((40, 5))),  # the first of the padding
        ("gptq/llama_short_group", "gptq", "model.layers.0.mlp.up_proj.qweight", flip((0, -1))),
        ("gptq/llama_short_group", "awq", "model.layers.0.mlp.gate_proj.qweight", flip((3, -1))),
        ("gptq/llama_short_group", "compressed-tensors", f"{DOWN}.weight_packed", flip((3, -1))),
        ("gptq/llama_short_group", "gptq", f"{DOWN}.qzeros", flip((-1, 0))),
        ("compressed_tensors/llama_w8a8", "compressed-tensors", f"{DOWN}.weight", put((0, -1), -1)),
        ("compressed_tensors/llama_w8a8", "lmdeploy", f"{DOWN}.weight", put((0, 704), 1)),
        ("compressed_tensors/llama_w8a8", "lmdeploy", "model.layers.1.mlp.up_proj.weight", put((-1, 0), 1)),
    ],
)
def test_a_weight_of_the_padding_that_is_not_zero_makes_another_model(case, target, tensor, change, tmp_path):
    ranks = (2, 4) if "w8a8" in case else 2
    qbridge.convert(fixture(case), tmp_path / "out", target, tp=ranks, pad=True)
    assert qbridge.verify(fixture(case), tmp_path / "out").same
    edited(tmp_path / "out", tensor, change)
    for pair in ((fixture(case), tmp_path / "out"), (tmp_path / "out", fixture(case))):
        checked = qbridge.verify(*pair)
        errors = [f for f in checked.findings if f.severity == "error"]
        if "qzeros" in tensor:
            assert not checked.same  # symmetric: zero-points are fixed
            continue
        assert not checked.same and {f.code for f in errors} == {"QB501"}
        assert [f.where for f in errors] == [(tensor.rpartition(".")[0],)]
        assert "of the padded" in facts(errors)


def test_an_old_weight_that_was_edited_after_padding_makes_another_model(tmp_path):
    source = fixture("gptq/llama_short_group")
    for name, change in ((f"{DOWN}.qweight", flip((0, 0))), (f"{DOWN}.scales", put((0, 0), 1.0))):
        out = tmp_path / name
        qbridge.convert(source, out, "gptq", tp=2, pad=True)
        edited(out, name, change)
        assert not qbridge.verify(source, out).same


def test_a_scale_of_the_padding_that_is_not_finite_makes_another_model(tmp_path):
    """0 times infinity is no number: the engine's down_proj would be NaN throughout."""
    source = fixture("gptq/llama_short_group")
    qbridge.convert(source, tmp_path / "out", "gptq", tp=2, pad=True)
    edited(tmp_path / "out", f"{DOWN}.scales", put((3, 0), np.inf))
    assert not qbridge.verify(source, tmp_path / "out").same


def test_a_bias_of_the_padding_that_is_not_zero_makes_another_model(tmp_path, monkeypatch):
    to_480(monkeypatch)
    source = biased(tmp_path)
    qbridge.convert(source, tmp_path / "out", "gptq", pad=True)
    edited(tmp_path / "out", "model.layers.0.mlp.up_proj.bias", put(-1, 0.5))
    assert not qbridge.verify(source, tmp_path / "out").same


@pytest.mark.parametrize("size", [320, 384, 999])
def test_a_config_that_does_not_follow_the_padding_is_another_model(size, tmp_path):
    source = fixture("gptq/llama_short_group")
    qbridge.convert(source, tmp_path / "out", "gptq", tp=2, pad=True)
    edit_json(tmp_path / "out/config.json", lambda keys: keys.update(intermediate_size=size))
    checked = qbridge.verify(source, tmp_path / "out")
    assert not checked.same, "an engine would build MLPs of another size than the layers have"
    assert {f.code for f in checked.findings if f.severity == "error"} == {"QB504"}


def test_without_a_manifest_a_padded_layer_is_just_another_one(tmp_path):
    source = fixture("gptq/llama_short_group")
    qbridge.convert(source, tmp_path / "out", "gptq", tp=2, pad=True)
    (tmp_path / "out/qbridge.json").unlink()
    checked = qbridge.verify(source, tmp_path / "out")
    assert not checked.same and "dims" in facts([f for f in checked.findings if f.code == "QB501"])


def test_two_paddings_of_one_model_are_the_same_model(tmp_path, monkeypatch):
    source = fixture("gptq/llama_640")
    qbridge.convert(source, tmp_path / "some", "gptq", tp=2, pad=True)
    to_480(monkeypatch)
    qbridge.convert(source, tmp_path / "more", "awq", tp=2, pad=True)
    found = [config(tmp_path / name)["intermediate_size"] for name in ("some", "more")]
    assert found == [768, 1920]
    assert qbridge.verify(tmp_path / "some", tmp_path / "more").same


# what must not grow


def test_padding_that_is_not_asked_for_never_happens():
    for case in ALL:
        for target in (case.parent.name.replace("_", "-"), "vllm"):
            try:
                report = qbridge.convert(
                    case / "model", ROOT / "none", target, tp=2, dry_run=True, allow=ALLOW.get(case.name, ())
                )
            except qbridge.QBridgeError as fault:
                assert "QB254" not in str(fault)
                continue
            assert "pad" not in report.passes, (case, target)


@pytest.mark.parametrize("case", ["gptq/llama_g128", "gptq/llama_v1_sym", "compressed_tensors/llama_w8a8"])
def test_padding_that_is_not_needed_never_happens(case, tmp_path):
    for target in ("vllm", "lmdeploy", case.partition("/")[0].replace("_", "-")):
        plain = qbridge.convert(fixture(case), tmp_path / "out", target, tp=2, dry_run=True)
        asked = qbridge.convert(fixture(case), tmp_path / "out", target, tp=2, pad=True, dry_run=True)
        assert plain.passes == asked.passes and "pad" not in asked.passes


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"architectures": ["MysteryForCausalLM"]}, "MysteryForCausalLM is not known to qbridge"),
        ({"architectures": []}, "the architecture is not known to qbridge"),
        ({"hidden_act": "sigmoid"}, "is not known to be act(gate) * up with act(0) = 0"),
        ({"architectures": ["GptOssForCausalLM"]}, "the MLP of GptOssForCausalLM is not known to be act(gate) * up"),
        ({"architectures": ["NemotronForCausalLM"]}, "the MLP of NemotronForCausalLM is not known to be"),
    ],
    ids=["unknown", "none", "sigmoid", "gpt-oss", "nemotron"],
)
def test_an_mlp_that_would_not_stay_the_same_is_refused(keys, reason, tmp_path):
    found = refusal(cut(tmp_path, **keys), 1, "QB254", "gptq", tp=2, pad=True, allow=["incomplete"])["QB254"]
    assert reason in facts(found) and [f.where for f in found] == [("model.layers.0.mlp",)]


def test_an_activation_that_keeps_zero_may_grow(tmp_path):
    source = cut(tmp_path, hidden_act="gelu_pytorch_tanh")
    assert qbridge.convert(source, tmp_path / "out", "gptq", tp=2, pad=True).passes == {"pad": 3}


def test_zero_points_that_are_no_codes_are_refused(tmp_path):
    source, wanted = cut(tmp_path), {"tp": 2, "pad": True, "allow": ["v1-zeros-add"]}
    with open(ROOT / "fixtures/gptq/llama_autogptq_zero0/model/config.json") as stream:
        block = json.load(stream)["quantization_config"]  # of AutoGPTQ, whose zero-points go up to 16
    edit_json(source / "config.json", lambda keys: keys.update(quantization_config={**block, "group_size": 256}))
    (source / "quantize_config.json").unlink()
    stored = load_file(source / "model.safetensors")
    for name in list(stored):
        if name.endswith((".scales", ".qzeros")):
            stored[name] = np.ascontiguousarray(stored[name][::2])
        elif name.endswith(".g_idx"):
            stored[name] //= 2
    stored[f"{DOWN}.qzeros"][2] = -1
    save_file(stored, source / "model.safetensors", metadata={"format": "pt"})
    found = refusal(source, 1, "QB111 QB254", "gptq", **wanted)["QB254"]
    assert "zero-points are no codes" in facts(found) and found[0].where == (DOWN,)
    edited(source, f"{DOWN}.qzeros", put((2, slice(None)), 0x77777777))
    qbridge.convert(source, tmp_path / "out", "gptq", **wanted)
    assert config(tmp_path / "out")["intermediate_size"] == 1024
    assert assert_same_model_in_more_features(source, tmp_path / "out", ["v1-zeros-add"]) == 3


def partly_dense(tmp_path, leaves):
    """W8A8 of intermediate size 320, some linears of the second MLP as float16."""
    source = copy_fixture(tmp_path)
    names = [f"model.layers.1.mlp.{leaf}" for leaf in leaves]
    with qbridge.open(source) as opened:
        dense = {f"{name}.weight": dequantize(opened.layer(name)).astype(np.float16) for name in names}
    stored = load_file(source / "model.safetensors")
    for name in names:
        del stored[f"{name}.weight_scale"]
    save_file({**stored, **dense}, source / "model.safetensors", metadata={"format": "pt"})
    edit_quantization(source, lambda block: block["ignore"].extend(names))
    return source


@pytest.mark.parametrize("leaves", [("gate_proj",), ("up_proj",), ("gate_proj", "up_proj"), ("down_proj",), MLP])
def test_a_part_that_is_not_quantized_keeps_all_mlps_from_growing(leaves, tmp_path):
    source = partly_dense(tmp_path, leaves)
    found = refusal(source, 1, "QB254", "compressed-tensors", tp=4, pad=True)["QB254"]
    assert "model.layers.1.mlp" in {place for f in found for place in f.where}
    assert "not quantized" in facts(found)


def test_shared_experts_of_their_own_width_are_written_as_the_config_says(tmp_path):
    made = deepseek(96, 2)
    written = [random_layer(spec, number) for number, spec in enumerate(made.specs.values())]
    write_model(
        tmp_path / "src", find("compressed-tensors"), written, {"lm_head.weight": np.ones((4, 4), np.float16)}
    )
    edit_json(tmp_path / "src/config.json", lambda keys: keys.update(made.config))
    allow = ["incomplete"]  # MLPs alone
    qbridge.convert(tmp_path / "src", tmp_path / "out", "compressed-tensors", tp=2, pad=True, allow=allow)
    width = config(tmp_path / "out")["moe_intermediate_size"]
    after = tensors(tmp_path / "out")
    for name, copies in (("experts.0", 1), ("experts.1", 1), ("shared_experts", 2)):
        shape = after[f"model.layers.0.mlp.{name}.up_proj.weight_packed"].shape
        assert shape[0] == copies * width, "the engine would build another size"
    assert assert_same_model_in_more_features(tmp_path / "src", tmp_path / "out", allow) == 9


def test_gate_and_up_in_one_linear_are_refused(tmp_path):
    specs = mlp("model.layers.0.mlp", 256, 320, 128, ("gate_up_proj", "down_proj"))
    written = [random_layer(spec, number) for number, spec in enumerate(specs.values())]
    write_model(tmp_path / "src", find("gptq"), written, {"lm_head.weight": np.ones((4, 4), np.float16)})
    keys = model(specs, architectures=["Phi3ForCausalLM"], intermediate_size=320).config
    edit_json(tmp_path / "src/config.json", lambda found: found.update(keys))
    refusal(tmp_path / "src", 1, "QB254", "gptq", tp=2, pad=True, allow=["incomplete"])


# a real width


SIZE, HIDDEN, GROUP = 29568, 8192, 128  # Qwen2-72B


CONVERT = """
import sys, time, qbridge
start, ranks, pad = time.monotonic(), tuple(map(int, sys.argv[3].split(","))), sys.argv[4] == "pad"
qbridge.convert(sys.argv[1], sys.argv[2], "gptq", tp=ranks, pad=pad, allow=["incomplete"])
seconds = time.monotonic() - start
(peak,) = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(seconds, 1024 * int(peak))
"""


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """One MLP of Qwen2-72B, its codes and scales random, as GPTQ stores it."""
    folder, random = tmp_path_factory.mktemp("wide") / "src", np.random.default_rng(72)
    stored = {"lm_head.weight": np.ones((8, 8), np.float16)}
    for leaf, (rows, columns) in {
        "gate_proj": (SIZE, HIDDEN),
        "up_proj": (SIZE, HIDDEN),
        "down_proj": (HIDDEN, SIZE),
    }.items():
        name, groups = f"model.layers.0.mlp.{leaf}", columns // GROUP
        stored[f"{name}.qweight"] = random.integers(-(2**31), 2**31, (columns // 8, rows), np.int32)
        stored[f"{name}.scales"] = random.uniform(0.001, 0.01, (groups, rows)).astype(np.float16)
        stored[f"{name}.qzeros"] = np.full((groups, rows // 8), 0x77777777, np.int32)
        stored[f"{name}.g_idx"] = np.arange(columns, dtype=np.int32) // GROUP
    folder.mkdir()
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    block = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": True, "desc_act": False, "lm_head": False}
    keys = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": HIDDEN,
        "torch_dtype": "float16",
    }
    keys |= {"intermediate_size": SIZE, "num_attention_heads": 64, "num_key_value_heads": 8, "num_hidden_layers": 1}
    keys |= {"hidden_act": "silu", "vocab_size": 8, "quantization_config": {**block, "checkpoint_format": "gptq"}}
    (folder / "config.json").write_text(json.dumps(keys))
    yield folder, stored
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(("ranks", "how", "group"), [("2,8", "pad", 128), ("2", "split", 64), ("8", "split", 16)])
def test_a_real_width_is_made_legal_in_the_memory_and_time_that_a_laptop_has(ranks, how, group, wide, tmp_path):
    source, before = wide
    words = [sys.executable, "-c", CONVERT, source, tmp_path / "out", ranks, how]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    seconds, peak = map(float, done.stdout.split())
    print(f"tp {ranks}, {how}: {seconds:.1f} s, {peak / 1e6:.0f} MB")
    file = tmp_path / "out/model.safetensors"
    after, size = load_file(file), 29696 if how == "pad" else SIZE
    file.unlink()
    assert config(tmp_path / "out")["intermediate_size"] == size
    for leaf in MLP:
        name, ratio = f"model.layers.0.mlp.{leaf}", GROUP // group if how == "pad" or leaf == "down_proj" else 1
        codes, scales = after[f"{name}.qweight"], after[f"{name}.scales"]
        was = before[f"{name}.qweight"]
        assert (codes[: was.shape[0], : was.shape[1]] == was).all()
        assert codes.shape == ((size // 8, HIDDEN) if leaf == "down_proj" else (HIDDEN // 8, size))
        assert (codes[was.shape[0] :].view(np.uint32) == 0x88888888).all()
        assert (codes[:, was.shape[1] :].view(np.uint32) == 0x88888888).all()
        wanted = np.repeat(before[f"{name}.scales"], ratio, axis=0)
        assert (scales[: wanted.shape[0], : wanted.shape[1]] == wanted).all()
        assert (
            np.isfinite(scales.astype(np.float32)).all()
            and math.prod(scales.shape) * GROUP // ratio == codes.size * 8
        )
    assert seconds < 60 and peak < 3e9
