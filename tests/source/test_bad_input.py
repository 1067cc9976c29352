"""Sources that cannot be trusted: every fault is named, and nothing is written."""

from __future__ import annotations

import json
import os
import shutil
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

import qbridge
from qbridge.formats.detection import KNOWN_METHODS
from support import (
    INDEX,
    SINGLE,
    cli,
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
    rewrite_tensors,
    split,
    write_raw,
)

SHARDED = "compressed_tensors/llama_w8a8_sharded"
SHARDS = [f"model-{n:05}-of-00004.safetensors" for n in range(1, 5)]
NORM = "model.norm.weight"
FIRST = "lm_head.weight"
DOWN = "model.layers.0.mlp.down_proj"
UP = "model.layers.0.mlp.up_proj"


@pytest.fixture
def src(tmp_path):
    return copy_fixture(tmp_path)


@pytest.fixture
def sharded(tmp_path):
    return copy_fixture(tmp_path, SHARDED)


def append_to(path, data):
    with open(path, "ab") as stream:
        stream.write(data)


def truncate(path, count=7):
    path.write_bytes(path.read_bytes()[:-count])


# folder, config and index


def test_folder_without_config_is_no_checkpoint(src):
    (src / "config.json").unlink()
    found = refusal(src, 3, "QB001")
    assert str(src) in places(found["QB001"]) and "no config.json" in facts(found["QB001"])


def test_absent_source_is_no_checkpoint(tmp_path):
    assert "no such folder" in facts(refusal(tmp_path / "src", 3, "QB001")["QB001"])


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("{", "Expecting"),
        ("", "Expecting"),
        ("[]", "not a JSON object"),
        ('"text"', "not a JSON object"),
        ('{"a": 1, "a": 1}', "'a' appears twice"),
        ('{"a": {"b": 1, "b": 2}}', "'b' appears twice"),
        ('{"a": ' + "9" * 5000 + "}", "digit"),
        ("[" * 200_000, "deep"),
        ("\xff", "decode"),
    ],
    ids=["cut", "empty", "list", "string", "duplicate", "inner duplicate", "long number", "deep", "latin-1"],
)
@pytest.mark.parametrize("name", ["config.json", INDEX])
def test_unreadable_json_is_named(sharded, name, text, fact):
    (sharded / name).write_bytes(text.encode("latin-1"))
    found = refusal(sharded, 3, "QB002")
    assert places(found["QB002"]) == {name} and fact in facts(found["QB002"])


@pytest.mark.parametrize("index", [{}, {"weight_map": []}, {"weight_map": {"a": 1}}])
def test_index_without_a_map_of_file_names_is_refused(sharded, index):
    (sharded / INDEX).write_text(json.dumps(index))
    assert places(refusal(sharded, 3, "QB002")["QB002"]) == {INDEX}


def test_config_and_index_faults_are_told_at_once(sharded):
    for name in ("config.json", INDEX):
        (sharded / name).write_text("{")
    assert places(refusal(sharded, 3, "QB002")["QB002"]) == {"config.json", INDEX}


@pytest.mark.parametrize("depth", [400, 900])
def test_deeply_nested_text_config_is_carried_or_refused(src, depth):
    config = (src / "config.json").read_text().rstrip().removesuffix("}")
    nested = '{"text_config": ' * depth + "1" + "}" * depth
    (src / "config.json").write_text(f'{config}, "text_config": {nested}}}')
    try:
        qbridge.convert(src, src.parent / "dst", "lmdeploy")
    except qbridge.QBridgeError as fault:
        assert fault.exit_code == 3
        only_neighbours(src.parent, "src")


# which files are the shards


def test_absent_shards_are_all_named(sharded):
    for name in SHARDS[1:3]:
        (sharded / name).unlink()
    assert places(refusal(sharded, 3, "QB003")["QB003"]) == set(SHARDS[1:3])


def test_absent_shard_does_not_hide_a_truncated_one(sharded):
    (sharded / SHARDS[0]).unlink()
    truncate(sharded / SHARDS[1])
    found = refusal(sharded, 3, "QB003 QB004")
    assert places(found["QB003"]) == {SHARDS[0]} and places(found["QB004"]) == {SHARDS[1]}


