"""Weight-only sources that cannot be trusted: GPTQ, AWQ, Marlin and AutoRound whose tensors or config lie."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import qbridge
from qbridge.targets.registry import codes as every_code
from support import (
    codes,
    copy_fixture,
    edit_json,
    edit_quantization,
    facts,
    only_neighbours,
    places,
    refusal,
)

CATALOGUE = every_code()

DOWN = "model.layers.0.mlp.down_proj"
TARGETS = ("compressed-tensors", "gptq", "awq", "lmdeploy", "vllm")


def source(tmp_path, case):
    """A copy of a fixture without the side file that repeats its config."""
    src = copy_fixture(tmp_path, case)
    for name in ("quantize_config.json", "quantization_config.json", "quant_config.json"):
        if (src / name).exists() and "quantization_config" in json.loads((src / "config.json").read_text()):
            (src / name).unlink()
    return src


def edit_tensors(src, fn):
    (file,) = src.glob("*.safetensors")
    stored = {name: t if t.dtype is torch.bfloat16 else t.numpy() for name, t in load_file(file).items()}
    fn(stored)
    stored = {name: torch.from_numpy(a) if isinstance(a, np.ndarray) else a for name, a in stored.items()}
    save_file(stored, file, metadata={"format": "pt"})


def refused(src, **options):
    """The codes of the refusal: the same for every target, catalogued, and nothing is written."""
    said = []
    for target in TARGETS:
        with pytest.raises(qbridge.QBridgeError) as caught:
            qbridge.convert(src, src.parent / "dst", target, **options)
        only_neighbours(src.parent, "src")
        assert codes(caught) and codes(caught) <= CATALOGUE.keys()
        said.append(codes(caught))
    assert said.count(said[0]) == len(said)
    return said[0]


# configs


def setter(**keys):
    return lambda block: block.update(keys)


CONFIGS = {
    "auto_round/llama_gptq_asym": {
        "QB013": [
            *(setter(bits=value) for value in ("4", 4.0, None, True, [4])),
            *(setter(group_size=value) for value in ("32", None, 32.0, {})),
            *(setter(sym=value) for value in ("yes", 1, None)),
        ],
        "QB016": [
            setter(bits=16),
            setter(bits=0),
            setter(bits=-4),
            setter(bits=9),
            setter(bits=8),
            setter(group_size=0),
            setter(group_size=64),
            setter(extra_config={DOWN: {"bits": "8"}}),
            setter(extra_config={DOWN: {"group_size": None}}),
            setter(extra_config={".*mlp.*": {"sym": "no"}}),
            setter(extra_config={"[": {"bits": 8}}),
            setter(extra_config={"(?P<a": {"bits": 8}}),
            setter(extra_config={"a{99999999999}": {"bits": 8}}),
            setter(extra_config={"(" * 5000 + ")" * 5000: {"bits": 8}}),
        ],
        "QB101": [
            *(setter(packing_format=value) for value in ("auto_round:fp8", "auto_round:gptqv3", "", None, 4, ["a"])),
            *(setter(data_type=value) for value in ("fp", "mx_fp", None)),
        ],
        "QB102": [setter(rotation_config={"type": "hadamard"})],
    },
    "auto_round/llama_awq_asym": {
        "QB016": [setter(bits=0), setter(bits=5), setter(group_size=0), setter(group_size=7), setter(group_size=128)],
    },
    "awq/llama_gemm": {
        "QB013": [
            setter(group_size=0),
            setter(group_size="64"),
            setter(group_size=None),
            setter(group_size=64.0),
            setter(bits="4"),
            setter(bits=None),
            setter(bits=True),
        ],
        "QB016": [setter(group_size=7), setter(group_size=128), setter(bits=5), setter(bits=0), setter(bits=-4)],
        "QB101": [setter(version="exllama"), setter(version="ipex"), setter(version=None), setter(version=["gemm"])],
    },
    "awq/llama_gemv": {
        "QB101": [setter(bits=3), setter(bits=8), setter(bits="4")],
        "QB013": [setter(group_size=0), setter(group_size="32")],
        "QB016": [setter(group_size=64), setter(version="gemv_fast"), setter(version="gemm")],
    },
    "awq/llama_gemv_fast": {
        "QB016": [setter(group_size=128), setter(version="gemv"), setter(backend="llm-awq")],
    },
    "gptq/llama_v2_asym": {
        "QB013": [
            setter(bits="4"),
            setter(bits=None),
            setter(group_size="32"),
            setter(sym=0),
            setter(dynamic=[DOWN]),
            setter(dynamic={"-:[": {}}),
            setter(dynamic={"a{99999999999}": {}}),
            setter(dynamic={"(" * 5000 + ")" * 5000: {}}),
        ],
        "QB016": [
            setter(bits=0),
            setter(bits=9),
            setter(bits=-4),
            setter(bits=8),
            setter(group_size=0),
            setter(group_size=64),
            setter(dynamic={DOWN: {"bits": "8"}}),
            setter(dynamic={DOWN: {"bits": None}}),
            setter(dynamic={DOWN: {"group_size": "32"}}),
            setter(dynamic={DOWN: {"group_size": [32]}}),
            setter(pack_dtype="int16", bits=3),
        ],
        "QB101": [
            *(setter(pack_dtype=value) for value in ("int64", "uint32", None, 32)),
            *(setter(checkpoint_format=value) for value in ("gptq_v3", "exllama", "bitblas", None, 2, ["gptq"])),
        ],
        "QB102": [setter(rotation="hadamard"), setter(activation="int8")],
    },
    "gptq/llama_planar_3bit": {
        "QB016": [setter(bits=4), setter(bits=2), setter(bits=5), setter(bits=8), setter(group_size=64)],
    },
}
FAULTS = [
    pytest.param(case, code, spoil, id=f"{case.partition('/')[2]}-{code}-{number}")
    for case, by_code in CONFIGS.items()
    for code, spoils in by_code.items()
    for number, spoil in enumerate(spoils)
]


@pytest.mark.parametrize(("case", "code", "spoil"), FAULTS)
def test_config_that_lies_is_refused(case, code, spoil, tmp_path):
    src = source(tmp_path, case)
    edit_quantization(src, spoil)
    assert code in refused(src)


@pytest.mark.parametrize("extra", [None, [], "text", 8, {}, {DOWN: 8}, {DOWN: None}, {"other": {"bits": 8}}])
def test_extra_config_that_says_nothing_of_a_module_changes_nothing(extra, tmp_path):
    src = source(tmp_path, "auto_round/llama_gptq_asym")
    before = qbridge.inspect(src).as_dict()
    edit_quantization(src, setter(extra_config=extra))
    after = qbridge.inspect(src).as_dict()
    assert {key: after[key] for key in ("format", "architecture")} == {
        key: before[key] for key in ("format", "architecture")
    }
    assert qbridge.convert(src, src.parent / "dst", "compressed-tensors").layers == 7


@pytest.mark.parametrize("method", ["qqq", "hqq", "bitsandbytes", "exl3", "vptq", "paroquant", "QQQ"])
@pytest.mark.parametrize("case", ["gptq/llama_v2_asym", "awq/llama_gemm", "auto_round/llama_gptq_asym"])
def test_methods_with_tensors_of_the_same_names_are_recognised_by_name(case, method, tmp_path):
    src = source(tmp_path, case)
    edit_quantization(src, setter(quant_method=method, method=method))
    for target in TARGETS:
        assert f"quant_method {method!r}" in facts(refusal(src, 3, "QB011", target)["QB011"])


# tensors


def dropped(leaf):
    return lambda stored: stored.__delitem__(f"{DOWN}.{leaf}")


def replaced(leaf, fn):
    return lambda stored: stored.update({f"{DOWN}.{leaf}": np.array(fn(stored[f"{DOWN}.{leaf}"]))})


def shapes(leaf):
    """Ways in which a matrix has the wrong dims or dtype."""
    return [
        replaced(leaf, lambda a: a[:-1]),
        replaced(leaf, lambda a: a[:, :-1]),
        replaced(leaf, lambda a: a[:0]),
        replaced(leaf, lambda a: a[:, :0]),
        replaced(leaf, lambda a: a.reshape(-1)),
        replaced(leaf, lambda a: a[None]),
        replaced(leaf, lambda a: a.reshape(-1)[0].reshape(())),
        replaced(leaf, lambda a: a.astype(np.float64)),
        replaced(leaf, lambda a: a.astype(np.int64)),
        replaced(leaf, lambda a: np.concatenate([a, a])),
        replaced(leaf, lambda a: np.concatenate([a, a], axis=1)),
        dropped(leaf),
    ]


LEAVES = {
    "auto_round/llama_gptq_asym": ("qweight", "qzeros", "scales"),
    "auto_round/llama_awq_asym": ("qweight", "qzeros", "scales"),
    "auto_round/llama_5bit_asym": ("qweight", "qzeros", "scales"),
    "marlin/llama_autogptq": ("B", "s"),
    "marlin/llama_autogptq_channel": ("B", "s"),
    "marlin/llama_autoawq": ("qweight", "scales"),
    "awq/llama_gemm": ("qweight", "qzeros", "scales"),
    "awq/llama_gemv": ("qweight", "qzeros", "scales"),
    "awq/llama_gemv_fast": ("qweight", "qzeros", "scales"),
    "awq/llama_llm_awq": ("qweight", "scaled_zeros", "scales"),
    "awq/llama_mislabelled_gptq": ("qweight", "qzeros", "scales"),
    "gptq/llama_v2_asym": ("qweight", "qzeros", "scales", "g_idx"),
    "gptq/llama_int8_words": ("qweight", "qzeros", "scales"),
    "gptq/llama_planar_5bit": ("qweight", "qzeros", "scales"),
}


# twice the input features under one scale, and under groups that the padding of the old ones hides
SOUND = {("marlin/llama_autogptq_channel", "B", 9), ("awq/llama_gemv", "qweight", 10)}


@pytest.mark.parametrize(("case", "leaf"), [(case, leaf) for case, leaves in LEAVES.items() for leaf in leaves])
def test_tensors_of_wrong_dims_or_dtype_are_refused(case, leaf, tmp_path):
    """QB110 where what is left is a sound layer of other dims; GPTQ needs no g_idx, and wide scales are exact."""
    wrong = []
    for number, spoil in enumerate(shapes(leaf)):
        folder = tmp_path / str(number)
        folder.mkdir()
        src = source(folder, case)
        if leaf == "g_idx" and number in (1, 3, 4, 10, 11):
            continue
        edit_tensors(src, spoil)
        sound = (leaf in ("scales", "s") and number == 7) or (case, leaf, number) in SOUND
        try:
            qbridge.convert(src, folder / "dst", "gptq")
            wrong += [] if sound else [(number, "converted")]
        except qbridge.QBridgeError as fault:
            found = {finding.code for finding in fault.findings if finding.severity == "error"}
            only_neighbours(folder, "src")
            wrong += [] if found <= {"QB011", "QB015", "QB016", "QB018", "QB025", "QB110"} else [(number, found)]
        except Exception as fault:
            wrong.append((number, repr(fault)))
    assert wrong == []


def test_marlin_scales_that_do_not_divide_the_inputs_are_named(tmp_path):
    src = source(tmp_path, "marlin/llama_autogptq")
    edit_tensors(src, replaced("s", lambda s: np.repeat(s, 3, axis=0)[:3]))
    found = refusal(src, 3, "QB016", "gptq")
    assert places(found["QB016"]) == {DOWN} and "3 groups do not divide" in facts(found["QB016"])


def test_marlin_of_a_part_of_a_tile_is_named(tmp_path):
    src = source(tmp_path, "marlin/llama_autogptq")

    def cut(stored):
        stored[f"{DOWN}.B"] = np.ascontiguousarray(stored[f"{DOWN}.B"][:, :-64])
        stored[f"{DOWN}.s"] = np.ascontiguousarray(stored[f"{DOWN}.s"][:, :-32])

    edit_tensors(src, cut)
    found = refusal(src, 3, "QB016", "gptq")
    assert places(found["QB016"]) == {DOWN} and "whole tiles" in facts(found["QB016"])


@pytest.mark.parametrize("leaf", ["qzeros", "scales"])
def test_gemv_padding_that_is_not_zero_is_refused(leaf, tmp_path):
    src = source(tmp_path, "awq/llama_gemv")
    edit_tensors(src, lambda stored: stored[f"{DOWN}.{leaf}"].__setitem__((3, -1), 1))
    assert refused(src) <= {"QB016", "QB025"}


def gemv_fast(tmp_path, fn):
    src = source(tmp_path, "awq/llama_gemv_fast")
    edit_tensors(src, fn)
    return src


@pytest.mark.parametrize(
    "spoil",
    [
        lambda stored: stored[f"{DOWN}.qzeros"].__setitem__((0, 0), 0.1234),
        lambda stored: stored[f"{DOWN}.qzeros"].__setitem__((0, 0), np.nan),
        lambda stored: stored[f"{DOWN}.qzeros"].__setitem__((0, 0), np.inf),
        lambda stored: stored[f"{DOWN}.qzeros"].__setitem__((0, 0), -65504),
        lambda stored: stored[f"{DOWN}.qzeros"].__setitem__((-1, 0), 1),
        lambda stored: stored[f"{DOWN}.scales"].__setitem__((0, 0), 0),
        lambda stored: stored[f"{DOWN}.scales"].__setitem__((0, 0), -0.0),
    ],
    ids=["between", "nan", "infinite", "large", "padding", "scale 0", "scale -0"],
)
def test_products_that_are_no_integers_are_refused(spoil, tmp_path):
    src = gemv_fast(tmp_path, spoil)
    found = refusal(src, 3, "QB025", "gptq")
    assert places(found["QB025"]) == {f"{DOWN}.qzeros"}


def test_gemv_fast_padding_of_scales_that_is_not_zero_is_refused(tmp_path):
    src = gemv_fast(tmp_path, lambda stored: stored[f"{DOWN}.scales"].__setitem__((-1, 0), 1))
    assert refused(src) <= {"QB016", "QB025"}


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    ("case", "leaf"),
    [
        ("awq/llama_gemv", "scales"),
        ("awq/llama_gemv_fast", "scales"),
        ("marlin/llama_autogptq", "s"),
        ("auto_round/llama_gptq_asym", "scales"),
        ("gptq/llama_planar_5bit", "scales"),
    ],
)
def test_scales_that_are_not_finite_are_named(case, leaf, value, tmp_path):
    src = source(tmp_path, case)
    edit_tensors(src, lambda stored: stored[f"{DOWN}.{leaf}"].__setitem__((0, 0), value))
    with pytest.raises(qbridge.QBridgeError) as caught:
        qbridge.convert(src, src.parent / "dst", "gptq")
    assert "QB017" in codes(caught) <= {"QB017", "QB025"}


@pytest.mark.parametrize("value", [-1, 8, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("case", ["llama_desc_act", "llama_v2_asym", "llama_planar_3bit"])
def test_group_index_out_of_range_is_named(case, value, tmp_path):
    src = source(tmp_path, f"gptq/{case}")
    edit_tensors(src, lambda stored: stored[f"{DOWN}.g_idx"].__setitem__(5, value))
    found = refusal(src, 3, "QB016", "gptq")
    assert places(found["QB016"]) == {DOWN} and "g_idx has groups from" in facts(found["QB016"])


# zero-points of GPTQ version 1


@pytest.fixture
def all_ones(tmp_path):
    return source(tmp_path, "gptq/llama_autogptq_zero0")


def zeros(folder):
    with qbridge.open(folder) as opened:
        return {name: opened.layer(name).arrays["zero"].astype(int) + 8 for name in opened.specs}


def test_zero_points_of_all_ones_ask_for_a_choice(all_ones):
    assert refused(all_ones) == {"QB023"}
    assert refused(all_ones, allow=["v1-zeros-wrap", "v1-zeros-add"]) == {"QB023"}


@pytest.mark.parametrize(("word", "value"), [("wrap", 0), ("add", 16)])
def test_zero_points_of_all_ones_are_read_as_chosen(all_ones, word, value):
    with qbridge.open(all_ones, allow=[f"v1-zeros-{word}"]) as opened:
        found = {int(zero) + 8 for name in opened.specs for zero in np.unique(opened.layer(name).arrays["zero"])}
        assert "QB024" in {finding.code for finding in opened.findings}
    assert value in found and 16 - value not in found


def test_a_zero_point_of_zero_goes_where_zero_can_be_said(all_ones):
    dst = all_ones.parent / "dst"
    for target in ("awq", "gptq-v2", "compressed-tensors", "auto-round"):
        report = qbridge.convert(all_ones, dst, target, allow=["v1-zeros-wrap"], overwrite=True)
        assert {f.code: str(f.severity) for f in report.findings}["QB024"] == "warning"
        assert min(array.min() for array in zeros(dst).values()) == 0
    found = refusal(
        source(all_ones.parent.parent / "other", "gptq/llama_autogptq_zero0"),
        1,
        "QB111",
        "gptq-v1",
        allow=["v1-zeros-wrap"],
    )
    assert "zero-points from 0 to" in facts(found["QB111"]) and "it holds 1 to" in facts(found["QB111"])


@pytest.mark.parametrize("target", ["awq", "gptq", "gptq-v2", "compressed-tensors", "auto-round", "lmdeploy"])
def test_a_zero_point_of_sixteen_has_no_place_in_four_bits(all_ones, target):
    found = refusal(all_ones, 1, "QB111", target, allow=["v1-zeros-add"])
    assert "to 16" in facts(found["QB111"]) and "it holds 0 to 15" in facts(found["QB111"])


def test_a_zero_point_of_sixteen_stays_where_it_came_from(all_ones):
    dst = all_ones.parent / "dst"
    qbridge.convert(all_ones, dst, "gptq-v1", allow=["v1-zeros-add"])
    assert qbridge.verify(all_ones, dst, allow=["v1-zeros-add"]).same


@pytest.mark.parametrize("case", ["gptq/llama_v2_zero0", "gptq/llama_v1_zero0", "gptq/llama_2bit"])
def test_asymmetric_zero_points_of_zero_are_not_for_version_1(case, tmp_path):
    found = refusal(source(tmp_path, case), 1, "QB111", "gptq-v1")
    assert "zero-points from 0 to" in facts(found["QB111"])


# versions under another name


def test_awq_under_the_name_of_gptq_is_known_by_its_shapes_and_never_by_half(tmp_path):
    src = source(tmp_path, "awq/llama_mislabelled_gptq")
    with qbridge.open(src) as opened:
        assert opened.format == "awq"
    edit_tensors(src, replaced("qweight", lambda a: np.repeat(a, 8, axis=1)[: len(a) // 8]))
    assert refused(src) <= {"QB011", "QB016", "QB018", "QB101"}


@pytest.mark.parametrize("name", ["quant_config.json", "quantize_config.json"])
@pytest.mark.parametrize("text", ["{", "[]", '"text"', "8", "null", "[" * 200_000, "\xff"])
def test_side_file_that_is_no_config_is_left_aside(name, text, tmp_path):
    for case in ("awq/llama_gemm", "gptq/llama_v2_asym"):
        folder = tmp_path / case.partition("/")[0]
        folder.mkdir()
        src = source(folder, case)
        (src / name).write_bytes(text.encode("latin-1"))
        assert qbridge.convert(src, folder / "dst", "compressed-tensors").layers == 7


def test_config_without_a_block_lets_the_side_file_speak(tmp_path):
    src = source(tmp_path, "gptq/llama_v2_asym")
    block = json.loads((src / "config.json").read_text())["quantization_config"]
    edit_json(src / "config.json", lambda config: config.pop("quantization_config") and None)
    (src / "quantize_config.json").write_text(json.dumps(block))
    assert qbridge.convert(src, src.parent / "dst", "compressed-tensors").layers == 7
