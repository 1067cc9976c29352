"""Invert: global scales that multiply become ones that divide, exact or allowed to be rounded, always undone."""

from __future__ import annotations

import json
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import qbridge
import qbridge_formats.modelopt as modelopt
from qbridge.formats import registry as formats
from qbridge.formats.common_rules import global_scales
from qbridge.formats.rules import LayerRule
from qbridge.ir.dtypes import DType
from qbridge.ir.exactness import Exactness
from qbridge.ir.layer import Layer, Spec, identical
from qbridge.ir.scheme import ActivationScheme, Granularity, WeightScheme
from qbridge.ir.values import dequantize
from qbridge.passes.bits import bits_of
from qbridge.passes.invert import Invert
from qbridge.testing.laws import write_model
from support import cli, edit_json, name_floats, only_neighbours
from test_conversion import assert_same_tensors, config, tensors

BITS = st.integers(0, 2**32 - 1)
FINITE = st.floats(2.0**-127, 2.0**127, width=32)  # so are their reciprocals


def spec(does="multiply", inputs=True, name="model.layers.0.mlp.down_proj"):
    group = {"type": "e2m1", "group_size": 16}
    activation = ActivationScheme(4, Granularity.GROUP, dynamic=True, **group, global_scale=does) if inputs else None
    return Spec(
        name,
        8,
        64,
        WeightScheme(4, Granularity.GROUP, **group, global_scale=does),
        DType.F8_E4M3,
        activation=activation,
        input_scale_dtype=DType.F32 if inputs else None,
    )


def layer(outer, inner=1.0, does="multiply", inputs=True, seed=0, name="model.layers.0.mlp.down_proj"):
    """Random codes and scales with these global scales."""
    random, kind = np.random.default_rng(seed), spec(does, inputs, name)
    arrays = {
        "code": random.integers(0, 16, (8, 64)).astype(np.uint8),
        "scale": random.integers(8, 120, (8, 4)).astype(np.uint8),
        "global_scale": np.array([outer], np.float32),
        **({"input_global_scale": np.array([inner], np.float32)} if inputs else {}),
    }
    return Layer(kind, arrays)


def float32(bits):
    return np.array([bits], "<u4").view("<f4")[0]


def other(does):
    return "divide" if does == "multiply" else "multiply"


@pytest.mark.parametrize("exponent", range(-127, 128))
@pytest.mark.parametrize("does", ["multiply", "divide"])
def test_every_power_of_two_is_exact_and_undone(exponent, does):
    start = layer(2.0**exponent, -(2.0**-exponent), does)
    step = Invert(other(does))
    after = step.apply(start)
    assert after.spec == step.plan(start.spec) == spec(other(does))
    assert after.arrays["global_scale"][0] == 2.0**-exponent
    assert after.arrays["input_global_scale"][0] == -(2.0**exponent)
    assert dequantize(after).tobytes() == dequantize(start).tobytes()
    assert identical(step.undo(after, start.spec), start)
    assert step.exactness is Exactness.EQUAL and step.needs_values(start.spec)


@given(BITS)
def test_any_other_number_is_refused_unless_it_is_rounded_to_the_nearest(bits):
    value = float32(bits)
    power = np.isfinite(value) and value != 0 and abs(np.frexp(np.float64(value))[0]) == 0.5
    reciprocal = np.float64(1) / np.float64(value) if value else np.inf
    beyond = not np.isfinite(value) or not abs(reciprocal) < 2.0**128 - 2.0**103
    assume(not power)
    with pytest.raises(ValueError, match="no float32"):
        Invert("divide").apply(layer(value))
    step = Invert("divide").lossy()
    assert step.exactness is Exactness.ROUNDED
    if beyond:
        with pytest.raises(ValueError, match="infinite, zero or NaN"):
            step.apply(layer(value))
        return
    found = step.apply(layer(value)).arrays["global_scale"]
    error = abs(found[0].astype(np.float64) * np.float64(value) - 1)
    for neighbour in (found.view("<u4") + 1, found.view("<u4") - 1):
        assert error <= abs(neighbour.view("<f4")[0].astype(np.float64) * np.float64(value) - 1)


@given(FINITE, FINITE)
def test_kept_bits_come_back_whatever_the_rounding_did(first, second):
    start = layer(first, second)
    small = {part: start.arrays[part] for part in ("global_scale", "input_global_scale")}
    step = Invert("divide", rounded=True, kept=tuple(bits_of(small).items()))
    after = step.apply(start)
    assert identical(step.undo(after, start.spec), start)
    moved = after.arrays["global_scale"].copy()
    moved.view("<u4")[0] ^= 1
    with pytest.raises(ValueError, match="not the reciprocal of what it was"):
        step.undo(Layer(after.spec, {**after.arrays, "global_scale": moved}), start.spec)


