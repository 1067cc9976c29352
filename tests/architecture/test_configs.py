"""config.json and tokenizer_config.json: changed only where the target's transformers would read something else."""

from __future__ import annotations

import contextlib
import copy
import json
import tempfile
from functools import cache
from pathlib import Path

import pytest

import qbridge
from config_kinds import KINDS, NEW_KINDS, as_transformers_5_writes
from qbridge.architecture.config import (
    Reader,
    meaning,
    spell,
    spell_tokenizer,
    unread,
    unread_tokenizer,
    unsaid_keys,
    unsaid_rope,
)
from qbridge.architecture.implied import missing
from qbridge.targets.registry import find_target
from support import copy_fixture, edit_json

READERS = {
    "4": Reader((4,)),
    "5": Reader((5,)),
    "both": Reader(),
    **{name: find_target(name).reader for name in ("lmdeploy", "lmdeploy@0.6.2", "sglang", "vllm", "vllm@0.5.4")},
    "dense": find_target("dense").reader,
}
NEW = {**KINDS, **NEW_KINDS}


@cache
def written_by_5(name):
    return as_transformers_5_writes(NEW[name])


def codes(report, *severities):
    return {f.code for f in report.findings if not severities or f.severity in severities}


def source(name, writer):
    return copy.deepcopy(NEW[name] if writer == 4 else written_by_5(name))


def parsed(config):
    """What the installed transformers, a version of 5, reads of a config."""
    from transformers import AutoConfig

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        return AutoConfig.from_pretrained(folder).to_dict() | {"_name_or_path": ""}


def by_path(config, prefix=""):
    """Every key of a config and of those in it."""
    for key, value in config.items():
        yield f"{prefix}{key}", value
        if key.endswith("_config") and isinstance(value, dict):
            yield from by_path(value, f"{prefix}{key}.")


def missing_of(config, reader):
    """The keys that a reader asks for of a config's class, and that are not there."""
    return missing(config) if str(config.get("model_type")) in reader.implied else {}


def with_missing(config, read, reader):
    """What was read of a config with the keys of `missing_of`: its class does not have them, and keeps them."""
    inner = {key: value for key, value in config.items() if key.endswith("_config") and isinstance(value, dict)}
    nested = {key: with_missing(value, read[key], reader) for key, value in inner.items() if key in read}
    missing = {key: value for key, value in missing_of(config, reader).items() if value is not None}
    if read.get("layer_types"):
        missing.pop("full_attention_interval", None)  # its class makes layer_types of it
    return read | nested | missing


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
@pytest.mark.parametrize("name", KINDS)
def test_what_transformers_4_wrote_stays_as_it_is(name, reader):
    """A dtype alone is what 4.56 began to write: those before know torch_dtype, which is added for them."""
    before, after = dict(by_path(source(name, 4))), dict(by_path(spell(source(name, 4), reader)))
    added = {path: after[path] for path in after.keys() - before.keys()}
    assert all(after[path] == value for path, value in before.items() if not isinstance(value, dict))
    old = 4 in reader.versions and reader.old_dtype
    alone = {p for p in before if p.endswith("dtype") and p.rpartition(".")[2] == "dtype"} if old else set()
    asked = missing_of(source(name, 4), reader)  # neither version saves these, and the engine asks
    assert added == {f"{path.removesuffix('dtype')}torch_dtype": before[path] for path in alone} | asked


@pytest.mark.parametrize("name", NEW)
def test_what_transformers_5_wrote_stays_as_it_is_for_transformers_5(name):
    assert spell(written_by_5(name), READERS["5"]) == written_by_5(name)
    assert spell(written_by_5(name), READERS["vllm"]) == written_by_5(name)


def plain(key, value):
    """A word of transformers 4, the older name of rope_type aside; nothing for a default."""
    if key == "rope_scaling" and isinstance(value, dict):
        kind = value.get("rope_type", value.get("type"))
        fields = {k: v for k, v in value.items() if k not in ("type", "rope_type")}
        return {**fields, "rope_type": "default" if kind == "mrope" else kind}
    return value


