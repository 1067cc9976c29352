"""float8 in the real engines: what we write loads exactly, what we refuse or warn of would have been damage."""

from __future__ import annotations

import json
import shutil

import dense_twin
import numpy as np
import pytest
import torch
from engine import ask, assert_loads, lmdeploy
from safetensors.torch import load_file, save_file
from weight_only import differences, fixture

import qbridge

pytestmark = pytest.mark.engine

TENSORS = "model.safetensors"
WHOLE = ["llama_blocks", "llama_blocks_ue8m0", "llama_static"]
ALLOW = ["drop-activation-details"]
NOISE = 0.05  # bfloat16 activations against float32
FLOAT8_NOISE = 0.4  # of inputs rounded to float8
QKV = [f"model.layers.0.self_attn.{leaf}_proj" for leaf in "qkv"]

needs_avx512_bf16 = pytest.mark.skipif(
    not torch.cpu._is_avx512_bf16_supported(), reason="vLLM's float8 kernels need AVX-512 with bfloat16"
)


def edited(case, folder, tensors=None, block=None):
    """A copy of a fixture with other tensors or keys."""
    shutil.copytree(fixture(case), folder)
    stored = load_file(folder / TENSORS)
    config = json.loads((folder / "config.json").read_text())
    if tensors:
        tensors(stored)
    if block:
        block(config["quantization_config"])
    save_file(stored, folder / TENSORS, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def assert_effective(source, out, tp, folder):
    """LMDeploy computes with the source's weights and input scales, on any number of ranks."""
    dump = folder / "effective.safetensors"
    assert_loads(lmdeploy("0.18.0", out, tp, dump), tp)
    assert differences(dump, source) == {}, "LMDeploy would compute with other weights"
    effective, stored = load_file(dump), load_file(source / TENSORS)
    for name in (name for name in stored if name.endswith(".input_scale")):
        assert effective[name] == stored[name], name


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("case", WHOLE)
def test_lmdeploy_loads_fp8(case, tp, tmp_path):
    assert qbridge.convert(fixture(f"fp8/{case}"), tmp_path / "out", "lmdeploy", tp=tp).format == "fp8"
    assert_effective(fixture(f"fp8/{case}"), tmp_path / "out", tp, tmp_path)


def test_lmdeploy_loads_blocks_that_are_cut_off(tmp_path):
    source = fixture("fp8/llama_lmdeploy_block")
    qbridge.convert(source, tmp_path / "out", "lmdeploy")
    assert_effective(source, tmp_path / "out", 1, tmp_path)


@pytest.mark.parametrize("tp", [1, 2])
def test_lmdeploy_loads_a_scale_per_channel_as_smooth_quant(tp, tmp_path):
    source = fixture("fp8/llama_fbgemm")
    assert qbridge.convert(source, tmp_path / "out", "lmdeploy", allow=ALLOW).format == "smooth-quant"
    assert_effective(source, tmp_path / "out", tp, tmp_path)


@pytest.mark.parametrize("tp", [1, 2])
def test_lmdeploy_loads_a_scale_per_tensor_as_smooth_quant(tp, tmp_path):
    def dynamic(tensors):
        for name in [name for name in tensors if name.endswith("input_scale")]:
            del tensors[name]

    source = edited(
        "fp8/llama_static", tmp_path / "src", dynamic, lambda block: block.update(activation_scheme="dynamic")
    )
    assert qbridge.convert(source, tmp_path / "out", "lmdeploy").format == "smooth-quant"
    assert_effective(source, tmp_path / "out", tp, tmp_path)


@pytest.mark.parametrize("tp", [1, 2])
def test_lmdeploy_leaves_out_what_we_list(tp, tmp_path):
    """The int8 codes of a Qwen3 whose down_proj is not quantized, as if they were static float8."""

    def as_float8(tensors):
        for name in [name for name in tensors if name.endswith("_scale")]:
            module = name.removesuffix(".weight_scale")
            codes = tensors[f"{module}.weight"].view(torch.uint8) & 0xBF  # no NaN
            tensors[f"{module}.weight"] = codes.view(torch.float8_e4m3fn)
            tensors |= {name: tensors[name].float(), f"{module}.input_scale": torch.ones(1)}

    def static(block):
        block.clear()
        block.update(quant_method="fp8", activation_scheme="static", modules_to_not_convert=["lm_head"])

    source = edited("compressed_tensors/qwen3_partial", tmp_path / "src", as_float8, static)
    qbridge.convert(source, tmp_path / "out", "lmdeploy")
    assert_effective(source, tmp_path / "out", tp, tmp_path)


def test_damage_of_unlike_input_scales_is_silent_and_refused_here(tmp_path):
    source = edited(
        "fp8/llama_static",
        tmp_path / "src",
        lambda tensors: tensors.update({f"{QKV[0]}.input_scale": torch.ones(())}),
    )
    with pytest.raises(qbridge.QBridgeError, match="QB271"):
        qbridge.convert(source, tmp_path / "out", "lmdeploy")
    dump = tmp_path / "effective.safetensors"
    assert_loads(lmdeploy("0.18.0", source, 1, dump), 1)
    kept = load_file(dump)
    assert len({float(kept[f"{name}.input_scale"]) for name in QKV}) == 1, "LMDeploy has learned to keep them apart"


def test_straddling_blocks_do_not_load_and_are_refused_here(tmp_path):
    source = fixture("fp8/llama_lmdeploy_block")
    with pytest.raises(qbridge.QBridgeError, match="QB273"):
        qbridge.convert(source, tmp_path / "out", "lmdeploy", tp=2)
    report = lmdeploy("0.18.0", source, 2)
    assert report["error"] or any(rank["misshapen"] for rank in report["ranks"]), "LMDeploy has learned to load them"


def served(folder, driver="vllm_fp8.py", dtype="bfloat16", *options):
    """The prompt's log-probabilities in vLLM, its float8 kernel replaced by weight * scale unless options say no."""
    run = ask("vllm", driver, folder, "--dtype", dtype, *options)
    assert run["error"] is None, run["error"]
    return np.array(run["prompt_logprobs"][1:])


def served_by_own_kernel(folder):
    """The same with vLLM's own float8 kernel."""
    return served(folder, "vllm_fp8.py", "bfloat16", "--kernel", "vllm")


def twin_of(source, folder):
    dense_twin.write(source, folder)
    return served(folder, "vllm_cpu.py", "float32")


@pytest.mark.parametrize("case", ["llama_blocks", "llama_blocks_ue8m0", "llama_lmdeploy_block"])
def test_vllm_loads_blocks(case, tmp_path):
    source = fixture(f"fp8/{case}")
    qbridge.convert(source, tmp_path / "out", "vllm")
    ours = served(tmp_path / "out")
    assert np.abs(ours - twin_of(source, tmp_path / "twin")).max() <= NOISE, "vLLM computes with other weights"
    assert np.array_equal(ours, served(source))


@needs_avx512_bf16
@pytest.mark.parametrize(
    "case",
    [
        "fp8/llama_blocks",
        "fp8/llama_blocks_ue8m0",
        "fp8/llama_lmdeploy_block",
        "compressed_tensors/llama_fp8_block",
    ],
)
def test_vllm_serves_blocks_with_its_own_kernel(case, tmp_path):
    source = fixture(case)
    qbridge.convert(source, tmp_path / "out", "vllm")
    ours = served_by_own_kernel(tmp_path / "out")
    assert np.abs(ours - twin_of(source, tmp_path / "twin")).max() <= NOISE, "vLLM computes with other weights"


@needs_avx512_bf16
def test_vllm_s_own_kernel_gives_the_same_numbers_for_either_name_of_blocks(tmp_path):
    """transformers' weight_scale_inv and compressed-tensors' weight_scale, there and back."""
    source = fixture("fp8/llama_blocks")
    qbridge.convert(source, tmp_path / "renamed", "compressed-tensors")
    qbridge.convert(tmp_path / "renamed", tmp_path / "back", "fp8")
    folders = source, tmp_path / "renamed", tmp_path / "back"
    original, *others = map(served_by_own_kernel, folders)
    assert all(np.array_equal(original, other) for other in others)


@needs_avx512_bf16
@pytest.mark.parametrize("case", ["compressed_tensors/llama_fp8_dynamic", "modelopt/llama_fp8_channel"])
def test_vllm_serves_channels_with_its_own_kernel(case, tmp_path):
    """It rounds inputs to float8, which the twin does not; every format gives the same numbers."""
    source = fixture(case)
    folders = [tmp_path / target for target in ("vllm", "modelopt", "compressed-tensors")]
    for folder in folders:
        qbridge.convert(source, folder, folder.name)
    first, *others = map(served_by_own_kernel, folders)
    assert all(np.array_equal(first, other) for other in others)
    assert np.abs(first - twin_of(source, tmp_path / "twin")).max() <= FLOAT8_NOISE


def test_damage_of_one_scale_per_tensor_in_vllm_is_silent_and_told_here(tmp_path):
    source = fixture("fp8/llama_static")
    assert "QB272" in {finding.code for finding in qbridge.check(source, "vllm").findings}
    far = np.abs(served(source) - twin_of(source, tmp_path / "twin")).max()
    assert far > 2 * NOISE, "vLLM has learned to keep the scales of fused linears apart"


def test_vllm_keeps_scales_that_are_repeated_for_each_channel(tmp_path):
    source = fixture("fp8/llama_static")
    report = qbridge.convert(source, tmp_path / "out", "vllm")
    assert (report.format, report.passes) == ("compressed-tensors", {"broadcast": 5})
    far = np.abs(served(tmp_path / "out") - twin_of(source, tmp_path / "twin")).max()
    assert far <= NOISE, "vLLM requantizes weights that have a scale per channel"


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("case", ["llama_fp8_dynamic", "llama_fp8_block", "llama_fp8_static"])
def test_lmdeploy_loads_llm_compressors_float8(case, tp, tmp_path):
    source = fixture(f"compressed_tensors/{case}")
    if case == "llama_fp8_block" and tp == 2:  # a rank would have half a block
        return
    qbridge.convert(source, tmp_path / "out", "lmdeploy", tp=tp)
    dump = tmp_path / "effective.safetensors"
    assert_loads(lmdeploy("0.18.0", tmp_path / "out", tp, dump), tp)
    assert differences(dump, source) == {}, "LMDeploy would compute with other weights"
