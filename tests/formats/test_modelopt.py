from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import goldens
import qbridge
from qbridge.findings.finding import Findings
from qbridge.formats import registry as formats
from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Layer, Spec, identical
from qbridge.ir.scheme import CODE_BITS, ActivationScheme, Granularity, WeightScheme
from qbridge.ir.values import dequantize
from qbridge.passes.broadcast import Broadcast
from qbridge.passes.invert import Invert
from qbridge.testing.laws import check_format, check_layer, made_legal, write_model
from qbridge_formats import modelopt
from support import ROOT, codes, copy_fixture, edit_json, edit_quantization, name_floats, only_neighbours
from test_conversion import assert_same_tensors, config, tensors

DOWN = "model.layers.0.mlp.down_proj"
CASES = goldens.cases("modelopt")
SCALES = {"FP8": DType.F32, "MXFP8": DType.F8_E8M0, "NVFP4": DType.F8_E4M3, "W4A16_NVFP4": DType.F8_E4M3}


@pytest.mark.parametrize("case", CASES)
def test_values_are_those_of_modelopt(case):
    goldens.check("modelopt", case)


def spec(algo, name=DOWN, rows=8, columns=64, **other):
    weight, activation = modelopt.ALGOS[algo]
    stored = activation is not None and activation.is_stored
    return Spec(
        name,
        rows,
        columns,
        weight,
        SCALES.get(algo, DType.F32),
        activation=activation,
        input_scale_dtype=DType.F32 if stored else None,
        **other,
    )


def layer(kind, seed=0):
    """Random finite codes and scales of any float scheme."""
    random, arrays = np.random.default_rng(seed), {}
    for part, (dtype, shape) in kind.parts().items():
        if part == "code":
            bits = random.integers(0, 2**kind.weight.bits, shape).astype(np.uint8)
            arrays[part] = np.where(bits & 0x7F == 0x7F, 0, bits) if kind.weight.type == "e4m3fn" else bits
        elif dtype in (DType.F8_E4M3, DType.F8_E5M2, DType.F8_E8M0):
            arrays[part] = random.integers(100, 120, shape).astype(np.uint8)
        else:
            values = random.integers(100, 200, shape) * 2.0**-12
            bf16 = (values.astype(np.float32).view("<u4") >> 16).astype("<u2")
            arrays[part] = bf16 if dtype is DType.BF16 else values.astype(dtype.numpy)
        arrays[part] = arrays[part].astype(dtype.numpy)
    return Layer(kind, arrays)


@pytest.mark.parametrize("algo", modelopt.ALGOS)
@pytest.mark.parametrize("bias", [None, DType.BF16])
@pytest.mark.parametrize(("rows", "columns"), [(8, 64), (5, 96), (130, 160), (256, 384), (1, 32)])
def test_every_algorithm_obeys_the_laws_of_layers(algo, bias, rows, columns):
    assert check_layer(modelopt, layer(spec(algo, rows=rows, columns=columns, bias=bias)))


def written(folder, *layers):
    model = write_model(folder, modelopt, layers, {"lm_head.weight": np.ones((4, 4), np.float16)})
    name_floats(folder, map(modelopt.layout, model.specs.values()))
    return folder


@pytest.mark.parametrize("first", modelopt.ALGOS)
@pytest.mark.parametrize("second", modelopt.ALGOS)
def test_what_is_written_is_read_back_alone_or_mixed(first, second, tmp_path):
    layers = [layer(spec(algo, f"model.layers.{n}.mlp.up_proj"), n) for n, algo in enumerate((first, second))]
    block = config(written(tmp_path / "model", *layers))["quantization_config"]
    assert block["quant_algo"].upper() == (first if first == second else "MIXED_PRECISION")
    with qbridge.open(tmp_path / "model") as checkpoint:
        assert checkpoint.format == "modelopt" and not list(checkpoint.findings)
        assert all(identical(checkpoint.layer(found.spec.name), found) for found in layers)


