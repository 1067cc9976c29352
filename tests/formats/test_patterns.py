"""Regular expressions of a config: the syntax of re, in bounded time and memory whatever they say."""

from __future__ import annotations

import os
import re

import pytest

import qbridge
from qbridge.formats.patterns import matches
from support import codes, copy_fixture, edit_header, edit_quantization, refusal


def setter(**keys):
    return lambda block: block.update(keys)


NAMES = [
    f"model.layers.{layer}.mlp.experts.{expert}.{leaf}"
    for layer in range(94)
    for expert in range(128)
    for leaf in ("gate_proj", "up_proj", "down_proj")
]
HOSTILE = ["(a|a)*b", "((a?){50}){50}b", "(a*)*b", "((((((a?){50}){50}){50}){50}){50}){50}", "(?:a|aa|aaa)+$b"]


@pytest.mark.parametrize(
    "pattern",
    [
        ".*",
        "",
        "lm_head",
        "lm_head$",
        "^lm_head$",
        r"model\.layers\.1\.a$",
        "model.layers.1.a",
        r".*\.(?!a).*",
        "$",
        "a-b$",
    ],
)
@pytest.mark.parametrize("whole", [False, True])
def test_answers_are_those_of_re(pattern, whole):
    names = [
        "lm_head",
        "lm_head\n",
        "lm_head2",
        "model.layers.1.a",
        "model.layers.1.ab",
        "modelXlayers.1.a",
        "",
        "a-b",
    ]
    compiled = re.compile(pattern)
    wanted = {name for name in names if (compiled.fullmatch if whole else compiled.match)(name)}
    assert matches([pattern], names, whole).of(pattern) == wanted


def test_faults_are_told_by_pattern():
    found = matches(["a[", "a.", "(?P<b"], ["ab"])
    assert found.faults.keys() == {"a[", "(?P<b"} and found.of("a.") == {"ab"} and not found.of("a[")


def cpu_seconds():
    """Of this process and of those that it has waited for: a busy machine takes longer, and no more of these."""
    return sum(os.times()[:4])


@pytest.mark.parametrize("pattern", HOSTILE)
def test_pattern_that_backtracks_for_ever_is_named(pattern):
    start = cpu_seconds()
    with pytest.raises(qbridge.QBridgeError) as excinfo:
        matches([".*", pattern, "b"], ["a" * 60] * 1000 + ["a" * 5000])
    assert codes(excinfo) == {"QB027"} and excinfo.value.exit_code == 3
    assert excinfo.value.findings[0].where == (repr(pattern),)
    assert cpu_seconds() - start < 20  # limited to 2 s


def test_honest_patterns_over_a_large_model_take_no_time():
    patterns = [r".*q_proj$", r".*experts.*down_proj", r"model\.layers\.\d+\.mlp\.gate$", ".*lm_head", ".*mlp.gate$"]
    start = cpu_seconds()
    found = matches(patterns, NAMES)
    assert len(found.of(patterns[1])) == 94 * 128
    assert cpu_seconds() - start < 2


def test_a_pattern_for_each_module_costs_a_lookup():
    patterns = [re.escape(name) + "$" for name in NAMES]
    start = cpu_seconds()
    found = matches(patterns, NAMES)
    assert all(found.of(pattern) == {name} for pattern, name in zip(patterns, NAMES, strict=True))
    assert cpu_seconds() - start < 2


LAYER = "model.layers.0."
NESTED = f"({LAYER.replace('.', '[.]')})" + "((.|.)*)*[A-Z]"
PLACES = {
    "targets": (
        "compressed_tensors/llama_w4a16",
        lambda b: b["config_groups"]["group_0"]["targets"].append(f"re:{NESTED}"),
    ),
    "ignore": ("compressed_tensors/llama_w4a16", lambda b: b["ignore"].append(f"re:{NESTED}")),
    "dynamic": ("gptq/llama_v2_asym", setter(dynamic={f"-:{NESTED}": {}})),
    "extra_config": ("auto_round/llama_gptq_asym", setter(extra_config={NESTED: {"bits": 8}})),
}


@pytest.mark.parametrize("place", PLACES)
def test_checkpoint_with_such_a_pattern_is_refused(place, tmp_path):
    case, spoil = PLACES[place]
    src = copy_fixture(tmp_path, case)
    edit_quantization(src, spoil)
    refusal(src, 3, "QB027", "compressed-tensors")


def test_such_a_pattern_against_a_very_long_name(tmp_path):
    src = copy_fixture(tmp_path, "compressed_tensors/llama_w4a16")
    edit_quantization(src, lambda block: block["ignore"].append("re:(?:x|x)*y"))
    edit_header(
        next(src.glob("*.safetensors")),
        lambda header: {name.replace("model.embed_tokens", "x" * 100_000): entry for name, entry in header.items()},
    )
    refusal(src, 3, "QB027", "compressed-tensors")
