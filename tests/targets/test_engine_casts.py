"""QB302: the cast that an engine does when it loads, its size, and whose it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import qbridge
from qbridge.ir.dtypes import DType
from qbridge.targets.common import NEGLIGIBLE, Cast, cast
from qbridge.targets.float32 import LMDEPLOY, VLLM, held
from qbridge.targets.registry import find_target
from support import SINGLE, codes, copy_fixture, edit_json

EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
GATE, ATTENTION = "model.layers.0.mlp.gate", "model.layers.0.linear_attn"


def plant(src, dtype="bfloat16", architecture="", **tensors):
    """Put tensors into a checkpoint of one file, and a dtype into its config.json."""

    def describe(config):
        config.update(dtype=dtype, torch_dtype=dtype)
        if architecture:
            config.update(architectures=[architecture])

    file = src / SINGLE
    save_file({**load_file(file), **tensors}, file, metadata={"format": "pt"})
    edit_json(src / "config.json", describe)
    return src


def casts(findings):
    return {str(finding.severity): finding for finding in findings if finding.code == "QB302"}


def answer(src, target, dst, **options):
    """The severities of QB302 that a conversion says, and whether it was done."""
    try:
        return casts(qbridge.convert(src, dst, target, **options).findings), True
    except qbridge.QBridgeError as fault:
        assert {f.code for f in fault.findings if str(f.severity) == "error"} == {"QB302"}, str(fault)
        return casts(fault.findings), False


def matrix(*values, dtype=torch.bfloat16, shape=(2, 8)):
    """A matrix of zeros that starts with some values."""
    flat = torch.zeros(shape[0] * shape[1], dtype=torch.float64)
    flat[: len(values)] = torch.tensor(values, dtype=torch.float64)
    return flat.reshape(shape).to(dtype)


# bfloat16 values that float16 cannot hold, by what becomes of them. 2^-26 becomes zero, 3 * 2^-26 becomes 2^-24.
SMALL = {
    "one value of an embedding": {"extra.weight": matrix(1.0, 1e-8)},
    "a change of 2^-12 of the norm": {"extra.weight": matrix(2.0**-14, 2.0**-26)},
    "rounded values of a vector": {"extra.weight": torch.tensor([1.0, 3 * 2.0**-26]).bfloat16()},
    "a rounded bias": {"extra.bias": torch.tensor([1.0, 3 * 2.0**-26]).bfloat16()},
    "a rounded scalar beside larger ones": {"extra.scalars": torch.tensor([[1.0], [2.0**-30]]).bfloat16()},
    "float32 of a quarter of a place more": {"extra.weight": torch.full((2, 8), 1 + 2.0**-12)},
}
LARGE = {
    "a change of more than 2^-12 of the norm": {"extra.weight": matrix(2.0**-14, 2.0**-26, 2.0**-36)},
    "float32 of half a place more": {"extra.weight": torch.full((2, 8), 1 + 2.0**-11 - 2.0**-23)},
    "a lost element of a norm": {"extra.weight": torch.tensor([1.0, 2.0**-26]).bfloat16()},
    "a lost element of a bias": {"extra.bias": torch.tensor([1.0, -(2.0**-30)]).bfloat16()},
    "a lost scalar": {"extra.scalar": torch.tensor(2.0**-30).bfloat16()},
    "an overflow": {"extra.weight": matrix(7e4)},
    "an overflow in a vector": {"extra.weight": torch.tensor([1.0, -7e4]).bfloat16()},
    "an embedding of nothing but small values": {"extra.weight": matrix(1e-8, 1e-8)},
}


@pytest.mark.parametrize("kind", SMALL)
def test_what_hardly_changes_is_a_warning(kind, tmp_path):
    src = plant(copy_fixture(tmp_path, "awq/llama_gemm"), **SMALL[kind])
    found, done = answer(src, "lmdeploy", tmp_path / "dst")
    assert done and found.keys() == {"warning"} and found["warning"].where == tuple(SMALL[kind])
    assert "lmdeploy 0.18.0 casts them" in " ".join(found["warning"].facts)
    judged = qbridge.check(tmp_path / "dst", "lmdeploy")
    assert judged.ok and "QB302" in judged.needs_values
    written = load_file(tmp_path / "dst" / SINGLE)
    assert all(torch.equal(written[name], value) for name, value in SMALL[kind].items())


@pytest.mark.parametrize("kind", LARGE)
def test_what_changes_more_is_an_error(kind, tmp_path):
    src = plant(copy_fixture(tmp_path, "awq/llama_gemm"), **LARGE[kind])
    found, done = answer(src, "lmdeploy", tmp_path / "dst")
    assert not done and found.keys() == {"error"} and found["error"].where == tuple(LARGE[kind])
    assert "--allow rounded" in found["error"].help
    found, done = answer(src, "lmdeploy", tmp_path / "dst", allow=["rounded"])
    assert done and found.keys() == {"warning"}


def test_both_are_said_apart_with_counts_and_sizes(tmp_path):
    tensors = {"a.weight": matrix(1.0, 1e-8, 1e-8), "b.weight": matrix(1.0, 1e-8), "c.weight": matrix(7e4, 1.0)}
    src = plant(copy_fixture(tmp_path, "awq/llama_gemm"), **tensors)
    found, _ = answer(src, "lmdeploy", tmp_path / "dst")
    assert found["warning"].where == ("a.weight", "b.weight") and found["error"].where == ("c.weight",)
    assert found["warning"].facts == (
        "3 values in 2 tensors have no exact F16; worst: a.weight, 2",
        "lmdeploy 0.18.0 casts them when it loads: by 1e-08 at most, a tensor by 1.4e-08 of its norm (a.weight)",
        "3 of them become zero",
    )
    assert found["error"].facts[-1] == "1 of them become infinite"


def test_the_size_of_a_cast_is_that_of_the_whole_tensor():
    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    values[:4] = 0, np.nan, np.inf, 1e-30
    whole = cast([values], DType.F32, DType.F16)
    assert whole == cast(np.array_split(values, 1), DType.F32, DType.F16)
    in_parts = cast(np.array_split(values, 7), DType.F32, DType.F16)
    finite = values[np.isfinite(values)].astype(np.float64)
    rounded = finite.astype(np.float16).astype(np.float64)
    expected = np.linalg.norm(rounded - finite) / np.linalg.norm(finite)
    for found in (whole, in_parts):
        assert (found.moved, found.lost, found.infinite) == (np.count_nonzero(rounded != finite), 1, 0)
        assert found.relative == pytest.approx(expected) and found.largest == np.abs(rounded - finite).max()
    assert 0 < whole.relative < NEGLIGIBLE  # a tensor of float32 in float16, unlike one in bfloat16
    assert cast([values], DType.F32, DType.BF16).relative > NEGLIGIBLE
    assert cast([np.zeros(8, np.float32)], DType.F32, DType.F16) == Cast()
    assert cast([], DType.F32, DType.F16) == cast([], DType.BF16, DType.F16) == Cast()
    exponents = np.array([[127 - 30, 127], [127 + 30, 127]], np.uint8)  # 2^-30, 1, 2^30, 1
    assert cast([exponents], DType.F8_E8M0, DType.F16) == Cast(2, 1, 1, 2.0**-30, 2.0**-60)


WIDE = {f"{GATE}.e_score_correction_bias": torch.randn(4), f"{ATTENTION}.A_log": torch.randn(4)}


@pytest.mark.parametrize("target", ["vllm", "lmdeploy"])
@pytest.mark.parametrize(
    ("case", "dtype"), [("fp8/llama_blocks", "bfloat16"), ("compressed_tensors/llama_w8a8_rope", "float16")]
)
def test_parameters_that_an_engine_holds_in_float32_are_not_cast(case, dtype, target, tmp_path):
    src = plant(copy_fixture(tmp_path, case), dtype, **WIDE)
    assert answer(src, target, tmp_path / "dst", allow=["incomplete"]) == ({}, True)


def test_a_parameter_is_float32_in_some_classes_and_engines_only(tmp_path):
    tensors = {f"{ATTENTION}.dt_bias": torch.randn(4), f"{GATE}.weight": torch.randn(4, 64)}
    src = plant(copy_fixture(tmp_path, "modelopt/llama_fp8"), **tensors)
    for architecture, cast_names in {
        "LlamaForCausalLM": set(tensors),
        "Glm4MoeForCausalLM": {f"{ATTENTION}.dt_bias"},
        "KimiLinearForCausalLM": {f"{GATE}.weight"},
    }.items():
        edit_json(src / "config.json", lambda config, name=architecture: config.update(architectures=[name]))
        with pytest.raises(qbridge.QBridgeError) as refused:
            qbridge.convert(src, tmp_path / "dst", "vllm", source="modelopt", allow=["incomplete"])
        (found,) = [f for f in refused.value.findings if f.code == "QB302" and str(f.severity) == "error"]
        assert set(found.where) == cast_names, architecture


@pytest.mark.parametrize("table", [VLLM, LMDEPLOY], ids=["vllm", "lmdeploy"])
def test_rows_of_the_tables_are_about_whole_names(table):
    for row in table:
        assert row.source.startswith(("vllm 0.33.0, ", "lmdeploy 0.18.0, ")) and row.names
        for architecture in (*sorted(row.classes), *([] if row.classes else ["AnyForCausalLM"])):
            is_held = held(table, architecture)
            assert all(is_held(f"model.layers.0.x.{name}") and is_held(name) for name in row.names)
            assert not any(is_held(f"model.layers.0.x.un{name}") or is_held(f"{name}.x") for name in row.names)
        for architecture in row.but:
            assert not any(held((row,), architecture)(name) for name in row.names)
        if row.classes:
            assert not any(held((row,), "AnyForCausalLM")(name) for name in row.names)


# What the engine does to the source it does to its copy: where source and output have one format, nothing is refused.
OWN = [("fp8/llama_blocks", "vllm"), ("fp8/llama_lmdeploy_block", "lmdeploy"), ("gptq/llama_v1_sym", "vllm-gptq")]
OWN += [("gptq/llama_v1_sym", "vllm"), ("compressed_tensors/llama_w8a8_rope", "vllm")]
OWN += [("compressed_tensors/llama_w8a8_rope", "transformers"), ("gptq/llama_v1_sym", "gptqmodel")]


@pytest.mark.parametrize(("case", "target"), OWN)
def test_a_copy_in_the_source_s_own_format_is_never_refused_for_a_cast(case, target, tmp_path):
    src = copy_fixture(tmp_path, case)
    file = src / SINGLE
    norm = load_file(file)[NORM].float() * (1 + 2.0**-9)
    norm[0] = 3.4e38  # infinite in bfloat16, too
    plant(src, **{NORM: norm})
    found, done = answer(src, target, tmp_path / "dst")
    assert done and found.keys() == {"warning"} and NORM in found["warning"].where
    assert qbridge.check(tmp_path / "dst", target).ok
    assert qbridge.verify(src, tmp_path / "dst").same


def narrow(src):
    """Give every scale a value of float16 that bfloat16 does not have."""
    changed = {
        name: value.fill_(2.0**-6 + 2.0**-16) for name, value in load_file(src / SINGLE).items() if "scales" in name
    }
    return plant(src, **changed)


def test_scales_that_change_are_an_error_but_in_a_copy(tmp_path):
    """Scales of float16 in a model of bfloat16, as AutoRound writes them."""
    src = plant(narrow(copy_fixture(tmp_path, "auto_round/llama_gptq_sym")))
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.convert(src, tmp_path / "dst", "vllm")
    assert codes(refused) == {"QB302"}
    named = [f for f in refused.value.findings if f.code == "QB302" and str(f.severity) == "error"]
    assert all(place.endswith(".weight_scale") for finding in named for place in finding.where)
    copy = plant(narrow(copy_fixture(tmp_path / "copy", "gptq/llama_v1_sym")))
    found, done = answer(copy, "vllm", tmp_path / "dst")
    assert done and found.keys() == {"warning"}


def test_another_dtype_is_no_copy(tmp_path):
    """LMDeploy computes AWQ in float16: of a model in bfloat16 more changes than the engine's own cast would."""
    lossy = {NORM: torch.full((64,), 2.0**-30, dtype=torch.bfloat16)}
    src = plant(copy_fixture(tmp_path, "awq/llama_gemm"), **lossy)
    assert answer(src, "lmdeploy", tmp_path / "dst")[1] is False
    assert find_target("lmdeploy").choices[2].dtype == "float16"


def test_a_format_casts_nothing(tmp_path):
    src = plant(copy_fixture(tmp_path, "awq/llama_gemm"), **LARGE["an overflow"])
    assert answer(src, "gptq", tmp_path / "dst") == ({}, True)
    assert answer(src, "dense", tmp_path / "dense") == ({}, True)
