"""Blocks whose lists say another thing than the tensors: the tensors decide, and what is lost stays an error."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors import torch as torch_file

import qbridge
from qbridge.architecture.names import is_embedding
from support import SINGLE, copy_fixture, edit_json, edit_quantization, facts, places, refusal, rewrite_tensors

DOWN, UP = "model.layers.0.mlp.down_proj", "model.layers.0.mlp.up_proj"
PLAIN = (
    "model.visual.pos_embed",
    "vision_tower.vision_model.embeddings.position_embedding",
    "visual.blocks.0.attn.qkv",
    "model.table_of_a_kind_to_come",
    "tile_embedding",
    "mtp.fc",
    "mtp.layers.0.self_attn.q_proj",
    "model.layers.2.mlp.down_proj",  # after the last layer
)


@pytest.fixture
def src(tmp_path):
    return copy_fixture(tmp_path)


def block_of(folder):
    return json.loads((folder / "config.json").read_text())["quantization_config"]


def make_plain(tensors, *modules):
    for module in modules:
        codes = tensors[f"{module}.weight"]
        for name in [name for name in tensors if name.startswith(f"{module}.") and not name.endswith(".bias")]:
            del tensors[name]
        tensors[f"{module}.weight"] = codes.astype(np.float16)


def add_plain(src, *modules):
    rewrite_tensors(src, lambda t: t.update({f"{m}.weight": np.ones((8, 16), np.float16) for m in modules}))


def group(block):
    (only,) = block["config_groups"].values()
    return only


def note_of(src, code="QB042", **options):
    (found,) = [f for f in qbridge.inspect(src, **options).findings if f.code == code]
    return found


def test_float_matrices_that_only_a_class_takes_in_are_not_quantized(src, tmp_path):
    with qbridge.open(src) as opened:
        specs = dict(opened.specs)
    add_plain(src, *PLAIN)
    report = qbridge.convert(src, tmp_path / "out", "compressed-tensors")
    (note,) = [finding for finding in report.findings if finding.code == "QB042"]
    # embeddings that are known by their names need no word
    assert set(note.where) == {name for name in PLAIN if not is_embedding(name)} and len(note.where) > 4
    assert note.severity is qbridge.Severity.NOTE
    with qbridge.open(tmp_path / "out") as opened:
        # nor does the list that was written leave a word to say
        assert opened.specs == specs and not [f for f in opened.findings if f.code != "QB039"]
    assert qbridge.verify(src, tmp_path / "out").same


def test_a_pattern_is_no_more_than_a_class(src):
    add_plain(src, "visual.blocks.0.attn.qkv")
    edit_quantization(src, lambda block: group(block).update(targets=["Linear", "re:.*attn.*"]))
    assert note_of(src).where == ("visual.blocks.0.attn.qkv",)


def test_a_plain_layer_among_quantized_ones_of_its_name_is_lost(src):
    rewrite_tensors(src, lambda tensors: make_plain(tensors, DOWN))
    found = refusal(src, 3, "QB015")["QB015"]
    assert places(found) == {DOWN} and "model.layers.1.mlp.down_proj is quantized" in facts(found)


def test_a_plain_layer_that_a_target_names_is_lost(src):
    add_plain(src, "mtp.fc")
    edit_quantization(src, lambda block: group(block).update(targets=["Linear", "mtp.fc"]))
    assert places(refusal(src, 3, "QB015")["QB015"]) == {"mtp.fc"}


def test_a_plain_layer_of_the_only_block_is_lost_if_what_is_beside_it_is_quantized(src):
    edit_json(src / "config.json", lambda config: config.update(num_hidden_layers=1))

    def cut(tensors):
        for name in [name for name in tensors if ".layers.1." in name]:
            del tensors[name]
        make_plain(tensors, DOWN)

    rewrite_tensors(src, cut)
    assert places(refusal(src, 3, "QB015")["QB015"]) == {DOWN}


def test_a_block_of_which_nothing_is_quantized_was_left_so(src, tmp_path):
    mlp = [f"model.layers.0.mlp.{leaf}_proj" for leaf in ("gate", "up", "down")]
    rewrite_tensors(src, lambda tensors: make_plain(tensors, *mlp))
    assert set(note_of(src).where) == set(mlp)
    qbridge.convert(src, tmp_path / "out", "compressed-tensors")
    assert set(mlp) <= set(block_of(tmp_path / "out")["ignore"])
    assert qbridge.verify(src, tmp_path / "out").same


@pytest.mark.parametrize("lost", [("gate_proj", "up_proj", "down_proj"), ("down_proj",)])
def test_an_expert_may_be_left_plain_as_a_whole(lost, tmp_path):
    src = copy_fixture(tmp_path, "compressed_tensors/qwen3_moe_w8a8")
    expert = "model.layers.1.mlp.experts.1"
    modules = [f"{expert}.{leaf}" for leaf in lost]
    tensors = torch_file.load_file(src / SINGLE)
    for module in modules:
        tensors[f"{module}.weight"] = tensors[f"{module}.weight"].bfloat16() * tensors.pop(f"{module}.weight_scale")
    torch_file.save_file(tensors, src / SINGLE, metadata={"format": "pt"})
    if len(lost) == 3:
        assert set(note_of(src).where) == set(modules)
    else:
        assert places(refusal(src, 3, "QB015", "vllm")["QB015"]) == set(modules)


def test_layers_that_are_plain_everywhere_were_never_quantized(src):
    other = "model.layers.1.mlp.down_proj"
    rewrite_tensors(src, lambda tensors: make_plain(tensors, DOWN, other))
    assert set(note_of(src).where) == {DOWN, other}


@pytest.mark.parametrize("leaf", ["weight_zero_point", "weight_scale", "input_scale"])
def test_what_is_left_of_a_layer_shows_that_its_codes_are_lost(leaf, src):
    def lose(tensors):
        make_plain(tensors, DOWN)
        tensors[f"{DOWN}.{leaf}"] = np.ones((128, 1), np.float16)

    rewrite_tensors(src, lose)
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.open(src)
    assert {f.code for f in refused.value.findings if f.severity is qbridge.Severity.ERROR} <= {
        "QB015",
        "QB016",
        "QB018",
    }


@pytest.mark.parametrize(
    "entry",
    [
        "language_model.model.layers.0.mlp.down_proj",
        "model.language_model.layers.0.mlp.down_proj",
        r"re:model\.language_model\.layers\.0\.mlp\.down.*",
    ],
)
def test_an_ignore_list_may_have_the_names_of_another_release(entry, src):
    rewrite_tensors(src, lambda tensors: make_plain(tensors, DOWN))
    edit_quantization(src, lambda block: block["ignore"].append(entry))
    assert note_of(src).where == (DOWN,)
    edit_quantization(src, lambda block: block["ignore"].append("model.visual.layers.0.mlp.down_proj"))
    edit_quantization(src, lambda block: block["ignore"].remove(entry))
    assert places(refusal(src, 3, "QB015")["QB015"]) == {DOWN}


def test_a_listed_layer_that_is_quantized_is_quantized_and_one_without_its_scale_is_lost(src, tmp_path):
    edit_quantization(src, lambda block: block["ignore"].append(DOWN))
    report = qbridge.convert(src, tmp_path / "out", "compressed-tensors")
    (warning,) = [finding for finding in report.findings if finding.code == "QB019"]
    assert warning.where == (DOWN,) and warning.severity is qbridge.Severity.WARNING
    assert DOWN not in block_of(tmp_path / "out")["ignore"] and qbridge.verify(src, tmp_path / "out").same
    rewrite_tensors(src, lambda tensors: tensors.pop(f"{DOWN}.weight_scale") is None)
    assert places(refusal(src, 3, "QB015")["QB015"]) == {DOWN}


def groups_by_name(src, *left_out):
    """Two groups that name their layers, the second without quantized activations."""
    with qbridge.open(src) as opened:
        names = [name for name in opened.specs if name not in left_out]

    def change(block):
        first = next(iter(block["config_groups"].values()))
        attention = [name for name in names if "self_attn" in name]
        second = {**first, "targets": [name for name in names if name not in attention], "input_activations": None}
        block["config_groups"] = {"a": {**first, "targets": attention}, "b": second}

    edit_quantization(src, change)


def test_a_quantized_layer_that_no_target_names_has_the_scheme_of_its_like(src):
    groups_by_name(src)
    with qbridge.open(src) as opened:
        wanted = dict(opened.specs)
    groups_by_name(src, DOWN)
    with qbridge.open(src) as opened:
        assert opened.specs == wanted
    assert note_of(src, "QB019").where == (DOWN,)


def test_a_quantized_layer_that_can_be_of_several_schemes_is_refused(src):
    groups_by_name(src, DOWN, "model.layers.1.mlp.down_proj")
    assert places(refusal(src, 3, "QB013")["QB013"]) == {DOWN, "model.layers.1.mlp.down_proj"}


def nest(src, before="language_model.", key="text_config"):
    """Put the model below a submodel's name, its block into the text model's config, and a tower beside it."""

    def rename(tensors):
        for name in list(tensors):
            tensors[f"{before}{name}"] = tensors.pop(name)
        tensors["vision_tower.encoder.blocks.0.wqkv.weight"] = np.ones((8, 16), np.float16)
        tensors["mm_projector.proj.0.weight"] = np.ones((8, 16), np.float16)

    def move(config):
        config[key] = {"quantization_config": config.pop("quantization_config")}

    rewrite_tensors(src, rename)
    edit_json(src / "config.json", move)


@pytest.mark.parametrize("key", ["text_config", "llm_config", "language_config"])
@pytest.mark.parametrize("before", ["language_model.", "llm.", "model.language_model."])
def test_a_block_of_the_text_model_speaks_of_that_submodel(before, key, src, tmp_path):
    with qbridge.open(src) as opened:
        specs = dict(opened.specs)
    names = [name for name in specs if "down_proj" not in name]
    edit_quantization(src, lambda block: group(block).update(targets=[*names, "re:model.layers.*down_proj"]))
    nest(src, before, key)
    with qbridge.open(src) as opened:
        assert {name.removeprefix(before): spec.kind for name, spec in opened.specs.items()} == {
            name: spec.kind for name, spec in specs.items()
        }
        assert not list(opened.findings)
    qbridge.convert(src, tmp_path / "out", "compressed-tensors")
    ignored = set(block_of(tmp_path / "out")["ignore"])
    assert f"{before}{DOWN}" not in ignored
    assert qbridge.verify(src, tmp_path / "out").same


def test_what_such_a_block_ignores_is_matched_without_the_submodels_name(src):
    edit_quantization(src, lambda block: block["ignore"].append(r"re:model\.layers\.0\.mlp\.down_proj"))
    rewrite_tensors(src, lambda tensors: make_plain(tensors, DOWN))
    nest(src)
    assert not qbridge.inspect(src).findings


def test_a_layer_that_is_lost_in_the_submodel_is_refused(src):
    rewrite_tensors(src, lambda tensors: make_plain(tensors, DOWN))
    nest(src)
    assert places(refusal(src, 3, "QB015", "vllm")["QB015"]) == {f"language_model.{DOWN}"}


def test_sparse_weights_are_named(src):
    edit_quantization(src, lambda block: block.update(format="marlin-24"))
    assert "2:4 sparsity" in facts(refusal(src, 1, "QB101")["QB101"])


def test_zero_points_that_are_floats_are_named(tmp_path):
    src = copy_fixture(tmp_path, "compressed_tensors/llama_w4a16")

    def floats(tensors):
        name = next(name for name in tensors if name.endswith("down_proj.weight_scale"))
        tensors[name.replace("weight_scale", "weight_zero_point")] = np.zeros_like(tensors[name])

    rewrite_tensors(src, floats)
    assert "zero-points are F16" in facts(refusal(src, 1, "QB101")["QB101"])


def test_a_layer_that_dynamic_leaves_out_and_that_is_quantized_is_quantized(tmp_path):
    src = copy_fixture(tmp_path, "gptq/llama_g128")
    with qbridge.open(src) as opened:
        specs = dict(opened.specs)
    edit_quantization(src, lambda block: block.update(dynamic={r"-:.*layers\.0\.mlp\.down_proj": {}}))
    with qbridge.open(src) as opened:
        assert opened.specs == specs
    assert note_of(src, "QB019").where == (DOWN,)
    rewrite_tensors(src, lambda tensors: tensors.pop(f"{DOWN}.scales") is None)
    refusal(src, 3, "QB016")


def test_dynamic_in_the_text_models_config_is_matched_without_the_submodels_name(tmp_path):
    src = copy_fixture(tmp_path, "gptq/llama_g128")
    edit_quantization(
        src, lambda block: block.update(dynamic={r"+:^model\.layers\.0\.mlp\.down_proj": {"group_size": 64}})
    )
    nest(src)
    assert f"language_model.{DOWN}" in places([f for f in refusal(src, 3, "QB016")["QB016"]])


def test_a_layer_that_extra_config_leaves_out_and_that_is_quantized_is_quantized(tmp_path):
    src = copy_fixture(tmp_path, "auto_round/llama_gptq_sym")
    with qbridge.open(src) as opened:
        specs = dict(opened.specs)
    edit_quantization(src, lambda block: block.setdefault("extra_config", {}).update({DOWN: {"bits": 16}}))
    with qbridge.open(src) as opened:
        assert opened.specs == specs
    assert note_of(src, "QB019").where == (DOWN,)


@pytest.fixture
def hybrid(tmp_path):
    """AutoRound's integers, and attention that stayed float8 in blocks as the original has it."""
    src = copy_fixture(tmp_path, "auto_round/llama_gptq_sym")
    tensors = torch_file.load_file(src / SINGLE)
    names = [name.removesuffix(".qweight") for name in tensors if name.endswith("o_proj.qweight")]
    for name in names:
        shape = tensors[f"{name}.scales"].shape[1], tensors[f"{name}.qweight"].shape[0] * 8
        for part in [part for part in tensors if part.startswith(f"{name}.")]:
            del tensors[part]
        tensors[f"{name}.weight"] = torch.randn(shape).to(torch.float8_e4m3fn)
        tensors[f"{name}.weight_scale_inv"] = torch.rand(-(-shape[0] // 128), -(-shape[1] // 128)) + 0.5
    torch_file.save_file(tensors, src / SINGLE, metadata={"format": "pt"})
    return src, names


def test_float8_blocks_beside_autorounds_integers_are_read(hybrid, tmp_path):
    src, names = hybrid
    assert places(refusal(src, 1, "QB021")["QB021"]) == set(names)
    told = qbridge.check(src, "vllm", allow=["assumed-activations"]).findings
    assert set(names) == places(finding for finding in told if finding.code == "QB224")
    report = qbridge.convert(src, tmp_path / "out", "compressed-tensors", allow=["assumed-activations", "rounded"])
    assert len(block_of(tmp_path / "out")["config_groups"]) == 2 and report.layers > len(names)
    assert qbridge.verify(src, tmp_path / "out", allow=["assumed-activations"]).same
    qbridge.restore(tmp_path / "out", tmp_path / "back")
    assert torch_file.load_file(tmp_path / "back" / SINGLE).keys() == torch_file.load_file(src / SINGLE).keys()


@pytest.mark.parametrize(("bits", "dynamic"), [(8, True), (16, None)])
def test_what_extra_config_says_of_their_inputs_is_read(bits, dynamic, hybrid):
    src, names = hybrid
    edit_quantization(
        src, lambda block: block.setdefault("extra_config", {}).update({n: {"act_bits": bits} for n in names})
    )
    with qbridge.open(src) as opened:
        found = [opened.specs[name].activation for name in names]
    assert [scheme and scheme.dynamic for scheme in found] == [dynamic] * len(names)


@pytest.mark.parametrize(("bias", "kept"), [(True, True), (False, False)])
def test_biases_of_zero_are_those_of_the_architecture_or_of_the_tool(bias, kept, tmp_path):
    src = copy_fixture(tmp_path, "gptq/llama_g128")
    query = "model.layers.0.self_attn.q_proj"
    edit_json(src / "config.json", lambda config: config.update(attention_bias=bias))

    def add(tensors):
        for name in [name for name in tensors if name.endswith(("q_proj.scales", "k_proj.scales", "v_proj.scales"))]:
            tensors[name.replace("scales", "bias")] = np.zeros(tensors[name].shape[1], np.float16)

    rewrite_tensors(src, add)
    with qbridge.open(src) as opened:
        assert (opened.specs[query].bias is not None) is kept


def test_quantized_experts_in_one_tensor_are_named(src):
    experts = "model.layers.0.mlp.experts"

    def fuse(tensors):
        tensors[f"{experts}.gate_up_proj"] = np.ones((4, 8, 16), np.int8)
        tensors[f"{experts}.gate_up_proj_scale"] = np.ones((4, 1, 16), np.float16)

    rewrite_tensors(src, fuse)
    found = refusal(src, 3, "QB018", allow=["unknown-tensors"])["QB018"]
    assert places(found) == {f"{experts}.gate_up_proj", f"{experts}.gate_up_proj_scale"}
    assert "experts fused into one tensor" in facts(found) and "I8[4, 8, 16]" in facts(found)