ROPE_4 = {"rope_theta", "rope_scaling", "rope_local_base_freq", "global_rope_theta", "local_rope_theta"}
WORDS_4 = ROPE_4 | {"partial_rotary_factor", "rotary_emb_base", "rotary_pct", "num_experts", "num_local_experts"}


@pytest.mark.parametrize("reader", ["4", "both", "lmdeploy"])
@pytest.mark.parametrize("name", [name for name in KINDS if name not in ("qwen2_vl", "qwen2_5_vl")])
def test_transformers_4_is_told_in_its_own_words_what_5_wrote(name, reader):
    """Qwen2-VL is nested by transformers 5 and flat before: see below."""
    said = dict(by_path(KINDS[name]))
    told = dict(by_path(spell(written_by_5(name), READERS[reader])))
    for path, value in said.items():
        key = path.rpartition(".")[2]
        if key in WORDS_4 and value is not None:
            assert plain(key, told.get(path)) == plain(key, value), path
        if key in ("torch_dtype", "dtype"):
            assert told[path if reader != "lmdeploy" else f"{path.removesuffix(key)}dtype"] == value
    if "rope_scaling" not in str(said):
        assert not any(path.endswith("rope_scaling") for path in told)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl"])
def test_mrope_is_a_default_rope_with_sections_to_transformers_4(name):
    text = spell(written_by_5(name), READERS["4"])["text_config"]
    assert text["rope_theta"] == 1e6
    assert text["rope_scaling"] == {"type": "mrope", "rope_type": "default", "mrope_section": [8, 12, 12]}


def test_mrope_under_rope_type_alone_is_what_transformers_4_fails_on():
    config = {**KINDS["qwen2_vl"], "rope_scaling": {"rope_type": "mrope", "mrope_section": [8, 12, 12]}}
    wanted = {"type": "mrope", "rope_type": "default", "mrope_section": [8, 12, 12]}
    assert spell(config, READERS["4"])["rope_scaling"] == wanted
    assert spell(config, READERS["5"]) == config


def test_phi3_of_transformers_4_takes_three_fields_and_no_other():
    spelled = spell(written_by_5("phi3"), READERS["both"])
    assert spelled["rope_scaling"] == KINDS["phi3"]["rope_scaling"]
    assert spelled["original_max_position_embeddings"] == 2048


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
@pytest.mark.parametrize("writer", [4, 5])
@pytest.mark.parametrize("name", NEW)
def test_transformers_5_reads_the_same_from_source_and_output(name, writer, reader):
    config = source(name, writer)
    assert parsed(spell(config, reader)) == with_missing(config, parsed(config), reader)
    assert config == source(name, writer), "the source's own config was written to"


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
@pytest.mark.parametrize("writer", [4, 5])
@pytest.mark.parametrize("name", NEW)
def test_source_and_output_mean_the_same_and_once_is_enough(name, writer, reader):
    spelled = spell(source(name, writer), reader)
    assert meaning(spelled) == meaning(source(name, writer))
    assert spell(spelled, reader) == spelled


