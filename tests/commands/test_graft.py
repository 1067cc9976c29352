"""--graft: what a checkpoint lacks is taken from its unquantized original, or refused where that is not proved."""

from __future__ import annotations

import json
import shutil

import pytest

import qbridge
from support import ROOT, SINGLE, cli, codes, contents, edit_json, facts, only_neighbours
from test_restore import others

LOST = ROOT / "fixtures/compressed_tensors/glm4_moe_lost_mtp"
LAST = "model.layers.2."
NORM = "model.layers.1.input_layernorm.weight"
BIAS = "model.layers.1.mlp.gate.e_score_correction_bias"
EMBEDDING = "model.embed_tokens.weight"


def raw(folder):
    """{tensor: (dtype, shape, bytes)} of every shard: numpy has no bfloat16."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        data = file.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start])
        header.pop("__metadata__", None)
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            found[name] = entry["dtype"], entry["shape"], data[start + begin : start + end]
    return found


def write(folder, tensors):
    """A single file of such tensors."""
    header, parts, place = {}, [], 0
    for name, (dtype, shape, data) in sorted(tensors.items(), key=lambda item: (item[1][0] != "F32", item[0])):
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [place, place + len(data)]}
        parts.append(data)
        place += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (folder / SINGLE).write_bytes(len(text).to_bytes(8, "little") + text + b"".join(parts))


def edit(folder, fn):
    tensors = raw(folder)
    fn(tensors)
    write(folder, tensors)


def flipped(entry):
    """The same tensor with its first byte changed."""
    dtype, shape, data = entry
    return dtype, shape, bytes([data[0] ^ 1]) + data[1:]


@pytest.fixture
def lost(tmp_path):
    """What llm-compressor left of a model, and its original, to be changed."""
    return (
        shutil.copytree(LOST / "quantized", tmp_path / "src"),
        shutil.copytree(LOST / "original", tmp_path / "original"),
    )


def refused(lost, code, **options):
    src, original = lost
    before = contents(src.parent)
    with pytest.raises(qbridge.QBridgeError) as excinfo:
        qbridge.convert(src, src.parent / "dst", "vllm", **{"graft": original, **options})
    assert codes(excinfo) == {code}, str(excinfo.value)
    assert contents(src.parent) == before
    return excinfo.value.findings


def test_a_head_that_llm_compressor_lost_is_grafted_and_dropped_again(lost, tmp_path):
    src, original = lost
    report = qbridge.convert(src, tmp_path / "dst", "vllm", graft=original)
    was, now, there = raw(src), raw(tmp_path / "dst"), raw(original)
    taken = {name for name in there if name.startswith(LAST)}
    assert len(taken) == 29 and now.keys() == was.keys() | taken
    assert all(now[name] == there[name] for name in taken) and all(now[name] == was[name] for name in was)
    assert report.grafted["modules"] == ["model.layers.2"] and report.grafted["tensors"] == 29
    assert report.grafted["original"] == str(original)
    ignored = json.loads((tmp_path / "dst/config.json").read_text())["quantization_config"]["ignore"]
    assert {"model.layers.2.eh_proj", "model.layers.2.mlp.experts.3.up_proj"} <= set(ignored)
    checked = qbridge.verify(src, tmp_path / "dst")
    assert checked.same and checked.identical == 26
    qbridge.restore(tmp_path / "dst", tmp_path / "back")
    assert raw(tmp_path / "back") == was
    kept, back = others(src), others(tmp_path / "back")
    assert json.loads(kept.pop("config.json")) == json.loads(back.pop("config.json")) and kept == back


def test_a_graft_goes_with_another_format_and_is_the_same_each_time(lost, tmp_path):
    src, original = lost
    for dst in ("one", "two"):
        qbridge.convert(src, tmp_path / dst, "gptq", graft=original)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert all(raw(tmp_path / "one")[name] == entry for name, entry in raw(original).items() if LAST in name)
    assert qbridge.verify(src, tmp_path / "one").same
    qbridge.restore(tmp_path / "one", tmp_path / "back")
    assert raw(tmp_path / "back") == raw(src)


def test_a_stream_has_what_is_grafted(lost):
    pytest.importorskip("torch")
    src, original = lost
    with qbridge.stream(src, "vllm", graft=original) as tensors:
        names = {name for name, _ in tensors}
    assert names == raw(src).keys() | {name for name in raw(original) if name.startswith(LAST)}


@pytest.mark.parametrize("name", [NORM, EMBEDDING, BIAS, "lm_head.weight", "model.norm.weight"])
def test_a_fine_tune_or_another_revision_is_refused_with_the_first_difference(lost, name):
    edit(lost[1], lambda tensors: tensors.update({name: flipped(tensors[name])}))
    found = refused(lost, "QB323")
    assert f"{name}: its values differ from byte 0 on" in facts(found)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda entry: ("F16", *entry[1:]), "BF16[64], and F16[64] in the original"),
        (lambda entry: (entry[0], [32], entry[2][:64]), "BF16[64], and BF16[32] in the original"),
    ],
)
def test_another_dtype_or_shape_under_the_same_name_is_refused(lost, change, words):
    edit(lost[1], lambda tensors: tensors.update({NORM: change(tensors[NORM])}))
    assert words in facts(refused(lost, "QB323"))


@pytest.mark.parametrize(
    ("gone", "words"),
    [
        (lambda name: name.startswith("model.layers.1.") and "norm" in name, "no norm of model.layers.1 is in both"),
        (lambda name: "embed" in name or "lm_head" in name or name.endswith("gate.weight"), "no unquantized matrix"),
    ],
)
def test_without_a_norm_of_each_layer_and_a_matrix_nothing_is_proved(lost, gone, words):
    def drop(tensors):
        for name in [name for name in tensors if gone(name) and not name.startswith(LAST)]:
            del tensors[name]

    edit(lost[1], drop)
    assert words in facts(refused(lost, "QB323"))


def test_what_is_not_proved_can_be_allowed(lost, tmp_path):
    src, original = lost
    edit(original, lambda tensors: tensors.update({NORM: flipped(tensors[NORM])}))
    report = qbridge.convert(src, tmp_path / "dst", "vllm", graft=original, allow=["unproved-graft"])
    assert [(f.code, str(f.severity)) for f in report.findings if f.code == "QB323"] == [("QB323", "warning")]
    assert raw(tmp_path / "dst")[NORM] == raw(src)[NORM]


def test_the_source_is_no_original_of_itself(lost):
    src, _ = lost
    assert "SRC itself" in facts(refused((src, src), "QB321"))
    assert "SRC itself" in facts(refused((src, src.parent / "original/../src"), "QB321"))


BLOCK = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}


def in_float8(original, leave):
    """The original with its linears in float8, but those whose names contain `leave`; the codes do not matter."""

    def coded(tensors):
        for name in [name for name in tensors if "_proj.weight" in name and leave not in name]:
            _, shape, data = tensors[name]
            blocks = [-(-size // 128) for size in shape]
            tensors[name] = ("F8_E4M3", shape, bytes(len(data) // 2))
            tensors[f"{name}_scale_inv"] = ("F32", blocks, bytes(4 * blocks[0] * blocks[1]))
        tensors["model.layers.0.self_attn.k_scale"] = ("F32", [1], bytes(4))

    edit(original, coded)
    edit_json(original / "config.json", lambda config: config.update(quantization_config=BLOCK))


def test_what_a_quantized_original_has_unquantized_is_grafted(lost, tmp_path):
    src, original = lost
    in_float8(original, leave=LAST)
    report = qbridge.convert(src, tmp_path / "dst", "vllm", graft=original)
    taken = {name for name in raw(original) if name.startswith(LAST)}
    assert report.grafted["tensors"] == len(taken) == 29
    assert raw(tmp_path / "dst").keys() == raw(src).keys() | taken
    assert qbridge.verify(src, tmp_path / "dst").same
    qbridge.restore(tmp_path / "dst", tmp_path / "back")
    assert raw(tmp_path / "back") == raw(src)
    edit(original, lambda tensors: tensors.update({NORM: flipped(tensors[NORM])}))
    assert NORM in facts(refused(lost, "QB323"))


def test_what_an_original_has_quantized_is_not_grafted(lost):
    _, original = lost
    in_float8(original, leave="nothing")
    (finding,) = refused(lost, "QB321")
    assert "model.layers.2.self_attn.q_proj" in finding.where and NORM not in finding.where
    assert all(name.startswith(LAST) for name in finding.where)
    assert finding.help[0] == f"qbridge convert {original} {original}-dense --to dense"


def test_an_original_without_what_is_missing_has_nothing_to_graft(lost):
    def drop(tensors):
        for name in [name for name in tensors if name.startswith(LAST)]:
            del tensors[name]

    edit(lost[1], drop)
    refused(lost, "QB322")


def test_an_original_that_is_no_checkpoint_is_said(lost, tmp_path):
    refused((lost[0], tmp_path / "nowhere"), "QB001")


def test_experts_that_the_original_fuses_are_there_already(lost, tmp_path):
    def fuse(tensors):
        block = "model.layers.1.mlp.experts"
        for name in [name for name in tensors if name.startswith(f"{block}.")]:
            del tensors[name]
        tensors[f"{block}.gate_up_proj"] = ("BF16", [4, 64, 64], bytes(4 * 64 * 64 * 2))
        tensors[f"{block}.down_proj"] = ("BF16", [4, 64, 32], bytes(4 * 64 * 32 * 2))

    src, original = lost
    edit(original, fuse)
    assert qbridge.convert(src, tmp_path / "dst", "vllm", graft=original).grafted["modules"] == ["model.layers.2"]


def test_linears_that_the_original_fuses_are_there_already(lost, tmp_path):
    def fuse(tensors):
        for leaf in "qkv":
            del tensors[f"model.layers.0.self_attn.{leaf}_proj.weight"]
        tensors["model.layers.0.self_attn.qkv_proj.weight"] = ("BF16", [128, 64], bytes(128 * 64 * 2))

    src, original = lost
    edit(original, fuse)
    assert qbridge.convert(src, tmp_path / "dst", "vllm", graft=original).grafted["modules"] == ["model.layers.2"]


def test_a_lost_head_is_grafted_unless_it_is_tied(lost, tmp_path):
    src, original = lost
    edit(src, lambda tensors: tensors.pop("lm_head.weight") and None)
    report = qbridge.convert(src, tmp_path / "dst", "vllm", graft=original)
    assert report.grafted["modules"] == ["lm_head", "model.layers.2"]
    for folder in lost:
        edit_json(folder / "config.json", lambda config: config.update(tie_word_embeddings=True))
    report = qbridge.convert(src, tmp_path / "tied", "vllm", graft=original)
    assert report.grafted["modules"] == ["model.layers.2"]


def test_the_number_of_layers_that_config_lost_with_them_comes_back(lost, tmp_path):
    src, original = lost
    edit_json(src / "config.json", lambda config: config.pop("num_nextn_predict_layers") and None)
    report = qbridge.convert(src, tmp_path / "dst", "vllm", graft=original)
    assert "QB324" in {finding.code for finding in report.findings}
    assert json.loads((tmp_path / "dst/config.json").read_text())["num_nextn_predict_layers"] == 1
    assert qbridge.verify(src, tmp_path / "dst").same
    qbridge.restore(tmp_path / "dst", tmp_path / "back")
    assert "num_nextn_predict_layers" not in json.loads((tmp_path / "back/config.json").read_text())


def test_verify_holds_what_was_grafted_against_the_original_or_its_digests(lost, tmp_path):
    src, original = lost
    dst, name = tmp_path / "dst", f"{LAST}enorm.weight"
    qbridge.convert(src, dst, "vllm", graft=original)
    moved = original.rename(tmp_path / "moved")
    alone = qbridge.verify(src, dst)
    assert alone.same and "QB328" in {finding.code for finding in alone.findings}
    told = qbridge.verify(src, dst, graft=moved)
    assert told.same and "QB328" not in {finding.code for finding in told.findings}
    with pytest.raises(qbridge.QBridgeError, match="QB001"):
        qbridge.verify(src, dst, graft=original)
    edit(moved, lambda tensors: tensors.update({name: flipped(tensors[name])}))
    other = qbridge.verify(src, dst, graft=moved)
    assert not other.same and facts(other.findings).count("grafted from") == 1
    edit(moved, lambda tensors: tensors.pop(name) and None)
    assert "QB502" in {finding.code for finding in qbridge.verify(src, dst, graft=moved).findings}
    shard = next(file for file in dst.glob("*.safetensors") if name.encode() in file.read_bytes())
    tensors = raw(dst)
    shard.write_bytes(shard.read_bytes().replace(tensors[name][2], flipped(tensors[name])[2]))
    changed = qbridge.verify(src, dst)
    assert not changed.same and "no longer what it was" in facts(changed.findings)


def test_a_dry_run_proves_and_says_the_same(lost, tmp_path):
    src, original = lost
    planned = qbridge.convert(src, tmp_path / "dst", "vllm", graft=original, dry_run=True)
    only_neighbours(tmp_path, "original", "src")
    assert planned.grafted == qbridge.convert(src, tmp_path / "done", "vllm", graft=original).grafted
    edit(original, lambda tensors: tensors.update({BIAS: flipped(tensors[BIAS])}))
    refused(lost, "QB323", dry_run=True)


def test_the_command_line_says_what_was_taken(lost, tmp_path):
    src, original = lost
    done = cli("convert", src, tmp_path / "dst", "--to", "vllm", "--graft", original)
    assert done.returncode == 0 and "29 tensors" in done.stdout and "model.layers.2" in done.stdout
    assert cli("verify", src, tmp_path / "dst", "--graft", original).returncode == 0
