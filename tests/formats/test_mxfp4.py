from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import qbridge
from qbridge.codecs.arrays import NARROWED, Interleaved
from qbridge.ir.dtypes import DType
from qbridge.ir.exactness import Exactness
from qbridge.ir.layer import Spec, identical
from qbridge.ir.slots import Slot
from qbridge.ir.values import dequantize
from qbridge.plan.output_tensors import outputs_of
from qbridge.plan.plan import LayerPlan
from qbridge.testing.laws import check_format, write_model
from qbridge.testing.strategies import random_layer
from qbridge.write import jobs
from qbridge.write.budget import Effort
from qbridge_formats import compressed_tensors, modelopt, mxfp4
from support import (
    ROOT,
    SINGLE,
    codes,
    copy_fixture,
    edit_header,
    edit_json,
    edit_quantization,
    facts,
    places,
    refusal,
)
from test_conversion import assert_same_tensors

FIXTURE = ROOT / "fixtures/mxfp4/gpt_oss"
EXPERTS = "model.layers.0.mlp.experts"
OTHERS = "model.layers.1.mlp.experts"
LEAVES = ("gate_proj", "up_proj", "down_proj")


def test_values_are_those_that_transformers_loads():
    expected = json.loads((FIXTURE / "expected.json").read_text())["weights"]
    with qbridge.open(FIXTURE / "model") as checkpoint:
        assert checkpoint.format == "mxfp4" and not list(checkpoint.findings)
        assert {f"{name}.weight" for name in checkpoint.specs} == expected.keys()
        for name in checkpoint.specs:
            values = dequantize(checkpoint.layer(name)).astype("<f4")
            assert list(values.shape) == expected[f"{name}.weight"]["shape"]
            assert hashlib.sha256(values.tobytes()).hexdigest() == expected[f"{name}.weight"]["sha256"], name


def test_biases_take_turns_like_rows():
    stored = load_file(FIXTURE / "model/model.safetensors")
    with qbridge.open(FIXTURE / "model") as checkpoint:
        for expert in range(4):
            both = stored[f"{EXPERTS}.gate_up_proj_bias"][expert].view(torch.int16).numpy().view(np.uint16)
            gate, up = (checkpoint.layer(f"{EXPERTS}.{expert}.{part}_proj").arrays["bias"] for part in ("gate", "up"))
            assert np.array_equal(gate, both[0::2]) and np.array_equal(up, both[1::2])


def test_every_other_tensor_is_carried_and_every_fused_one_claimed():
    stored = load_file(FIXTURE / "model/model.safetensors")
    with qbridge.open(FIXTURE / "model") as checkpoint:
        fused = {name for name in stored if ".experts." in name}
        assert checkpoint.model.tensors.keys() == stored.keys() - fused
        assert len(checkpoint.specs) == 2 * 4 * 3 and len(fused) == 2 * 2 * 3


def test_it_is_the_same_as_itself_and_not_as_another(tmp_path):
    assert qbridge.verify(FIXTURE / "model", FIXTURE / "model").identical == 24
    src = copy_fixture(tmp_path, "mxfp4/gpt_oss")
    edited(src, lambda stored: stored[f"{EXPERTS}.gate_up_proj_blocks"][2, 7].add_(1))
    checked = qbridge.verify(FIXTURE / "model", src)
    (finding,) = [f for f in checked.findings if f.severity == "error"]
    assert (finding.where, finding.facts) == ((f"{EXPERTS}.2.up_proj",), ("codes",))


def through(src, tmp_path, **options):
    """(compressed-tensors of a checkpoint, and mxfp4 of that)."""
    qbridge.convert(src, tmp_path / "ct", "compressed-tensors", **options)
    report = qbridge.convert(tmp_path / "ct", tmp_path / "out", "mxfp4", **options)
    assert report.exactness == {"reversible": 24} and not report.passes
    return tmp_path / "ct", tmp_path / "out"


def test_there_and_back_the_file_is_the_same_to_the_byte(tmp_path):
    there, back = through(FIXTURE / "model", tmp_path)
    assert (back / SINGLE).read_bytes() == (FIXTURE / "model" / SINGLE).read_bytes()
    block = json.loads((back / "config.json").read_text())["quantization_config"]
    assert block["quant_method"] == "mxfp4" and "lm_head" in block["modules_to_not_convert"]
    assert not any(".experts" in name for name in block["modules_to_not_convert"])
    qbridge.restore(there, tmp_path / "restored")
    own = ("config.json", SINGLE)
    assert [(tmp_path / "restored" / name).read_bytes() for name in own[1:]] == [(back / SINGLE).read_bytes()]
    configs = [
        json.loads((folder / "config.json").read_text()) for folder in (FIXTURE / "model", tmp_path / "restored")
    ]
    assert configs[0] == configs[1]