KINDS = st.sampled_from(["e4m3fn", "e5m2", "e2m1"])
GLOBAL = st.sampled_from([None, "multiply", "divide"])
DTYPES = st.sampled_from([DType.F16, DType.BF16, DType.F32, DType.F8_E4M3, DType.F8_E5M2, DType.F8_E8M0])


@st.composite
def float_specs(draw):
    """Any scheme of floats that the IR has."""
    kind, granularity = draw(KINDS), draw(st.sampled_from([*Granularity][:4]))
    grouped = granularity is Granularity.GROUP
    weight = WeightScheme(
        CODE_BITS[kind],
        granularity,
        type=kind,
        group_size=draw(st.sampled_from([16, 32])) if grouped else None,
        block=draw(st.sampled_from([(128, 128), (8, 8)])) if granularity is Granularity.BLOCK else None,
        global_scale=draw(GLOBAL) if grouped else None,
    )
    activation = draw(st.sampled_from([None, *(acts for _, acts in modelopt.ALGOS.values() if acts)]))
    if activation and activation.global_scale:
        activation = replace(activation, global_scale=draw(st.sampled_from(["multiply", "divide"])))
    stored = activation is not None and activation.is_stored
    return Spec(
        DOWN,
        draw(st.integers(1, 20)),
        draw(st.sampled_from([16, 32, 33, 64, 70])),
        weight,
        draw(DTYPES),
        activation=activation,
        input_scale_dtype=draw(st.sampled_from([DType.F16, DType.F32])) if stored else None,
        bias=draw(st.sampled_from([None, DType.F16])),
    )


@given(float_specs(), st.integers(0, 1000))
def test_any_scheme_of_floats_is_held_or_refused(kind, seed):
    check_layer(modelopt, layer(kind, seed))


@pytest.mark.parametrize("algo", ["NVFP4", "W4A16_NVFP4"])
def test_global_scales_that_divide_are_inverted(algo):
    start = layer(Invert("divide").plan(spec(algo)))
    assert made_legal(modelopt, start) is None
    outer = {part: np.array([0.25], np.float32) for part in start.arrays if part.endswith("global_scale")}
    start = Layer(start.spec, {**start.arrays, **outer})
    found, passes = made_legal(modelopt, start)
    assert passes == (Invert("multiply"),) and found.spec == spec(algo)
    assert dequantize(found).tobytes() == dequantize(start).tobytes()


def test_one_scale_for_a_tensor_with_inputs_per_token_is_repeated_per_channel():
    kind = spec("FP8_PER_CHANNEL_PER_TOKEN")
    kind = replace(kind, weight=replace(kind.weight, granularity=Granularity.TENSOR))
    found, passes = made_legal(modelopt, layer(kind))
    assert passes == (Broadcast(),) and modelopt.algo_of(found.spec) == "FP8_PER_CHANNEL_PER_TOKEN"


def test_laws():
    check_format("modelopt")


# fixtures


def fixture(case):
    return ROOT / "fixtures/modelopt" / case / "model"


def side_file(folder):
    return json.loads((folder / "hf_quant_config.json").read_text())


@pytest.mark.parametrize("case", CASES)
def test_to_itself_and_restored(case, tmp_path):
    report = qbridge.convert(fixture(case), tmp_path / "there", "modelopt")
    assert report.exactness == {"reversible": report.layers}
    assert qbridge.verify(fixture(case), tmp_path / "there").identical == report.layers
    if case != "llama_fp8_block":  # ModelOpt squeezes the scale of a single block
        assert_same_tensors(fixture(case), tmp_path / "there")
    assert side_file(tmp_path / "there") == side_file(fixture(case))
    qbridge.restore(tmp_path / "there", tmp_path / "back")
    assert_same_tensors(fixture(case), tmp_path / "back")
    for name in ("config.json", "hf_quant_config.json"):
        assert json.loads((tmp_path / "back" / name).read_text()) == json.loads((fixture(case) / name).read_text())