def test_shard_name_longer_than_a_file_name_is_absent(sharded):
    name = "x" * 300 + ".safetensors"
    edit_json(sharded / INDEX, lambda index: index["weight_map"].update({FIRST: name}))
    assert places(refusal(sharded, 3, "QB003")["QB003"]) == {name}


@pytest.mark.parametrize("form", ["../{}", "sub/../../{}", "{parent}/{}"])
def test_shard_names_that_leave_the_folder_are_refused(sharded, form):
    name = form.format("secret.safetensors", parent=sharded.parent)
    shutil.copy(sharded / SHARDS[3], sharded.parent / "secret.safetensors")
    edit_json(sharded / INDEX, lambda index: index["weight_map"].update({FIRST: name, NORM: "/" + name}))
    assert places(refusal(sharded, 3, "QB006")["QB006"]) == {name, "/" + name}


def test_absolute_shard_name_inside_the_folder_is_refused_too(sharded):
    name = str(sharded / SHARDS[3])
    edit_json(sharded / INDEX, lambda index: index["weight_map"].update({FIRST: name}))
    assert places(refusal(sharded, 3, "QB006")["QB006"]) == {name}


@pytest.mark.parametrize("name", [SINGLE, "weights.safetensors"])
def test_link_out_of_the_folder_is_refused(src, name):
    (src / SINGLE).rename(src.parent / "outside.safetensors")
    (src / name).symlink_to(src.parent / "outside.safetensors")
    found = refusal(src, 3, "QB006")
    assert places(found["QB006"]) == {name} and "link" in facts(found["QB006"])


def test_link_inside_the_folder_is_followed(src):
    (src / "weights").mkdir()
    (src / SINGLE).rename(src / "weights" / "data")
    (src / SINGLE).symlink_to("weights/data")
    assert qbridge.convert(src, src.parent / "dst", "lmdeploy").layers == 14


def hugging_face_cache(src, store):
    """The checkpoint as the cache lays it: snapshots of links into `store` of the repository's folder."""
    snapshot = src.parent / "models--x" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (src.parent / "models--x" / store).mkdir()
    for number, file in enumerate(sorted(src.iterdir())):
        file.rename(src.parent / "models--x" / store / f"{number:040x}")
        (snapshot / file.name).symlink_to(f"../../{store}/{number:040x}")
    return snapshot


def test_links_into_the_blobs_of_a_hugging_face_cache_are_followed(tmp_path):
    plain, cached = copy_fixture(tmp_path / "a"), copy_fixture(tmp_path / "b")
    qbridge.convert(plain, tmp_path / "plain", "lmdeploy")
    qbridge.convert(hugging_face_cache(cached, "blobs"), tmp_path / "cached", "lmdeploy")
    assert contents(tmp_path / "cached") == contents(tmp_path / "plain")


def test_links_beside_the_blobs_of_a_hugging_face_cache_are_refused(src):
    snapshot = hugging_face_cache(src, "other")
    linked = {file.name for file in snapshot.iterdir()} - {"config.json"}
    assert SINGLE in linked and places(refusal(snapshot, 3, "QB006")["QB006"]) == linked


@pytest.mark.parametrize("place", ["models--x/blobs", "models--x/other", "datasets--x/blobs", "blobs"])
def test_links_into_a_cache_elsewhere_are_followed_to_blobs_alone(place, src, tmp_path):
    blob = tmp_path / "cache" / place / f"{7:064x}"
    blob.parent.mkdir(parents=True)
    (src / SINGLE).rename(blob)
    (src / SINGLE).symlink_to(blob)
    if place == "models--x/blobs":
        assert qbridge.convert(src, tmp_path / "dst", "lmdeploy").layers == 14
        blob.rename(blob.with_name("secret"))
        (src / SINGLE).unlink()
        (src / SINGLE).symlink_to(blob.with_name("secret"))
        shutil.rmtree(tmp_path / "dst")
    assert places(refusal(src, 3, "QB006")["QB006"]) == {SINGLE}


