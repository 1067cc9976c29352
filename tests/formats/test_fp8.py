from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import goldens
import qbridge
from qbridge.formats.registry import find
from qbridge.ir.dtypes import DType, from_float64
from qbridge.ir.layer import Layer, Spec
from qbridge.ir.scheme import ActivationScheme, Granularity, WeightScheme
from qbridge.testing.laws import check_layer
from support import SINGLE, copy_fixture, edit_header, edit_quantization, facts, refusal
from test_conversion import assert_same_tensors, config

CASES = goldens.cases("fp8")
DOWN = "model.layers.0.mlp.down_proj"
FP8 = "e4m3fn"
TOKEN = ActivationScheme(8, Granularity.TOKEN, True, type=FP8)
STATIC = ActivationScheme(8, Granularity.TENSOR, False, type=FP8)
BLOCKS = WeightScheme(8, Granularity.BLOCK, type=FP8, block=(128, 128))
GROUPS = ActivationScheme(8, Granularity.GROUP, True, type=FP8, group_size=128)


@pytest.mark.parametrize("case", CASES)
def test_values_are_those_of_the_tool(case):
    goldens.check("fp8", case)


def test_what_each_block_means():
    found = {}
    for case in CASES:
        with qbridge.open(goldens.ROOT / "fixtures/fp8" / case / "model") as opened:
            found[case] = {(spec.weight, spec.activation, str(spec.scale_dtype)) for spec in opened.specs.values()}
    rounded = ActivationScheme(8, Granularity.GROUP, True, type=FP8, group_size=128, power_of_two=True)
    limited = ActivationScheme(8, Granularity.TOKEN, True, type=FP8, limit=1200.0)
    assert found == {
        "llama_blocks": {(BLOCKS, GROUPS, "F32")},
        "llama_blocks_ue8m0": {(BLOCKS, rounded, "F8_E8M0")},
        "llama_fbgemm": {(WeightScheme(8, Granularity.CHANNEL, type=FP8), limited, "F32")},
        "llama_lmdeploy_block": {(BLOCKS, GROUPS, "F32")},
        "llama_static": {(WeightScheme(8, Granularity.TENSOR, type=FP8), STATIC, "F32")},
    }


@st.composite
def float8_layers(draw):
    """Layers that the format can hold, and some that it cannot."""
    kind = draw(st.sampled_from([FP8, FP8, "e5m2"]))
    granularity = draw(st.sampled_from(["tensor", "channel", "block", "group"]))
    weight = WeightScheme(
        8,
        Granularity(granularity),
        type=kind,
        group_size=16 if granularity == "group" else None,
        block=draw(st.sampled_from([(128, 128), (4, 16)])) if granularity == "block" else None,
    )
    size = weight.block[1] if weight.block else 16
    acts = draw(
        st.sampled_from(
            [
                ActivationScheme(8, Granularity.TOKEN, True, type=kind),
                ActivationScheme(8, Granularity.TOKEN, True, type=kind, limit=12.5),
                ActivationScheme(8, Granularity.TENSOR, False, type=kind),
                ActivationScheme(8, Granularity.GROUP, True, type=kind, group_size=size),
                ActivationScheme(8, Granularity.GROUP, True, type=kind, group_size=size, power_of_two=True),
            ]
        )
    )
    spec = Spec(
        DOWN,
        draw(st.integers(2, 24)),
        draw(st.integers(2, 70)),
        weight,
        draw(st.sampled_from([DType.F16, DType.BF16, DType.F32])),
        acts,
        None if acts.dynamic else DType.F32,
        draw(st.sampled_from([None, DType.BF16])),
    )
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    arrays = {}
    for part, (dtype, shape) in spec.parts().items():
        if part == "code":  # no NaN, which is equal to nothing
            arrays[part] = random.integers(0, 0x78, shape).astype(np.uint8) | random.choice([0, 128], shape).astype(
                "u1"
            )
        else:
            arrays[part] = from_float64(random.uniform(0.25, 2.0, shape), dtype)
    return Layer(spec, arrays)


def test_laws():
    met = 0

    @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
    @given(float8_layers())
    def law(layer):
        nonlocal met
        met += check_layer(find("fp8"), layer)

    law()
    assert met > 20


