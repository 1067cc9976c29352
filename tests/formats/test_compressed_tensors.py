from __future__ import annotations

import json
import shutil

import pytest

import goldens
import qbridge
from qbridge.findings import Findings
from qbridge.testing import check_format
from qbridge_formats._ct_config import Matcher, find_block, parse

W8 = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
A8 = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}


MODULES = [
    *(f"model.layers.{layer}.{leaf}" for layer in (0, 1) for leaf in ("mlp.up_proj", "self_attn.q_proj")),
    *("other.model.layers.0.mlp.up_proj", "lm_head", "model.embed_tokens"),
]


def matcher(ignore=(), **targets):
    groups = {name: {"targets": wanted, "weights": W8, "input_activations": A8} for name, wanted in targets.items()}
    block = parse("quantization_config", {"config_groups": groups, "ignore": list(ignore)}, Findings())
    assert block is not None
    return Matcher(block, MODULES)


@pytest.mark.parametrize("case", goldens.cases("compressed_tensors"))
def test_values_are_those_of_the_library(case):
    goldens.check("compressed_tensors", case)


def test_laws():
    check_format("compressed-tensors")


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
    assert find_block(config)[0] == ".".join(place)
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