def test_side_file_that_links_out_of_the_folder_is_not_copied(src):
    (src.parent / "secret").write_text("of this machine")
    (src / "notes.txt").symlink_to(src.parent / "secret")
    try:
        qbridge.convert(src, src.parent / "dst", "lmdeploy")
    except qbridge.QBridgeError as fault:
        assert fault.exit_code == 3
    assert not (src.parent / "dst" / "notes.txt").exists()


def test_every_link_that_leads_out_is_followed_where_that_is_allowed(src):
    elsewhere = src.parent / "elsewhere"
    elsewhere.mkdir()
    for name in (SINGLE, "tokenizer.json"):
        (src / name).rename(elsewhere / name)
        (src / name).symlink_to(elsewhere / name)
    assert "--allow outside-links" in refusal(src, 3, "QB006")["QB006"][0].remedies
    qbridge.convert(src, src.parent / "dst", "lmdeploy", allow=["outside-links"])
    assert (src.parent / "dst" / "tokenizer.json").is_file() and not (
        src.parent / "dst" / "tokenizer.json"
    ).is_symlink()
    (src / "tokenizer.json").unlink()
    (src / "tokenizer.json").symlink_to(elsewhere / "gone")
    found = refusal(src, 3, "QB006", allow=["outside-links"])["QB006"]
    assert places(finding for finding in found if finding.severity == "error") == {"tokenizer.json"}


def test_several_safetensors_files_without_an_index_are_refused(sharded):
    (sharded / INDEX).unlink()
    found = refusal(sharded, 3, "QB005")
    assert places(found["QB005"]) == set(SHARDS) and INDEX in facts(found["QB005"])


def test_pickles_are_not_opened(src):
    (src / SINGLE).rename(src / "pytorch_model.bin")
    assert places(refusal(src, 3, "QB007")["QB007"]) == {"pytorch_model.bin"}


def test_folder_without_weights_is_refused(src):
    (src / SINGLE).unlink()
    refusal(src, 3, "QB008")


def test_index_of_nothing_is_refused(src):
    (src / SINGLE).unlink()
    (src / INDEX).write_text('{"weight_map": {}}')
    refusal(src, 3, "QB008")


def test_weights_that_no_index_leads_to_are_left_behind_and_named(src):
    (src / "outputs_stats.pth").write_bytes(b"pickle")
    (src / "consolidated.safetensors").write_bytes(b"other")
    done = qbridge.convert(src, src.parent / "dst", "lmdeploy")
    named = [finding.where for finding in done.findings if finding.code == "QB009"]
    assert named == [("consolidated.safetensors", "outputs_stats.pth")]
    assert not {"consolidated.safetensors", "outputs_stats.pth"} & contents(src.parent / "dst").keys()


# index against shards


def test_index_names_a_tensor_that_no_shard_holds(sharded):
    edit_json(sharded / INDEX, lambda index: index["weight_map"].update({"model.gone.weight": SHARDS[0]}))
    found = refusal(sharded, 3, "QB005")
    assert places(found["QB005"]) == {"model.gone.weight"} and "no shard holds it" in facts(found["QB005"])


def test_shard_holds_a_tensor_that_the_index_does_not_name(sharded):
    edit_json(sharded / INDEX, lambda index: index["weight_map"].pop(NORM) and None)
    found = refusal(sharded, 3, "QB005")
    assert places(found["QB005"]) == {NORM} and "does not name it" in facts(found["QB005"])


def test_index_names_another_shard(sharded):
    edit_json(sharded / INDEX, lambda index: index["weight_map"].update({NORM: SHARDS[0]}))
    found = refusal(sharded, 3, "QB005")
    assert places(found["QB005"]) == {NORM} and "another shard" in facts(found["QB005"])


def test_index_names_another_shard_of_the_same_name_in_another_folder(src):
    names = sorted(load_file(src / SINGLE))
    split(src, {"a/w.safetensors": names[:9], "b/w.safetensors": names[9:]})
    edit_json(src / INDEX, lambda index: index["weight_map"].update({NORM: "a/w.safetensors"}))
    assert places(refusal(src, 3, "QB005")["QB005"]) == {NORM}