def edit(src, fn):
    """Rewrite the tensors of a checkpoint with torch, which has float8."""
    tensors = load_file(src / SINGLE)
    fn(tensors)
    save_file(tensors, src / SINGLE, metadata={"format": "pt"})


def scales(tensors, ending="weight_scale_inv"):
    return [name for name in tensors if name.endswith(ending)]


def rename(old, new):
    def fn(tensors):
        for name in scales(tensors, f".{old}"):
            tensors[f"{name.removesuffix(old)}{new}"] = tensors.pop(name)

    return fn


def recast(dtype, view=None):
    def fn(tensors):
        for name in scales(tensors):
            cast = tensors[name].to(dtype)
            tensors[name] = cast.view(view) if view else cast

    return fn


def reshape(*shape, ending="_scale"):
    def fn(tensors):
        for name in scales(tensors, ending):
            tensors[name] = tensors[name].reshape(shape)

    return fn


DIALECTS = {
    "v4 bytes": ("llama_blocks_ue8m0", recast(torch.float8_e8m0fnu, torch.uint8)),
    "v4 names": ("llama_blocks_ue8m0", rename("weight_scale_inv", "scale")),
    "bfloat16": ("llama_blocks_ue8m0", recast(torch.bfloat16)),
    "one dimension": ("llama_static", reshape(1)),
    "two dimensions": ("llama_static", reshape(1, 1)),
    "rows": ("llama_fbgemm", reshape(-1)),
    "transformers": ("llama_static", rename("input_scale", "activation_scale")),
    "transformers' weights": ("llama_static", rename("weight_scale", "weight_scale_inv")),
}


@pytest.mark.parametrize("dialect", [None, *DIALECTS])
@pytest.mark.parametrize("case", CASES)
def test_there_and_back_to_the_same_tensors_and_keys(case, dialect, tmp_path):
    if dialect and DIALECTS[dialect][0] != case:
        return
    src = copy_fixture(tmp_path, f"fp8/{case}")
    if dialect:
        edit(src, DIALECTS[dialect][1])
    qbridge.convert(src, tmp_path / "there", "fp8")
    assert qbridge.verify(src, tmp_path / "there").same
    qbridge.restore(tmp_path / "there", tmp_path / "back")
    assert_same_tensors(src, tmp_path / "back")
    assert config(tmp_path / "back") == config(src)


def test_what_is_written_is_todays_layout(tmp_path):
    src = copy_fixture(tmp_path, "fp8/llama_static")
    qbridge.convert(src, tmp_path / "out", "fp8")
    block = config(tmp_path / "out")["quantization_config"]
    assert block == {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "static",
        "weight_block_size": None,
        "modules_to_not_convert": ["lm_head"],
    }
    assert load_file(tmp_path / "out" / SINGLE)[f"{DOWN}.weight_scale"].shape == (1,)


def test_blocks_are_written_in_keys_that_every_reader_knows(tmp_path):
    src = copy_fixture(tmp_path, "fp8/llama_blocks_ue8m0")
    qbridge.convert(src, tmp_path / "out", "fp8")
    block = config(tmp_path / "out")["quantization_config"]
    assert (block["weight_block_size"], block["scale_fmt"]) == ([128, 128], "ue8m0")
    assert block["modules_to_not_convert"] == ["lm_head"] and block["activation_scheme"] == "dynamic"


def test_fbgemm_keeps_its_limit_and_other_formats_ask_before_it_is_dropped(tmp_path):
    src = copy_fixture(tmp_path, "fp8/llama_fbgemm")
    qbridge.convert(src, tmp_path / "same", "fp8")
    assert config(tmp_path / "same")["quantization_config"] == {
        "quant_method": "fbgemm_fp8",
        "activation_scale_ub": 1200.0,
        "modules_to_not_convert": ["model.embed_tokens", "lm_head"],  # as the source lists them
    }
    refusal(src, 1, "QB116", "smooth-quant")
    allow = ["drop-activation-details"]
    report = qbridge.convert(src, tmp_path / "out", "smooth-quant", allow=allow)
    assert "QB116" in {finding.code for finding in report.findings} and report.passes == {"plain-inputs": 7}
    assert not qbridge.verify(src, tmp_path / "out").same  # the activations are others
    qbridge.restore(tmp_path / "out", tmp_path / "back")
    assert_same_tensors(src, tmp_path / "back")


