"""What is written as GGUF: every value the source's, under llama.cpp's names, or a finding."""

from __future__ import annotations

import hashlib
import json
import re
import shutil

import numpy as np
import pytest
import torch
from safetensors import safe_open

import qbridge
from ggml_reference import tensor
from gguf_files import entry, gguf, padded
from qbridge.codecs.ggml_blocks import STRUCTS, BlockCodes, BlockScales
from qbridge.codecs.ggml_values import VALUE_STRUCTS, BlockValues
from qbridge.findings.finding import Findings
from qbridge.ir.dtypes import DType, to_float64
from qbridge.ir.floats import VALUES
from qbridge.ir.values import dequantize
from qbridge.source.folder import Folder
from qbridge.source.ggml_types import TYPES
from qbridge.source.gguf import read_gguf
from qbridge.source.gguf_files import Gguf, open_gguf
from qbridge.source.storage import File
from support import ROOT, cli, codes, copy_fixture, edit_json, rewrite_tensors

CT, GPTQ = "compressed_tensors", "gptq"
# Case, the type of its linears, the class of exactness.
WRITTEN = [
    (f"{CT}/llama_w4a16", "Q4_0", "reversible"),
    (f"{CT}/llama_w4a16_channel", "Q4_0", "equal"),
    (f"{CT}/llama_w4a16_asym", "Q5_0", "reversible"),
    (f"{CT}/llama_w5a16", "Q5_0", "reversible"),
    (f"{CT}/llama_w8a16", "Q8_0", "equal"),
    (f"{CT}/llama_w1a16", "Q4_0", "equal"),
    (f"{CT}/llama_mxfp4a16", "MXFP4", "reversible"),
    (f"{CT}/llama_w8a8", "Q8_0", "equal"),
    (f"{CT}/llama_partial", "Q8_0", "equal"),
    (f"{CT}/llama_w8a8_rope", "Q8_0", "equal"),
    (f"{CT}/qwen2_w4a16_tied", "Q4_0", "reversible"),
    (f"{CT}/qwen3_moe_w4a16", "Q4_0", "reversible"),
    (f"{CT}/qwen3_partial", "Q8_0", "equal"),
    (f"{GPTQ}/llama_2bit", "Q4_0", "reversible"),
    (f"{GPTQ}/llama_v2_asym", "Q5_0", "reversible"),
    ("awq/llama_gemm", "Q5_0", "reversible"),
]
TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER = {
    **{"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "ffn_gate_inp": "mlp.gate"},
    **{f"attn_{part}": f"self_attn.{part}_proj" for part in "qkv"},
    **{"attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"},
    **{f"ffn_{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")},
}


def convert(src, dst, **options):
    return qbridge.convert(src, dst, "gguf", allow=["no-tokenizer"], **options)


def contents(dst) -> Gguf:
    return open_gguf(Folder(dst), "model.gguf", Findings())


def weights(dst):
    """float32 values under the names of transformers, the rows of q and k in their own order."""
    config = json.loads((dst / "config.json").read_text())
    llama = config["architectures"][0] == "LlamaForCausalLM"
    heads = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]}
    found = {}
    files = sorted(dst.glob("*.gguf"))
    for file in files:
        data = file.read_bytes()
        for name, info in read_gguf(File(Folder(dst), file.name)).tensors.items():
            dims = TYPES[info.kind].shape(info.shape)
            values = tensor(info.kind, dims, data[info.begin : info.end])
            module, _, leaf = name.rpartition(".")
            if module == "rope_freqs":
                continue
            if module in TOP:
                found[f"{TOP[module]}.{leaf}"] = values
                continue
            _, number, kind = module.split(".")
            if stack := re.fullmatch(r"ffn_(\w+)_exps", kind):
                for expert, own in enumerate(values):
                    found[f"model.layers.{number}.mlp.experts.{expert}.{stack[1]}_proj.{leaf}"] = own
                continue
            if llama and kind in ("attn_q", "attn_k"):
                count = heads[kind[-1]]
                half = dims[0] // count // 2
                values = np.concatenate(
                    [values[h * 2 * half + side : (h + 1) * 2 * half : 2] for h in range(count) for side in (0, 1)]
                )
            found[f"model.layers.{number}.{LAYER[kind]}.{leaf}"] = values
    return found