def test_all_disagreements_of_the_index_are_told_at_once(sharded):
    def disagree(index):
        index["weight_map"].update({"model.gone.weight": SHARDS[0], NORM: SHARDS[0]})
        del index["weight_map"][FIRST]

    edit_json(sharded / INDEX, disagree)
    assert places(refusal(sharded, 3, "QB005")["QB005"]) == {"model.gone.weight", NORM, FIRST}


def test_tensor_in_two_shards_is_refused(src):
    names = sorted(load_file(src / SINGLE))
    split(src, {"a.safetensors": names[:9], "b.safetensors": names[8:]})
    found = refusal(src, 3, "QB005")
    assert places(found["QB005"]) == {names[8]}
    assert "a.safetensors" in facts(found["QB005"]) and "b.safetensors" in facts(found["QB005"])


# safetensors headers


def test_truncated_shards_are_all_named(sharded):
    truncate(sharded / SHARDS[0])
    truncate(sharded / SHARDS[2], 1)
    found = refusal(sharded, 3, "QB004")
    assert places(found["QB004"]) == {SHARDS[0], SHARDS[2]} and "truncated" in facts(found["QB004"])


@pytest.mark.parametrize(
    ("data", "fact"),
    [
        (b"", "too few"),
        (b"\0" * 7, "too few"),
        ((17).to_bytes(8, "little") + b"{}", "claims 17 bytes"),
        (b"\xff" * 8 + b"{}", f"claims {2**64 - 1} bytes"),
        ((0).to_bytes(8, "little"), "not valid JSON"),
    ],
    ids=["empty", "seven bytes", "longer than the file", "longest", "no header"],
)
def test_header_length_that_lies_is_refused(src, data, fact):
    (src / SINGLE).write_bytes(data)
    found = refusal(src, 3, "QB004")
    assert places(found["QB004"]) == {SINGLE} and fact in facts(found["QB004"])


def test_header_beyond_the_limit_is_refused_unread(src):
    with open(src / SINGLE, "wb") as stream:
        stream.write((100_000_001).to_bytes(8, "little") + b"{}")
        stream.truncate(8 + 100_000_001)
    assert "claims 100000001 bytes" in facts(refusal(src, 3, "QB004")["QB004"])


@pytest.mark.parametrize("text", [b"{", b"[]", b"\xff\xfe", b'{"a": 1, "a": 1}', b"[" * 200_000, b'{"a": 1}'])
def test_header_that_is_no_table_of_tensors_is_refused(src, text):
    write_raw(src / SINGLE, text)
    refusal(src, 3, "QB004")


def shifted(entry, by):
    return [offset + by for offset in entry["data_offsets"]]


ENTRY_FAULTS = {
    "unknown dtype": (lambda e: e.update(dtype="F7"), "unknown dtype 'F7'"),
    "dtype of another type": (lambda e: e.update(dtype=["F16"]), "unknown dtype"),
    "product larger": (lambda e: e.update(shape=[129]), "takes 258 bytes, data_offsets give 256"),
    "product smaller": (lambda e: e.update(shape=[]), "takes 2 bytes"),
    "wider dtype": (lambda e: e.update(dtype="F32"), "takes 512 bytes"),
    "dim beyond int64": (lambda e: e.update(shape=[2**63]), "not a list of dims"),
    "dim beyond int64 times none": (lambda e: e.update(shape=[2**63, 0]), "not a list of dims"),
    "product that wraps": (lambda e: e.update(shape=[2**33, 2**31]), "takes 36893488147419103232 bytes"),
    "negative dims": (lambda e: e.update(shape=[-1, -128]), "not a list of dims"),
    "boolean dim": (lambda e: e.update(shape=[True, 128]), "not a list of dims"),
    "float dim": (lambda e: e.update(shape=[128.0]), "not a list of dims"),
    "shape of another type": (lambda e: e.update(shape=128), "not a list of dims"),
    "boolean offset": (lambda e: e.update(data_offsets=[False, 256]), "not [begin, end]"),
    "negative offset": (lambda e: e.update(data_offsets=[-256, 0]), "not [begin, end]"),
    "backward offsets": (lambda e: e.update(data_offsets=e["data_offsets"][::-1]), "not [begin, end]"),
    "one offset": (lambda e: e.update(data_offsets=e["data_offsets"][:1]), "not [begin, end]"),
    "no dtype": (lambda e: e.pop("dtype") and None, "not {dtype, shape, data_offsets}"),
    "unknown key": (lambda e: e.update(scale=1), "not {dtype, shape, data_offsets}"),
    "overlap": (lambda e: e.update(data_offsets=shifted(e, -2)), "overlaps"),
    "beyond the file": (lambda e: e.update(data_offsets=shifted(e, 2**40)), "leaves a hole"),
}