def other(value):
    """A value that means something else, or None where that is not known."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "float64" if value in ("bfloat16", "float16", "float32") else None
    return value * 2 + 1


def edited(config):
    """The config with one of the words of interest changed, for each of them that it has."""
    words = {*WORDS_4, "dtype", "torch_dtype", "swa_rope_theta", "factor", "hidden_size"}
    for key, value in config.items():
        if isinstance(value, dict):
            yield from ({**config, key: inner} for inner in edited(value))
        elif key in words and (changed := other(value)) is not None:
            yield {**config, key: changed}


@pytest.mark.parametrize("writer", [4, 5])
@pytest.mark.parametrize("name", NEW)
def test_a_changed_word_is_another_meaning(name, writer):
    config = source(name, writer)
    changed = list(edited(config))
    assert len(changed) > 1
    for each in changed:
        assert meaning(each) != meaning(config)


def test_lmdeploy_gets_no_rope_parameters_that_it_fails_on():
    assert "rope_parameters" not in spell(written_by_5("llama"), READERS["lmdeploy"])
    assert "rope_parameters" not in spell(written_by_5("gemma3_text"), READERS["lmdeploy"])
    assert "rope_parameters" not in spell(written_by_5("gemma3"), READERS["lmdeploy"])["text_config"]
    assert "rope_parameters" in spell(written_by_5("llama_llama3"), READERS["lmdeploy"])
    assert "rope_parameters" not in spell({"rope_theta": 1e4, "rope_parameters": None}, READERS["lmdeploy"])
    assert "rope_parameters" in spell(written_by_5("llama"), READERS["both"])


@pytest.mark.parametrize("name", ["gemma3_text", "olmo3"])
def test_flat_rope_parameters_where_the_class_wants_two_are_removed(name):
    """As qbridge 0.1 wrote them: transformers 5 stops with KeyError 'full_attention', or takes its default."""
    config = source(name, 4)
    broken = {**config, "rope_parameters": {"rope_theta": config["rope_theta"], "rope_type": "default"}}
    with contextlib.suppress(KeyError, AttributeError):
        assert parsed(broken)["rope_parameters"] != parsed(config)["rope_parameters"]
    for reader in ("5", "both", "lmdeploy"):
        assert spell(broken, READERS[reader]) == spell(config, READERS[reader])
    assert unread(broken, READERS["5"]) == ["rope_parameters"]


def test_layers_with_an_indexer_are_called_as_an_older_transformers_5_calls_them():
    new, old = ["indexed_attention", "full_attention"], ["deepseek_sparse_attention", "full_attention"]
    config = {"model_type": "deepseek_v32", "text_config": {"layer_types": new}, "layer_types": new}
    older = Reader((5,), indexed=False)
    spelled = spell(config, older)
    assert spelled["layer_types"] == spelled["text_config"]["layer_types"] == old
    assert unread(config, older) == ["layer_types"] and unread(spelled, older) == []
    assert spell(config, READERS["5"]) == config and unread(config, READERS["5"]) == []
    assert meaning(config) == meaning(spelled)


LAYERED = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "unknown", "rope_parameters": LAYERED},
        {"model_type": "gemma4", "text_config": {"model_type": "gemma4_text", "rope_parameters": LAYERED}},
        {"model_type": "olmo3", "rope_parameters": LAYERED},
        {"model_type": "gemma3_text", "rope_parameters": {"full_attention": LAYERED["full_attention"]}},
        {
            "model_type": "gemma3_text",
            "rope_parameters": {**LAYERED, "sliding_attention": {"rope_type": "linear", "factor": 2.0}},
        },
        {
            "model_type": "gemma3_text",
            "rope_parameters": {**LAYERED, "full_attention": {"rope_theta": 1e6, "partial_rotary_factor": 0.5}},
        },
    ],
)
def test_a_rope_without_words_in_transformers_4_is_left_as_it_is_and_known_as_such(config):
    assert spell(config, READERS["both"]) == spell(config, READERS["lmdeploy"]) == config
    assert unsaid_rope(config)
    assert not unsaid_rope(written_by_5("gemma3"))


def test_what_a_reader_does_not_know_is_named():
    assert unread(written_by_5("qwen3_moe"), READERS["4"]) == ["num_local_experts", "rope_parameters"]
    assert unread(written_by_5("llava"), READERS["4"]) == ["dtype", "rope_parameters"]
    assert unread(written_by_5("llava"), READERS["lmdeploy"]) == ["rope_parameters"]
    assert unread(written_by_5("llava"), READERS["both"]) == []
    lmdeploy = READERS["lmdeploy"]
    assert all(unread(config, lmdeploy) == sorted(missing_of(config, lmdeploy)) for config in KINDS.values())


@pytest.mark.parametrize("junk", [[1], {"a": 1}, "x", 7, True, None])
def test_words_of_any_other_kind_are_left_as_they_are(junk):
    words = ("model_type", "rope_scaling", "rope_theta", "dtype", "torch_dtype", "num_local_experts")
    for inside in ({}, {"rope_type": junk}, {"type": junk}, {"rope_theta": junk}, {"full_attention": junk}, junk):
        for word in words:
            config = {"model_type": "gemma3_text", word: junk, "rope_parameters": inside}
            for reader in READERS.values():
                assert meaning(spell(config, reader)) == meaning(config)
                assert isinstance(unread(config, reader), list)


def test_a_config_in_many_others_is_no_endless_walk():
    config = {"dtype": "bfloat16"}
    for _ in range(400):
        config = {"text_config": config}
    assert meaning(spell(config, READERS["both"])) == meaning(config) != meaning({"text_config": {}})


# Whole conversions.

ROPE = "compressed_tensors/llama_w8a8_rope"


def around(config):
    """A text model's config as multimodal ones hold it."""
    inner = {key: value for key, value in config.items() if key not in ("architectures", "quantization_config")}
    outer = {key: config[key] for key in ("architectures", "quantization_config")}
    return {**outer, "model_type": "llava", "torch_dtype": "float16", "text_config": inner}