@pytest.mark.parametrize("case", CASES)
def test_either_of_the_two_configs_is_enough(case, tmp_path):
    src = copy_fixture(tmp_path, f"modelopt/{case}")
    edit_json(src / "config.json", lambda value: value.pop("quantization_config") and None)
    only = copy_fixture(tmp_path / "other", f"modelopt/{case}")
    (only / "hf_quant_config.json").unlink()
    for folder in (src, only):
        checked = qbridge.verify(fixture(case), folder)
        assert checked.same and not checked.equal and not checked.findings


def test_fp8_per_channel_goes_to_lmdeploy_and_back(tmp_path):
    source = fixture("llama_fp8_channel")
    report = qbridge.convert(source, tmp_path / "there", "smooth-quant")
    assert report.exactness == {"reversible": report.layers}
    qbridge.convert(tmp_path / "there", tmp_path / "back", "modelopt")
    assert_same_tensors(source, tmp_path / "back")


NVFP4 = ["llama_mixed", "llama_nvfp4", "llama_w4a16_nvfp4", "qwen3_moe_nvfp4"]


@pytest.mark.parametrize("case", CASES)
def test_to_compressed_tensors_and_restored(case, tmp_path):
    allow = ["rounded"] if case in NVFP4 else []
    if allow:
        with pytest.raises(qbridge.QBridgeError) as refused:
            qbridge.convert(fixture(case), tmp_path / "there", "compressed-tensors")
        assert codes(refused) == {"QB305"} and "--allow rounded" in refused.value.findings[0].help
    report = qbridge.convert(fixture(case), tmp_path / "there", "compressed-tensors", allow=allow)
    assert report.passes == ({"invert": report.exactness["rounded"]} if allow else {})
    assert qbridge.verify(fixture(case), tmp_path / "there").same == (not allow)
    qbridge.restore(tmp_path / "there", tmp_path / "restored")
    qbridge.convert(tmp_path / "there", tmp_path / "back", "modelopt")
    assert not (tmp_path / "there/hf_quant_config.json").exists()
    for name in ("restored", "back"):
        assert_same_tensors(fixture(case), tmp_path / name)
        assert side_file(tmp_path / name) == side_file(fixture(case))


@pytest.mark.parametrize("case", CASES)
def test_the_two_configs_that_are_written_say_the_same(case, tmp_path):
    qbridge.convert(fixture(case), tmp_path / "there", "modelopt")
    own, ours = (config(folder)["quantization_config"] for folder in (fixture(case), tmp_path / "there"))
    assert ours.items() >= {key: value for key, value in own.items() if key != "config_groups"}.items()
    groups = [sorted(block.get("config_groups", {}).values(), key=str) for block in (own, ours)]
    assert groups[0] in (groups[1], [])  # ModelOpt has groups of some algorithms alone
    for last in ("quantization_config", "hf_quant_config.json"):  # each of them alone gives the same model
        src = copy_fixture(tmp_path / last, f"modelopt/{case}")
        (src / "config.json").write_bytes((tmp_path / "there/config.json").read_bytes())
        (src / "hf_quant_config.json").write_bytes((tmp_path / "there/hf_quant_config.json").read_bytes())
        if last == "quantization_config":
            (src / "hf_quant_config.json").unlink()
        else:
            edit_json(src / "config.json", lambda value: value.pop("quantization_config") and None)
        assert qbridge.verify(src, fixture(case)).same


@pytest.mark.parametrize("case", ["llama_fp8_kv", "llama_mixed", "llama_mxfp8"])
def test_the_later_form_of_the_side_file_is_read(case, tmp_path):
    src = copy_fixture(tmp_path, f"modelopt/{case}")
    later = config(src)["quantization_config"]
    (src / "hf_quant_config.json").write_text(json.dumps(later))
    assert qbridge.verify(src, fixture(case)).same
    edit_json(src / "config.json", lambda value: value.pop("quantization_config") and None)
    assert qbridge.verify(src, fixture(case)).same
    edit_json(src / "hf_quant_config.json", lambda value: value.update(quant_algo="W4A16_NVFP4"))
    with pytest.raises(qbridge.QBridgeError):
        qbridge.convert(src, tmp_path / "out", "modelopt")