@pytest.mark.parametrize(("fault", "fact"), ENTRY_FAULTS.values(), ids=ENTRY_FAULTS)
def test_header_entry_that_lies_is_named(src, fault, fact):
    edit_header(src / SINGLE, lambda header: fault(header[NORM]))
    found = refusal(src, 3, "QB004")
    told = [finding for finding in found["QB004"] if fact in facts([finding])]
    assert f"{SINGLE}: {NORM}" in places(told)


def test_faults_of_two_entries_are_told_at_once(src):
    def fault(header):
        header[NORM]["dtype"] = "F7"
        header[FIRST]["shape"] = [1]

    edit_header(src / SINGLE, fault)
    assert places(refusal(src, 3, "QB004")["QB004"]) == {f"{SINGLE}: {NORM}", f"{SINGLE}: {FIRST}"}


def test_hole_between_tensors_is_refused(src):
    last = {}

    def leave_a_hole(header):
        last["name"] = max(header.keys() - {"__metadata__"}, key=lambda name: header[name]["data_offsets"])
        header[last["name"]]["data_offsets"] = shifted(header[last["name"]], 8)

    edit_header(src / SINGLE, leave_a_hole)
    append_to(src / SINGLE, bytes(8))
    found = refusal(src, 3, "QB004")
    assert places(found["QB004"]) == {f"{SINGLE}: {last['name']}"} and "hole" in facts(found["QB004"])


def test_bytes_after_the_last_tensor_are_refused(src):
    append_to(src / SINGLE, bytes(3))
    found = refusal(src, 3, "QB004")
    assert places(found["QB004"]) == {SINGLE} and "3 bytes after the last tensor" in facts(found["QB004"])


def test_shape_of_very_many_dims_is_refused_without_computing_it(src):
    edit_header(src / SINGLE, lambda header: header[NORM].update(shape=[2**62] * 60_000))
    start = time.process_time()
    refusal(src, 3, "QB004")
    assert time.process_time() - start < 3


def test_tensor_name_that_is_no_text_is_refused(src):
    edit_header(src / SINGLE, lambda header: header.update({"\ud800.weight": header.pop(NORM)}))
    refusal(src, 3, "QB004")


# tensors against the scheme


def test_scales_of_wrong_shape_and_dtype_are_told_at_once(src):
    def spoil(tensors):
        tensors[f"{DOWN}.weight_scale"] = tensors[f"{DOWN}.weight_scale"][:-1]
        tensors[f"{UP}.weight_scale"] = np.ones((320, 1), np.int32)

    rewrite_tensors(src, spoil)
    found = refusal(src, 3, "QB016")
    assert places(found["QB016"]) == {f"{DOWN}.weight_scale", f"{UP}.weight_scale"}
    assert "F16[127, 1]" in facts(found["QB016"]) and "I32[320, 1]" in facts(found["QB016"])


def test_code_matrix_of_wrong_dtype_is_named(src):
    rewrite_tensors(src, lambda t: t.update({f"{DOWN}.weight": t[f"{DOWN}.weight"].astype(np.int32)}))
    assert places(refusal(src, 3, "QB016")["QB016"]) == {f"{DOWN}.weight"}