def test_to_itself_every_tensor_is_copied(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs.Encoded, "run", None)
    qbridge.convert(FIXTURE / "model", tmp_path / "out", "mxfp4")
    assert (tmp_path / "out" / SINGLE).read_bytes() == (FIXTURE / "model" / SINGLE).read_bytes()


def test_windows_give_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(Effort, "block", property(lambda effort: 1 << 11))
    monkeypatch.setattr("qbridge.write.jobs.CODES", 1 << 9)
    written = []
    run = jobs.Encoded.run
    monkeypatch.setattr(jobs.Encoded, "run", lambda job, *rest: written.append(job) or run(job, *rest))
    _, out = through(FIXTURE / "model", tmp_path)
    assert (out / SINGLE).read_bytes() == (FIXTURE / "model" / SINGLE).read_bytes()
    windows = [job.window for job in written if job.tensor.name == f"{EXPERTS}.gate_up_proj_blocks[3]"]
    assert len(windows) > 1 and all(window.start % 2 == 0 for window in windows)


def test_experts_that_lie_in_many_shards_come_together(tmp_path):
    qbridge.convert(FIXTURE / "model", tmp_path / "ct", "compressed-tensors", max_shard_size=1 << 14)
    assert len(list((tmp_path / "ct").glob("*.safetensors"))) > 4
    qbridge.convert(tmp_path / "ct", tmp_path / "out", "mxfp4", max_shard_size=1 << 14)
    assert_same_tensors(FIXTURE / "model", tmp_path / "out")
    assert qbridge.verify(tmp_path / "ct", tmp_path / "out").identical == 24


@pytest.mark.parametrize("target", ["vllm", "transformers", "lmdeploy", "lmdeploy-turbomind"])
@pytest.mark.parametrize("by_way", ["mxfp4", "compressed-tensors"])
def test_engines_that_want_fused_experts_get_them(by_way, target, tmp_path):
    qbridge.convert(FIXTURE / "model", tmp_path / "src", by_way)
    said = {"QB216"} if target == "lmdeploy" else set()
    report = qbridge.convert(tmp_path / "src", tmp_path / "dst", target)
    assert report.format == "mxfp4" and {f.code for f in report.findings} == said
    assert (tmp_path / "dst" / SINGLE).read_bytes() == (FIXTURE / "model" / SINGLE).read_bytes()


def test_vllm_gives_every_rank_whole_groups(tmp_path):
    report = qbridge.check(FIXTURE / "model", "vllm", 2)  # 96 intermediate features are 3 groups
    assert not report.findings
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.convert(FIXTURE / "model", tmp_path / "dst", "transformers", tp=(2,))
    assert {finding.code for finding in refused.value.findings} == {"QB251"}


def test_a_stream_has_the_fused_tensors(tmp_path):
    qbridge.convert(FIXTURE / "model", tmp_path / "ct", "compressed-tensors")
    stored = load_file(FIXTURE / "model" / SINGLE)
    with qbridge.stream(tmp_path / "ct", "mxfp4") as stream:
        assert {name: tuple(tensor.shape) for name, tensor in stored.items()} == {
            name: shape for name, (_, shape) in stream.shapes.items()
        }
        assert all(torch.equal(tensor, stored[name]) for name, tensor in stream)


def test_what_is_written_is_read_back(tmp_path, monkeypatch):
    qbridge.convert(FIXTURE / "model", tmp_path / "ct", "compressed-tensors")
    encoded = jobs.Encoded.encoded
    monkeypatch.setattr(jobs.Encoded, "encoded", lambda job, *rest: encoded(job, *rest)[::-1])
    with pytest.raises(qbridge.QBridgeError, match=r"QB403.*gate_up_proj_"):
        qbridge.convert(tmp_path / "ct", tmp_path / "out", "mxfp4")
    assert not (tmp_path / "out").exists()


def test_laws():
    check_format("mxfp4", 400)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 3), st.sampled_from([32, 64, 96]), st.sampled_from([32, 64]), st.integers(0, 2**32 - 1))
