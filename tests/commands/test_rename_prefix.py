"""--rename-prefix: tensors, layers, lists of the config under other names; undone by restore."""

from __future__ import annotations

import json

import pytest

import qbridge
from qbridge.architecture.prefixes import check_prefixes, known_pairs, renamed, renamed_entry
from support import ROOT, SINGLE, cli, codes, contents, copy_fixture, edit_header, edit_json, edit_quantization, facts
from test_graft import LOST, raw
from test_restore import others

TEXT = {"model": "model.language_model"}
CASES = [
    "compressed_tensors/qwen3_moe_w4a16",
    "compressed_tensors/llama_w8a8",
    "compressed_tensors/mixtral_w8a8",
    "gptq/llama_g128",
    "awq/llama_gemm",
    "fp8/llama_blocks",
    "auto_round/llama_regex",
    "modelopt/llama_fp8_block",
]


def name_of(name):
    return name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name


def own(case):
    return case.partition("/")[0].replace("_", "-")


def rename(src, fn):
    """Call the tensors of a single file what `fn` makes of their names."""
    edit_header(src / SINGLE, lambda header: {fn(name): entry for name, entry in header.items()})


@pytest.mark.parametrize("case", CASES)
def test_every_name_begins_anew_and_the_way_back_is_exact(case, tmp_path):
    src = copy_fixture(tmp_path, case)
    qbridge.convert(src, tmp_path / "plain", own(case))
    qbridge.convert(src, tmp_path / "dst", own(case), rename_prefix=TEXT)
    plain, now = raw(tmp_path / "plain"), raw(tmp_path / "dst")
    assert now == {name_of(name): entry for name, entry in plain.items()}
    checked = qbridge.verify(src, tmp_path / "dst")
    assert checked.same, list(map(str, checked.findings))
    assert qbridge.verify(tmp_path / "dst", src).same
    qbridge.restore(tmp_path / "dst", tmp_path / "back")
    assert raw(tmp_path / "back") == raw(src)
    kept, back = others(src), others(tmp_path / "back")
    assert json.loads(kept.pop("config.json")) == json.loads(back.pop("config.json")) and kept == back
    qbridge.convert(
        tmp_path / "dst", tmp_path / "again", own(case), rename_prefix=[("model.language_model.", "model.")]
    )
    assert raw(tmp_path / "again").keys() == plain.keys()
    assert qbridge.verify(src, tmp_path / "again").same


def test_lists_of_the_block_are_renamed_with_the_tensors(tmp_path):
    src = copy_fixture(tmp_path, "compressed_tensors/qwen3_moe_w4a16")
    entries = [
        "model.layers.0.mlp.gate",
        "re:model\\.layers\\.9.*",
        "re:^model.layers.9.self_attn.*",
        "re:.*vision.*",
    ]
    edit_quantization(src, lambda block: block.update(ignore=[*entries, "lm_head"]))
    qbridge.convert(src, tmp_path / "dst", "compressed-tensors", rename_prefix=TEXT)
    ignore = json.loads((tmp_path / "dst/config.json").read_text())["quantization_config"]["ignore"]
    assert "model.language_model.layers.0.mlp.gate" in ignore and "re:.*vision.*" in ignore
    assert "re:model\\.language_model\\.layers\\.9.*" in ignore
    assert "re:^model.language_model.layers.9.self_attn.*" in ignore
    assert not any(entry.startswith("model.layers") for entry in ignore)


def test_lists_of_the_config_that_name_modules_are_renamed(tmp_path):
    src = copy_fixture(tmp_path, "compressed_tensors/llama_w8a8")
    names = {"kept_in_float": ["model.norm", "model.layers.0.mlp", "model.nothing", "silu"], "model": "model.norm"}
    edit_json(src / "config.json", lambda config: config.update(names))
    qbridge.convert(src, tmp_path / "dst", "compressed-tensors", rename_prefix=TEXT)
    config = json.loads((tmp_path / "dst/config.json").read_text())
    wanted = ["model.language_model.norm", "model.language_model.layers.0.mlp", "model.nothing", "silu"]
    assert config["kept_in_float"] == wanted and config["model"] == "model.norm"
    qbridge.restore(tmp_path / "dst", tmp_path / "back")
    assert json.loads((tmp_path / "back/config.json").read_text())["kept_in_float"] == names["kept_in_float"]


def test_names_that_had_the_new_prefix_before_stay_on_the_way_back(tmp_path):
    """model.visual keeps its name; it must not become model.language_model.visual when that is undone."""
    src = copy_fixture(tmp_path, "compressed_tensors/qwen3_w8a8")
    rename(src, lambda name: name_of(name) if ".layers.0." in name or "embed" in name else name)
    before = raw(src)
    qbridge.convert(
        src,
        tmp_path / "dst",
        "compressed-tensors",
        rename_prefix={"model.language_model": "model"},
        allow=["incomplete"],
    )
    assert not any("language_model" in name for name in raw(tmp_path / "dst"))
    assert qbridge.verify(src, tmp_path / "dst", allow=["incomplete"]).same
    qbridge.restore(tmp_path / "dst", tmp_path / "back", allow=["incomplete"])
    assert raw(tmp_path / "back") == before


def test_several_prefixes_are_replaced_at_once_the_longest_first(tmp_path):
    src = copy_fixture(tmp_path, "compressed_tensors/llama_w8a8")
    pairs = {"model": "model.language_model", "lm_head": "model.lm_head", "model.norm": "model.last"}
    qbridge.convert(src, tmp_path / "dst", "compressed-tensors", rename_prefix=pairs, allow=["incomplete"])
    names = raw(tmp_path / "dst").keys()
    assert {"model.last.weight", "model.lm_head.weight"} <= names
    assert "model.language_model.embed_tokens.weight" in names
    qbridge.restore(tmp_path / "dst", tmp_path / "back", allow=["incomplete"])
    assert raw(tmp_path / "back") == raw(src)