def test_every_layer_without_its_scale_is_named(src):
    with qbridge.open(src) as opened:
        layers = set(opened.specs)

    def drop(tensors):
        for name in layers:
            del tensors[f"{name}.weight_scale"]

    rewrite_tensors(src, drop)
    found = refusal(src, 3, "QB015")
    assert places(found["QB015"]) == layers and len(layers) == 14
    assert "weight_scale" in facts(found["QB015"])


def test_wrong_source_format_names_every_layer_and_the_right_format(src):
    with qbridge.open(src) as opened:
        layers = set(opened.specs)
    found = refusal(src, 3, "QB015 QB018", source="smooth-quant")
    assert places(found["QB015"]) == layers
    assert "looks like compressed-tensors" in facts(found["QB034"])
    assert helps(found["QB034"]) == "--from compressed-tensors"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scales_that_are_not_finite_are_all_named(src, value):
    def spoil(tensors):
        tensors[f"{DOWN}.weight_scale"][17] = value
        tensors[f"{UP}.weight_scale"][[0, 319]] = value

    rewrite_tensors(src, spoil)
    found = {finding.where: facts([finding]) for finding in refusal(src, 3, "QB017")["QB017"]}
    assert found == {
        (f"{DOWN}.weight_scale",): "1 of them, the first at index 17",
        (f"{UP}.weight_scale",): "2 of them, the first at index 0",
    }


def test_unquantized_checkpoint_is_refused(src):
    def float_weights(tensors):
        for name in list(tensors):
            if name.endswith("_scale"):
                module = name.removesuffix("_scale")
                tensors[module] = tensors[module].astype(np.float16) * tensors.pop(name)

    rewrite_tensors(src, float_weights)
    edit_json(src / "config.json", lambda config: config.pop("quantization_config") and None)
    refusal(src, 3, "QB010")


def test_config_whose_groups_target_nothing_is_no_quantized_checkpoint(src):
    def keep_floats(tensors):
        for name in [name for name, array in tensors.items() if array.dtype == np.int8 or "_scale" in name]:
            del tensors[name]

    rewrite_tensors(src, keep_floats)
    refusal(src, 3, "QB010", "compressed-tensors")


def test_integer_tensors_without_a_quantization_block_are_not_taken_for_unquantized(src):
    edit_json(src / "config.json", lambda config: config.pop("quantization_config") and None)
    rewrite_tensors(src, lambda t: [t.pop(name) for name in list(t) if name.endswith("_scale")] and None)
    assert "14 integer matrices" in facts(refusal(src, 3, "QB011")["QB011"])


@pytest.mark.parametrize("method", sorted({*KNOWN_METHODS, "HQQ"}))
def test_known_method_of_another_tool_is_named(src, method):
    edit_quantization(src, lambda block: block.update(quant_method=method))
    told = facts(refusal(src, 3, "QB011")["QB011"])
    assert f"quant_method '{method}': {KNOWN_METHODS[method.lower()]}" in told
    assert "compressed-tensors: " in told and "smooth-quant: " in told


def test_made_up_method_is_named(src):
    edit_quantization(src, lambda block: block.update(quant_method="my-own"))
    assert "quant_method 'my-own': which qbridge does not know" in facts(refusal(src, 3, "QB011")["QB011"])


def test_two_formats_with_equal_evidence_are_refused(src, monkeypatch):
    module = "qbridge_formats.compressed_tensors"
    both = {"compressed-tensors": module, "twin": module}
    for room in ("registry", "detection"):
        monkeypatch.setattr(f"qbridge.formats.{room}.registry", lambda: both)
    told = facts(refusal(src, 3, "QB012", "compressed-tensors")["QB012"])
    assert "compressed-tensors: " in told and "twin: " in told


def test_ignored_layers_that_are_quantized_are_all_named(src):
    edit_quantization(src, lambda block: block["ignore"].extend([DOWN, "re:.*layers.0.mlp.up_proj"]))
    findings = qbridge.inspect(src).findings
    assert {f.code for f in findings} == {"QB019"} and places(findings) == {DOWN, UP}


