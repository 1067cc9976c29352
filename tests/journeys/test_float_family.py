"""Every float scheme that llm-compressor writes as compressed-tensors: what is read, written back, and refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import qbridge
from qbridge.targets.registry import codes as every_code
from support import (
    ROOT,
    SINGLE,
    codes,
    copy_fixture,
    edit_header,
    edit_json,
    edit_quantization,
    facts,
    places,
    refusal,
)
from test_conversion import assert_same_tensors, config, tensors

CATALOGUE = every_code()

CT = ROOT / "fixtures/compressed_tensors"
DOWN = "model.layers.0.mlp.down_proj"
TOKEN = "activations e4m3fn dynamic symmetric per token"
NONE = "activations not quantized"

# case: (scheme of down_proj, dtype of its scales as they are meant, format as the tool named it)
FLOATS = {
    "llama_fp8_dynamic": (f"weights e4m3fn symmetric per channel, {TOKEN}", "BF16", "float-quantized"),
    "llama_fp8_static": (
        "weights e4m3fn symmetric per tensor, activations e4m3fn static symmetric per tensor",
        "BF16",
        "float-quantized",
    ),
    "llama_fp8_block": (
        "weights e4m3fn symmetric per block 128x128, activations e4m3fn dynamic symmetric per group 128",
        "BF16",
        "float-quantized",
    ),
    "llama_fp8_block_edges": (
        "weights e4m3fn symmetric per block 128x128, activations e4m3fn dynamic symmetric per group 128",
        "BF16",
        "float-quantized",
    ),
    "llama_fp8_group": (f"weights e4m3fn symmetric per group 32, {TOKEN}", "BF16", "float-quantized"),
    "llama_fp8_naive": (f"weights e4m3fn symmetric per channel, {NONE}", "BF16", "naive-quantized"),
    "llama_fp8_kv": (f"weights e4m3fn symmetric per channel, {TOKEN}", "BF16", "float-quantized"),
    "llama_nvfp4": (
        "weights e2m1 symmetric per group 16 and tensor, activations e2m1 dynamic symmetric per group 16 and tensor",
        "F8_E4M3",
        "nvfp4-pack-quantized",
    ),
    "llama_nvfp4a16": (
        f"weights e2m1 symmetric per group 16 and tensor, {NONE}",
        "F8_E4M3",
        "nvfp4-pack-quantized",
    ),
    "llama_mxfp4": (
        "weights e2m1 symmetric per group 32, activations e2m1 dynamic symmetric per group 32",
        "F8_E8M0",
        "mxfp4-pack-quantized",
    ),
    "llama_mxfp4a16": (f"weights e2m1 symmetric per group 32, {NONE}", "F8_E8M0", "mxfp4-pack-quantized"),
    "llama_mxfp4_fp8": (
        "weights e2m1 symmetric per group 32, activations e4m3fn dynamic symmetric per group 128",
        "F8_E8M0",
        "mxfp4-pack-quantized",
    ),
    "llama_mxfp8": (
        "weights e4m3fn symmetric per group 32, activations e4m3fn dynamic symmetric per group 32",
        "F8_E8M0",
        "mxfp8-quantized",
    ),
    "llama_w4afp8": (f"weights int4 symmetric per group 128, {TOKEN}", "BF16", "int-quantized"),
    "llama_float_mixed": (
        "weights e2m1 symmetric per group 16 and tensor, activations e2m1 dynamic symmetric per group 16 and tensor",
        "F8_E4M3",
        "mixed-precision",
    ),
    "llama_old_nvfp4": (
        "weights e2m1 symmetric per group 16 and tensor, activations e2m1 dynamic symmetric per group 16 and tensor",
        "F8_E4M3",
        "nvfp4-pack-quantized",
    ),
    "qwen3_moe_fp8_dynamic": (f"weights e4m3fn symmetric per channel, {TOKEN}", "BF16", "float-quantized"),
    "qwen3_moe_nvfp4": (
        "weights e2m1 symmetric per group 16 and tensor, activations e2m1 dynamic symmetric per group 16 and tensor",
        "F8_E4M3",
        "nvfp4-pack-quantized",
    ),
}
EVERY = pytest.mark.parametrize("case", FLOATS)


def block(folder):
    return config(folder)["quantization_config"]


@EVERY
def test_schemes_are_read_as_the_tool_means_them(case):
    scheme, scale, named = FLOATS[case]
    with qbridge.open(CT / case / "model") as opened:
        down = next(spec for name, spec in opened.specs.items() if name.endswith("down_proj"))
        assert (down.scheme, str(down.scale_dtype)) == (scheme, scale)
        stored = len([name for name in opened.source.tensors if name.endswith(".weight_scale")])
        assert len(opened.specs) == stored
    assert block(CT / case / "model")["format"] == named


@EVERY
def test_written_back_it_is_the_same_to_the_bit(case, tmp_path):
    source = CT / case / "model"
    report = qbridge.convert(source, tmp_path / "out", "compressed-tensors")
    assert set(report.exactness) == {"reversible"} and not report.passes
    assert_same_tensors(source, tmp_path / "out")
    verified = qbridge.verify(source, tmp_path / "out")
    assert verified.same and verified.identical == report.layers


def meaning(written):
    """Formats, targets and arguments of a block without what only says how scales were found."""
    # releases before 0.13 had no scale_dtype, which of nvfp4 nothing else depends on
    unsaid = {"observer", "zp_dtype", *(("scale_dtype",) if written["format"].startswith("nvfp4") else ())}
    groups = {}
    for group in written["config_groups"].values():
        args = {
            key: {name: value for name, value in group[key].items() if name not in unsaid and value not in (None, {})}
            for key in ("weights", "input_activations")
            if group[key]
        }
        groups[json.dumps(args, sort_keys=True)] = group["format"]
    return groups, written["format"], written["kv_cache_scheme"], sorted(written["ignore"])


@EVERY
def test_the_block_says_what_that_of_the_tool_says(case, tmp_path):
    source = CT / case / "model"
    qbridge.convert(source, tmp_path / "out", "compressed-tensors")
    assert meaning(block(tmp_path / "out")) == meaning(block(source))


@EVERY
def test_the_library_takes_the_block_and_chooses_the_same_format(case, tmp_path):
    from compressed_tensors.compressors.format import infer_module_format
    from compressed_tensors.quantization import QuantizationConfig

    qbridge.convert(CT / case / "model", tmp_path / "out", "compressed-tensors")
    written = block(tmp_path / "out")
    parsed = QuantizationConfig.model_validate({k: v for k, v in written.items() if k != "version"})
    for name, scheme in parsed.config_groups.items():
        own = written["config_groups"][name]["format"]
        assert infer_module_format(torch.nn.Linear, scheme).value == own


def test_kv_scales_of_float8_are_carried_over():
    source = tensors(CT / "llama_fp8_kv/model")
    names = [name for name in source if name.endswith(("k_scale", "v_scale"))]
    with qbridge.open(CT / "llama_fp8_kv/model") as opened:
        assert names and set(names) <= opened.model.tensors.keys()
        assert opened.model.kv_cache["type"] == "float"


def test_blocks_are_cut_off_at_both_edges():
    with qbridge.open(CT / "llama_fp8_block_edges/model") as opened:
        spec = opened.specs[DOWN]
        assert spec.dims == (192, 448) and spec.scale_shape == (2, 4)


# engines

# case: what --to vllm says and --to transformers; an exactness class, or the codes of the refusal
ENGINES = {
    **dict.fromkeys(FLOATS, ("reversible", "reversible")),
    "llama_fp8_static": ("equal", "reversible"),  # q, k, v and gate, up get a scale per channel
    "llama_fp8_block_edges": ("QB273", "reversible"),
    "llama_fp8_group": ("QB220", "reversible"),
    "llama_w4afp8": ("QB220", "reversible"),
    "qwen3_moe_nvfp4": ("reversible", "QB231"),
}
CELLS = [(case, *cell) for case, row in ENGINES.items() for cell in zip(("vllm", "transformers"), row, strict=True)]


@pytest.mark.parametrize(("case", "target", "said"), CELLS)
def test_engines_take_it_or_refuse_it(case, target, said, tmp_path):
    source = CT / case / "model"
    if said.startswith("QB"):
        with pytest.raises(qbridge.QBridgeError) as refused:
            qbridge.convert(source, tmp_path / "out", target)
        assert codes(refused) == {said}
        return
    report = qbridge.convert(source, tmp_path / "out", target)
    assert said in report.exactness and qbridge.verify(source, tmp_path / "out").same


def test_fused_float8_gets_a_scale_per_channel_for_vllm_and_comes_back(tmp_path):
    source = CT / "llama_fp8_static/model"
    report = qbridge.convert(source, tmp_path / "there", "vllm")
    assert report.passes == {"broadcast": 5} and report.exactness == {"equal": 5, "reversible": 2}
    there = tensors(tmp_path / "there")
    assert there["model.layers.0.mlp.gate_proj.weight_scale"].shape == (256, 1)
    assert there[f"{DOWN}.weight_scale"].shape == (1,)
    qbridge.restore(tmp_path / "there", tmp_path / "back")
    assert_same_tensors(source, tmp_path / "back")


@pytest.mark.parametrize("leaf", ["weight_global_scale", "input_global_scale"])
def test_global_scales_of_a_fused_linear_are_one_for_vllm(leaf, tmp_path):
    src = copy_fixture(tmp_path, "compressed_tensors/llama_nvfp4")
    name = f"model.layers.0.self_attn.k_proj.{leaf}"
    edit_tensors(src, lambda stored: stored.update({name: stored[name] * 2}))
    found = refusal(src, 1, "QB222", "vllm")
    assert f"2 different values of {leaf.removeprefix('weight_')}" in facts(found["QB222"])


def test_activations_that_vllm_would_leave_alone_are_refused(tmp_path):
    src = copy_fixture(tmp_path, "compressed_tensors/llama_fp8_dynamic")
    edit_args(src, "input_activations", type="int")
    refusal(src, 1, "QB220", "vllm")
    assert qbridge.convert(src, tmp_path / "dst", "compressed-tensors", dry_run=True).layers == 14


# what does not fit together


def edit_tensors(src, fn):
    stored = load_file(src / SINGLE)
    fn(stored)
    save_file(stored, src / SINGLE, metadata={"format": "pt"})


def float_args(src, key="weights"):
    (group,) = config(src)["quantization_config"]["config_groups"].values()
    return group[key]


def edit_args(src, key, **changes):
    def edit(written):
        for group in written["config_groups"].values():
            group[key].update(changes)

    edit_quantization(src, edit)


@pytest.mark.parametrize("leaf", ["weight_packed", "weight_scale", "weight_global_scale", "input_global_scale"])
def test_no_tensor_of_nvfp4_can_be_missing(leaf, tmp_path):
    src = copy_fixture(tmp_path, "compressed_tensors/llama_nvfp4")
    edit_tensors(src, lambda stored: stored.pop(f"{DOWN}.{leaf}"))
    wanted = {"weight_packed": "QB018"}.get(leaf, "QB015")
    refusal(src, 3, wanted, "compressed-tensors")


@pytest.mark.parametrize(
    ("case", "leaf", "dtype"),
    [
        ("llama_nvfp4", "weight_packed", torch.int8),
        ("llama_nvfp4", "weight_scale", torch.uint8),
        ("llama_nvfp4", "weight_scale", torch.bfloat16),
        ("llama_nvfp4", "weight_global_scale", torch.bfloat16),
        ("llama_mxfp4", "weight_scale", torch.bfloat16),
        ("llama_mxfp4", "weight_scale", torch.float8_e4m3fn),
        ("llama_mxfp8", "weight_scale", torch.bfloat16),
        ("llama_mxfp8", "weight", torch.uint8),
        ("llama_fp8_block", "weight", torch.float8_e5m2),
        ("llama_fp8_static", "weight_scale", torch.uint8),
    ],
)
def test_dtypes_are_those_of_the_scheme(case, leaf, dtype, tmp_path):
    src = copy_fixture(tmp_path, f"compressed_tensors/{case}")
    edit_tensors(src, lambda stored: stored.update({f"{DOWN}.{leaf}": stored[f"{DOWN}.{leaf}"].to(dtype)}))
    found = refusal(src, 3, "QB016", "compressed-tensors")
    assert places(found["QB016"]) == {f"{DOWN}.{leaf}"}


@pytest.mark.parametrize(
    ("case", "leaf"),
    [
        ("llama_fp8_block_edges", "weight_scale"),
        ("llama_nvfp4", "weight_scale"),
        ("llama_nvfp4", "weight_global_scale"),
        ("llama_mxfp4", "weight_scale"),
        ("llama_mxfp8", "weight_scale"),
        ("llama_fp8_static", "input_scale"),
    ],
)
def test_shapes_are_those_of_the_scheme(case, leaf, tmp_path):
    src = copy_fixture(tmp_path, f"compressed_tensors/{case}")

    def double(stored):
        name = f"{DOWN}.{leaf}"
        bits = stored[name].view(torch.uint8) if stored[name].itemsize == 1 else stored[name]
        stored[name] = torch.cat([bits, bits]).view(stored[name].dtype)

    edit_tensors(src, double)
    found = refusal(src, 3, "QB016", "compressed-tensors")
    assert places(found["QB016"]) == {f"{DOWN}.{leaf}"}


@pytest.mark.parametrize(
    ("case", "leaf", "value"),
    [
        ("llama_nvfp4", "weight_global_scale", 0.0),
        ("llama_nvfp4", "weight_global_scale", float("inf")),
        ("llama_nvfp4", "input_global_scale", float("nan")),
        ("llama_nvfp4", "weight_scale", float("nan")),
        ("llama_mxfp4", "weight_scale", 255),
        ("llama_mxfp8", "weight_scale", 255),
        ("llama_fp8_block", "weight_scale", float("inf")),
        ("llama_fp8_static", "input_scale", float("nan")),
    ],
)
def test_scales_are_numbers(case, leaf, value, tmp_path):
    src = copy_fixture(tmp_path, f"compressed_tensors/{case}")

    def spoil(stored):
        scale = stored[f"{DOWN}.{leaf}"]
        stored[f"{DOWN}.{leaf}"] = (
            scale.float().flatten().index_fill(0, torch.tensor([0]), value).view(scale.shape).to(scale.dtype)
        )

    edit_tensors(src, spoil)
    found = refusal(src, 3, "QB017", "compressed-tensors")
    assert places(found["QB017"]) == {f"{DOWN}.{leaf}"}


@pytest.mark.parametrize(
    ("case", "leaf"),
    [("llama_nvfp4", "weight_scale_2"), ("llama_nvfp4a16", "input_global_scale"), ("llama_mxfp4", "weight_shape")],
)
def test_tensors_of_other_schemes_are_claimed_by_nobody(case, leaf, tmp_path):
    src = copy_fixture(tmp_path, f"compressed_tensors/{case}")
    edit_tensors(src, lambda stored: stored.update({f"{DOWN}.{leaf}": torch.ones(1)}))
    found = refusal(src, 3, "QB018", "compressed-tensors")
    assert places(found["QB018"]) == {f"{DOWN}.{leaf}"}


SPOILED = {
    "llama_fp8_block_edges": ("weight", "weight_scale"),
    "llama_fp8_static": ("weight", "weight_scale", "input_scale"),
    "llama_nvfp4": ("weight_packed", "weight_scale", "weight_global_scale", "input_global_scale"),
    "llama_mxfp4": ("weight_packed", "weight_scale"),
    "llama_mxfp8": ("weight", "weight_scale"),
}


def spoiled(tensor):
    """The same bytes, or some of them, in other shapes and dtypes."""
    raw = tensor.view(torch.uint8) if tensor.itemsize == 1 else tensor
    for shape in ((-1,), (1, -1), (-1, 1), (1, *raw.shape), (*raw.shape, 1)):
        if raw.reshape(shape).shape != tensor.shape and (raw.numel() > 1 or len(shape) > 2):
            yield raw.reshape(shape).view(tensor.dtype)
    for size in (0, 3):
        yield raw.flatten()[:size].clone().view(tensor.dtype)
    if tensor.ndim == 2:
        for rows, columns in ((1, 0), (0, 1), (0, 2)):
            yield raw[rows:, columns:].contiguous().view(tensor.dtype)
    for dtype in (torch.float64, torch.int64, torch.bool, torch.float8_e5m2, torch.float8_e8m0fnu):
        yield tensor.float().to(dtype)


@pytest.mark.parametrize(("case", "leaf"), [(case, leaf) for case, leaves in SPOILED.items() for leaf in leaves])
def test_tensors_of_other_shapes_and_dtypes_are_refused(case, leaf, tmp_path):
    """Scales of a tensor or of blocks do not tell all shapes apart; a group that is not whole is not written."""
    stored = load_file(CT / case / "model" / SINGLE)
    src, wrong = copy_fixture(tmp_path, f"compressed_tensors/{case}"), []
    old = stored[f"{DOWN}.{leaf}"]
    for number, changed in enumerate(spoiled(old)):
        save_file({**stored, f"{DOWN}.{leaf}": changed}, src / SINGLE, metadata={"format": "pt"})
        kept, alike = (
            changed.dtype is old.dtype,
            [n for n in changed.shape if n != 1] == [n for n in old.shape if n != 1],
        )
        wide = changed.dtype is torch.float64 and "fp8_" in case and leaf != "weight"
        sound = wide or (changed.dtype is torch.float64 and leaf == "input_global_scale")
        sound |= kept and (alike if leaf != "weight" else "fp8_" in case and changed.ndim == 2)
        try:
            qbridge.convert(src, tmp_path / "dst", "compressed-tensors", dry_run=True)
            wrong += [] if sound else [(number, changed.dtype, changed.shape, "taken")]
        except qbridge.QBridgeError as fault:
            found = {finding.code for finding in fault.findings if finding.severity == "error"}
            known = found <= {"QB013", "QB015", "QB016", "QB018", "QB101", "QB110"}
            wrong += [] if known else [(number, changed.dtype, changed.shape, found)]
    assert wrong == []


ODD = [None, True, "", "x", -1, 0, 1.5, 3, 2**40, [], [1], [0, 0], [1, 2, 3], ["a", "b"], {}, {"a": 1}, "torch.uint8"]


@pytest.mark.parametrize("case", ["llama_fp8_block", "llama_fp8_static", "llama_nvfp4", "llama_mxfp4", "llama_mxfp8"])
def test_arguments_of_any_value_are_answered(case, tmp_path):
    src = copy_fixture(tmp_path, f"compressed_tensors/{case}")
    plain = (src / "config.json").read_text()
    for part in ("weights", "input_activations"):
        for key in (*float_args(src, part), "scale_dtype", "zp_dtype", "block_structure", "actorder", "group_size"):
            for value in ODD:
                edit_args(src, part, **{key: value})
                try:
                    qbridge.inspect(src)
                except qbridge.QBridgeError as fault:
                    assert fault.exit_code in (1, 3), (part, key, value, fault)
                (src / "config.json").write_text(plain)


@pytest.mark.parametrize("version", ["0.13.0", "0.13.1"])
@pytest.mark.parametrize("case", ["llama_mxfp4", "llama_mxfp4a16"])
def test_exponents_of_release_013_are_refused(case, version, tmp_path):
    src = copy_fixture(tmp_path, f"compressed_tensors/{case}")
    edit_quantization(src, lambda written: written.update(version=version))
    found = refusal(src, 1, "QB101", "compressed-tensors")
    assert "which stored exponents 2 too low" in facts(found["QB101"])


@pytest.mark.parametrize("case", ["llama_nvfp4", "llama_mxfp8"])
def test_other_formats_of_release_013_are_sound(case, tmp_path):
    src = copy_fixture(tmp_path, f"compressed_tensors/{case}")
    edit_quantization(src, lambda written: written.update(version="0.13.0"))
    assert qbridge.verify(src, CT / case / "model").same


def test_mxfp6_is_recognised_and_not_read():
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.open(CT / "llama_mxfp6a16/model").close()
    (finding,) = refused.value.findings
    assert finding.code == "QB101" and finding.facts == ("weights: floats of 6 bits",)


@pytest.mark.parametrize(
    ("case", "key", "changes"),
    [
        ("llama_fp8_group", "weights", {}),
        ("llama_mxfp8", "weights", {}),
        ("llama_mxfp8", "input_activations", {"scale_dtype": None}),
        ("llama_mxfp4_fp8", "input_activations", {"scale_dtype": "torch.uint8"}),
        ("llama_fp8_block", "input_activations", {"scale_dtype": "torch.uint8"}),
        ("llama_fp8_dynamic", "input_activations", {"scale_dtype": "torch.uint8"}),
    ],
)
def test_activations_whose_scales_would_get_lost_are_refused(case, key, changes, tmp_path):
    """The IR does not say which scales activations have: those that the weights have, or it is refused."""
    src = copy_fixture(tmp_path, f"compressed_tensors/{case}")
    edit_args(src, key, **changes)
    if changes:
        assert "exponents" in facts(refusal(src, 1, "QB101", "compressed-tensors")["QB101"])
    else:
        assert qbridge.verify(src, CT / case / "model").same


def test_exponents_show_by_their_dtype_too(tmp_path):
    """A release that wrote no scale_dtype: the tensor says the same."""
    src = copy_fixture(tmp_path, "compressed_tensors/llama_mxfp8")
    edit_args(src, "weights", scale_dtype=None)
    assert qbridge.verify(src, CT / "llama_mxfp8/model").same
    src_of_four_bits = copy_fixture(tmp_path / "four", "compressed_tensors/llama_mxfp4")
    edit_args(src_of_four_bits, "weights", scale_dtype=None)
    edit_args(src_of_four_bits, "input_activations", scale_dtype=None)
    assert qbridge.verify(src_of_four_bits, CT / "llama_mxfp4/model").same


def test_scalars_without_dims_are_read_and_written_with_one(tmp_path):
    src = copy_fixture(tmp_path, "compressed_tensors/llama_nvfp4")
    leaves = ("weight_global_scale", "input_global_scale")

    def flatten(stored):
        for name in [name for name in stored if name.endswith(leaves)]:
            stored[name] = stored[name].reshape(())

    edit_tensors(src, flatten)
    assert qbridge.verify(src, CT / "llama_nvfp4/model").same
    qbridge.convert(src, tmp_path / "dst", "compressed-tensors")
    assert_same_tensors(CT / "llama_nvfp4/model", tmp_path / "dst")


def test_verify_sees_each_of_the_small_tensors(tmp_path):
    source = CT / "llama_nvfp4/model"
    for number, leaf in enumerate(("weight_packed", "weight_scale", "weight_global_scale", "input_global_scale")):
        src = copy_fixture(tmp_path / str(number), "compressed_tensors/llama_nvfp4")

        def change(stored, leaf=leaf):
            bits = stored[f"{DOWN}.{leaf}"].view(torch.uint8).flatten()
            bits[0] ^= 1

        edit_tensors(src, change)
        verified = qbridge.verify(source, src)
        assert not verified.same and [finding.where for finding in verified.findings] == [(DOWN,)], leaf


@pytest.mark.parametrize(
    ("case", "straddled"),
    [("llama_fp8_block", {"self_attn.o_proj"}), ("llama_fp8_block_edges", {"self_attn.o_proj", "mlp.down_proj"})],
)
def test_blocks_that_straddle_two_ranks_are_refused(case, straddled, tmp_path):
    """o_proj and down_proj are split along their inputs: 64 and 224 are no whole blocks of 128."""
    src = copy_fixture(tmp_path, f"compressed_tensors/{case}")
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": config(src)["hidden_size"] // 4}
    edit_json(src / "config.json", lambda keys: keys.update(heads))
    wanted = {f"model.layers.0.{name}" for name in straddled}
    assert places(refusal(src, 1, "QB251", "compressed-tensors", tp=2)["QB251"]) == wanted
    assert places(refusal(src, 1, "QB273", "vllm", tp=2)["QB273"]) >= wanted
    assert qbridge.convert(src, tmp_path / "dst", "compressed-tensors", dry_run=True).layers == 7


@pytest.mark.parametrize("case", ["llama_fp8_static", "llama_fp8_block", "llama_nvfp4", "llama_mxfp8"])
def test_a_config_alone_is_judged_and_says_what_only_the_tensors_know(case, tmp_path):
    (tmp_path / "config.json").write_bytes((CT / case / "model/config.json").read_bytes())
    alone, whole = qbridge.check(tmp_path, "vllm"), qbridge.check(CT / case / "model", "vllm")
    errors = {finding.code for finding in whole.findings if str(finding.severity) == "error"}
    assert alone.needs_tensors and errors <= {finding.code for finding in alone.findings}


# other formats


@pytest.mark.parametrize("case", ["llama_fp8_dynamic", "qwen3_moe_fp8_dynamic"])
def test_float8_per_channel_goes_to_smooth_quant_and_back(case, tmp_path):
    source = CT / case / "model"
    report = qbridge.convert(source, tmp_path / "there", "smooth-quant")
    assert set(report.exactness) == {"reversible"}
    assert qbridge.verify(source, tmp_path / "there").same
    qbridge.convert(tmp_path / "there", tmp_path / "back", "compressed-tensors")
    assert_same_tensors(source, tmp_path / "back")


@EVERY
@pytest.mark.parametrize("target", ["gptq", "awq", "marlin", "auto-round"])
def test_formats_of_integers_alone_refuse_every_one(case, target, tmp_path):
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.convert(CT / case / "model", tmp_path / "dst", target, allow=["drop-kv-scales"], dry_run=True)
    assert "QB110" in codes(refused)


@EVERY
@pytest.mark.parametrize("target", [target.name for target in qbridge.list_targets()])
@pytest.mark.parametrize(
    "wanted", [{}, {"regroup": 64}, {"regroup": 8}, {"bits": 8}, {"pad": True, "tp": 2}], ids=str
)
def test_every_target_takes_it_or_says_why_not(case, target, wanted, tmp_path):
    try:
        report = qbridge.convert(CT / case / "model", tmp_path / "dst", target, dry_run=True, **wanted)
    except qbridge.QBridgeError as refused:
        assert refused.exit_code == 1 and all(finding.code in CATALOGUE for finding in refused.findings)
    else:
        assert set(report.exactness) <= ({"dequantized"} if target == "dense" else {"reversible", "equal"})


def test_header_relabelled_from_int8_is_no_float8(tmp_path):
    """Bits are not looked at: what is int8 by its header is no float8 by its config."""
    src = copy_fixture(tmp_path, "compressed_tensors/llama_fp8_dynamic")

    def relabel(header):
        for entry in header.values():
            if entry.get("dtype") == "F8_E4M3":
                entry["dtype"] = "I8"

    edit_header(src / SINGLE, relabel)
    assert "the scheme gives F8_E4M3" in facts(refusal(src, 3, "QB016", "compressed-tensors")["QB016"])


def test_weights_are_what_torch_makes_of_the_stored_tensors():
    """A second reading, by torch's own float8: code times scale, in float64."""
    stored = load_file(CT / "llama_fp8_block_edges/model" / SINGLE)
    weight, scale = stored[f"{DOWN}.weight"].double(), stored[f"{DOWN}.weight_scale"].double()
    spread = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)[: weight.shape[0], : weight.shape[1]]
    from qbridge.ir.values import dequantize

    with qbridge.open(CT / "llama_fp8_block_edges/model") as opened:
        assert np.array_equal(dequantize(opened.layer(DOWN)), (weight * spread).numpy())