def refused(src, prefixes, code):
    before = contents(src.parent)
    with pytest.raises(qbridge.QBridgeError) as excinfo:
        qbridge.convert(src, src.parent / "dst", "compressed-tensors", rename_prefix=prefixes)
    assert codes(excinfo) == {code}, str(excinfo.value)
    assert contents(src.parent) == before
    return excinfo.value.findings


def test_a_prefix_that_begins_no_name_is_refused_with_the_known_pairs(tmp_path):
    src = copy_fixture(tmp_path, "compressed_tensors/qwen3_w8a8")
    found = refused(src, {"model.language_model": "model"}, "QB320")
    assert "names begin with lm_head, model" in facts(found)
    ways = [way for finding in found if finding.code == "QB320" for way in finding.ways]
    assert ("--rename-prefix", "model=model.language_model") in [(way.option, way.value) for way in ways]
    for way in ways:  # what is printed works when it is pasted
        old, _, new = way.value.partition("=")
        qbridge.convert(src, tmp_path / new, "compressed-tensors", rename_prefix={old: new}, dry_run=True)
    refused(src, {"mod": "x"}, "QB320")  # a prefix is whole modules


def test_two_tensors_of_one_name_are_refused(tmp_path):
    src = copy_fixture(tmp_path, "compressed_tensors/llama_w8a8")
    found = refused(src, {"model.layers.0": "model.layers.1"}, "QB033")
    assert "--rename-prefix would call each of them model.layers.1." in facts(found)
    assert "QB033" in {finding.code for finding in refused(src, {"model.norm.weight": ""}, "QB033")}


def test_a_graft_is_of_the_new_names(tmp_path):
    src = copy_fixture(tmp_path, "compressed_tensors/llama_w8a8")
    quantized, original = LOST / "quantized", tmp_path / "original"
    original.mkdir()
    for file in (LOST / "original").iterdir():
        (original / file.name).write_bytes(file.read_bytes())
    rename(original, name_of)
    with pytest.raises(qbridge.QBridgeError, match="QB323"):
        qbridge.convert(quantized, tmp_path / "dst", "compressed-tensors", graft=original)
    qbridge.convert(quantized, tmp_path / "dst", "compressed-tensors", graft=original, rename_prefix=TEXT)
    assert raw(tmp_path / "dst").keys() >= {name_of(name) for name in raw(LOST / "original") if "layers.2." in name}
    assert qbridge.verify(quantized, tmp_path / "dst").same
    qbridge.restore(tmp_path / "dst", tmp_path / "back")
    assert raw(tmp_path / "back") == raw(quantized)
    assert src.exists()


@pytest.mark.parametrize(
    "pairs", [[("a", "a")], [("a..b", "c")], [("a", "b"), ("a", "c")], [("a", ".b")], [("", "")]]
)
def test_pairs_that_mean_nothing_are_refused(pairs, tmp_path):
    with pytest.raises(ValueError):
        check_prefixes(pairs)
    with pytest.raises(ValueError):
        qbridge.convert(tmp_path, tmp_path / "dst", "vllm", rename_prefix=pairs)


def test_the_command_line_takes_pairs_and_refuses_others(tmp_path):
    src = ROOT / "fixtures/compressed_tensors/llama_w8a8/model"
    words = ("convert", src, tmp_path / "dst", "--to", "compressed-tensors", "--rename-prefix")
    for wrong in ("model", "a=b=c", "model=model"):
        assert cli(*words, wrong).returncode == 2
    assert cli(*words, "model.=model.language_model.").returncode == 0
    assert "model.language_model.norm.weight" in raw(tmp_path / "dst")


@pytest.mark.parametrize(
    ("entry", "wanted"),
    [
        ("model", "model.language_model"),
        ("model.layers.0", "model.language_model.layers.0"),
        ("models.layers.0", "models.layers.0"),
        (r"re:^model\.layers", r"re:^model\.language_model\.layers"),
        ("-:model.layers.*", "-:model.language_model.layers.*"),
        ("re:.*model.layers", "re:.*model.layers"),
        ("Linear", "Linear"),
    ],
)
def test_entries_are_renamed_where_they_begin_so(entry, wanted):
    assert renamed_entry(entry, TEXT.items()) == wanted


def test_a_prefix_of_nothing_begins_every_name():
    assert renamed("visual.blocks.0", [("", "model")]) == "model.visual.blocks.0"
    assert renamed("thinker.model.norm", [("thinker", "")]) == "model.norm"
    assert renamed("model.visual.x", [("model", "model.language_model"), ("model.visual", "visual")]) == "visual.x"


def test_pairs_are_known_by_the_type_of_the_model():
    old = [
        "language_model.model.layers.0.mlp.up_proj.weight",
        "vision_tower.x.weight",
        "language_model.lm_head.weight",
    ]
    pairs = known_pairs({"model_type": "gemma3"}, old)
    assert ("language_model.model", "model.language_model") in pairs
    assert ("vision_tower", "model.vision_tower") in pairs
    new = ["model.language_model.layers.0.mlp.up_proj.weight", "model.visual.blocks.0.x.weight"]
    pairs = known_pairs({"model_type": "qwen2_5_vl"}, new)
    assert ("model.language_model", "model") in pairs and ("model.visual", "visual") in pairs