def test_fused_tensors_are_those_that_the_table_describes(experts, intermediate, hidden, seed):
    dims = {
        "gate_proj": (intermediate, hidden),
        "up_proj": (intermediate, hidden),
        "down_proj": (hidden, intermediate),
    }
    written = {
        (expert, leaf): random_layer(
            Spec(f"{EXPERTS}.{expert}.{leaf}", *dims[leaf], mxfp4.WEIGHT, DType.F8_E8M0, bias=DType.BF16),
            seed + expert,
        )
        for expert in range(experts)
        for leaf in dims
    }
    with tempfile.TemporaryDirectory() as folder:
        there, out, back = (Path(folder) / name for name in ("there", "out", "back"))
        write_model(there, compressed_tensors, list(written.values()), {"model.norm.weight": np.ones(4, np.float16)})
        own = {"architectures": ["GptOssForCausalLM"], "num_local_experts": experts}
        edit_json(there / "config.json", lambda config: config.update(own))
        qbridge.convert(there, out, "mxfp4")
        stored = load_file(out / SINGLE)
        qbridge.convert(out, back, "compressed-tensors")
        with qbridge.open(back) as opened:
            assert all(identical(opened.layer(layer.spec.name), layer) for layer in written.values())
    for (expert, leaf), layer in written.items():
        fused, rows = {
            "gate_proj": ("gate_up_proj", slice(0, None, 2)),
            "up_proj": ("gate_up_proj", slice(1, None, 2)),
            "down_proj": ("down_proj", slice(None)),
        }[leaf]
        codes = layer.arrays["code"]
        packed = (codes[:, 0::2] | codes[:, 1::2] << 4).reshape(len(codes), -1, 16)
        assert np.array_equal(stored[f"{EXPERTS}.{fused}_blocks"][expert, rows].numpy(), packed)
        assert np.array_equal(stored[f"{EXPERTS}.{fused}_scales"][expert, rows].numpy(), layer.arrays["scale"])
        bias = stored[f"{EXPERTS}.{fused}_bias"][expert, rows].view(torch.int16).numpy()
        assert np.array_equal(bias.view(np.uint16), layer.arrays["bias"])


def of(expert, leaf, *endings):
    return [f"{EXPERTS}.{expert}.{leaf}.{ending}" for ending in endings]


def without(*names):
    return lambda stored: [stored.pop(name) for name in names] and None


def copied(*pairs):
    """Linears under other names, with all their tensors."""
    return lambda stored: stored.update(
        {
            f"{there}.{ending}": stored[f"{EXPERTS}.{here}.{ending}"].clone()
            for here, there in pairs
            for ending in ("weight_packed", "weight_scale", "bias")
        }
    )


def narrowed(stored):
    for ending in ("weight_packed", "weight_scale", "bias"):
        name = f"{EXPERTS}.1.gate_proj.{ending}"
        stored[name] = stored[name][:64].clone()


def plain(stored):
    for expert in range(4):
        for leaf in LEAVES:
            packed = stored.pop(f"{OTHERS}.{expert}.{leaf}.weight_packed")
            stored.pop(f"{OTHERS}.{expert}.{leaf}.weight_scale")
            stored[f"{OTHERS}.{expert}.{leaf}.weight"] = torch.zeros(len(packed), 2 * packed.shape[1]).bfloat16()


@pytest.mark.parametrize("target", ["mxfp4", "dense"])
def test_experts_that_are_not_quantized_have_no_fused_tensor(target, tmp_path):
    qbridge.convert(FIXTURE / "model", tmp_path / "src", "compressed-tensors")
    edited(tmp_path / "src", plain)
    edit_quantization(tmp_path / "src", lambda block: block["ignore"].append(f"re:{OTHERS}.*"))
    found = refusal(tmp_path / "src", 1, "QB110", target)["QB110"]
    assert "not quantized, and has no fused tensor" in facts(found)


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        (without(*of(3, "down_proj", "weight_packed", "weight_scale", "bias")), "11 of the 12 linears"),
        (without(*of(1, "up_proj", "bias")), "its experts differ in dims or bias"),
        (without(*(name for expert in range(4) for name in of(expert, "down_proj", "bias"))), "have no bias"),
        (narrowed, "its experts differ in dims or bias"),
        (
            lambda stored: stored.update({f"{EXPERTS}.0.up_proj.bias": torch.zeros(96).half()}),
            "differ in dims or bias",
        ),
        (copied(*((f"0.{leaf}", f"{EXPERTS}.4.{leaf}") for leaf in LEAVES)), "3 of other experts"),
        (copied(("0.up_proj", "model.layers.0.mlp.shared.up_proj")), "no linear of an expert"),
        (copied(("0.up_proj", f"{EXPERTS}.0.other_proj")), "no linear of an expert"),
        (copied(("0.up_proj", f"{EXPERTS}.01.up_proj")), "no linear of an expert"),
    ],
)
def test_experts_that_make_up_no_tensor_are_refused(change, fact, tmp_path):
    qbridge.convert(FIXTURE / "model", tmp_path / "src", "compressed-tensors")
    edited(tmp_path / "src", change)
    assert fact in facts(refusal(tmp_path / "src", 1, "QB110", "mxfp4", allow=["incomplete"])["QB110"])