@pytest.mark.parametrize("case", ["llama_nvfp4", "qwen3_moe_nvfp4"])
def test_rounded_reciprocals_are_those_of_the_library_s_own_converter(case, tmp_path):
    converting = pytest.importorskip("compressed_tensors.entrypoints.convert")
    qbridge.convert(fixture(case), tmp_path / "there", "compressed-tensors", allow=["rounded"])
    wanted = converting.ModelOptNvfp4Converter(targets=["re:.*proj$"]).process(tensors(fixture(case)))
    found = tensors(tmp_path / "there")
    assert wanted.keys() == found.keys()
    for name, tensor in wanted.items():
        assert tensor.dtype == found[name].dtype, name
        assert torch.equal(*(x.reshape(-1).view(torch.uint8) for x in (tensor, found[name]))), name


def read(src):
    """Findings of reading a checkpoint."""
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.convert(src, src.parent / "dst", "modelopt")
    only_neighbours(src.parent, src.name)
    return refused


@pytest.mark.parametrize("algo", ["W4A16_AWQ", "W4A8_AWQ", "W8A8_SQ_PER_CHANNEL", "NVFP4_AWQ", "NVFP4_SVD", "MXFP4"])
def test_other_algorithms_are_named(algo, tmp_path):
    src = copy_fixture(tmp_path, "modelopt/llama_nvfp4")
    (src / "hf_quant_config.json").unlink()
    edit_quantization(src, lambda block: block.update(quant_algo=algo))
    refused = read(src)
    assert codes(refused) == {"QB101"} and algo in str(refused.value)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("quant_algo", "W4A16_NVFP4", "algo: W4A16_NVFP4"),
        ("exclude_modules", ["nothing"], "exclude: ['nothing']"),
        ("kv_cache_quant_algo", "FP8", "kv_cache: FP8"),
        ("group_size", 32, "group_size: 32"),
        ("group_size", "many", "group_size is 'many'"),
    ],
)
def test_config_json_is_read_where_the_side_file_says_another_thing(key, value, told, tmp_path):
    src = copy_fixture(tmp_path, "modelopt/llama_nvfp4")
    edit_json(src / "hf_quant_config.json", lambda v: v["quantization"].update({key: value}))
    with qbridge.open(src) as found, qbridge.open(fixture("llama_nvfp4")) as wanted:
        assert found.specs == wanted.specs and found.model.kv_cache == wanted.model.kv_cache
        (finding,) = found.findings
    assert finding.code == "QB043" and finding.severity is qbridge.Severity.WARNING
    assert told in " ".join(finding.facts)


@pytest.mark.parametrize("said", ["FP8", {"num_bits": 8, "type": "float", "dynamic": False}, None])
def test_a_kv_cache_of_which_one_file_speaks_is_read(said, tmp_path):
    src = copy_fixture(tmp_path, "modelopt/llama_fp8_kv")
    edit_quantization(src, lambda block: block.update(kv_cache_scheme=said))
    with qbridge.open(src) as checkpoint, qbridge.open(fixture("llama_fp8_kv")) as wanted:
        assert checkpoint.model.kv_cache == wanted.model.kv_cache and not list(checkpoint.findings)


def test_an_nvfp4_kv_cache_is_read_and_written_back_and_refused_elsewhere(tmp_path):
    src, nv = copy_fixture(tmp_path, "modelopt/llama_fp8_kv"), {"num_bits": 4, "type": "float", "group_size": 16}
    edit_quantization(src, lambda block: block.update(kv_cache_scheme={**nv, "dynamic": False}))
    edit_json(src / "hf_quant_config.json", lambda v: v["quantization"].update(kv_cache_quant_algo="NVFP4"))
    qbridge.convert(src, tmp_path / "out", "modelopt")
    assert config(tmp_path / "out")["quantization_config"]["kv_cache_scheme"] == {**nv, "dynamic": False}
    side = json.loads((tmp_path / "out" / "hf_quant_config.json").read_text())
    assert side["quantization"]["kv_cache_quant_algo"] == "NVFP4"
    assert qbridge.verify(src, tmp_path / "out").same
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.convert(src, tmp_path / "other", "vllm")
    assert codes(refused) <= {"QB113", "QB223"} and codes(refused)
    qbridge.convert(src, tmp_path / "other", "vllm", allow=["drop-kv-scales"])


