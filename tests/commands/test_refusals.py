"""Sound checkpoints and commands that are answered with no: the code, the exit code, and nothing written."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

import qbridge
from support import (
    SINGLE,
    cli,
    codes,
    contents,
    copy_fixture,
    edit_header,
    edit_json,
    edit_quantization,
    facts,
    helps,
    only_neighbours,
    places,
    refusal,
    remedies,
    rewrite_tensors,
)

DOWN = "model.layers.0.mlp.down_proj"
UP = "model.layers.0.mlp.up_proj"
BOTH = ("lmdeploy", "compressed-tensors")


@pytest.fixture
def src(tmp_path):
    return copy_fixture(tmp_path)


def layers(tensors):
    return sorted(name.removesuffix(".weight_scale") for name in tensors if name.endswith(".weight_scale"))


def edit_weights(src, **fields):
    edit_quantization(src, lambda block: block["config_groups"]["group_0"]["weights"].update(fields))


# schemes


def relabel(src, dtype):
    """Codes of int8 under another name."""

    def relabelled(header):
        for entry in header.values():
            if entry.get("dtype") == "I8":
                entry["dtype"] = dtype

    edit_header(src / SINGLE, relabelled)


def pack_float4(src):
    """4-bit floats with a scale per row, which no format of the library stores."""

    def packed(tensors):
        for name in layers(tensors):
            rows, columns = tensors.pop(f"{name}.weight").shape
            tensors[f"{name}.weight_packed"] = np.zeros((rows, columns // 2), np.uint8)

    rewrite_tensors(src, packed)
    edit_weights(src, num_bits=4, type="float")


def to_exponents(src):
    """8-bit floats with exponents for scales of rows."""
    relabel(src, "F8_E4M3")
    edit_weights(src, type="float", scale_dtype="torch.uint8")


def without_block(src):
    relabel(src, "F8_E4M3")
    edit_json(src / "config.json", lambda config: config.pop("quantization_config") and None)


@pytest.mark.parametrize("target", BOTH)
@pytest.mark.parametrize(
    ("make", "fact"),
    [
        (pack_float4, "e2m1 symmetric per channel"),
        (to_exponents, "scales F8_E8M0"),
        (without_block, "F8_E4M3 weights without a quantization block"),
    ],
)
def test_scheme_that_is_not_read_yet_is_named(src, make, fact, target):
    with qbridge.open(src) as opened:
        quantized = set(opened.specs)
    make(src)
    found = refusal(src, 1, "QB101", target)
    assert places(found["QB101"]) == quantized and fact in facts(found["QB101"])


@pytest.mark.parametrize(
    ("weights", "inputs", "fact"),
    [
        ({"type": "float", "num_bits": 6, "strategy": "group", "group_size": 32}, {}, "floats of 6 bits"),
        ({"type": "float", "symmetric": False}, {}, "floats of 8 bits with zero-points"),
        ({}, {"type": "float", "symmetric": False}, "floats of 8 bits with zero-points"),
        ({}, {"type": "float", "strategy": "tensor_group", "dynamic": "local", "group_size": 16}, "e4m3fn in groups"),
    ],
)
def test_arguments_that_the_library_has_and_qbridge_does_not_read(src, weights, inputs, fact):
    def edit(block):
        block["config_groups"]["group_0"]["weights"].update(weights)
        block["config_groups"]["group_0"]["input_activations"].update(inputs)

    edit_quantization(src, edit)
    found = refusal(src, 1, "QB101", "compressed-tensors")
    assert places(found["QB101"]) == {"quantization_config.config_groups.group_0"}
    assert fact in facts(found["QB101"])


@pytest.mark.parametrize(
    ("weights", "dtype", "wanted"), [({"type": "float"}, "I8", "F8_E4M3"), ({}, "F8_E4M3", "I8")]
)
def test_codes_of_another_type_than_the_config_says(src, weights, dtype, wanted):
    edit_weights(src, **weights)
    relabel(src, dtype)
    found = refusal(src, 3, "QB016", "compressed-tensors")
    assert f"the scheme gives {wanted}" in facts(found["QB016"])


MORE_MATHEMATICS = {
    "transform_config": {"config_groups": {"R1": {"type": "hadamard"}}},
    "sparsity_config": {"format": "sparse-24-bitmask"},
    "moe_sparsity_config": {"threshold": 1},
}


@pytest.mark.parametrize("target", BOTH)
def test_keys_that_change_the_mathematics_are_all_named(src, target):
    def ask_for_more(block):
        block.update(MORE_MATHEMATICS)
        block["config_groups"]["group_0"]["output_activations"] = {"num_bits": 8}

    edit_quantization(src, ask_for_more)
    keys = {*MORE_MATHEMATICS, "config_groups.group_0.output_activations"}
    assert places(refusal(src, 1, "QB102", target)["QB102"]) == {f"quantization_config.{key}" for key in keys}


@pytest.mark.parametrize("key", MORE_MATHEMATICS)
def test_each_key_that_changes_the_mathematics_is_refused(src, key):
    edit_quantization(src, lambda block: block.update({key: MORE_MATHEMATICS[key]}))
    assert places(refusal(src, 1, "QB102")["QB102"]) == {f"quantization_config.{key}"}


def test_dense_sparsity_config_changes_nothing(src):
    edit_quantization(src, lambda block: block.update(sparsity_config={"format": "dense"}))
    assert qbridge.convert(src, src.parent / "dst", "lmdeploy").layers == 14


def test_static_activations_are_not_for_lmdeploy(src):
    def static(block):
        block["config_groups"]["group_0"]["input_activations"].update(dynamic=False, strategy="tensor")

    edit_quantization(src, static)
    rewrite_tensors(
        src, lambda tensors: tensors.update({f"{n}.input_scale": np.ones(1, np.float16) for n in layers(tensors)})
    )
    found = refusal(src, 1, "QB203")
    assert DOWN in places(found["QB203"]) and "int8 static symmetric per tensor" in facts(found["QB203"])


def test_asymmetric_weights_are_not_for_lmdeploy(src):
    edit_weights(src, symmetric=False)

    def with_zeros(tensors):
        for name in layers(tensors):
            tensors[f"{name}.weight_zero_point"] = np.ones_like(tensors[f"{name}.weight_scale"], np.int8)

    rewrite_tensors(src, with_zeros)
    found = refusal(src, 1, "QB211")
    assert DOWN in places(found["QB211"]) and "asymmetric" in facts(found["QB211"])


def test_group_wise_int8_is_not_for_lmdeploy(src):
    edit_weights(src, strategy="group", group_size=32)

    def by_group(tensors):
        for name in layers(tensors):
            groups = tensors[f"{name}.weight"].shape[1] // 32
            tensors[f"{name}.weight_scale"] = np.repeat(tensors[f"{name}.weight_scale"], groups, axis=1)

    rewrite_tensors(src, by_group)
    found = refusal(src, 1, "QB212")
    assert DOWN in places(found["QB212"]) and "per group" in facts(found["QB212"])


def test_weight_only_int8_is_not_for_lmdeploy(src):
    edit_quantization(src, lambda block: block["config_groups"]["group_0"].update(input_activations=None))
    assert "activations not quantized" in facts(refusal(src, 1, "QB210")["QB210"])


def test_scales_wider_than_the_target_stores_are_refused(src):
    name = f"{DOWN}.weight_scale"
    rewrite_tensors(src, lambda tensors: tensors.update({name: tensors[name].astype(np.float64) + 1e-12}))
    found = refusal(src, 1, "QB301")
    assert places(found["QB301"]) == {DOWN} and "F64" in facts(found["QB301"])


def leave_dense(src):
    def dense(tensors):
        for name in (DOWN, UP):
            tensors[f"{name}.weight"] = tensors[f"{name}.weight"] * tensors.pop(f"{name}.weight_scale")

    rewrite_tensors(src, dense)
    edit_quantization(src, lambda block: block["ignore"].extend([DOWN, UP]))


def quantize_head(src):
    def quantized(tensors):
        tensors["lm_head.weight"] = tensors["lm_head.weight"].astype(np.int8)
        tensors["lm_head.weight_scale"] = np.ones((len(tensors["lm_head.weight"]), 1), np.float16)

    rewrite_tensors(src, quantized)
    edit_quantization(src, lambda block: block["ignore"].remove("lm_head"))


def test_unquantized_decoder_linears_are_not_for_lmdeploy(src):
    leave_dense(src)
    found = refusal(src, 1, "QB201")
    assert places(found["QB201"]) == {DOWN, UP} and "2 of 14" in facts(found["QB201"])


def test_quantized_head_is_not_for_lmdeploy(src):
    quantize_head(src)
    assert places(refusal(src, 1, "QB202")["QB202"]) == {"lm_head"}


def test_limits_of_the_target_are_told_at_once(src):
    leave_dense(src)
    quantize_head(src)
    refusal(src, 1, "QB201 QB202")


@pytest.mark.parametrize("make", [leave_dense, quantize_head])
def test_limits_of_lmdeploy_are_not_those_of_the_format(src, make):
    make(src)
    assert qbridge.convert(src, src.parent / "dst", "compressed-tensors").layers in (12, 15)


def test_dry_run_refuses_alike_and_writes_nothing(src):
    quantize_head(src)
    refusal(src, 1, "QB202", dry_run=True)


def test_program_exits_1_where_the_answer_is_no(src):
    quantize_head(src)
    done = cli("convert", src, src.parent / "dst", "--to", "lmdeploy")
    assert done.returncode == 1 and "error[QB202]" in done.stderr
    only_neighbours(src.parent, "src")


# the destination


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda dst: (dst / "folder").mkdir(parents=True),
        lambda dst: dst.touch(),
        lambda dst: dst.symlink_to("gone"),
    ],
    ids=["folder", "file", "link"],
)
def test_existing_destination_is_refused(src, make, dry_run):
    make(src.parent / "dst")
    found = refusal(src, 1, "QB031", dry_run=dry_run)
    assert "--overwrite" not in " ".join(remedies(found["QB031"]))  # it would be refused


def test_overwrite_is_offered_where_it_would_be_followed_alone(src):
    dst = src.parent / "dst"
    shutil.copytree(src, dst)
    assert "--overwrite" in helps(refusal(src, 1, "QB031")["QB031"])
    for where in (src, src / "sub", src.parent):
        with pytest.raises(qbridge.QBridgeError) as excinfo:
            qbridge.convert(src, where, "lmdeploy")
        assert "--overwrite" not in " ".join(remedies(excinfo.value.findings))


def test_overwrite_replaces_a_checkpoint(src):
    dst = src.parent / "dst"
    qbridge.convert(src, dst, "lmdeploy")
    expected = contents(dst)
    (dst / "stale.txt").write_text("old")
    qbridge.convert(src, dst, "lmdeploy", overwrite=True)
    assert contents(dst) == expected
    only_neighbours(src.parent, "src", "dst")


def test_overwrite_takes_an_empty_folder(src):
    (src.parent / "dst").mkdir()
    assert qbridge.convert(src, src.parent / "dst", "lmdeploy", overwrite=True).layers == 14


def test_overwrite_never_removes_what_is_no_checkpoint(src):
    dst = src.parent / "dst"
    dst.mkdir()
    (dst / "thesis.txt").write_text("years")
    refusal(src, 1, "QB031", overwrite=True)
    assert contents(dst) == {"thesis.txt": b"years"}


def test_overwrite_never_removes_a_file(src):
    (src.parent / "dst").write_text("years")
    refusal(src, 1, "QB031", overwrite=True)
    assert (src.parent / "dst").read_text() == "years"


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("where", ["src", "src/dst", "src/a/b/dst", ".", "link"])
def test_source_and_destination_in_each_other_are_refused(src, where, overwrite):
    (src.parent / "link").symlink_to(src)
    (src.parent / "config.json").write_text("{}")
    before = contents(src.parent)
    with pytest.raises(qbridge.QBridgeError) as excinfo:
        qbridge.convert(src, src.parent / where, "lmdeploy", overwrite=overwrite)
    assert codes(excinfo) == {"QB031"} and excinfo.value.exit_code == 1
    assert "in each other" in str(excinfo.value)
    assert contents(src.parent) == before


# names


@pytest.mark.parametrize(
    ("options", "help"),
    [
        ({"target": "lmdeply"}, "did you mean 'lmdeploy'"),
        ({"target": "compressed-tensor"}, "did you mean 'compressed-tensors'"),
        ({"target": "lmdeploy@0.1.0"}, "did you mean 'lmdeploy@0.18.0'"),
        ({"target": "smooth-quant@1"}, "did you mean 'smooth-quant'"),
        ({"source": "llmcompressor"}, "did you mean 'llm-compressor'"),
        ({"allow": ["unknown-tensor"]}, "did you mean 'unknown-tensors'"),
    ],
)
def test_unknown_name_gets_the_nearest_one(src, options, help):
    assert help in helps(refusal(src, 2, "QB030", **{"target": "lmdeploy", **options})["QB030"])


def test_format_that_cannot_be_imported_is_named(src, monkeypatch):
    monkeypatch.setattr("qbridge.formats.registry.registry", lambda: {"broken": "no_such_module"})
    assert "no_such_module" in facts(refusal(src, 2, "QB032", source="broken")["QB032"])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["explain", "QB0155"], "did you mean"),
        (["convert", "a", "b", "--to", "lmdeply"], "did you mean 'lmdeploy'"),
        (["convert", "a", "b"], "--to"),
        (["convert", "a", "b", "--to", "lmdeploy", "--max-shard-size", "many"], "5GB"),
        (["convert", "a", "b", "--to", "lmdeploy", "--progress", "loud"], "json"),
        (["covert"], "covert"),
    ],
)
def test_program_exits_2_on_wrong_usage(tmp_path, arguments, told):
    done = cli(*arguments, cwd=tmp_path)
    assert done.returncode == 2 and told in done.stderr
    only_neighbours(tmp_path)


# the operating system


def refuse_to_write(monkeypatch, after):
    """os.pwrite has room for `after` calls, and the kernel's own copy for none."""
    pwrite, calls = os.pwrite, []

    def full(*arguments):
        calls.append(arguments)
        if len(calls) > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(*arguments)

    def no_room(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    monkeypatch.setattr(os, "copy_file_range", no_room, raising=False)


@pytest.mark.parametrize("after", [0, 1, 10])
def test_full_disk_leaves_no_trace(src, monkeypatch, after):
    refuse_to_write(monkeypatch, after)
    assert "No space left" in facts(refusal(src, 4, "QB401")["QB401"])


def test_full_disk_leaves_no_new_parent_folders(src, monkeypatch):
    refuse_to_write(monkeypatch, 0)
    with pytest.raises(qbridge.QBridgeError):
        qbridge.convert(src, src.parent / "new" / "sub" / "dst", "lmdeploy")
    only_neighbours(src.parent, "src")


def test_parent_that_is_a_file_is_an_io_error(src):
    (src.parent / "file").write_text("here")
    with pytest.raises(qbridge.QBridgeError) as excinfo:
        qbridge.convert(src, src.parent / "file" / "dst", "lmdeploy")
    assert codes(excinfo) == {"QB401"} and excinfo.value.exit_code == 4
    only_neighbours(src.parent, "src", "file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_parent_that_is_read_only_is_an_io_error(src):
    parent = src.parent / "parent"
    parent.mkdir(mode=0o555)
    with pytest.raises(qbridge.QBridgeError) as excinfo:
        qbridge.convert(src, parent / "dst", "lmdeploy")
    assert codes(excinfo) == {"QB401"} and not list(parent.iterdir())


def test_read_error_is_an_io_error(src, monkeypatch):
    def unreadable(*arguments):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", unreadable)
    assert "Input/output error" in facts(refusal(src, 4, "QB401")["QB401"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
@pytest.mark.parametrize("name", ["config.json", SINGLE])
def test_source_that_may_not_be_read_is_an_io_error(src, name):
    (src / name).chmod(0)
    refusal(src, 4, "QB401")


def test_program_exits_4_when_a_file_may_not_grow(src):
    limited = ["bash", "-c", 'ulimit -f 64; exec "$@"', "-", sys.executable, "-m", "qbridge"]
    command = [*limited, "convert", str(src), str(src.parent / "dst"), "--to", "lmdeploy"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 4 and "error[QB401]" in done.stderr
    only_neighbours(src.parent, "src")


def test_program_says_that_it_has_a_bug(src):
    broken = "import qbridge, qbridge.cli, sys; qbridge.convert = None; qbridge.cli.main()"
    command = [sys.executable, "-c", broken, "convert", str(src), str(src.parent / "dst"), "--to", "lmdeploy"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 70 and "bug[QB900]" in done.stderr and "TypeError" in done.stderr


def test_nothing_of_the_source_is_lost_where_a_conversion_is_refused(src):
    quantize_head(src)
    before = load_file(src / SINGLE)
    refusal(src, 1, "QB202")
    assert {n: a.tobytes() for n, a in load_file(src / SINGLE).items()} == {n: a.tobytes() for n, a in before.items()}