def test_what_was_rounded_and_not_kept_is_not_undone():
    step, start = Invert("divide", rounded=True), layer(3.0)
    with pytest.raises(ValueError, match="no float32"):
        step.undo(step.apply(start), start.spec)


def test_only_what_does_the_other_thing_is_inverted():
    divides = layer(0.5, 4.0, "divide")
    assert identical(Invert("divide").apply(divides), divides)
    mixed = replace(spec("divide"), activation=spec("multiply").activation)
    after = Invert("divide").apply(Layer(mixed, divides.arrays))
    assert (after.arrays["global_scale"][0], after.arrays["input_global_scale"][0]) == (0.5, 0.25)
    alone = layer(0.5, inputs=False)
    assert identical(Invert("divide").undo(Invert("divide").apply(alone), alone.spec), alone)


def test_it_says_itself_as_the_manifest_keeps_it():
    assert Invert("divide").as_dict() == {"pass": "invert", "to": "divide"}
    assert Invert("divide").lossy().as_dict() == {"pass": "invert", "to": "divide", "rounded": True}


# from checkpoint to checkpoint: to a format as ModelOpt's whose global scales divide


def _read(source, findings):
    block = {**source.config["quantization_config"], "quant_method": "modelopt"}
    model = modelopt.read(replace(source, config={**source.config, "quantization_config": block}), findings)
    specs = {name: Invert("divide").plan(spec) for name, spec in model.specs.items()}
    return replace(model, format="divided", specs=specs)


def _config(model):
    specs = {name: Invert("multiply").plan(spec) for name, spec in model.specs.items()}
    return {**modelopt.config(replace(model, specs=specs)), "quant_method": "divided"}


def _sniff(source):
    block = source.config.get("quantization_config", {})
    return formats.Match(2, "divided") if block.get("quant_method") == "divided" else "another method"


@pytest.fixture
def divided(monkeypatch):
    others = [rule for rule in modelopt.RULES if not (isinstance(rule, LayerRule) and rule.code == "QB305")]
    module = types.ModuleType("qbridge_formats.divided")
    vars(module).update(vars(modelopt))
    vars(module).update(
        NAME="divided",
        RULES=(*others, global_scales("divided", "divide", "tests")),
        read=_read,
        config=_config,
        sniff=_sniff,
    )
    monkeypatch.setitem(sys.modules, "qbridge_formats.divided", module)
    monkeypatch.setattr(formats, "BUILTIN", (*formats.BUILTIN, "divided"))
    formats.registry.cache_clear()
    yield
    formats.registry.cache_clear()
    formats.load.cache_clear()


NAMES = [f"model.layers.{number}.mlp.down_proj" for number in range(3)]


def checkpoint(folder, *outer, inner=0.25):
    written = [layer(value, inner, seed=n, name=NAMES[n]) for n, value in enumerate(outer)]
    model = write_model(folder, modelopt, written, {"lm_head.weight": np.ones((4, 4), np.float16)})
    name_floats(folder, map(modelopt.layout, model.specs.values()))
    return folder


def same_files(first, second):
    assert_same_tensors(first, second)
    assert config(first) == config(second)


def test_powers_of_two_are_converted_and_verified_and_come_back(divided, tmp_path):
    source = checkpoint(tmp_path / "source", 2.0**-9, 4.0)
    report = qbridge.convert(source, tmp_path / "there", "divided")
    assert report.exactness == {"equal": 2} and report.passes == {"invert": 2}
    assert qbridge.verify(source, tmp_path / "there").same
    qbridge.convert(tmp_path / "there", tmp_path / "back", "modelopt")
    qbridge.restore(tmp_path / "there", tmp_path / "restored")
    same_files(source, tmp_path / "restored")
    (tmp_path / "there/qbridge.json").unlink()
    qbridge.convert(tmp_path / "there", tmp_path / "again", "modelopt")
    for name in ("back", "again"):
        assert qbridge.verify(source, tmp_path / name).identical == 2