@pytest.mark.parametrize("key", ["ignore", "exclude_modules"])
def test_both_names_of_the_list_are_read(key, tmp_path):
    src = copy_fixture(tmp_path, "modelopt/llama_fp8")
    (src / "hf_quant_config.json").unlink()
    edited(src, lambda stored: plain(stored, DOWN))
    edit_quantization(src, lambda block: block.update({key: [*block.pop("ignore"), DOWN]}))
    report = qbridge.inspect(src)
    assert DOWN in report.unquantized_linears and not report.findings


def test_a_block_without_a_method_is_modelopts_if_it_has_an_algorithm(tmp_path):
    src = copy_fixture(tmp_path, "modelopt/llama_fp8")
    edit_quantization(src, lambda block: block.pop("quant_method") and None)
    with qbridge.open(src) as found, qbridge.open(fixture("llama_fp8")) as wanted:
        assert found.format == "modelopt" and found.specs == wanted.specs


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("quant_algo", None),
        ("quant_algo", 3),
        ("ignore", "lm_head"),
        ("ignore", [3]),
        ("kv_cache_scheme", "INT8"),
        ("exclude_modules", "lm_head"),
        ("kv_cache_scheme", {"num_bits": 4}),
        ("config_groups", [1]),
        ("config_groups", {"a": []}),
        ("quantized_layers", [1]),
        ("quantized_layers", {"a": 1}),
        ("group_size", "16"),
        ("group_size", -1),
        ("quantization", [1]),
        ("quantization", {"quant_algo": None}),
    ],
)
def test_malformed_configs_are_refused(key, value, tmp_path):
    src = copy_fixture(tmp_path, "modelopt/llama_nvfp4")
    (src / "hf_quant_config.json").unlink()
    edit_quantization(src, lambda block: block.update({key: value}))
    assert codes(read(src)) == {"QB013"}


def edited(src, fn):
    stored = load_file(src / "model.safetensors")
    fn(stored)
    save_file(stored, src / "model.safetensors", metadata={"format": "pt"})


def test_smoothing_of_the_inputs_is_refused(tmp_path):
    src = copy_fixture(tmp_path, "modelopt/llama_nvfp4")
    edited(src, lambda stored: stored.update({f"{DOWN}.pre_quant_scale": stored["model.norm.weight"].clone()}))
    refused = read(src)
    assert codes(refused) == {"QB102"} and "pre_quant_scale" in str(refused.value)


@pytest.mark.parametrize(
    ("leaf", "case"),
    [
        ("weight_scale", "llama_fp8"),
        ("input_scale", "llama_fp8"),
        ("weight_scale_2", "llama_nvfp4"),
        ("input_scale", "llama_nvfp4"),
    ],
)
def test_missing_scales_are_named(leaf, case, tmp_path):
    src = copy_fixture(tmp_path, f"modelopt/{case}")
    edited(src, lambda stored: stored.pop(f"{DOWN}.{leaf}"))
    assert codes(read(src)) == {"QB015"}


def test_a_layer_that_is_neither_quantized_nor_excluded_is_refused(tmp_path):
    src = copy_fixture(tmp_path, "modelopt/llama_fp8")

    def dense(stored):
        stored[f"{DOWN}.weight"] = stored[f"{DOWN}.weight"].bfloat16()
        for leaf in ("weight_scale", "input_scale"):
            del stored[f"{DOWN}.{leaf}"]

    edited(src, dense)
    refused = read(src)
    assert codes(refused) == {"QB015"} and "gate_proj is quantized" in str(refused.value)
    for entry in (DOWN, "model.layers.0.mlp.d*", "*down*", "down_proj"):
        src_ = copy_fixture(tmp_path / entry.replace("*", "_"), "modelopt/llama_fp8")
        edited(src_, dense)
        (src_ / "hf_quant_config.json").unlink()
        edit_quantization(src_, lambda block, e=entry: block["ignore"].append(e))
        report = qbridge.convert(src_, src_.parent / "out", "modelopt")
        assert report.layers == 6
        assert DOWN in config(src_.parent / "out")["quantization_config"]["ignore"]