def inputs(config):
    config["quantization_config"]["config_groups"]["group_0"]["input_activations"] = {
        "num_bits": 8, "type": "float", "strategy": "token", "dynamic": True, "symmetric": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        (inputs, "e4m3fn"),
        (lambda config: config.update(architectures=["LlamaForCausalLM"]), "only GptOssForCausalLM"),
        (lambda config: config.pop("architectures") and None, "only GptOssForCausalLM"),
        (lambda config: config.update(num_experts=5), "12 of the 15 linears of its 5 experts"),
        (lambda config: config.update(num_experts=3), "9 of the 9 linears of its 3 experts"),
    ],
)
def test_other_models_are_refused(change, fact, tmp_path):
    qbridge.convert(FIXTURE / "model", tmp_path / "src", "compressed-tensors")
    edit_json(tmp_path / "src/config.json", lambda config: change(config) and None)
    assert fact in facts(refusal(tmp_path / "src", 1, "QB110", "mxfp4", allow=["incomplete"])["QB110"])


def test_other_schemes_are_refused(tmp_path):
    for case in ("llama_nvfp4", "llama_mxfp8", "llama_w4a16"):
        src = copy_fixture(tmp_path / case, f"compressed_tensors/{case}")
        assert "scales are" in facts(refusal(src, 1, "QB110", "mxfp4")["QB110"])


def test_no_layer_but_an_expert_has_a_place():
    spec = Spec("model.layers.0.self_attn.q_proj", 32, 32, mxfp4.WEIGHT, DType.F8_E8M0)
    with pytest.raises(ValueError, match="no linear of an expert"):
        mxfp4.layout(spec)
    with pytest.raises(ValueError, match="not written from one"):
        Interleaved(NARROWED, 0, 2).encode(np.zeros(2), Slot("a", DType.U8, (2,)))


def test_slices_that_make_up_no_tensor_are_never_written():
    with qbridge.open(FIXTURE / "model") as opened:
        plans = {
            name: LayerPlan(spec, spec, (), opened.model.slots[name], opened.model.slots[name])
            for name, spec in opened.specs.items()
        }
        assert all(plan.exactness is Exactness.REVERSIBLE for plan in plans.values())
        fused = {output.name: output for output in outputs_of(opened.source, opened.model, plans)}
        assert fused[f"{EXPERTS}.down_proj_blocks"].shape == (4, 64, 3, 16)
        for name, fact in (
            (f"{EXPERTS}.1.up_proj", "layers that share it"),
            (f"{EXPERTS}.1.down_proj", "are not all there"),
        ):
            with pytest.raises(ValueError, match=fact):
                outputs_of(opened.source, opened.model, {key: plan for key, plan in plans.items() if key != name})


def test_a_slice_is_copied_only_where_its_rows_lie_as_they_will():
    with qbridge.open(FIXTURE / "model") as opened:
        slots = opened.model.slots
        gate, up = f"{EXPERTS}.0.gate_proj", f"{EXPERTS}.0.up_proj"
        read = {**slots, gate: slots[up], up: slots[gate]}
        plans = {name: LayerPlan(spec, spec, (), read[name], slots[name]) for name, spec in opened.specs.items()}
        fused = {output.name: output for output in outputs_of(opened.source, opened.model, plans)}
    blocks, down = fused[f"{EXPERTS}.gate_up_proj_blocks"], fused[f"{EXPERTS}.down_proj_blocks"]
    assert [bool(own.origin) for own in blocks.slices] == [False, True, True, True]
    assert all(own.origin == own.name for own in (*blocks.slices[1:], *down.slices))


def test_a_manifest_that_forgets_an_expert_is_not_followed(tmp_path):
    qbridge.convert(FIXTURE / "model", tmp_path / "ct", "compressed-tensors")
    names = [name for leaf in LEAVES for name in of(1, leaf, "weight_packed", "weight_scale", "bias")]
    edited(tmp_path / "ct", without(*names))

    def forget(manifest):
        for step in manifest["steps"]:
            step["layers"] = [name for name in step["layers"] if not name.startswith(f"{EXPERTS}.1.")]

    edit_json(tmp_path / "ct/qbridge.json", forget)
    with pytest.raises(qbridge.QBridgeError, match="slices are not all there") as refused:
        qbridge.restore(tmp_path / "ct", tmp_path / "back")
    assert codes(refused) == {"QB037"} and not (tmp_path / "back").exists()