def of_source(src):
    found = {}
    with qbridge.open(src) as opened:
        for name, spec in opened.specs.items():
            layer = opened.layer(name)
            found[f"{name}.weight"] = dequantize(layer).astype(np.float32)
            if spec.bias:
                found[f"{name}.bias"] = to_float64(layer.arrays["bias"], spec.bias).astype(np.float32)
        for name, info in opened.model.tensors.items():
            found[name] = to_float64(opened.tensor(name), info.dtype).astype(np.float32)
    return found


def differing(dst, src):
    written, wanted = weights(dst), of_source(src)
    unlike = written.keys() ^ wanted.keys()
    return unlike | {
        name for name in written.keys() & wanted.keys() if not np.array_equal(written[name], wanted[name])
    }


@pytest.mark.parametrize(("case", "kind", "exactness"), WRITTEN, ids=[case for case, *_ in WRITTEN])
def test_every_value_is_the_source_s(case, kind, exactness, tmp_path):
    src = ROOT / "fixtures" / case / "model"
    report = convert(src, tmp_path / "out")
    assert differing(tmp_path / "out", src) == set()
    assert set(report.exactness) == {exactness}
    made = contents(tmp_path / "out")
    assert {tensor.kind for tensor in made.tensors.values()} - {"F32", "F16", "BF16"} == {kind}
    assert all(tensor.kind == "F32" for tensor in made.tensors.values() if len(tensor.shape) == 1)


def test_two_bits_in_groups_of_64_take_two_bits(tmp_path):
    src = ROOT / "fixtures/compressed_tensors/llama_w2a16/model"
    with qbridge.open(src) as opened:
        wide = {spec.weight.group_size or spec.in_features for spec in opened.specs.values()}
    convert(src, tmp_path / "out")
    assert differing(tmp_path / "out", src) == set()
    kinds = {tensor.kind for tensor in contents(tmp_path / "out").tensors.values()}
    assert ("Q2_0" in kinds) == any(size % 64 == 0 for size in wide)