def test_a_layer_that_is_excluded_and_quantized_is_quantized(tmp_path):
    src = copy_fixture(tmp_path, "modelopt/llama_fp8")
    (src / "hf_quant_config.json").unlink()
    edit_quantization(src, lambda block: block["ignore"].append("*.down_proj"))
    report = qbridge.convert(src, tmp_path / "out", "modelopt")
    assert {(f.code, f.where) for f in report.findings} == {("QB019", (DOWN,))}
    assert DOWN not in config(tmp_path / "out")["quantization_config"]["ignore"]
    assert_same_tensors(src, tmp_path / "out")


def test_an_excluded_layer_that_lost_a_scale_is_refused(tmp_path):
    src = copy_fixture(tmp_path, "modelopt/llama_fp8")
    (src / "hf_quant_config.json").unlink()
    edit_quantization(src, lambda block: block["ignore"].append("*.down_proj"))
    edited(src, lambda stored: stored.pop(f"{DOWN}.weight_scale"))
    assert codes(read(src)) == {"QB015"}


def plain(stored, *modules):
    """Make some layers those of the unquantized model."""
    for module in modules:
        weight = stored[f"{module}.weight"]
        for name in [name for name in stored if name.startswith(f"{module}.")]:
            del stored[name]
        columns = weight.shape[1] * (2 if weight.dtype is torch.uint8 else 1)
        stored[f"{module}.weight"] = torch.ones(weight.shape[0], columns, dtype=torch.bfloat16)


def test_layers_for_multi_token_prediction_may_be_left_plain_without_a_word(tmp_path):
    src = copy_fixture(tmp_path, "modelopt/llama_fp8")
    draft = "mtp.layers.0.mlp.down_proj"
    edited(src, lambda stored: stored.update({f"{draft}.weight": torch.ones(64, 64, dtype=torch.bfloat16)}))
    (note,) = qbridge.inspect(src).findings
    assert (note.code, note.where, note.severity) == ("QB042", (draft,), qbridge.Severity.NOTE)


@pytest.mark.parametrize("name", ["weight_scale", "weight_scale_inv"])
def test_blocks_may_be_stored_under_both_names_and_without_dims_of_1(name, tmp_path):
    source = fixture("llama_mixed")
    src = copy_fixture(tmp_path, "modelopt/llama_mixed")
    weight = torch.ones(256, 384).to(torch.float8_e4m3fn)
    scales = torch.rand(2, 3) + 0.5
    other = "mtp.layers.0.mlp.up_proj"
    edited(src, lambda stored: stored.update({f"{other}.weight": weight, f"{other}.{name}": scales}))
    for file, key in (("config.json", "quantization_config"), ("hf_quant_config.json", "quantization")):
        edit_json(
            src / file, lambda v, k=key: v[k]["quantized_layers"].update({other: {"quant_algo": "FP8_BLOCK_SCALES"}})
        )
    with qbridge.open(src) as found, qbridge.open(source) as wanted:
        assert {n: s for n, s in found.specs.items() if n != other} == wanted.specs
        assert found.specs[other].weight == modelopt.ALGOS["FP8_PB_WO"][0]
        assert np.array_equal(found.layer(other).arrays["scale"], scales.numpy())
    qbridge.convert(src, tmp_path / "out", "dense", allow=["drop-kv-scales"])
    qbridge.convert(src, tmp_path / "again", "modelopt")
    qbridge.restore(tmp_path / "again", tmp_path / "back")
    assert_same_tensors(src, tmp_path / "back")


def test_wildcards_that_are_made_to_hang_are_stopped_or_answered(tmp_path):
    src = copy_fixture(tmp_path, "modelopt/llama_fp8")
    (src / "hf_quant_config.json").unlink()
    edit_quantization(src, lambda block: block["ignore"].append("*a" * 2000 + "b"))
    try:
        qbridge.convert(src, tmp_path / "out", "modelopt")
    except qbridge.QBridgeError as fault:
        assert {f.code for f in fault.findings} == {"QB027"}


