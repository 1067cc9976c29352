"""4-bit and other weight-only checkpoints between their layouts: the same codes, other words."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest

import qbridge
from support import ROOT, edit_json, edit_quantization, only_neighbours, rewrite_tensors
from test_conversion import assert_same_tensors, config, tensors

WEIGHTS_ONLY = re.compile(r"w\da16")
GPTQ, AWQ, CT = (ROOT / "fixtures" / name for name in ("gptq", "awq", "compressed_tensors"))

R, E = "reversible", "equal"
TARGETS = ("compressed-tensors", "gptq", "awq", "marlin", "auto-round")
# what --to each of the targets says of the fixtures: an exactness class, or a code of the refusal
TABLE = {
    (R, R, R, "QB112", R): {
        "gptq": """
            llama_autogptq_asym llama_autoround_asym llama_int16_words llama_int8_words llama_v1_asym
            llama_v1_zero0 llama_v2_asym llama_v2_zero0
        """,
        "awq": """
            llama_autoround_asym llama_gemm llama_gemm_g128 llama_gemv llama_gemv_fast llama_llm_awq
            llama_lmdeploy llama_mislabelled_gptq qwen2_gemm_skipped
        """,
        "auto_round": "llama_awq_asym llama_gptq_asym llama_gptqmodel_asym",
        "compressed_tensors": "llama_w4a16_asym llama_w4a16_old_zp",
    },
    (R, R, R, "QB110", R): {
        "gptq": """
            llama_autogptq_sym llama_autoround_sym llama_channel llama_static_groups llama_640 llama_v1_sym qwen2_tied
            qwen3_moe_v1_sym
        """,
        "awq": "llama_gptqmodel_sym",
        "auto_round": "llama_gptq_sym llama_gptqmodel_sym llama_lm_head_claimed",
        "compressed_tensors": """
            llama_autoround_w4a16 llama_w4a16 llama_w4a16_channel qwen2_w4a16_tied qwen3_moe_w4a16
        """,
    },
    (R, R, "QB110", "QB110", R): {
        "gptq": "llama_8bit llama_autoround_mixed llama_lm_head qwen2_dynamic",
        "auto_round": "llama_8bit_sym llama_mixed llama_regex",
        "compressed_tensors": "llama_w4a16_mixed llama_w4a16_unlike llama_w8a16 llama_w8a16_channel",
    },
    (R, R, R, R, R): {
        "gptq": "llama_g128",
        "marlin": "llama_autoawq llama_autogptq llama_autogptq_channel llama_checkpoint_format",
        "auto_round": "llama_g128",
        "compressed_tensors": "llama_w4a16_g128",
    },
    (R, E, "QB110", "QB112", R): {
        "gptq": "llama_planar_5bit llama_planar_6bit",
        "auto_round": "llama_5bit_asym llama_6bit_asym llama_7bit_asym",
        "compressed_tensors": "llama_w6a16_asym",
    },
    (R, R, E, "QB112", R): {
        "gptq": "llama_2bit llama_3bit",
        "awq": "llama_gptqmodel_3bit",
        "auto_round": "llama_2bit_asym llama_3bit_asym",
    },
    (R, E, "QB110", "QB110", R): {
        "gptq": "llama_planar_7bit",
        "auto_round": "llama_awq_6bit_sym llama_odd_bits_sym",
        "compressed_tensors": "llama_w5a16 llama_w7a16",
    },
    (R, R, E, "QB110", R): {
        "gptq": "llama_2bit_sym llama_planar_3bit",
        "compressed_tensors": "llama_w2a16",
    },
    (R, "QB110", E, "QB110", "QB110"): {
        "compressed_tensors": "llama_w3a16 llama_w3a16_padded",
    },
    ("QB023", "QB023", "QB023", "QB023", "QB023"): {
        "gptq": "llama_autogptq_zero0",
    },
    ("QB110", R, "QB110", "QB110", "QB110"): {
        "gptq": "llama_desc_act",
    },
    (E, R, E, "QB110", R): {
        "gptq": "llama_short_group",
    },
    (R, R, "QB110", "QB112", R): {
        "awq": "llama_gptqmodel_8bit",
    },
    (R, E, E, "QB110", E): {
        "compressed_tensors": "llama_w1a16",
    },
    (R, "QB110", E, "QB112", "QB110"): {
        "compressed_tensors": "llama_w3a16_asym",
    },
}
CELLS = {
    (f"{folder}/{case}", target): said
    for row, folders in TABLE.items()
    for folder, names in folders.items()
    for case in names.split()
    for target, said in zip(TARGETS, row, strict=True)
}


def refused(source, target, tmp_path):
    with pytest.raises(qbridge.QBridgeError) as caught:
        qbridge.convert(source, tmp_path / "refused", target)
    only_neighbours(tmp_path)
    return {f.code for f in caught.value.findings if f.severity == "error"}


@pytest.mark.parametrize(("cell", "said"), CELLS.items(), ids=lambda part: "-".join(part) if len(part) == 2 else part)
def test_what_is_kept_and_that_the_way_back_gives_identical_tensors(cell, said, tmp_path):
    target, source = cell[1], ROOT / "fixtures" / cell[0] / "model"
    if said.startswith("QB"):
        assert said in refused(source, target, tmp_path)
        return
    report = qbridge.convert(source, tmp_path / "there", target)
    assert (E if E in report.exactness else R) == said and report.exactness.keys() <= {R, E}
    assert qbridge.verify(source, tmp_path / "there").same
    qbridge.convert(tmp_path / "there", tmp_path / "back", report.source_format)
    assert_same_tensors(source, tmp_path / "back")


def test_act_order_of_compressed_tensors_goes_to_gptq_which_can_still_say_it(tmp_path):
    source = CT / "llama_w4a16_g_idx/model"
    assert set(qbridge.convert(source, tmp_path / "out", "gptq").exactness) == {"reversible"}
    assert qbridge.verify(source, tmp_path / "out").same
    assert config(tmp_path / "out")["quantization_config"]["desc_act"] is True
    (tmp_path / "other").mkdir()
    assert refused(source, "awq", tmp_path / "other") == {"QB110"}


def test_every_fixture_is_in_a_table():
    folders = ("gptq", "awq", "auto_round", "marlin", "compressed_tensors")
    found = {f"{folder}/{path.parent.name}" for folder in folders for path in (CT.parent / folder).glob("*/model")}
    packed = {case for case in found if not case.startswith("compressed_tensors/") or WEIGHTS_ONLY.search(case)}
    assert packed == {case for case, _ in CELLS} | {"compressed_tensors/llama_w4a16_g_idx"}


@pytest.mark.parametrize(("case", "version"), [("gemv", "gemv"), ("gemv_fast", "gemv_fast"), ("llm_awq", "gemm")])
def test_other_layouts_of_awq_are_written_on_the_way_back_only(case, version, tmp_path):
    source = AWQ / f"llama_{case}/model"
    assert config(source)["quantization_config"]["version"] == version
    report = qbridge.convert(source, tmp_path / "gemm", "awq")
    assert config(tmp_path / "gemm")["quantization_config"]["version"] == "gemm"
    rounded = any(f.code == "QB026" and f.severity == "note" for f in report.findings)
    assert rounded is (case != "gemv")
    qbridge.convert(tmp_path / "gemm", tmp_path / "ct", "compressed-tensors")
    assert qbridge.verify(source, tmp_path / "ct").same
    qbridge.convert(source, tmp_path / "there", "gptq")
    qbridge.convert(tmp_path / "there", tmp_path / "back", "awq")
    assert config(tmp_path / "back")["quantization_config"].get("backend") == (
        "llm-awq" if case == "llm_awq" else None
    )


def test_zero_points_of_asymmetric_gptq_are_written_as_version_2(tmp_path):
    qbridge.convert(CT / "llama_w4a16_asym/model", tmp_path / "out", "gptq")
    assert config(tmp_path / "out")["quantization_config"]["checkpoint_format"] == "gptq_v2"
    qbridge.convert(CT / "llama_w4a16/model", tmp_path / "sym", "gptq")
    assert config(tmp_path / "sym")["quantization_config"]["checkpoint_format"] == "gptq"
    zeros = [v for k, v in tensors(tmp_path / "sym").items() if k.endswith(".qzeros")]
    assert all((value.numpy().view(np.uint32) == 0x77777777).all() for value in zeros)


def test_symmetric_awq_stores_the_middle_code(tmp_path):
    qbridge.convert(GPTQ / "llama_v1_sym/model", tmp_path / "out", "awq")
    zeros = [v for k, v in tensors(tmp_path / "out").items() if k.endswith(".qzeros")]
    assert zeros and all((value.numpy().view(np.uint32) == 0x88888888).all() for value in zeros)


def relabelled(path, label, sym, change):
    """A symmetric GPTQ fixture of version 1 at `path` under another label, its zero-points as `change` makes them."""
    shutil.copytree(GPTQ / "llama_v1_sym/model", path)

    def edit(block):
        block.update(checkpoint_format=label, format=label, sym=sym)

    edit_quantization(path, edit)
    edit_json(path / "quantize_config.json", edit)

    def zeros(stored):
        for name in stored:
            if name.endswith(".qzeros"):
                stored[name] = change(stored[name])

    rewrite_tensors(path, zeros)
    return path


def as_version_1(zeros):
    return zeros


def as_version_2(zeros):
    return (zeros.view(np.uint32) + 0x11111111).view(np.int32)


def one_lower(zeros):
    """All middle codes of version 1 but one."""
    changed = zeros.copy()
    changed.view(np.uint32)[0, 0] -= 1
    return changed


@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("stored", [as_version_1, as_version_2], ids=["stored 7", "stored 8"])
@pytest.mark.parametrize("label", ["gptq", "gptq_v2"])
def test_label_symmetry_and_zero_points_agree_or_a_finding_says_which_was_believed(tmp_path, label, stored, sym):
    source = relabelled(tmp_path / "model", label, sym, stored)
    report = qbridge.convert(source, tmp_path / "out", "compressed-tensors")
    agree = (label == "gptq") == (stored is as_version_1)
    told = {f.code for f in report.findings} & {"QB022", "QB029"}
    assert told == (set() if agree else {"QB022"} if sym else {"QB029"})
    same = qbridge.verify(GPTQ / "llama_v1_sym/model", tmp_path / "out").same
    assert same is (agree or sym)  # engines, too, believe the label of what is said to be asymmetric
    qbridge.restore(tmp_path / "out", tmp_path / "back")
    assert_same_tensors(source, tmp_path / "back")


@pytest.mark.parametrize("label", ["gptq", "gptq_v2"])
def test_zero_points_that_differ_are_read_though_the_config_says_symmetric(tmp_path, label):
    source = relabelled(tmp_path / "model", label, True, one_lower)
    report = qbridge.convert(source, tmp_path / "out", "compressed-tensors")
    (finding,) = [f for f in report.findings if f.code == "QB029"]
    # one zero-point of a layer differs, and in version 2 none is the middle code of that layer
    assert len(finding.where) == 7 and "as stored" in finding.facts[0]
    assert not qbridge.verify(GPTQ / "llama_v1_sym/model", tmp_path / "out").same
    with pytest.raises(qbridge.QBridgeError):  # vLLM would never look at them
        qbridge.convert(source, tmp_path / "vllm", "vllm-gptq")


OLD_BACKENDS = {
    "auto_round:gptq:exllamav2": "auto_round:auto_gptq",
    "auto_round:gptq": "auto_round:auto_gptq",
    "auto_gptq:marlin": "auto_round:auto_gptq",
    "auto": "auto_round:auto_gptq",
    "auto_round:exllamav2": "auto_round",
    "autoround:triton": "auto_round",
    "auto_round:awq": "auto_round:auto_awq",
    "auto_round:auto_awq": "auto_round:auto_awq",
    "auto_round:gptqmodel": "auto_round:gptqmodel",
}
OTHER_SPELLINGS = {
    "auto_round:gptq": "auto_round:auto_gptq",
    "auto_round:awq": "auto_round:auto_awq",
    "auto": "auto_round:auto_gptq",
}


@pytest.mark.parametrize(
    "keys, packing",
    [
        ({}, "auto_round:auto_gptq"),
        *(({"backend": name}, packing) for name, packing in OLD_BACKENDS.items()),
        *(({"packing_format": name}, packing) for name, packing in OTHER_SPELLINGS.items()),
        ({"packing_format": "auto_round", "backend": "auto_round:gptq:exllamav2"}, "auto_round"),
    ],
)
def test_auto_round_files_of_any_age_are_read_in_the_packing_that_their_keys_mean(tmp_path, keys, packing):
    case = {
        "auto_round:auto_gptq": "llama_gptq_asym",
        "auto_round": "llama_2bit_asym",
        "auto_round:auto_awq": "llama_awq_asym",
        "auto_round:gptqmodel": "llama_gptqmodel_asym",
    }[packing]
    model = ROOT / "fixtures/auto_round" / case / "model"
    source = tmp_path / "model"
    shutil.copytree(model, source)

    def old(block):
        assert block.pop("packing_format") == packing
        block.update(keys, quant_method="intel/auto-round")

    edit_quantization(source, old)
    assert qbridge.verify(model, source).same
    qbridge.convert(source, tmp_path / "out", "gptq", allow=["v1-zeros-wrap"])
    assert qbridge.verify(model, tmp_path / "out").same


def test_symmetric_auto_round_files_are_read_by_value_whatever_they_say_of_their_packing(tmp_path):
    model = ROOT / "fixtures/auto_round/llama_gptq_sym/model"
    for name in ("auto_round", "auto_round:gptqmodel"):
        source = tmp_path / name.replace(":", "-")
        shutil.copytree(model, source)
        edit_quantization(source, lambda block, name=name: block.update(packing_format=name))
        with qbridge.open(source) as opened:
            assert {f.code for f in opened.findings} == {"QB022"}
        assert qbridge.verify(model, source).same


def test_mixed_precision_is_said_for_each_reader(tmp_path):
    qbridge.convert(GPTQ / "qwen2_dynamic/model", tmp_path / "there", "compressed-tensors")
    groups = config(tmp_path / "there")["quantization_config"]["config_groups"]
    assert sorted(group["weights"]["num_bits"] for group in groups.values()) == [4, 8]
    qbridge.convert(tmp_path / "there", tmp_path / "back", "gptq")
    block = config(tmp_path / "back")["quantization_config"]
    assert block["dynamic"] == {
        r"-:model\.layers\.0\.self_attn\.o_proj$": {},
        r"+:model\.layers\.0\.mlp\.down_proj$": {"bits": 8, "group_size": 64, "sym": True},
    }
    assert "self_attn.o_proj" not in block["modules_in_block_to_quantize"][0]


def test_the_sources_own_quantize_config_is_not_carried_over(tmp_path):
    source = GPTQ / "llama_autogptq_sym/model"
    qbridge.convert(source, tmp_path / "out", "compressed-tensors")
    assert (source / "quantize_config.json").exists()
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert "quantize_config.json" not in names and "model.safetensors" in names
    assert not any(name.endswith(".bias") for name in tensors(tmp_path / "out"))


def test_scales_that_have_no_float16_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    qbridge.convert(CT / "llama_w4a16/model", tmp_path / "model", "compressed-tensors")
    file = tmp_path / "model/model.safetensors"
    edited = load_file(file)
    name = next(name for name in edited if name.endswith("weight_scale"))
    edited = {k: v.float() if k.endswith("weight_scale") else v for k, v in edited.items()}
    edited[name][0, 0] = 1 / 3
    save_file(edited, file, metadata={"format": "pt"})
    with pytest.raises(qbridge.QBridgeError) as caught:
        qbridge.convert(tmp_path / "model", tmp_path / "out", "awq")
    (finding,) = [f for f in caught.value.findings if f.severity == "error"]
    assert (finding.code, finding.where) == ("QB301", (name.removesuffix(".weight_scale"),))
    assert finding.facts[-1] == f"1 values in 1 places; worst: {finding.where[0]}, 1"


def test_manifest_of_a_weight_only_conversion_is_json_without_arrays(tmp_path):
    qbridge.convert(GPTQ / "llama_desc_act/model", tmp_path / "out", "gptq")
    manifest = json.loads((tmp_path / "out/qbridge.json").read_text())
    assert manifest["steps"][0]["before"]["g_idx"] is True


@pytest.mark.parametrize(
    "source",
    [GPTQ / "llama_v1_sym/model", GPTQ / "llama_v2_asym/model", AWQ / "llama_gemm/model", CT / "llama_w4a16/model"],
    ids=lambda path: f"{path.parent.parent.name}-{path.parent.name}",
)
def test_lmdeploy_gets_4_bit_weights_as_awq(source, tmp_path):
    report = qbridge.convert(source, tmp_path / "out", "lmdeploy")
    assert report.format == "awq" and set(report.exactness) == {"reversible"}
    assert qbridge.verify(source, tmp_path / "out").same


def test_lmdeploy_runs_awq_in_float16_whatever_the_config_says(tmp_path):
    from safetensors.torch import load_file, save_file

    qbridge.convert(AWQ / "llama_gemm/model", tmp_path / "model", "awq")
    file = tmp_path / "model/model.safetensors"
    edited = load_file(file)
    edited["model.norm.weight"] = edited["model.norm.weight"].bfloat16() * 2.0**-30
    save_file(edited, file, metadata={"format": "pt"})
    described = config(tmp_path / "model")
    described["dtype"] = described["torch_dtype"] = "bfloat16"
    (tmp_path / "model/config.json").write_text(json.dumps(described))
    assert refused(tmp_path / "model", "lmdeploy", only_here(tmp_path)) == {"QB302"}


def only_here(tmp_path):
    (tmp_path / "here").mkdir()
    return tmp_path / "here"


def edited(source, folder, change, **described):
    """A copy of a checkpoint with its tensors changed in place, and keys of its first group's weights."""
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(source, folder)
    file = folder / "model.safetensors"
    stored = load_file(file)
    change(stored)
    save_file(stored, file, metadata={"format": "pt"})
    block = config(folder)
    block["quantization_config"]["config_groups"]["group_0"]["weights"].update(described)
    (folder / "config.json").write_text(json.dumps(block))
    return folder