def test_modelopt_has_no_place_for_it():
    with qbridge.open(FIXTURE / "model") as checkpoint:
        specs = checkpoint.specs.values()
        assert all(modelopt.RULES[0].check(spec, checkpoint.model) for spec in specs)


def edited(src, fn):
    stored = load_file(src / "model.safetensors")
    fn(stored)
    save_file(stored, src / "model.safetensors", metadata={"format": "pt"})


def reshaped(name, *shape):
    return lambda stored: stored.update({f"{EXPERTS}.{name}": stored[f"{EXPERTS}.{name}"].reshape(shape).clone()})


def cast(name, dtype):
    return lambda stored: stored.update({f"{EXPERTS}.{name}": stored[f"{EXPERTS}.{name}"].to(dtype)})


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda stored: stored.pop(f"{EXPERTS}.down_proj_scales"), "QB015"),
        (lambda stored: stored.pop(f"{EXPERTS}.gate_up_proj_bias"), "QB015"),
        (reshaped("gate_up_proj_blocks", 4, 192, 4, 8), "QB016"),
        (reshaped("gate_up_proj_blocks", 4, 192, 32), "QB016"),
        (reshaped("gate_up_proj_scales", 4, 2, 192), "QB016"),
        (reshaped("down_proj_bias", 64, 4), "QB016"),
        (cast("down_proj_bias", torch.int16), "QB016"),
        (cast("down_proj_scales", torch.int8), "QB016"),
        (
            lambda stored: stored.update({f"{EXPERTS}.other_blocks": torch.zeros(4, 64, 3, 16).byte()}),
            "QB016",
        ),
        (lambda stored: stored.update({f"{EXPERTS}.down_proj_blocks": torch.zeros(4, 0, 3, 16).byte()}), "QB016"),
    ],
)
def test_fused_tensors_that_do_not_fit_are_refused(change, code, tmp_path):
    src = copy_fixture(tmp_path, "mxfp4/gpt_oss")
    edited(src, change)
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.open(src)
    assert code in codes(refused) and refused.value.exit_code == 3


def test_a_scale_that_is_no_number_is_named(tmp_path):
    src = copy_fixture(tmp_path, "mxfp4/gpt_oss")
    edited(src, lambda stored: stored[f"{EXPERTS}.down_proj_scales"][1, 3, 2].fill_(255))
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.convert(src, tmp_path / "out", "compressed-tensors")
    (finding,) = [f for f in refused.value.findings if f.code == "QB017"]
    assert finding.where == (f"{EXPERTS}.down_proj_scales[1]",)


def test_other_keys_and_methods(tmp_path):
    src = copy_fixture(tmp_path, "mxfp4/gpt_oss")
    edit_quantization(src, lambda block: block.update(mine=1))
    with qbridge.open(src) as checkpoint:
        assert {f.code for f in checkpoint.findings} == {"QB103"}
    edit_json(src / "config.json", lambda config: config.pop("quantization_config") and None)
    with pytest.raises(qbridge.QBridgeError):
        qbridge.open(src)


def test_slices_of_pickled_tensors_are_slices_of_their_bytes(tmp_path):
    src = copy_fixture(tmp_path, "mxfp4/gpt_oss")
    stored = load_file(src / "model.safetensors")
    (src / "model.safetensors").unlink()
    torch.save(stored, src / "pytorch_model.bin")
    assert qbridge.verify(FIXTURE / "model", src, allow=["pickle"]).identical == 24


def test_what_is_no_slice_is_refused():
    with qbridge.open(FIXTURE / "model") as checkpoint:
        name = "model.norm.weight"
        with pytest.raises(ValueError, match="is not 64 times"):
            checkpoint.source.split({name: (2,)})
        checkpoint.source.split({name: ()})
        assert name not in checkpoint.source.tensors and checkpoint.source.tensors[f"{name}[63]"].shape == ()


@pytest.mark.parametrize("block", ["mlp", "mlp.expert", "mlp.experts.0", "mlp.experts.experts.x"])
def test_fused_tensors_below_no_block_of_experts_are_refused(tmp_path, block):
    src = copy_fixture(tmp_path, "mxfp4/gpt_oss")
    there = f"model.layers.0.{block}"
    edit_header(src / SINGLE, lambda header: {name.replace(EXPERTS, there): entry for name, entry in header.items()})
    found = refusal(src, 3, "QB016", "vllm")
    assert {f"{there}.gate_up_proj", f"{there}.down_proj"} <= places(found["QB016"])