@pytest.mark.parametrize("target", ["vllm", "transformers", "lmdeploy", "dense"])
def test_a_partly_rotated_model_is_the_same_after_its_conversion(target, tmp_path):
    src = copy_fixture(tmp_path)
    edit_json(src / "config.json", lambda c: c["rope_parameters"].update(partial_rotary_factor=0.5))
    qbridge.convert(src, tmp_path / "out", target)
    if target != "dense":
        assert qbridge.verify(src, tmp_path / "out").same
    written = json.loads((tmp_path / "out/config.json").read_text())
    assert written.get("partial_rotary_factor") == (0.5 if target in ("lmdeploy", "dense") else None)


def without_rope_parameters(config):
    return {key: value for key, value in config.items() if key != "rope_parameters"}


@pytest.mark.parametrize("word", ["rope_theta", "partial_rotary_factor"])
def test_verify_still_sees_another_rope(word, tmp_path):
    src = copy_fixture(tmp_path)
    edit_json(src / "config.json", lambda c: c["rope_parameters"].update(partial_rotary_factor=0.5))
    qbridge.convert(src, tmp_path / "out", "lmdeploy")
    edit_json(tmp_path / "out/config.json", lambda c: {**without_rope_parameters(c), word: 0.25})
    assert codes(qbridge.verify(src, tmp_path / "out"), "error") == {"QB504"}


def test_the_dtype_of_a_nested_config_is_treated_as_that_outside(tmp_path):
    src = copy_fixture(tmp_path, "awq/llama_gemm_g128")
    edit_json(src / "config.json", lambda c: around({**c, "torch_dtype": "bfloat16"}))
    qbridge.convert(src, tmp_path / "out", "lmdeploy", allow=("rounded",))
    written = json.loads((tmp_path / "out/config.json").read_text())
    assert written["torch_dtype"] == written["text_config"]["torch_dtype"] == "float16"
    answer = qbridge.verify(src, tmp_path / "out")
    assert answer.same
    assert [f.code for f in answer.findings if "dtype" in str(f.where)] == ["QB505"]


def test_the_tokenizer_of_transformers_5_is_renamed_for_4_and_restored_to_the_byte(tmp_path):
    src = copy_fixture(tmp_path)
    file, text = "tokenizer_config.json", (src_text := src / "tokenizer_config.json").read_text()
    src_text.write_text(text.replace("\n", "\r\n").replace("{", "{ ", 1))
    before = src_text.read_bytes()
    assert b'"TokenizersBackend"' in before
    report = qbridge.convert(src, tmp_path / "out", "lmdeploy")
    after = (tmp_path / "out" / file).read_bytes()
    assert after == before.replace(b'"TokenizersBackend"', b'"PreTrainedTokenizerFast"')
    assert "QB205" not in codes(report)
    qbridge.restore(tmp_path / "out", tmp_path / "back")
    assert (tmp_path / "back" / file).read_bytes() == before
    assert json.loads((tmp_path / "back/config.json").read_text()) == json.loads((src / "config.json").read_text())


@pytest.mark.parametrize("target", ["vllm", "transformers", "smooth-quant"])
def test_the_tokenizer_of_transformers_5_stays_for_5(target, tmp_path):
    src = copy_fixture(tmp_path)
    qbridge.convert(src, tmp_path / "out", target)
    assert (tmp_path / "out/tokenizer_config.json").read_bytes() == (src / "tokenizer_config.json").read_bytes()
    assert json.loads((tmp_path / "out/qbridge.json").read_text())["source"]["files"] == {}


