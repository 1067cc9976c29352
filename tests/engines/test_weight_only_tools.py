"""Weight-only checkpoints in the tools themselves: compressed-tensors, GPTQModel, transformers, vLLM's packers."""

from __future__ import annotations

import numpy as np
import pytest
from engine import ask
from safetensors.numpy import load_file, save_file
from weight_only import differences, fixture

import qbridge

pytestmark = pytest.mark.engine

# Case, targets one after the other.
CONVERSIONS = [
    ("compressed_tensors/llama_w4a16", "gptq"),
    ("compressed_tensors/llama_w4a16_asym", "gptq"),
    ("compressed_tensors/llama_w4a16_asym", "awq"),
    ("auto_round/llama_gptq_sym", "gptq"),
    ("awq/llama_gemm", "gptq"),
    ("gptq/llama_8bit", "gptq-v2"),
]
# Of experts and of `dynamic`, transformers knows nothing.
GPTQMODEL_ONLY = [
    ("compressed_tensors/qwen3_moe_w4a16", "gptq"),
    ("compressed_tensors/qwen3_moe_w4a16", "awq"),
    ("gptq/qwen2_dynamic", "compressed-tensors", "gptq"),
    ("gptq/llama_short_group", "gptqmodel"),
    ("gptq/llama_autogptq_asym", "gptqmodel"),  # which it refuses as it is
    ("compressed_tensors/llama_w4a16_asym", "gptqmodel"),
]
COMPRESSED_TENSORS = [
    "gptq/llama_v1_asym",
    "gptq/llama_8bit",
    "gptq/llama_3bit",
    "gptq/llama_planar_7bit",
    "gptq/llama_short_group",
    "gptq/qwen2_dynamic",
    "gptq/qwen3_moe_v1_sym",
    "awq/llama_lmdeploy",
    "awq/llama_gemv_fast",
    "compressed_tensors/llama_w4a16_old_zp",
    "auto_round/llama_5bit_asym",
    "auto_round/llama_6bit_asym",
    "marlin/llama_autogptq",
]
LINEAR = "model.layers.0.mlp.down_proj"
# Our tensors by target, and what vLLM's functions make of the same codes.
PACKED = {
    "gptq-v2": {"qweight": "gptq_qweight", "qzeros": "gptq_qzeros"},
    "awq": {"qweight": "awq_qweight", "qzeros": "awq_qzeros"},
    "marlin": {"B": "marlin_B", "s": "marlin_s"},
}


def converted(source, folder, targets):
    """The folder of `source` converted for one target after the other."""
    for step, target in enumerate(targets):
        qbridge.convert(source, folder / str(step), target)
        source = folder / str(step)
    return source


def faults(report):
    """What a loader and its decoder complained of."""
    errors = {key: report[key] for key in ("error", "config_error", "decode_error") if report.get(key)}
    return errors | {kind: names for kind, names in report.get("loading", {}).items() if names}


@pytest.mark.parametrize(
    ("loader", "case", "targets"),
    [(loader, case, targets) for loader in ("gptqmodel", "transformers") for case, *targets in CONVERSIONS]
    + [("gptqmodel", case, targets) for case, *targets in GPTQMODEL_ONLY],
    ids=lambda value: "-".join(value) if isinstance(value, list) else value,
)
def test_the_loader_decodes_what_we_write(loader, case, targets, tmp_path):
    dump = tmp_path / "dense.safetensors"
    out = converted(fixture(case), tmp_path, targets)
    report = ask("gptqmodel", "gptqmodel_load.py", out, "--loader", loader, "--out", dump)
    assert faults(report) == {} and report["finite_logits"], "the loader cannot take it"
    assert differences(dump, fixture(case)) == {}, "the loader computes with other weights"


@pytest.mark.parametrize("case", COMPRESSED_TENSORS)
def test_compressed_tensors_itself_decodes_what_we_write(case, tmp_path):
    dump = tmp_path / "dense.safetensors"
    qbridge.convert(fixture(case), tmp_path / "out", "compressed-tensors")
    report = ask("llm-compressor", "transformers_load.py", tmp_path / "out", "--out", dump)
    assert faults(report) == {} and report["finite_logits"], "the loader cannot take it"
    assert differences(dump, fixture(case)) == {}, "compressed-tensors decodes other weights"


@pytest.mark.parametrize(
    ("case", "bits", "group", "targets"),
    [
        ("gptq/llama_g128", 4, 128, ["gptq-v2", "awq", "marlin"]),
        ("compressed_tensors/llama_w4a16_g128", 4, 128, ["gptq-v2", "awq", "marlin"]),
        ("marlin/llama_autogptq", 4, 128, ["gptq-v2", "awq", "marlin"]),
        ("gptq/llama_8bit", 8, 32, ["gptq-v2"]),
    ],
    ids=lambda value: "" if isinstance(value, (int, list)) else value,
)
def test_vllms_own_functions_pack_the_same_bytes(case, bits, group, targets, tmp_path):
    with qbridge.open(fixture(case)) as source:
        parts = source.layer(LINEAR).arrays
        scales = np.ascontiguousarray(parts["scale"].view(np.float16).T)
    codes = np.ascontiguousarray(parts["code"].T).astype(np.int32) + (1 << bits - 1)
    zeros = np.full(scales.shape, 1 << bits - 1, np.int32)
    save_file({"codes": codes, "scales": scales, "zeros": zeros}, tmp_path / "codes.safetensors")
    words = (tmp_path / "packed.safetensors", "--bits", bits, "--group", group)
    report = ask("vllm", "vllm_reference.py", tmp_path / "codes.safetensors", *words)
    packed = load_file(words[0])
    assert report["error"] is None and packed
    for target in targets:
        # By way of GPTQ, so that nothing is copied from a source that is in the target's layout.
        out = converted(fixture(case), tmp_path / target, ["gptq", target])
        ours = {name: tensor for file in out.glob("*.safetensors") for name, tensor in load_file(file).items()}
        unlike = [
            name for name, theirs in PACKED[target].items() if not same(ours[f"{LINEAR}.{name}"], packed[theirs])
        ]
        assert not unlike, f"{target}: {unlike} differ from what vLLM packs"


def same(ours, theirs):
    return (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape) and ours.tobytes() == theirs.tobytes()