def test_unknown_keys_are_named_and_other_mathematics_refused(tmp_path):
    src = copy_fixture(tmp_path, "modelopt/llama_fp8")
    (src / "hf_quant_config.json").unlink()
    edit_quantization(src, lambda block: block.update(my_key=1))
    report = qbridge.convert(src, tmp_path / "out", "modelopt", dry_run=True)
    assert {f.code for f in report.findings} == {"QB103"}
    other = copy_fixture(tmp_path / "other", "modelopt/llama_nvfp4")
    edit_json(other / "hf_quant_config.json", lambda value: value["quantization"].update(pre_quant_scale=True))
    assert codes(read(other)) == {"QB102"}


def test_a_mixed_layer_that_is_not_listed_is_read_by_its_tensors(tmp_path):
    src = copy_fixture(tmp_path, "modelopt/llama_mixed")
    (src / "hf_quant_config.json").unlink()
    listed = config(src)["quantization_config"]["quantized_layers"]
    with qbridge.open(src) as checkpoint:
        wanted = dict(checkpoint.specs)
    for layer in listed:
        edit_quantization(src, lambda block, out=layer: block.update(quantized_layers=without(listed, out)))
        with qbridge.open(src) as checkpoint:
            assert checkpoint.specs == wanted
            assert {(f.code, f.where) for f in checkpoint.findings} == {("QB019", (layer,))}
    edited(src, lambda stored: stored.update({f"{layer}.weight": stored[f"{layer}.weight"].to(torch.float16)}))
    assert codes(read(src)) == {"QB013"}
    edit_quantization(src, lambda block: block["quantized_layers"].clear())
    assert codes(read(src)) == {"QB013"}


def without(listed, layer):
    return {name: entry for name, entry in listed.items() if name != layer}


def test_a_listed_layer_that_is_plain_is_refused(tmp_path):
    src = copy_fixture(tmp_path, "modelopt/llama_mixed")
    edited(src, lambda stored: plain(stored, DOWN))
    refused = read(src)
    assert codes(refused) == {"QB015"} and "quantized_layers has it" in str(refused.value)


def test_kv_scales_are_kept_in_itself_and_refused_where_they_have_no_place(tmp_path):
    source = fixture("llama_fp8_kv")
    qbridge.convert(source, tmp_path / "there", "modelopt")
    found = [name for name in tensors(tmp_path / "there") if name.endswith(("k_proj.k_scale", "v_proj.v_scale"))]
    assert len(found) == 2
    scheme = config(tmp_path / "there")["quantization_config"]["kv_cache_scheme"]
    assert scheme == {"dynamic": False, "num_bits": 8, "type": "float"}
    with qbridge.open(source) as checkpoint:
        model = checkpoint.model
    (rule,) = [rule for rule in modelopt.RULES if rule.code == "QB113"]
    assert not list(rule.check(model)) and list(rule.check(replace(model, kv_cache={"num_bits": 8, "type": "int"})))
    per_head = {name: replace(info, shape=(2, 1, 1)) for name, info in model.tensors.items() if "k_scale" in name}
    (problem,) = rule.check(replace(model, tensors=per_head))
    assert problem.where == ("model.layers.0.self_attn.k_scale",)


def test_it_is_not_taken_for_another_format(tmp_path):
    src = copy_fixture(tmp_path, "modelopt/llama_fp8")
    edit_quantization(src, lambda block: block.update(quant_method="fp8"))
    with qbridge.open(fixture("llama_fp8")) as checkpoint:
        assert formats.load("modelopt").sniff(checkpoint.source).score == 2
    assert isinstance(Findings(), Findings)
    with pytest.raises(qbridge.QBridgeError):
        qbridge.open(src)


def test_activations_of_the_table_are_what_vllm_resolves():
    nv = ActivationScheme(4, Granularity.GROUP, True, type="e2m1", group_size=16, global_scale="multiply")
    assert modelopt.ALGOS["NVFP4"][1] == nv and modelopt.ALGOS["FP8_PB_WO"][1] is None
