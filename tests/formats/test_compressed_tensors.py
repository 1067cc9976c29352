from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest

import goldens
import qbridge
from qbridge.architecture.quantization_block import Block, find_block
from qbridge.findings.finding import Findings
from qbridge.formats.registry import find
from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.ir.scheme import ActivationScheme, Granularity, WeightScheme
from qbridge.passes.recast import Recast
from qbridge.testing.laws import check_checkpoint, check_format, check_layer, made_legal
from qbridge.testing.strategies import FLOATS, random_layer
from qbridge_formats.compressed_tensors.config import Matcher, parse

W8 = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
A8 = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}


MODULES = [
    *(f"model.layers.{layer}.{leaf}" for layer in (0, 1) for leaf in ("mlp.up_proj", "self_attn.q_proj")),
    *("other.model.layers.0.mlp.up_proj", "lm_head", "model.embed_tokens"),
]


def matcher(ignore=(), **targets):
    groups = {name: {"targets": wanted, "weights": W8, "input_activations": A8} for name, wanted in targets.items()}
    block = parse(Block("quantization_config", {"config_groups": groups, "ignore": list(ignore)}), Findings())
    assert block is not None
    return Matcher(block, MODULES)


@pytest.mark.parametrize("case", goldens.cases("compressed_tensors"))
def test_values_are_those_of_the_library(case):
    goldens.check("compressed_tensors", case)


def test_laws():
    check_format("compressed-tensors")


UP, LAST = "model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj"


def float_spec(name, weight, activation, scale, shape=(256, 256)):
    stored = DType.F32 if activation and activation.is_stored else None
    return Spec(name, *shape, weight, scale, activation, stored)


@pytest.mark.parametrize(
    ("weight", "activation", "scale"), [(w, a, scale) for w, a, scales in FLOATS for scale in scales], ids=str
)
def test_laws_of_every_float_scheme(weight, activation, scale):
    ours = find("compressed-tensors")
    drawn = [random_layer(float_spec(name, weight, activation, scale), len(name)) for name in (UP, LAST)]
    assert all(check_layer(ours, layer) for layer in drawn)
    check_checkpoint(ours, drawn)


def test_exponents_and_floats_beside_each_other_in_groups_of_32():
    weight = WeightScheme(8, Granularity.GROUP, type="e4m3fn", group_size=32)
    inputs = ActivationScheme(8, Granularity.GROUP, True, type="e4m3fn", group_size=32)
    for activation in (None, inputs):
        specs = [float_spec(UP, weight, activation, DType.F8_E8M0), float_spec(LAST, weight, activation, DType.BF16)]
        drawn = [random_layer(spec, 3) for spec in specs]
        check_checkpoint(find("compressed-tensors"), drawn)
        groups = find("compressed-tensors").config(_model(specs))["config_groups"].values()
        assert [group["weights"].get("scale_dtype") for group in groups] == ["torch.uint8", None]


def _model(specs):
    return Model("compressed-tensors", {}, {spec.name: spec for spec in specs}, {}, {})


@pytest.mark.parametrize("scale", [DType.F8_E8M0, DType.F8_E4M3, DType.F8_E5M2], ids=str)
@pytest.mark.parametrize("block", [(128, 128), (64, 96)], ids=str)
def test_small_scales_that_it_has_not_become_float32(scale, block):
    """DeepSeek's FP8 in blocks with exponents; 200 x 300 ends within blocks."""
    weight = WeightScheme(8, Granularity.BLOCK, type="e4m3fn", block=block)
    layer = random_layer(float_spec(UP, weight, None, scale, (200, 300)), 1)
    after, passes = made_legal(find("compressed-tensors"), layer)
    assert passes == (Recast(DType.F32),) and after.spec.scale_dtype is DType.F32
    assert check_layer(find("compressed-tensors"), layer)