def test_quantized_layers_that_no_group_targets_are_all_named(src):
    edit_quantization(
        src, lambda block: group(block).update(targets=["re:.*self_attn", "re:.*gate_proj", "re:.*1.mlp"])
    )
    findings = qbridge.inspect(src).findings
    assert {f.code for f in findings} == {"QB019"} and places(findings) == {DOWN, UP}


@pytest.fixture
def with_unknown(src):
    extra = np.arange(6, dtype=np.float16).reshape(2, 3)
    rewrite_tensors(src, lambda tensors: tensors.update({f"{DOWN}.weight_foo": extra, f"{DOWN}.foo.bar": extra}))
    return src


def test_unclaimed_tensors_are_refused(with_unknown):
    found = refusal(with_unknown, 3, "QB018")
    assert places(found["QB018"]) == {f"{DOWN}.weight_foo", f"{DOWN}.foo.bar"}
    assert "--allow unknown-tensors" in helps(found["QB018"])


def test_unclaimed_tensors_are_carried_over_when_allowed(with_unknown):
    dst = with_unknown.parent / "dst"
    done = qbridge.convert(with_unknown, dst, "lmdeploy", allow=["unknown-tensors"])
    severity = {finding.code: str(finding.severity) for finding in done.findings}
    assert severity["QB018"] == "warning"
    before, after = load_file(with_unknown / SINGLE), load_file(dst / SINGLE)
    for name in (f"{DOWN}.weight_foo", f"{DOWN}.foo.bar"):
        assert after[name].dtype == before[name].dtype and after[name].tobytes() == before[name].tobytes()


def test_names_that_collide_after_renaming_are_refused(src):
    rewrite_tensors(src, lambda tensors: tensors.update({f"{DOWN}.scale": np.ones(3, np.float16)}))
    assert places(refusal(src, 3, "QB033", allow=["unknown-tensors"])["QB033"]) == {f"{DOWN}.scale"}


# the quantization config


def group(block):
    return block["config_groups"]["group_0"]


def weights(block):
    return group(block)["weights"]


def activations(block):
    return group(block)["input_activations"]


MALFORMED = {
    "bits as text": lambda b: weights(b).update(num_bits="8"),
    "bits as boolean": lambda b: weights(b).update(num_bits=True),
    "bits beyond a byte": lambda b: weights(b).update(num_bits=9),
    "no bits": lambda b: weights(b).update(num_bits=0),
    "symmetric as text": lambda b: weights(b).update(symmetric="yes"),
    "group size as text": lambda b: weights(b).update(group_size="32"),
    "group size of zero": lambda b: weights(b).update(strategy="group", group_size=0),
    "group without its size": lambda b: weights(b).update(strategy="group"),
    "unknown strategy": lambda b: weights(b).update(strategy="row"),
    "unknown type": lambda b: weights(b).update(type="complex"),
    "weights per token": lambda b: weights(b).update(strategy="token"),
    "unknown key of weights": lambda b: weights(b).update(zero_point=True),
    "weights as list": lambda b: group(b).update(weights=[8]),
    "no activation bits": lambda b: activations(b).update(num_bits=0),
    "static per token": lambda b: activations(b).update(dynamic=False),
    "unknown key of activations": lambda b: activations(b).update(zero_point=True),
    "unknown key of a scheme": lambda b: group(b).update(kind="fast"),
    "targets as text": lambda b: group(b).update(targets="Linear"),
    "no targets": lambda b: group(b).pop("targets") and None,
    "group as number": lambda b: b["config_groups"].update(group_0=8),
    "unknown preset": lambda b: b.update(config_groups={"W9A9": ["Linear"]}),
    "no groups": lambda b: b.update(config_groups={}),
    "groups as list": lambda b: b.update(config_groups=[group(b)]),
    "groups absent": lambda b: b.pop("config_groups") and None,
    "ignore as text": lambda b: b.update(ignore="lm_head"),
    "ignore of numbers": lambda b: b.update(ignore=[1]),
    "regex of a target": lambda b: group(b).update(targets=["re:["]),
    "regex of ignore": lambda b: b.update(ignore=["re:(?P<a"]),
    "regex with too many repeats": lambda b: b.update(ignore=["re:a{99999999999}"]),
    "regex nested too deeply": lambda b: b.update(ignore=["re:" + "(" * 5000 + ")" * 5000]),
}