def test_metadata_are_the_numbers_of_the_model(tmp_path):
    convert(ROOT / "fixtures/compressed_tensors/qwen3_moe_w4a16/model", tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    found = contents(tmp_path / "out").metadata
    assert found["general.architecture"] == "qwen3moe" and found["general.file_type"] == 2
    for key, name in {
        **{"block_count": "num_hidden_layers", "embedding_length": "hidden_size", "expert_count": "num_experts"},
        **{"attention.head_count": "num_attention_heads", "attention.head_count_kv": "num_key_value_heads"},
        **{"expert_used_count": "num_experts_per_tok", "expert_feed_forward_length": "moe_intermediate_size"},
        **{"attention.key_length": "head_dim", "vocab_size": "vocab_size"},
    }.items():
        assert found[f"qwen3moe.{key}"] == config[name], key


def test_the_same_bytes_whatever_the_threads(tmp_path):
    src = ROOT / "fixtures/compressed_tensors/llama_w8a8/model"
    for jobs in (1, 3):
        convert(src, tmp_path / f"out{jobs}", jobs=jobs, memory=64 << 20)
    first, second = ((tmp_path / f"out{jobs}/model.gguf").read_bytes() for jobs in (1, 3))
    assert first == second
    assert convert(src, tmp_path / "out1").already_done


def test_splits(tmp_path):
    src = ROOT / "fixtures/compressed_tensors/qwen3_w8a8/model"
    convert(src, tmp_path / "out", max_shard_size=200_000)
    names = sorted(file.name for file in (tmp_path / "out").glob("*.gguf"))
    assert len(names) > 1 and names[0] == f"model-00001-of-{len(names):05}.gguf"
    assert len(open_gguf(Folder(tmp_path / "out"), names[0], Findings()).files) == len(names)
    assert differing(tmp_path / "out", src) == set()
    assert not (tmp_path / "out/model.safetensors.index.json").exists()


def test_a_small_memory_writes_the_same(tmp_path, monkeypatch):
    src = ROOT / "fixtures/compressed_tensors/llama_w4a16_asym/model"
    convert(src, tmp_path / "out")
    monkeypatch.setattr("qbridge.write.jobs.CODES", 1 << 12)
    convert(src, tmp_path / "small")
    assert (tmp_path / "out/model.gguf").read_bytes() == (tmp_path / "small/model.gguf").read_bytes()


def test_a_wrong_byte_is_seen_by_the_proof(tmp_path, monkeypatch):
    from qbridge.codecs.ggml_blocks import BlockCodes

    encode = BlockCodes.encode

    def wrong(self, *args):
        stored = encode(self, *args).copy()
        stored[0, 0] ^= 1  # of a scale
        return stored

    monkeypatch.setattr(BlockCodes, "encode", wrong)
    with pytest.raises(qbridge.QBridgeError) as excinfo:
        convert(ROOT / "fixtures/compressed_tensors/llama_w4a16/model", tmp_path / "out")
    assert codes(excinfo) == {"QB403"}


REFUSED = {
    "fp8/llama_static": ("QB110", "no such codes"),
    "compressed_tensors/llama_w4a16_g_idx": ("QB110", "neighbours"),
    "compressed_tensors/llama_w3a16": ("QB110", "blocks are of 32 weights"),
    "compressed_tensors/llama_asym_weights": ("QB110", "no zero-points"),
    "compressed_tensors/llama_kv_int8": ("QB113", "kv cache"),
    "compressed_tensors/llama_nvfp4": ("QB305", "divide"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_blocks_cannot_hold_is_refused(case, tmp_path):
    code, fact = REFUSED[case]
    with pytest.raises(qbridge.QBridgeError) as excinfo:
        convert(ROOT / "fixtures" / case / "model", tmp_path / "out")
    assert codes(excinfo) == {code}
    assert fact in str([finding.facts for finding in excinfo.value.findings])


def test_scales_that_float16_does_not_hold_are_refused(tmp_path):
    src = copy_fixture(tmp_path, f"{CT}/llama_w4a16")

    def shrink(tensors):
        name = next(name for name in tensors if name.endswith("down_proj.weight_scale"))
        tensors[name] = tensors[name].astype(np.float32) * np.float32(1e-7)

    rewrite_tensors(src, shrink)
    with pytest.raises(qbridge.QBridgeError) as excinfo:
        convert(src, tmp_path / "out")
    assert codes(excinfo) == {"QB301"}


@pytest.mark.parametrize(
    "change",
    [
        {"rope_scaling": {"rope_type": "longrope", "factor": 2.0}},
        {"hidden_act": "gelu"},
        {"head_dim": 63},
        {"architectures": ["LlamaForSomethingElse"]},
    ],
)
def test_numbers_that_llama_cpp_has_no_word_for_are_refused(change, tmp_path):
    src = copy_fixture(tmp_path, f"{CT}/llama_w4a16")
    edit_json(src / "config.json", lambda config: config.update(change))
    with pytest.raises(qbridge.QBridgeError) as excinfo:
        convert(src, tmp_path / "out")
    assert "QB117" in codes(excinfo)


def test_a_size_that_is_no_number_is_refused_before_it_is_written(tmp_path):
    src = copy_fixture(tmp_path, f"{CT}/llama_w4a16")
    edit_json(src / "config.json", lambda config: config.update(num_attention_heads="many"))
    with pytest.raises(qbridge.QBridgeError) as excinfo:
        convert(src, tmp_path / "out")
    assert codes(excinfo) == {"QB052"}


def test_a_tokenizer_is_written_or_a_finding(tmp_path):
    src = copy_fixture(tmp_path, f"{CT}/llama_w4a16")
    (src / "tokenizer.json").unlink()
    with pytest.raises(qbridge.QBridgeError) as excinfo:
        qbridge.convert(src, tmp_path / "out", "llama.cpp")
    assert codes(excinfo) == {"QB118"}
    shutil.copy(ROOT / "fixtures/compressed_tensors/qwen2_w4a16_tied/model/tokenizer.json", src)
    report = qbridge.convert(src, tmp_path / "out", "llama.cpp")
    assert report.serve == f"llama-server -m {tmp_path / 'out'}/model.gguf"
    report = qbridge.convert(src, tmp_path / "out.gguf", "llama.cpp")
    assert report.serve == f"llama-server -m {tmp_path / 'out.gguf'}"
    found = contents(tmp_path / "out").metadata
    assert len(found["tokenizer.ggml.tokens"]) == 256 == found["tokenizer.ggml.token_type"].size
    assert found["tokenizer.ggml.model"] == "gpt2"


def test_the_command_says_what_it_did(tmp_path):
    src = ROOT / "fixtures/compressed_tensors/llama_w8a8/model"
    done = cli("convert", src, tmp_path / "out", "--to", "llama.cpp", "--allow", "no-tokenizer")
    assert done.returncode == 0 and "model.gguf" in done.stdout
    shown = cli("inspect", tmp_path / "out/model.gguf")
    assert "14 layers: Q8_0" in shown.stdout


GOLDENS = sorted((ROOT / "fixtures/gguf").glob("*/model.gguf"))


def decoded(kind, stored, dims):
    """float64 weights of stored rows."""
    if kind in VALUE_STRUCTS:
        return BlockValues(kind).decode(stored, DType.F64, dims)
    struct, float4 = STRUCTS[kind], kind in ("MXFP4", "NVFP4")
    codes = BlockCodes(kind).decode(stored, DType.U8 if float4 else DType.I8, dims)
    group = struct.group or struct.elements
    scales = BlockScales(kind).decode(stored, struct.scale_dtype, (dims[0], dims[1] // group))
    values = VALUES["e2m1"][codes] if float4 else codes.astype(np.float64)
    return values * np.repeat(to_float64(scales, struct.scale_dtype), group, axis=1)


@pytest.mark.parametrize("file", GOLDENS, ids=lambda file: file.parent.name)
def test_blocks_have_the_values_that_the_tool_gives_them(file):
    expected = json.loads((file.parent / "expected.json").read_text())["weights"]
    data, header = file.read_bytes(), read_gguf(File(Folder(file.parent), file.name))
    assert expected.keys() == {name for name, info in header.tensors.items() if TYPES[info.kind].dtype is None}
    for name, wanted in expected.items():
        info = header.tensors[name]
        stored = np.frombuffer(data[info.begin : info.end], np.uint8).reshape(-1, info.shape[-1])
        values = decoded(info.kind, stored, (stored.shape[0], wanted["shape"][-1])).astype("<f4")
        values += np.float32(0)  # -0 as 0
        assert hashlib.sha256(values.tobytes()).hexdigest() == wanted["sha256"], name


@pytest.mark.parametrize("file", GOLDENS, ids=lambda file: file.parent.name)
def test_a_file_is_read_under_the_names_of_transformers(file, tmp_path):
    (tmp_path / "model.gguf").symlink_to(file)
    with qbridge.open(file) as opened:
        (tmp_path / "config.json").write_text(json.dumps(opened.model.config))
        assert {finding.code for finding in opened.findings} == {"QB120"}
    assert differing(tmp_path, file) == set()


@pytest.mark.parametrize(("case", "kind"), [row[:2] for row in WRITTEN[:7]], ids=[row[0] for row in WRITTEN[:7]])
def test_there_and_back(case, kind, tmp_path):
    src = ROOT / "fixtures" / case / "model"
    convert(src, tmp_path / "gguf")
    found = qbridge.verify(src, tmp_path / "gguf")
    assert found.same, found.findings
    target = "compressed-tensors" if kind != "Q5_0" else "dense"
    qbridge.convert(tmp_path / "gguf", tmp_path / "back", target)
    if target != "dense":
        assert qbridge.verify(tmp_path / "gguf", tmp_path / "back").same


def one_layer(folder, number, blocks):
    """A file with one linear of 2 rows of 256 weights, of a type of ggml by its number."""
    data = gguf(llama(), [entry("blk.0.ffn_up.weight", (256, 2), number, 0)], blocks.tobytes())
    (folder / "model.gguf").write_bytes(data)
    return folder / "model.gguf"


def test_types_without_tables_here_are_refused(tmp_path):
    with pytest.raises(qbridge.QBridgeError) as excinfo:
        qbridge.open(one_layer(tmp_path, 23, np.zeros(2 * 136 + 16, np.uint8)[: 2 * 136]))
    assert "QB121" in codes(excinfo) and "IQ4_XS" in str(excinfo.value)


def test_scales_of_k_quants_that_are_no_numbers_are_found(tmp_path):
    blocks = np.zeros((2, 144), np.uint8)
    blocks[1, 2:4] = 0xFF  # a minimum that is NaN
    with pytest.raises(qbridge.QBridgeError) as excinfo:
        qbridge.convert(one_layer(tmp_path, 12, blocks), tmp_path / "out", "dense")
    assert "QB017" in codes(excinfo)


K_QUANTS = ROOT / "fixtures/gguf/llama_k_quants/model.gguf"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_k_quants_become_plain_weights(dtype, tmp_path):
    report = qbridge.convert(K_QUANTS, tmp_path / "out", "dense", dtype=dtype)
    assert report.exactness == {"dequantized": 7} and report.passes == {"dequantize": 7}
    with safe_open(tmp_path / "out/model.safetensors", "pt") as opened:
        found = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
    with qbridge.open(K_QUANTS) as source:
        for name in source.specs:
            wanted = torch.from_numpy(dequantize(source.layer(name))).to(getattr(torch, dtype))
            assert torch.equal(found[f"{name}.weight"], wanted), name


def test_k_quants_are_refused_for_codes_unless_rounding_is_allowed(tmp_path):
    with pytest.raises(qbridge.QBridgeError) as excinfo:
        qbridge.convert(K_QUANTS, tmp_path / "out", "compressed-tensors")
    assert codes(excinfo) == {"QB119"} and "--to dense" in excinfo.value.findings[0].entry.fix
    report = qbridge.convert(K_QUANTS, tmp_path / "out", "compressed-tensors", allow=["dequantized"])
    assert report.exactness == {"dequantized": 7} and report.passes == {"unquantize": 7}
    assert "quantization_config" not in json.loads((tmp_path / "out/config.json").read_text())
    with pytest.raises(qbridge.QBridgeError) as excinfo:
        qbridge.restore(tmp_path / "out", tmp_path / "back")
    assert codes(excinfo) <= {"QB037", "QB010"}


def test_a_file_of_several_types_keeps_the_codes_that_there_are(tmp_path):
    """As llama-quantize writes Q4_0: the head is Q6_K."""
    src = tmp_path / "model.gguf"
    rng, norm = np.random.default_rng(0), np.ones(256, np.float32)
    q4_0, q6_k = rng.integers(0, 256, (256, 8, 18), np.uint8), rng.integers(0, 256, (32, 210), np.uint8)
    q4_0[..., 1], q6_k[:, 209] = 0x20, 0x20
    offsets, data = padded(norm, q4_0, q6_k)
    names = [("blk.0.attn_norm", (256,), 0), ("blk.0.ffn_up", (256, 256), 2), ("output", (256, 32), 14)]
    entries = [entry(f"{n}.weight", dims, kind, at) for (n, dims, kind), at in zip(names, offsets, strict=True)]
    src.write_bytes(gguf(llama(embedding_length=256, feed_forward_length=256), entries, data))
    options = {"allow": ["dequantized", "incomplete"]}
    report = qbridge.convert(src, tmp_path / "out", "compressed-tensors", **options)
    assert report.exactness == {"reversible": 1, "dequantized": 1}


@pytest.mark.parametrize("target", ["lmdeploy", "lmdeploy@0.6.2", "sglang", "transformers", "gptq", "mlx"])
def test_weights_that_codes_become_are_judged_as_others(target, tmp_path):
    """What an engine casts when it loads is asked of them, too: a refusal or a conversion, and no crash."""
    options = {"allow": ["dequantized", "rounded", "no-tokenizer", "incomplete"]}
    for allowed in ({}, options):
        try:
            report = qbridge.convert(K_QUANTS, tmp_path / "out", target, overwrite=True, **allowed)
        except qbridge.RefusedError as fault:
            assert fault.findings
        else:
            assert "dequantized" in report.exactness


def test_dst_may_lie_beside_the_file(tmp_path):
    shutil.copy(K_QUANTS, tmp_path / "model.gguf")
    done = cli("convert", tmp_path / "model.gguf", tmp_path / "out", "--to", "dense")
    assert done.returncode == 0, done.stderr
    with pytest.raises(qbridge.QBridgeError) as excinfo:
        qbridge.convert(tmp_path / "model.gguf", tmp_path, "dense", overwrite=True)
    assert codes(excinfo) == {"QB031"}


def llama(**changes):
    """Metadata of a small Llama."""
    sizes = {"block_count": 1, "context_length": 64, "embedding_length": 64, "feed_forward_length": 64}
    sizes |= {"attention.head_count": 1, "attention.head_count_kv": 1, "attention.layer_norm_rms_epsilon": 1e-5}
    return {"general.architecture": "llama", **{f"llama.{key}": value for key, value in (sizes | changes).items()}}


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"general.architecture": "mamba"},
        llama(**{"attention.scale": 0.5}),
        llama(**{"rope.dimension_count": 32}),
        llama(**{"attention.head_count": 0}),
        llama(**{"attention.layer_norm_rms_epsilon": 5}),
        {key: value for key, value in llama().items() if "embedding" not in key},
    ],
)
def test_metadata_that_say_another_model_are_refused(metadata, tmp_path):
    matrix = entry("blk.0.ffn_up.weight", (64, 2), 2, 0)
    (tmp_path / "model.gguf").write_bytes(gguf(metadata or {"general.name": "x"}, [matrix], bytes(96)))
    with pytest.raises(qbridge.QBridgeError) as excinfo:
        qbridge.open(tmp_path / "model.gguf")
    assert "QB117" in codes(excinfo)


def test_the_rope_of_llama_3_is_a_tensor_of_factors(tmp_path):
    src = ROOT / "fixtures/compressed_tensors/llama_w8a8_rope/model"
    convert(src, tmp_path / "out")
    config = json.loads((src / "config.json").read_text())
    scaling = config.get("rope_scaling") or config["rope_parameters"]
    theta = config.get("rope_theta") or scaling["rope_theta"]
    info = contents(tmp_path / "out").tensors["rope_freqs.weight"]
    data = (tmp_path / "out/model.gguf").read_bytes()[info.begin : info.end]
    found = np.frombuffer(data, np.float32)
    context = scaling["original_max_position_embeddings"]
    for number, value in enumerate(found):
        wave = 2 * np.pi * theta ** (2 * number / (2 * found.size))
        if wave < context / scaling["high_freq_factor"]:
            wanted = 1.0
        elif wave > context / scaling["low_freq_factor"]:
            wanted = scaling["factor"]
        else:
            low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
            smooth = (context / wave - low) / (high - low)
            wanted = 1 / ((1 - smooth) / scaling["factor"] + smooth)
        assert value == pytest.approx(wanted, rel=1e-5)
    assert qbridge.verify(tmp_path / "out", tmp_path / "out").same
    (tmp_path / "alone").mkdir()
    shutil.copy(tmp_path / "out/model.gguf", tmp_path / "alone")
    with pytest.raises(qbridge.QBridgeError) as excinfo:
        qbridge.open(tmp_path / "alone/model.gguf")
    assert "QB117" in codes(excinfo)


def stored(folder):
    """Every tensor of the safetensors files of a folder."""
    found = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            found |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
    return found


def same_tensors(a, b):
    """Whether two checkpoints have the same tensors, bit for bit."""
    here, there = stored(a), stored(b)
    same = (tensor.numpy().tobytes() == there[name].numpy().tobytes() for name, tensor in here.items())
    return here.keys() == there.keys() and all(same)


ASYMMETRIC = [f"{CT}/llama_w4a16_asym", "awq/llama_gemm", f"{GPTQ}/llama_v2_asym", f"{GPTQ}/llama_2bit"]


@pytest.mark.parametrize("case", [f"{CT}/llama_w4a16", *ASYMMETRIC])
def test_restore_gives_back_identical_tensors(case, tmp_path):
    src = ROOT / "fixtures" / case / "model"
    convert(src, tmp_path / "out")
    qbridge.restore(tmp_path / "out", tmp_path / "back")
    assert same_tensors(tmp_path / "back", src)


def test_zero_points_that_are_too_many_are_not_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr("qbridge.formats.common_rules._MOST_ZEROS", 5)
    report = convert(ROOT / "fixtures/compressed_tensors/llama_w4a16_asym/model", tmp_path / "out")
    assert set(report.exactness) == {"equal"}
    with pytest.raises(qbridge.QBridgeError) as excinfo:
        qbridge.restore(tmp_path / "out", tmp_path / "none")
    assert codes(excinfo) == {"QB037"}


@pytest.mark.parametrize("case", [f"{CT}/llama_w4a16", *ASYMMETRIC])
def test_one_file_has_all_of_it(case, tmp_path):
    src = ROOT / "fixtures" / case / "model"
    convert(src, tmp_path / "new/out.gguf")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out.gguf"]
    first = (tmp_path / "new/out.gguf").read_bytes()
    assert convert(src, tmp_path / "new/out.gguf").already_done
    convert(src, tmp_path / "new/out.gguf", overwrite=True)
    assert (tmp_path / "new/out.gguf").read_bytes() == first
    assert qbridge.verify(src, tmp_path / "new/out.gguf").same
    qbridge.restore(tmp_path / "new/out.gguf", tmp_path / "back", config=src, allow=["outside-links"])
    assert same_tensors(tmp_path / "back", src)
    assert json.loads((tmp_path / "back/config.json").read_text()) == json.loads((src / "config.json").read_text())


def test_a_file_in_the_way_of_one_file_is_left_alone(tmp_path):
    src = ROOT / "fixtures/compressed_tensors/llama_w4a16/model"
    (tmp_path / "a.gguf").write_bytes(b"something else")
    with pytest.raises(qbridge.QBridgeError) as excinfo:
        convert(src, tmp_path / "a.gguf")
    assert codes(excinfo) == {"QB031"} and (tmp_path / "a.gguf").read_bytes() == b"something else"
    with pytest.raises(ValueError, match="one file"):
        convert(src, tmp_path / "b.gguf", max_shard_size=1000)
    convert(src, tmp_path / "b.gguf")
    with pytest.raises(qbridge.QBridgeError) as excinfo:
        convert(tmp_path / "b.gguf", tmp_path / "b.gguf", overwrite=True)
    assert codes(excinfo) == {"QB031"}


def test_a_run_that_was_cut_before_its_last_step_is_made_again_or_cleaned(tmp_path, monkeypatch):
    src = ROOT / "fixtures/compressed_tensors/llama_w4a16/model"

    def cut(self, shards):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("qbridge.commands.file_output.WholeFile.publish", cut)
        with pytest.raises(KeyboardInterrupt):
            convert(src, tmp_path / "a.gguf")
    assert not (tmp_path / "a.gguf").exists()
    assert len(qbridge.clean(tmp_path / "a.gguf").removed) == 1 and not list(tmp_path.iterdir())
    with monkeypatch.context() as patched:
        patched.setattr("qbridge.commands.file_output.WholeFile.publish", cut)
        with pytest.raises(KeyboardInterrupt):
            convert(src, tmp_path / "a.gguf")
    convert(src, tmp_path / "a.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"]


def test_config_and_tokenizer_come_from_the_original(tmp_path):
    src = copy_fixture(tmp_path, f"{CT}/llama_w4a16")
    convert(src, tmp_path / "alone/a.gguf")
    done = cli("convert", tmp_path / "alone/a.gguf", tmp_path / "out", "--to", "vllm", "--config", src)
    assert done.returncode == 0 and "QB120" not in done.stderr, done.stderr
    assert {"tokenizer.json", "config.json"} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert qbridge.verify(src, tmp_path / "out").same
    done = cli("convert", tmp_path / "alone", tmp_path / "more", "--to", "vllm", "--config", src)
    assert done.returncode == 0, done.stderr
    for wrong in ((src, src), (tmp_path / "alone/a.gguf", tmp_path)):
        done = cli("convert", wrong[0], tmp_path / "none", "--to", "vllm", "--config", wrong[1])
        assert done.returncode == 3 and "QB001" in done.stderr


def test_splits_are_read_and_one_file_made_of_them(tmp_path):
    src = ROOT / "fixtures/compressed_tensors/qwen3_w8a8/model"
    convert(src, tmp_path / "out", max_shard_size=200_000)
    first = min((tmp_path / "out").glob("*.gguf"))
    convert(first, tmp_path / "one.gguf")
    assert qbridge.verify(first, tmp_path / "one.gguf").same


@pytest.mark.parametrize(("model", "plain"), [("llama", True), ("qwen3", False)])
def test_embeddings_are_plain_where_vllm_builds_them_so(model, plain, tmp_path):
    """Llama's class of vLLM 0.33.0 does not tell its embedding the name by which a group would be its own."""
    rng, norm = np.random.default_rng(0), np.ones(256, np.float32)
    blocks = rng.integers(0, 256, (256, 8, 18), np.uint8)
    blocks[..., 1] = 0x20
    offsets, data = padded(norm, blocks, blocks)
    names = [("output_norm", (256,), 0), ("token_embd", (256, 256), 2), ("output", (256, 256), 2)]
    entries = [entry(f"{n}.weight", dims, kind, at) for (n, dims, kind), at in zip(names, offsets, strict=True)]
    sizes = llama(embedding_length=256, feed_forward_length=256)
    said = {key.replace("llama.", f"{model}."): value for key, value in sizes.items()}
    (tmp_path / "a.gguf").write_bytes(gguf({**said, "general.architecture": model}, entries, data))
    allow = ["incomplete"]
    if plain:
        with pytest.raises(qbridge.QBridgeError) as excinfo:
            qbridge.convert(tmp_path / "a.gguf", tmp_path / "out", "vllm", allow=allow)
        assert "QB281" in codes(excinfo)
    report = qbridge.convert(tmp_path / "a.gguf", tmp_path / "out", "vllm", allow=[*allow, "dequantized"])
    assert report.exactness == ({"reversible": 1, "dequantized": 1} if plain else {"reversible": 2})