def test_kv_scales_are_kept(tmp_path):
    src = copy_fixture(tmp_path, "fp8/llama_static")
    scales = {"model.layers.0.self_attn.k_scale": torch.tensor(0.5)}
    scales["model.layers.0.self_attn.v_scale"] = torch.tensor(0.25)
    edit(src, lambda tensors: tensors.update(scales))
    qbridge.convert(src, tmp_path / "out", "fp8")
    written = load_file(tmp_path / "out" / SINGLE)
    assert all(written[name] == scale for name, scale in scales.items())
    assert set(refusal(src, 1, "QB208")) >= {"QB208"}


def test_one_scale_of_keys_and_values_is_kept_where_it_is_known(tmp_path):
    src = copy_fixture(tmp_path, "fp8/llama_static")
    name = "model.layers.0.self_attn.kv_scale"
    edit(src, lambda tensors: tensors.update({name: torch.tensor(0.5)}))
    assert qbridge.check(src, "vllm").ok
    report = qbridge.convert(src, tmp_path / "out", "vllm")
    assert load_file(tmp_path / "out" / SINGLE)[name] == 0.5 and qbridge.check(tmp_path / "out", "vllm").ok
    assert report.format == "fp8" if hasattr(report, "format") else True
    assert set(refusal(src, 1, "QB113", "compressed-tensors")) >= {"QB113"}
    qbridge.convert(src, tmp_path / "dropped", "compressed-tensors", allow=["drop-kv-scales"])
    assert name not in load_file(tmp_path / "dropped" / SINGLE)


def drop(ending):
    def fn(tensors):
        for name in scales(tensors, ending):
            del tensors[name]

    return fn


def fuse(tensors):
    weight = tensors.pop(f"{DOWN}.weight")
    tensors.pop(f"{DOWN}.weight_scale_inv")
    tensors["model.layers.0.mlp.experts.down_proj"] = torch.stack([weight, weight])
    tensors["model.layers.0.mlp.experts.down_proj_scale_inv"] = torch.ones(2, 2, 4)


def change(name, value):
    return lambda tensors: tensors.update({name: value(tensors[name])})