@pytest.mark.parametrize("spoil", MALFORMED.values(), ids=MALFORMED)
def test_malformed_quantization_config_is_refused(src, spoil):
    edit_quantization(src, spoil)
    found = refusal(src, 3, "QB013", "compressed-tensors")
    assert all(place.startswith("quantization_config") for place in places(found["QB013"]))


def test_faults_of_two_groups_are_told_at_once(src):
    def spoil(block):
        block["config_groups"]["group_1"] = {"targets": ["Conv1d"], "weights": {"bits": 8}}
        weights(block)["num_bits"] = "8"

    edit_quantization(src, spoil)
    found = refusal(src, 3, "QB013")
    assert places(found["QB013"]) == {f"quantization_config.config_groups.group_{n}" for n in (0, 1)}


def test_two_groups_with_the_same_target_are_refused(src):
    edit_quantization(src, lambda block: block["config_groups"].update(group_1=group(block)))
    found = refusal(src, 3, "QB014")
    assert places(found["QB014"]) == {"Linear"} and "group_0 and group_1" in facts(found["QB014"])


def test_unknown_key_of_the_block_is_a_warning(src):
    edit_quantization(src, lambda block: block.update(my_tool_version="3"))
    done = qbridge.convert(src, src.parent / "dst", "lmdeploy")
    assert places(f for f in done.findings if f.code == "QB103") == {"quantization_config.my_tool_version"}


# a manifest that somebody edited


@pytest.mark.parametrize(
    "lie",
    [
        lambda step: step["before"]["activation"].update(symmetric=False),
        lambda step: step["before"]["weight"].update(bits=4),
        lambda step: step["before"]["weight"].update(granularity="block", block=[1]),
    ],
    ids=["activations", "bits", "block"],
)
def test_manifest_that_lies_about_the_source_does_not_change_the_scheme(src, lie):
    def schemes(folder):
        with qbridge.open(folder) as opened:
            return {name: spec.scheme for name, spec in opened.specs.items()}

    there, back = src.parent / "there", src.parent / "back"
    qbridge.convert(src, there, "lmdeploy")
    edit_json(there / "qbridge.json", lambda manifest: [lie(step) for step in manifest["steps"]] and None)
    qbridge.convert(there, back, "compressed-tensors")
    assert schemes(back) == schemes(src)


# the program


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda src: (src / "config.json").unlink(), "QB001"),
        (lambda src: truncate(src / SINGLE), "QB004"),
        (lambda src: edit_quantization(src, lambda block: block.update(quant_method="awq")), "QB011"),
        (lambda src: os.remove(src / SINGLE), "QB008"),
    ],
    ids=["no config", "truncated", "awq", "no weights"],
)
def test_program_exits_3_and_writes_nothing(src, spoil, code):
    spoil(src)
    done = cli("convert", src, src.parent / "dst", "--to", "lmdeploy")
    assert done.returncode == 3 and f"error[{code}]" in done.stderr and done.stdout == ""
    only_neighbours(src.parent, "src")


def test_program_tells_every_place_in_json(src):
    def spoil(tensors):
        for name in (DOWN, UP):
            tensors[f"{name}.weight_scale"][0] = np.nan

    rewrite_tensors(src, spoil)
    done = cli("convert", src, src.parent / "dst", "--to", "lmdeploy", "--json")
    assert done.returncode == 3
    found = [f for f in json.loads(done.stdout)["findings"] if f["code"] == "QB017"]
    assert {place for f in found for place in f["where"]} == {f"{DOWN}.weight_scale", f"{UP}.weight_scale"}


@pytest.mark.parametrize("method", ["awq", "gptq", "GPTQ"])
def test_method_without_its_tensors_is_said(src, method):
    edit_quantization(src, lambda block: block.update(quant_method=method))
    said = facts(refusal(src, 3, "QB011")["QB011"])
    assert method in said and "whose tensors are not in the checkpoint" in said and "no module has a qweight" in said