def test_check_says_what_convert_would_rewrite(tmp_path):
    src = copy_fixture(tmp_path)
    before = qbridge.check(src, "lmdeploy").findings
    for code, word in (("QB205", "TokenizersBackend"), ("QB265", "rope_parameters")):
        (finding,) = (f for f in before if f.code == code)
        assert word in " ".join(finding.facts)
        assert finding.help[0].startswith("qbridge convert ") and "--to lmdeploy" in finding.help[0]
    qbridge.convert(src, tmp_path / "out", "lmdeploy")
    assert {"QB205", "QB265"}.isdisjoint(codes(qbridge.check(tmp_path / "out", "lmdeploy")))
    assert {"QB205", "QB265"}.isdisjoint(codes(qbridge.check(src, "vllm")))


def test_words_of_transformers_5_are_read_where_no_other_has_the_class(tmp_path):
    src = copy_fixture(tmp_path)
    edit_json(src / "config.json", lambda config: config.update(model_type="qwen3_5_text"))
    assert {"QB205", "QB265"}.isdisjoint(codes(qbridge.check(src, "lmdeploy")))
    qbridge.convert(src, tmp_path / "out", "lmdeploy", allow=["incomplete"])
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (src, tmp_path / "out"))
    assert after["rope_parameters"] == before["rope_parameters"]


@pytest.mark.parametrize(
    "text",
    [
        '{"tokenizer_class": "TokenizersBackend", "pad_token": "\\ud800"}',
        '{"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["<a>"]}',
        '{"extra_special_tokens": ["<a>"], "additional_special_tokens": ["<b>"]}',
        '{"init": {"tokenizer_class": "TokenizersBackend"}, "tokenizer_class":"TokenizersBackend"}',
        '{"eos": "\\"tokenizer_class\\": \\"TokenizersBackend\\"", "tokenizer_class" : "TokenizersBackend"}',
    ],
)
def test_only_what_transformers_4_does_not_take_of_a_tokenizer_changes(text):
    written, wanted = spell_tokenizer(text), json.loads(text)
    if "tokenizer_class" in wanted:
        wanted["tokenizer_class"] = "PreTrainedTokenizerFast"
    if extra := wanted.pop("extra_special_tokens", None):
        wanted["additional_special_tokens"] = [*wanted.get("additional_special_tokens", []), *extra]
    assert json.loads(written) == wanted
    assert written.encode()
    assert unread_tokenizer(json.loads(text), READERS["4"]) and not unread_tokenizer(wanted, READERS["4"])
    assert not unread_tokenizer(json.loads(text), READERS["5"])


# Keys that transformers 5 does not save, and LMDeploy asks for.

_DEEPSEEK = {"moe_layer_freq": 1, "scoring_func": "sigmoid", "topk_method": "noaux_tc"}
_MIXED = ["sparse", "dense", "sparse"]
IMPLIED = [
    ({"model_type": "deepseek_v3", "first_k_dense_replace": 1}, _DEEPSEEK),
    ({"model_type": "deepseek_v3"}, _DEEPSEEK),
    ({"model_type": "deepseek_v2", "topk_method": "greedy"}, {"moe_layer_freq": 1, "scoring_func": "softmax"}),
    ({"model_type": "deepseek_v32", "first_k_dense_replace": 1, "mlp_layer_types": ["dense", "sparse"]}, _DEEPSEEK),
    (
        {"model_type": "glm_moe_dsa", "mlp_layer_types": ["dense", "sparse"]},
        {**_DEEPSEEK, "first_k_dense_replace": 1},
    ),
    ({"model_type": "hy_v3", "mlp_layer_types": ["dense", "dense", "sparse"]}, {"first_k_dense_replace": 2}),
    (
        {"model_type": "qwen3_next", "layer_types": ["linear_attention"] * 2 + ["full_attention"]},
        {"full_attention_interval": 3},
    ),
    ({"model_type": "qwen3_next"}, {"full_attention_interval": 4}),
    ({"model_type": "llama"}, {}),
]
UNSAID = [
    (
        {"model_type": "qwen3_next", "layer_types": ["linear_attention"] + ["full_attention"] * 2},
        "full_attention_interval",
    ),
    ({"model_type": "qwen3_next", "layer_types": ["linear_attention"] * 2}, "full_attention_interval"),
    ({"model_type": "hy_v3", "mlp_layer_types": _MIXED}, "first_k_dense_replace"),
    ({"model_type": "deepseek_v32", "mlp_layer_types": _MIXED}, "moe_layer_freq"),
]


