"""--rename-prefix where the lists of GPTQ, AWQ and AutoRound name modules, experts too: all follow the names."""

from __future__ import annotations

import json
import re

import pytest

import make
import qbridge
from qbridge.architecture.prefixes import renamed, renamed_entry
from support import edit_quantization
from test_graft import raw

PREFIXES = {
    "nested": {"model": "model.language_model"},
    "at the top": {"model": ""},
    "below another": {"": "model"},
}
EXPERTS = r"\.experts\."
OUTPUTS = r"layers\.1\.self_attn\.o_proj"
ATTENTION = [[f"self_attn.{name}_proj" for name in "kvqo"]]
# Class, format, what is not quantized, the entries of its lists, targets.
CASES = {
    "gptq, parts of layers": (
        "MixtralForCausalLM",
        "gptq",
        EXPERTS,
        {"modules_in_block_to_quantize": ATTENTION},
        ("gptq", "compressed-tensors"),
    ),
    "gptq, whole names": (
        "LlamaForCausalLM",
        "gptq",
        OUTPUTS,
        {
            "modules_in_block_to_quantize": [
                [f"model.layers.{n}.self_attn.{name}_proj" for n in range(2) for name in "qkv"],
                ["model.layers.0.self_attn.o_proj"],
                ["mlp.up_proj", "mlp.gate_proj", "mlp.down_proj"],
            ]
        },
        ("gptq",),
    ),
    "gptq, expressions": (
        "MixtralForCausalLM",
        "gptq",
        EXPERTS,
        {
            "dynamic": {
                r"-:model\.layers\.0\.block_sparse_moe\.experts.*": {},
                "-:^model.layers.1.block_sparse_moe.experts": {},
            }
        },
        ("gptq", "awq"),
    ),
    "awq": (
        "Qwen3MoeForCausalLM",
        "awq",
        EXPERTS,
        {"modules_to_not_convert": ["model.layers.1.mlp.experts", "model.layers.1.mlp.gate"]},
        ("awq", "gptq"),
    ),
    "auto-round": (
        "Qwen3MoeForCausalLM",
        "auto-round",
        EXPERTS,
        {
            "block_name_to_quantize": "model.layers",
            "extra_config": {
                r"model\.layers\.1\.mlp\.experts\..*": {"bits": 16},
                "model.layers.1.mlp.gate": {"bits": 16},
            },
        },
        ("auto-round", "compressed-tensors"),
    ),
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """{case: checkpoint}"""
    folder, found = tmp_path_factory.mktemp("lists"), {}
    for name, (architecture, kind, leave, lists, _) in CASES.items():
        make.build(architecture, kind, folder / name, leave)
        found[name] = folder / name / "model"
        edit_quantization(found[name], lambda block, lists=lists: block.update(lists))
    return found


def block_of(folder):
    return json.loads((folder / "config.json").read_text())["quantization_config"]


def texts(value):
    """Every text of a block without the escapes of expressions, keys included."""
    if isinstance(value, dict):
        return [
            *(key.replace("\\", "") for key in value),
            *(text for entry in value.values() for text in texts(entry)),
        ]
    if isinstance(value, list):
        return [text for entry in value for text in texts(entry)]
    return [value.replace("\\", "")] if isinstance(value, str) else []


def layers_named(folder):
    """What texts of a block have before `layers`, but for those that are the ends of any name."""
    found = (re.search(r"([\w.]*)layers", text) for text in texts(block_of(folder)))
    return {match[1] for match in found if match and match[1]}


def with_layers(texts_, pairs):
    """The texts that name layers by full names, which lie elsewhere now."""
    now = renamed("model.layers", pairs.items())
    return {text.replace("model.layers", now) for text in texts_ if "model.layers" in text}


@pytest.mark.parametrize("prefixes", PREFIXES)
@pytest.mark.parametrize(("name", "target"), [(name, target) for name, row in CASES.items() for target in row[4]])
def test_lists_follow_the_names_both_ways(name, target, prefixes, sources, tmp_path):
    src, pairs = sources[name], PREFIXES[prefixes]
    qbridge.convert(src, tmp_path / "plain", target)
    qbridge.convert(src, tmp_path / "dst", target, rename_prefix=pairs)
    assert qbridge.verify(src, tmp_path / "dst").same
    with qbridge.open(tmp_path / "dst") as now, qbridge.open(src) as before:
        assert now.specs.keys() == {renamed(layer, pairs.items()) for layer in before.specs}
    assert layers_named(tmp_path / "dst") <= {renamed("model.layers", pairs.items()).removesuffix("layers")}
    own = texts(CASES[name][3]) if target == CASES[name][1] else []
    assert with_layers(own, pairs) <= {*texts(block_of(tmp_path / "dst"))}
    qbridge.restore(tmp_path / "dst", tmp_path / "back")
    assert raw(tmp_path / "back") == raw(src)
    was, restored = (json.loads((folder / "config.json").read_text()) for folder in (src, tmp_path / "back"))
    assert was == restored and list(was) == list(restored)
    back = {new: old for old, new in pairs.items()}
    qbridge.convert(tmp_path / "dst", tmp_path / "again", target, rename_prefix=back)
    assert raw(tmp_path / "again").keys() == {renamed(name, back.items()) for name in raw(tmp_path / "dst")}
    assert layers_named(tmp_path / "again") <= {"model."} and {*own} <= {*texts(block_of(tmp_path / "again"))}


@pytest.mark.parametrize(
    ("entry", "wanted"),
    [
        ("layers.0.mlp", "model.layers.0.mlp"),
        ("lm_head", "model.lm_head"),
        (r"-:layers\.0\.mlp\..*", r"-:model\.layers\.0\.mlp\..*"),
        ("re:^layers.0", "re:^model.layers.0"),
        ("self_attn.q_proj", "self_attn.q_proj"),
        ("re:.*layers", "re:.*layers"),
        ("layers_of_another", "layers_of_another"),
        ("bits", "bits"),
        ("Linear", "Linear"),
    ],
)
def test_an_empty_prefix_begins_what_begins_like_a_module(entry, wanted):
    assert renamed_entry(entry, [("", "model")], {"layers", "lm_head"}) == wanted
