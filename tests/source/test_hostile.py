"""Configs, names and sizes that no tool writes: each is an answer or a finding, in bounded time and memory."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import pytest
from rich.console import Console

import qbridge
from qbridge import render
from qbridge.findings.finding import Finding
from support import (
    SINGLE,
    cli,
    codes,
    contents,
    copy_fixture,
    edit_header,
    edit_json,
    edit_quantization,
    only_neighbours,
    refusal,
)

TARGETS = ("lmdeploy", "lmdeploy@0.6.2", "lmdeploy-turbomind", "vllm", "transformers", "gptq", "compressed-tensors")
W4 = "compressed_tensors/llama_w4a16"
HUGE = 10**30


def answers(src):
    """The exit codes of every command on a checkpoint; whatever is no answer raises."""
    found = []
    commands = [lambda: qbridge.inspect(src), lambda: qbridge.restore(src, src.parent / "dst", dry_run=True)]
    for target in TARGETS:
        commands += [
            lambda target=target: qbridge.check(src, target, 2),
            lambda target=target: qbridge.convert(src, src.parent / "dst", target, dry_run=True, tp=2, pad=True),
        ]
    for command in commands:
        try:
            command()
            found.append(0)
        except qbridge.QBridgeError as fault:
            assert fault.exit_code in (1, 3), fault
            found.append(fault.exit_code)
    only_neighbours(src.parent, "src")
    return found


ODD = (None, True, [], {}, [["a"]], {"a": {}}, "", "4", "\ud800", 0, -1, 2**63, HUGE, 1.5, float("nan"), float("inf"))
KEYS = (
    *("architectures", "hidden_act", "hidden_activation", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("hidden_size", "intermediate_size", "num_hidden_layers", "rope_parameters", "rope_scaling", "torch_dtype"),
    *("text_config", "quantization_config", "n_shared_experts", "num_experts", "mlp_only_layers", "auto_map"),
)


@pytest.mark.parametrize("key", KEYS)
def test_config_key_of_any_value_is_answered(key, tmp_path):
    src = copy_fixture(tmp_path, W4)
    plain = json.loads((src / "config.json").read_text())
    for value in ODD:
        (src / "config.json").write_text(json.dumps({**plain, key: value}))
        answers(src)


@pytest.mark.parametrize("key", ["rope_type", "type", "rope_theta", "factor"])
def test_rope_of_any_value_is_answered(key, tmp_path):
    src = copy_fixture(tmp_path, "compressed_tensors/llama_w8a8_rope")
    plain = json.loads((src / "config.json").read_text())
    for value in ODD:
        (src / "config.json").write_text(json.dumps({**plain, "rope_scaling": {"rope_type": "llama3", key: value}}))
        answers(src)


CASES = (
    W4,
    "compressed_tensors/llama_w8a8_rope",
    "gptq/llama_v2_asym",
    "awq/llama_gemm",
    "auto_round/llama_gptq_asym",
)
CASES += ("smooth_quant/llama_lite", "marlin/llama_autogptq")


@pytest.mark.parametrize("case", CASES)
def test_quantization_key_of_any_value_is_answered(case, tmp_path):
    src = copy_fixture(tmp_path, case)
    plain = json.loads((src / "config.json").read_text())
    block = plain["quantization_config"]
    for key in [*block, "quant_dtype", "dynamic", "extra_config", "modules_to_not_convert", "checkpoint_format"]:
        for value in ODD:
            changed = {**plain, "quantization_config": {**block, key: value}}
            (src / "config.json").write_text(json.dumps(changed))
            qbridge_answers(lambda: qbridge.inspect(src))
            qbridge_answers(lambda: qbridge.check(src, "vllm"))


def qbridge_answers(command):
    try:
        command()
    except qbridge.QBridgeError as fault:
        assert fault.exit_code in (1, 3), fault


@pytest.mark.parametrize("case", ["gptq/llama_v2_asym", "awq/llama_gemm", "auto_round/llama_gptq_asym"])
@pytest.mark.parametrize("size", [2**31, 2**63, HUGE, 10**4000])
def test_group_size_that_no_model_has_is_refused(case, size, tmp_path):
    src = copy_fixture(tmp_path, case)
    for file in src.glob("quant*_config.json"):
        file.unlink()
    edit_quantization(src, lambda block: block.update(group_size=size))
    refusal(src, 3, "QB016", "compressed-tensors")


@pytest.mark.parametrize("size", [2**31, HUGE])
def test_group_size_of_compressed_tensors_that_no_model_has_is_refused(size, tmp_path):
    src = copy_fixture(tmp_path, W4)
    edit_quantization(src, lambda block: block["config_groups"]["group_0"]["weights"].update(group_size=size))
    refusal(src, 3, "QB013", "gptq")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("num_hidden_layers", value) for value in (10**18, HUGE, -1, "2", 2.0, None, [2])),
        *(("hidden_size", value) for value in (HUGE, -64, "64", [64], True)),
        *(("num_attention_heads", value) for value in (0, -4, "4", {})),
        *(("intermediate_size", value) for value in (0, HUGE, "128")),
        *(("first_k_dense_replace", value) for value in ("1", [])),
    ],
)
def test_config_alone_with_dims_that_are_none(key, value, tmp_path):
    src = copy_fixture(tmp_path, W4)
    sparse = {} if key == "intermediate_size" else {"moe_intermediate_size": 64}
    edit_json(src / "config.json", lambda config: config.update({key: value, **sparse}))
    next(src.glob("*.safetensors")).unlink()
    with pytest.raises(qbridge.QBridgeError) as excinfo:
        qbridge.check(src, "vllm")
    assert codes(excinfo) == {"QB262"}


@pytest.mark.parametrize("digits", [5, 19, 30, 5000])
def test_layer_numbers_of_many_digits_are_names_like_others(digits, tmp_path):
    src = copy_fixture(tmp_path, W4)
    number = "9" * digits
    edit_header(
        src / SINGLE, lambda header: {k.replace("layers.0.", f"layers.{number}."): v for k, v in header.items()}
    )
    assert set(answers(src)) <= {0, 1, 3}
    qbridge.verify(src, src)


def test_padding_to_an_absurd_multiple_is_refused_at_once(tmp_path):
    src = copy_fixture(tmp_path, W4)
    edit_json(src / "config.json", lambda config: config.update(n_shared_experts=10**9 + 7))
    edit_header(
        src / SINGLE, lambda header: {k.replace(".mlp.", ".mlp.shared_experts."): v for k, v in header.items()}
    )
    assert set(answers(src)) <= {0, 1, 3}


@pytest.mark.parametrize("value", [1, "pt", ["pt"], {"format": 1}, {"a": {}}])
def test_metadata_that_the_library_refuses_is_refused(value, tmp_path):
    src = copy_fixture(tmp_path, W4)
    edit_header(src / SINGLE, lambda header: header.update(__metadata__=value))
    refusal(src, 3, "QB004")


# names on a terminal


def test_names_from_files_move_no_cursor_and_can_always_be_printed():
    shown = Console(file=io.TextIOWrapper(io.BytesIO(), "utf-8"), highlight=False, soft_wrap=True)
    render.findings(shown, [Finding("QB018", ("a\x1b[2J\ud800\nb",), ("\x07 [red]",), ("é",))])
    shown.file.flush()
    said = shown.file.buffer.getvalue().decode()
    assert r"a\x1b[2J\ud800\nb" in said and r"\x07 [red]" in said and "é" in said


def test_architecture_that_is_no_text_is_printed(tmp_path):
    src = copy_fixture(tmp_path, W4)
    edit_json(src / "config.json", lambda config: config.update(architectures=["\ud800\x1b"]))
    done = cli("inspect", src)
    assert done.returncode == 0, done.stderr
    assert r"\ud800\x1b" in done.stdout


# manifests


@pytest.mark.parametrize(
    "spoil",
    [
        *(lambda m, v=v: m["source"].update(format=v) for v in ("foo", [], {}, None, HUGE)),
        *(lambda m, v=v: m["source"].update(renamed=v) for v in ([], {"a": {}}, None)),
        *(lambda m, v=v: m["source"].update(config=v) for v in ([], None)),
        *(lambda m, v=v: m["steps"][0].update(dims=v) for v in ([], [[]], [[1], [2]], [[HUGE, 1], [1, 1]], "ab", 5)),
        *(lambda m, v=v: m["steps"][0].update(passes=v) for v in ([{}], [{"pass": []}], [{"pass": "pad"}], {}, 1)),
        *(lambda m, v=v: m["steps"][0].update(layers=v) for v in ([[]], [{}], 5, "ab")),
        *(lambda m, v=v: m["steps"][0]["before"]["weight"].update(group_size=v) for v in (0, HUGE, "a", [], 1.5)),
        *(lambda m, v=v: m["steps"][0]["before"].update(dialect=v) for v in ([1], [[]], [["a", "b", "c"]], "a")),
        lambda m: m["steps"].append(HUGE),
        lambda m: m.update(steps=HUGE),
    ],
)
def test_manifest_that_lies_is_refused_or_passed_over(spoil, tmp_path):
    qbridge.convert(copy_fixture(tmp_path, "gptq/llama_v2_asym"), tmp_path / "made", "compressed-tensors")
    src = tmp_path / "made"
    edit_json(src / "qbridge.json", lambda manifest: void(spoil(manifest)))
    before = contents(src)
    for target in ("gptq", "awq"):
        qbridge_answers(lambda target=target: qbridge.convert(src, tmp_path / "dst", target, dry_run=True))
    qbridge_answers(lambda: qbridge.restore(src, tmp_path / "dst", dry_run=True))
    qbridge_answers(lambda: qbridge.verify(src, tmp_path / "src"))
    assert contents(src) == before


def void(value):
    return None


# holes


def with_hole(src, tensor, entry, size):
    """The checkpoint with a tensor of `size` bytes at the end of its file, none of them written."""
    file = src / SINGLE
    edit_header(file, lambda header: header.update({tensor: {**entry, "data_offsets": [0, 0]}}))
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    end = max(e["data_offsets"][1] for e in header.values() if "dtype" in e)
    header[tensor]["data_offsets"] = [end, end + size]
    text = json.dumps(header).encode()
    rest = data[8 + length :]
    file.write_bytes(len(text).to_bytes(8, "little") + text + rest[:end] + bytes(max(0, end - len(rest))))
    with open(file, "r+b") as stream:
        stream.truncate(8 + len(text) + end + size)
    return src


TERA = 1 << 40
DOWN = "model.layers.0.mlp.down_proj"
HOLES = {
    "g_idx": ("gptq/llama_v2_asym", f"{DOWN}.g_idx", "I32", [TERA // 4]),
    "bias of gptq": ("gptq/llama_v2_asym", f"{DOWN}.bias", "F16", [TERA // 2]),
    "qzeros": ("gptq/llama_v2_asym", f"{DOWN}.qzeros", "I32", [2**20, 2**18]),
    "scales of awq": ("awq/llama_gemm", f"{DOWN}.scales", "F16", [2**20, 2**19]),
    "qweight": ("awq/llama_gemm", f"{DOWN}.qweight", "I32", [2**20, 2**18]),
    "weight_scale": (W4, f"{DOWN}.weight_scale", "F16", [2**20, 2**19]),
    "weight_g_idx": (W4, f"{DOWN}.weight_g_idx", "I32", [TERA // 4]),
    "weight_packed": (W4, f"{DOWN}.weight_packed", "I32", [2**20, 2**18]),
    "int8 weight": ("smooth_quant/llama_lite", f"{DOWN}.weight", "I8", [2**20, 2**20]),
    "nobody's": (W4, "model.extra.weight", "F16", [2**20, 2**19]),
}


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_json_of_a_terabyte_is_refused(name, tmp_path):
    src = copy_fixture(tmp_path, "compressed_tensors/llama_w8a8_sharded")
    with open(src / name, "r+b") as stream:
        stream.truncate(TERA)
    refusal(src, 3, "QB002")


@pytest.mark.parametrize("name", ["tokenizer_config.json", "qbridge.json", "quantize_config.json"])
def test_side_file_of_a_terabyte_is_left_aside(name, tmp_path):
    src = copy_fixture(tmp_path, "gptq/llama_v2_asym")
    with open(src / name, "ab") as stream:
        stream.truncate(TERA)
    assert set(answers(src)) <= {0, 1}
    if name == "quantize_config.json":  # the manifest would hold it
        refusal(src, 3, "QB002", "compressed-tensors")


def without(src, tensor):
    """The checkpoint without one tensor and its data."""
    file = src / SINGLE
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, rest, kept, place = json.loads(data[8 : 8 + length]), data[8 + length :], b"", 0
    header.pop(tensor, None)
    for entry in header.values():
        if "dtype" in entry:
            begin, end = entry["data_offsets"]
            kept += rest[begin:end]
            entry["data_offsets"] = [place, place := place + end - begin]
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + kept)
    return src


@pytest.mark.parametrize("hole", HOLES)
def test_tensors_of_a_terabyte_that_is_a_hole_are_not_read(hole, tmp_path):
    case, tensor, dtype, shape = HOLES[hole]
    src = with_hole(without(copy_fixture(tmp_path, case), tensor), tensor, {"dtype": dtype, "shape": shape}, TERA)
    planned = "" if hole == "nobody's" else 'lambda: qbridge.convert(src, "dst", "gptq", dry_run=True)'
    code = f"""
import re, resource, qbridge
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
src = {str(src)!r}
for command in (lambda: qbridge.inspect(src), lambda: qbridge.check(src, "vllm"), {planned}):
    try:
        command()
    except qbridge.QBridgeError as fault:
        assert fault.exit_code in (1, 3), fault
# ru_maxrss would be that of the test's own process where it is larger
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 1_000_000  # kB


def test_a_small_tensor_that_is_none_is_named(tmp_path):
    """A layer whose shapes agree, and whose scales alone are 2 GiB."""
    src, rows, columns = copy_fixture(tmp_path, "smooth_quant/llama_lite"), 2**29, 1
    for tensor, dtype, shape, size in (
        (f"{DOWN}.weight", "I8", [rows, columns], rows),
        (f"{DOWN}.scale", "F32", [rows, 1], 4 * rows),
    ):
        with_hole(without(src, tensor), tensor, {"dtype": dtype, "shape": shape}, size)
    refusal(src, 3, "QB028", "compressed-tensors")