@pytest.mark.parametrize(("config", "keys"), IMPLIED)
@pytest.mark.parametrize("nested", [False, True])
def test_lmdeploy_is_told_what_the_class_implies(config, keys, nested):
    """transformers 5 has no such keys, and LMDeploy stops without them: AttributeError."""
    source = {"text_config": config} if nested else config
    wanted = {**config, **keys}
    told = spell(source, READERS["lmdeploy"])
    assert told == ({"text_config": wanted} if nested else wanted)
    assert unread(source, READERS["lmdeploy"]) == sorted(keys) and not unsaid_keys(source, READERS["lmdeploy"])
    assert unread(told, READERS["lmdeploy"]) == [] and meaning(told) == meaning(source)
    assert spell(source, READERS["vllm"]) == source


@pytest.mark.parametrize("kind", ["qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"])
def test_sglang_is_told_the_interval_of_full_attention(kind):
    """Its own classes of these configs have no default for it: AttributeError."""
    source = {"text_config": {"model_type": kind, "layer_types": ["linear_attention", "full_attention"] * 2}}
    told = spell(source, READERS["sglang"])
    assert told == {"text_config": {**source["text_config"], "full_attention_interval": 2}}
    assert unread(source, READERS["sglang"]) == ["full_attention_interval"] and meaning(told) == meaning(source)


def test_sglang_is_told_the_layers_of_nemotron_h_by_their_former_names():
    source = {
        "model_type": "nemotron_h",
        "layers_block_type": ["linear_attention", "full_attention", "mlp", "moe"],
        "mtp_layers_block_type": ["full_attention", "moe"],
    }
    told = spell(source, READERS["sglang"])
    assert told["layers_block_type"] == ["mamba", "attention", "mlp", "moe"]
    assert told["mtp_layers_block_type"] == ["attention", "moe"]
    assert meaning(told) == meaning(source) and parsed(told) == parsed(source)
    assert spell(told, READERS["sglang"]) == told and spell(source, READERS["vllm"]) == source


@pytest.mark.parametrize(("config", "key"), UNSAID)
def test_what_no_such_key_can_say_is_named(config, key):
    reader = READERS["lmdeploy"]
    assert unsaid_keys({"text_config": config}, reader) == [f"text_config.{key}"]
    assert key in unsaid_keys(config, reader) and key not in spell(config, reader)
    assert not unsaid_keys(config, READERS["vllm"])


@pytest.mark.parametrize(("config", "keys"), [case for case in IMPLIED if case[1]])
def test_another_value_of_such_a_key_is_another_meaning(config, keys):
    for key, value in keys.items():
        other = {**config, key: "other" if isinstance(value, str) else value + 1}
        assert meaning(other) != meaning(config)


def test_a_mixture_that_lmdeploy_has_no_key_for_is_refused(tmp_path):
    src = copy_fixture(tmp_path, "awq/llama_gemm")
    edit_json(src / "config.json", lambda c: c.update(UNSAID[0][0], architectures=["Qwen3NextForCausalLM"]))
    (finding,) = (f for f in qbridge.check(src, "lmdeploy").findings if f.code == "QB247")
    assert finding.severity == "error" and finding.where == ("full_attention_interval",)


@pytest.mark.parametrize("kind", ["glm4_moe", "qwen3_moe"])
def test_a_head_dim_that_is_said_means_what_the_class_takes_without_it(kind):
    config = {"model_type": kind, "hidden_size": 256, "num_attention_heads": 4}
    for same in ({**config, "head_dim": 64}, {**config, "head_dim": None}):
        assert {k: v for k, v in meaning(same).items() if v is not None} == meaning(config)
    assert meaning({**config, "head_dim": 32}) != meaning(config)
    assert spell(config, find_target("mlx").reader)["head_dim"] == 64