FAULTS = {
    "no scale": (drop("down_proj.weight_scale_inv"), "QB015", 3),
    "bfloat16 weight beside a scale": (change(f"{DOWN}.weight", lambda t: t.bfloat16()), "QB016", 3),
    "fused experts": (fuse, "QB101", 1),
    "packed experts": (change(f"{DOWN}.weight", lambda t: t.view(torch.int8)[:, ::2].contiguous()), "QB101", 1),
    "wrong grid": (change(f"{DOWN}.weight_scale_inv", lambda t: t[:1]), "QB016", 3),
    "integer scale": (change(f"{DOWN}.weight_scale_inv", lambda t: t.int()), "QB016", 3),
    "three axes": (change(f"{DOWN}.weight", lambda t: t[None]), "QB101", 1),
    "one axis": (change(f"{DOWN}.weight", lambda t: t[0]), "QB016", 3),
    "an embedding": (change("model.embed_tokens.weight", lambda t: t.to(torch.float8_e4m3fn)), "QB101", 1),
    "an infinite scale": (change(f"{DOWN}.weight_scale_inv", lambda t: t / 0), "QB017", 3),
    "a scale of inputs": (lambda tensors: tensors.update({f"{DOWN}.input_scale": torch.ones(1)}), "QB018", 3),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_tensors_that_do_not_fit_are_refused(fault, tmp_path):
    src = copy_fixture(tmp_path, "fp8/llama_blocks")
    fn, code, exit_code = FAULTS[fault]
    edit(src, fn)
    refusal(src, exit_code, code)


BLOCK_FAULTS = {
    "e4m3fnuz": ({"fmt": "e4m3fnuz"}, "QB101", 1),
    "an unknown scale format": ({"scale_fmt": "e5m3"}, "QB101", 1),
    "static blocks": ({"activation_scheme": "static"}, "QB101", 1),
    "no scheme": ({"activation_scheme": "sometimes"}, "QB013", 3),
    "one size": ({"weight_block_size": [128]}, "QB013", 3),
    "no sizes": ({"weight_block_size": [0, 128]}, "QB013", 3),
    "no list": ({"modules_to_not_convert": "lm_head"}, "QB013", 3),
    "no number": ({"activation_scale_ub": "1200"}, "QB013", 3),
    "another block": ({"weight_block_size": [64, 128]}, "QB016", 3),
}


@pytest.mark.parametrize("fault", BLOCK_FAULTS)
def test_blocks_that_do_not_fit_are_refused(fault, tmp_path):
    src = copy_fixture(tmp_path, "fp8/llama_blocks")
    keys, code, exit_code = BLOCK_FAULTS[fault]
    edit_quantization(src, lambda block: block.update(keys))
    refusal(src, exit_code, code)


@pytest.mark.parametrize("case", ["llama_blocks", "llama_static"])
def test_a_block_without_a_method_is_known_by_its_keys(case, tmp_path):
    src = copy_fixture(tmp_path, f"fp8/{case}")
    with qbridge.open(src) as opened:
        wanted = dict(opened.specs)
    edit_quantization(src, lambda block: block.pop("quant_method") and None)
    with qbridge.open(src) as opened:
        assert opened.format == "fp8" and opened.specs == wanted


@pytest.mark.parametrize(
    "keys",
    [
        {"modules_to_not_convert": ["lm_head", "model.layers.0.mlp.down_proj"]},
        {"ignored_layers": ["down_proj"]},
        {"ignored_layers": ["model.layers.0.mlp"]},
    ],
)
def test_a_listed_layer_that_is_quantized_is_quantized(keys, tmp_path):
    src = copy_fixture(tmp_path, "fp8/llama_blocks")
    edit_quantization(src, lambda block: block.update(keys))
    report = qbridge.convert(src, tmp_path / "out", "fp8")
    (warning,) = [finding for finding in report.findings if finding.code == "QB019"]
    assert DOWN in warning.where and warning.severity is qbridge.Severity.WARNING
    assert DOWN not in config(tmp_path / "out")["quantization_config"]["modules_to_not_convert"]
    edit(src, drop("down_proj.weight_scale_inv"))
    refusal(src, 3, "QB015")


def test_a_dtype_that_is_no_e4m3fn_is_refused(tmp_path):
    src = copy_fixture(tmp_path, "fp8/llama_blocks")
    edit_header(src / SINGLE, lambda header: header[f"{DOWN}.weight"].update(dtype="F8_E4M3FNUZ"))
    assert "F8_E4M3FNUZ" in facts(refusal(src, 3, "QB004")["QB004"])


def test_an_unknown_key_is_told(tmp_path):
    src = copy_fixture(tmp_path, "fp8/llama_blocks")
    edit_quantization(src, lambda block: block.update(my_tool=3))
    assert [f.code for f in qbridge.inspect(src).findings] == ["QB103"]


def test_a_block_may_lie_in_the_text_models_config(tmp_path):
    src = copy_fixture(tmp_path, "fp8/llama_blocks")
    whole = json.loads((src / "config.json").read_text())
    whole["text_config"] = {"quantization_config": whole.pop("quantization_config")}
    (src / "config.json").write_text(json.dumps(whole))
    assert qbridge.inspect(src).format == "fp8"


def test_blocks_without_a_size_have_transformers_default(tmp_path):
    src = copy_fixture(tmp_path, "fp8/llama_blocks")
    edit_quantization(src, lambda block: block.pop("weight_block_size") and None)
    with qbridge.open(src) as opened:
        assert {spec.weight for spec in opened.specs.values()} == {BLOCKS}


def test_e5m2_is_read_and_said(tmp_path):
    src = copy_fixture(tmp_path, "fp8/llama_static")
    edit_header(
        src / SINGLE,
        lambda header: [e.update(dtype="F8_E5M2") for e in header.values() if e.get("dtype") == "F8_E4M3"] and None,
    )
    qbridge.convert(src, Path(tmp_path / "out"), "fp8")
    assert config(tmp_path / "out")["quantization_config"]["fmt"] == "e5m2"