def test_packed_zero_points_of_symmetric_layers_must_be_the_middle_code(tmp_path):
    import torch

    def middle(stored):
        for name in [name for name in stored if name.endswith("weight_scale")]:
            rows, groups = stored[name].shape
            zeros = torch.full((rows // 8, groups), 0x88888888 - 2**32, dtype=torch.int32)
            stored[name.replace("_scale", "_zero_point")] = zeros

    model = edited(CT / "llama_w4a16/model", tmp_path / "model", middle)
    qbridge.convert(model, tmp_path / "there", "awq")
    assert qbridge.verify(CT / "llama_w4a16/model", tmp_path / "there").same
    qbridge.convert(tmp_path / "there", tmp_path / "back", "compressed-tensors")
    assert_same_tensors(model, tmp_path / "back")
    edited(
        model, tmp_path / "other", lambda stored: [v.add_(1) for k, v in stored.items() if k.endswith("zero_point")]
    )
    with pytest.raises(qbridge.QBridgeError) as caught:
        qbridge.convert(tmp_path / "other", tmp_path / "refused", "awq")
    assert {f.code for f in caught.value.findings if f.severity == "error"} == {"QB020"}


@pytest.mark.parametrize(("case", "size"), [("llama_w4a16", 32), ("llama_w4a16_channel", None)])
def test_g_idx_that_says_nothing_is_none(case, size, tmp_path):
    import torch

    def trivial(stored):
        for name in [name for name in stored if name.endswith("weight_shape")]:
            columns = torch.arange(int(stored[name][1]), dtype=torch.int32)
            stored[name.replace("_shape", "_g_idx")] = columns // (size or len(columns))

    model = edited(CT / case / "model", tmp_path / "model", trivial, actorder="group")
    with qbridge.open(model) as opened:
        assert not any(spec.g_idx for spec in opened.specs.values())
    qbridge.convert(model, tmp_path / "there", "awq")
    qbridge.convert(tmp_path / "there", tmp_path / "back", "compressed-tensors")
    assert_same_tensors(model, tmp_path / "back")


def test_a_read_that_fails_while_a_checkpoint_is_opened_is_an_io_error(monkeypatch):
    import errno
    import os

    def failing(*words):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", failing)
    with pytest.raises(qbridge.QBridgeError) as caught:
        qbridge.inspect(GPTQ / "llama_v1_sym/model")
    assert caught.value.exit_code == 4 and caught.value.findings[0].code == "QB401"
