from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import qbridge
from qbridge.dtypes import DType
from qbridge.exactness import Exactness
from qbridge.layout import NARROWED, Shared, Slot
from qbridge.plan import LayerPlan
from qbridge.testing import check_layer
from qbridge.values import dequantize
from qbridge_formats import modelopt, mxfp4
from support import ROOT, codes, copy_fixture, edit_json, edit_quantization, only_neighbours

FIXTURE = ROOT / "fixtures/mxfp4/gpt_oss"
EXPERTS = "model.layers.0.mlp.experts"


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


def test_nothing_is_written_in_it(tmp_path):
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.convert(FIXTURE / "model", tmp_path / "out", "mxfp4")
    assert codes(refused) == {"QB110"} and "does not write" in str(refused.value)
    only_neighbours(tmp_path)
    with qbridge.open(FIXTURE / "model") as checkpoint:
        layer = checkpoint.layer(f"{EXPERTS}.0.up_proj")
    assert not check_layer(mxfp4, layer)
    with pytest.raises(ValueError, match="read, not written"):
        mxfp4.layout(layer.spec)
    with pytest.raises(ValueError, match="not written"):
        Shared(NARROWED, 0, 2).encode(np.zeros(2), Slot("a", DType.U8, (2,)))


def test_what_is_not_written_back_is_not_called_reversible():
    with qbridge.open(FIXTURE / "model") as checkpoint:
        spec, slots = checkpoint.specs[f"{EXPERTS}.0.down_proj"], checkpoint.model.slots[f"{EXPERTS}.0.down_proj"]
    assert LayerPlan(spec, spec, (), slots, slots).exactness is Exactness.EQUAL


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