@pytest.mark.parametrize(
    "changes",
    [
        {"group_size": 32},  # nvfp4 has groups of 16
        {"global_scale": "multiply"},  # ModelOpt's: a reciprocal is another float
        {"global_scale": None},
        {"type": "e5m2", "bits": 8},
        {"type": "e4m3fn", "bits": 8},
    ],
    ids=str,
)
def test_what_is_almost_nvfp4_is_refused(changes):
    nvfp4 = WeightScheme(4, Granularity.GROUP, type="e2m1", group_size=16, global_scale="divide")
    layer = random_layer(float_spec(UP, replace(nvfp4, **changes), None, DType.F8_E4M3), 1)
    assert made_legal(find("compressed-tensors"), layer) is None


@pytest.mark.parametrize("columns", [8, 24, 250])
@pytest.mark.parametrize(("size", "outer", "scale"), [(16, "divide", DType.F8_E4M3), (32, None, DType.F8_E8M0)])
def test_groups_of_four_bits_are_whole(columns, size, outer, scale):
    weight = WeightScheme(4, Granularity.GROUP, type="e2m1", group_size=size, global_scale=outer)
    layer = random_layer(float_spec(UP, weight, None, scale, (8, columns)), 1)
    assert made_legal(find("compressed-tensors"), layer) is None


def test_exact_name_beats_regex_beats_class():
    found = matcher(by_class=["Linear"], by_regex=[r"re:.*mlp\..*"], by_name=["model.layers.0.mlp.up_proj"])
    assert found.group("model.layers.0.mlp.up_proj").name == "by_name"
    assert found.group("model.layers.1.mlp.up_proj").name == "by_regex"
    assert found.group("model.layers.1.self_attn.q_proj").name == "by_class"


def test_ties_between_regexes_go_by_their_text():
    found = matcher(second=["re:.*proj"], first=[r"re:.*\.up_proj"])
    assert found.group("model.layers.0.mlp.up_proj").name == "first"


def test_regex_is_anchored_at_the_start_only():
    found = matcher(group=["re:model.layers.0"])
    assert found.group("model.layers.0.mlp.up_proj") is not None
    assert found.group("other.model.layers.0.mlp.up_proj") is None


@pytest.mark.parametrize("entry", ["lm_head", "re:.*head", "Linear"])
def test_ignore_takes_all_three_forms(entry):
    assert matcher(ignore=[entry], group=["Linear"]).ignored("lm_head")
    assert not matcher(ignore=["head"], group=["Linear"]).ignored("lm_head")


def test_class_linear_does_not_claim_embeddings():
    assert matcher(group=["Linear"]).group("model.embed_tokens") is None


@pytest.mark.parametrize(
    "place",
    [
        ("quantization_config",),
        ("compression_config",),
        ("compression_config", "quantization_config"),
        ("text_config", "quantization_config"),
        ("sparseml_quantization_config",),
    ],
)
def test_the_block_is_found_wherever_old_and_new_releases_put_it(place, fixtures, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(fixtures / "compressed_tensors/llama_w8a8/model", model)
    config = json.loads((model / "config.json").read_text())
    block = config.pop("quantization_config")
    block.pop("quant_method")
    for key in reversed(place):
        block = {key: block}
    config.update(block)
    (model / "config.json").write_text(json.dumps(config))
    assert find_block(config).key == ".".join(place)
    with qbridge.open(model) as checkpoint:
        assert checkpoint.format == "compressed-tensors"
        assert len(checkpoint.specs) == 14
        assert not set(place) & {"quantization_config", "compression_config"} & checkpoint.model.config.keys()


def test_one_dimensional_scales_are_read_and_written_back_as_columns(fixtures, tmp_path):
    from safetensors.numpy import load_file, save_file

    source = fixtures / "compressed_tensors/llama_w8a8/model"
    model = tmp_path / "model"
    shutil.copytree(source, model)
    tensors = load_file(model / "model.safetensors")
    flat = {k: v.reshape(-1) if k.endswith("weight_scale") else v for k, v in tensors.items()}
    save_file(flat, model / "model.safetensors", metadata={"format": "pt"})
    assert qbridge.verify(source, model).identical == 14
    qbridge.convert(model, tmp_path / "out", "compressed-tensors")
    written = load_file(tmp_path / "out/model.safetensors")
    assert all(v.ndim == 2 for k, v in written.items() if k.endswith("weight_scale"))