def test_other_numbers_are_refused_with_how_many_layers_and_what_helps(divided, tmp_path):
    source = checkpoint(tmp_path / "source", 0.3, 4.0, 1e-5)
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.convert(source, tmp_path / "there", "divided")
    (finding,) = (f for f in refused.value.findings if f.severity == "error")
    assert (finding.code, finding.where) == ("QB305", (NAMES[0], NAMES[2]))
    assert finding.facts == (
        "its global scales multiply, those of divided divide",
        "the reciprocal of one is no float32",
    )
    assert "--allow rounded" in finding.help and refused.value.exit_code == 1
    only_neighbours(tmp_path, "source")


def test_rounded_ones_differ_and_are_restored_to_the_bit(divided, tmp_path):
    values = [np.float32(0.3), np.float32(4.0), np.float32(1e-5)]
    source = checkpoint(tmp_path / "source", *values, inner=np.float32(0.0123))
    report = qbridge.convert(source, tmp_path / "there", "divided", allow=["rounded"])
    assert report.exactness == {"rounded": 3}
    assert [(f.code, f.severity) for f in report.findings if f.code != "QB266"] == [("QB305", "warning")]
    stored = tensors(tmp_path / "there")[f"{NAMES[0]}.weight_scale_2"].numpy()
    assert stored == np.float32(1) / values[0]
    checked = qbridge.verify(source, tmp_path / "there")
    (different,) = {f.code for f in checked.findings if f.severity == "error"}
    assert different == "QB501" and not checked.same
    manifest = json.loads((tmp_path / "there/qbridge.json").read_text())
    assert manifest["kept"][NAMES[0]]["global_scale"] == f"{values[0].view(np.uint32):08x}"
    assert manifest["kept"].keys() == set(NAMES)
    qbridge.restore(tmp_path / "there", tmp_path / "restored")
    same_files(source, tmp_path / "restored")
    qbridge.convert(tmp_path / "there", tmp_path / "back", "modelopt")
    assert qbridge.verify(source, tmp_path / "back").identical == 3


def test_a_value_that_does_not_survive_there_and_back_is_one_unit_off_without_the_manifest(divided, tmp_path):
    random = np.random.default_rng(0).uniform(1e-5, 1e-3, 10_000).astype(np.float32)
    one = np.float32(1)
    value = random[one / (one / random) != random][0]
    source = checkpoint(tmp_path / "source", value)
    qbridge.convert(source, tmp_path / "there", "divided", allow=["rounded"])
    qbridge.restore(tmp_path / "there", tmp_path / "restored")
    same_files(source, tmp_path / "restored")
    (tmp_path / "there/qbridge.json").unlink()
    qbridge.convert(tmp_path / "there", tmp_path / "back", "modelopt", allow=["rounded"])
    back = tensors(tmp_path / "back")[f"{NAMES[0]}.weight_scale_2"].numpy()
    assert abs(int(back.view(np.uint32)) - int(value.view(np.uint32))) == 1
    checked = qbridge.verify(source, tmp_path / "back")
    differing = [(f.code, f.facts) for f in checked.findings if f.code != "QB266"]
    assert differing == [("QB501", ("global_scale",))]


def test_what_would_be_infinite_is_refused_even_where_rounding_is_allowed(divided, tmp_path):
    source = checkpoint(tmp_path / "source", 2.0**-140)
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.convert(source, tmp_path / "there", "divided", allow=["rounded"])
    assert {f.code for f in refused.value.findings if f.severity == "error"} == {"QB303"}


@pytest.mark.parametrize("lie", [{}, {"global_scale": "00000000"}, {"global_scale": "zz"}, {"global_scale": 3}, []])
def test_a_manifest_that_lies_about_what_was_kept_is_not_followed(divided, lie, tmp_path):
    source = checkpoint(tmp_path / "source", 0.3)
    qbridge.convert(source, tmp_path / "there", "divided", allow=["rounded"])
    edit_json(tmp_path / "there/qbridge.json", lambda manifest: manifest["kept"].update({NAMES[0]: lie}))
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.restore(tmp_path / "there", tmp_path / "restored")
    assert {f.code for f in refused.value.findings} == {"QB037"}
    assert not (tmp_path / "restored").exists()


def test_a_global_scale_edited_since_has_no_way_back(divided, tmp_path):
    source = checkpoint(tmp_path / "source", 0.3)
    qbridge.convert(source, tmp_path / "there", "divided", allow=["rounded"])
    stored = load_file(tmp_path / "there/model.safetensors")
    stored[f"{NAMES[0]}.weight_scale_2"] *= 2
    save_file(stored, tmp_path / "there/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.restore(tmp_path / "there", tmp_path / "restored")
    assert {f.code for f in refused.value.findings} == {"QB037"}


def test_it_is_explained():
    assert "reciprocal" in cli("explain", "QB305").stdout
