"""Real llama.cpp on what is written as GGUF: log-probabilities of 32 teacher-forced ids against its own files.

The twin is the float32 model of the same values, made by llama.cpp's own converter; llama.cpp rounds inputs of
quantized layers, so its own Q8_0 file of the twin says by how much.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import environments
import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from weight_only import fixture

import gemma3
import hub
import make
import qbridge
import small
from qbridge.source.folder import Folder
from qbridge.source.gguf import read_gguf
from qbridge.source.storage import File

DRIVERS = Path(__file__).parent / "drivers"
pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not shutil.which("npm"), reason="npm, which brings llama.cpp, is not here"),
]

CASES = [
    "compressed_tensors/llama_w4a16",
    "compressed_tensors/qwen3_w8a8",
    "compressed_tensors/qwen3_moe_w4a16",
    "gemma3",
    "mxfp4/gpt_oss",
    "kimi",
]
# Two runs of 32 ids. llama.cpp rounds activations: with routers as they are drawn, a token of the second run whose
# experts differ by 0.014 went to another one than in the twin (0.83 instead of 0.16).
IDS = [[(first + step * number) % 256 for number in range(32)] for first, step in ((3, 29), (5, 37))]
PLAIN = ("F32", "F16", "BF16")
ROUTERS = ("mlp.gate.weight", "mlp.router.weight")
MORE = 0.02  # of the log-probabilities, beyond what llama.cpp's own file differs by


def prepared(case, folder, monkeypatch):
    """The fixture with a byte-level tokenizer that llama.cpp knows, and one block that matters.

    Routers are so large that no rounding of llama.cpp's sends a token to another expert.
    """
    src = folder / "src"
    if case == "gemma3":
        return gemma3.make(src)
    if case == "kimi":
        src = kimi(folder, monkeypatch)
    else:
        shutil.copytree(fixture(case), src)
    shutil.copy(fixture("compressed_tensors/qwen2_w4a16_tied") / "tokenizer.json", src)
    tensors = load_file(src / "model.safetensors")
    matter(tensors)
    for name in tensors:
        if name.endswith(ROUTERS):
            tensors[name] *= 4 if case == "kimi" else 16  # a sigmoid of more is 1 for all experts
    save_file(tensors, src / "model.safetensors", {"format": "pt"})
    return src


def matter(tensors):
    """A scale that is 32 times as large, of a layer whose codes the file has."""
    if (name := "model.layers.0.self_attn.o_proj.weight_scale") in tensors:
        tensors[name][3, 0] *= 32
    elif (name := "model.layers.0.mlp.experts.down_proj_scales") in tensors:
        tensors[name][:, 3, 0] += 5
    else:
        for expert in range(4):
            tensors[f"model.layers.1.mlp.experts.{expert}.down_proj.weight_scale"][3, 0] *= 32


def kimi(folder, monkeypatch):
    """A small DeepSeek-V3 as Kimi-K2 is quantized: int4 experts, bfloat16 everything else."""
    monkeypatch.setattr(hub, "DRAFTED", {})
    sizes = {"num_key_value_heads": 4, "routed_scaling_factor": 2.5, "vocab_size": 256}
    monkeypatch.setattr(small, "OTHER", {**small.OTHER, "DeepseekV3ForCausalLM": sizes})
    make.build("DeepseekV3ForCausalLM", "w4a16", folder, leave=r"self_attn|shared_experts|mlp\.(gate|up|down)_proj")
    src = folder / "model"
    tensors = load_file(src / "model.safetensors")
    for name, tensor in tensors.items():
        tensors[name] = tensor * 8 if name == "model.embed_tokens.weight" else tensor
        if name.endswith("norm.weight"):
            tensors[name] = tensor + 1
    save_file(tensors, src / "model.safetensors", {"format": "pt"})
    return src


def made(src, folder):
    """(twin, llama.cpp's Q8_0 of it, ours) as GGUF files."""
    qbridge.convert(src, folder / "ours.gguf", "llama.cpp")
    qbridge.convert(src, folder / "dense", "dense", dtype="float32")
    for kind in ("f32", "q8_0"):
        words = [
            environments.chosen("hf2gguf"),
            DRIVERS / "hf_to_gguf.py",
            folder / "dense",
            "--out",
            folder / f"{kind}.gguf",
        ]
        options = ["--type", kind, "--json", folder / "report.json"]
        done = subprocess.run([str(word) for word in (*words, *options)], capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-2000:]
    return folder / "f32.gguf", folder / "q8_0.gguf", folder / "ours.gguf"


def unpaired(rows):
    """Rows of q or k as they lie in transformers, of heads of 64."""
    heads = rows.reshape(-1, 32, 2, *rows.shape[1:])
    return heads.swapaxes(1, 2).reshape(rows.shape)


def experts_swapped(stack):
    return stack[[1, 0, *range(2, len(stack))]]


def doubled(rows, kind):
    """Row 3, of each expert, under twice the scale of its first block."""
    changed = rows.copy()
    if kind == "MXFP4":
        changed[..., 3, 0] += 1
    else:
        changed[..., 3, :2] = (np.ascontiguousarray(changed[..., 3, :2]).view("<f2") * np.float16(2)).view(np.uint8)
    return changed


def mutants(file):
    """By name, what is wrong in a copy of a file: new bytes by tensor."""
    header = read_gguf(File(Folder(file.parent), file.name))
    data = file.read_bytes()
    tensors = {
        name: np.frombuffer(data[info.begin : info.end], np.uint8).reshape(*info.shape)
        for name, info in header.tensors.items()
        if info.kind not in PLAIN
    }
    first = {name.split(".", 2)[2]: name for name in sorted(tensors, reverse=True)}
    matters = first.get("attn_output.weight") or first["ffn_down_exps.weight"]
    found = {"block": {matters: doubled(tensors[matters], header.tensors[matters].kind)}}
    if header.metadata["general.architecture"] == "llama":
        names = [first[f"attn_{part}.weight"] for part in "qk"]
        found["rows"] = {name: unpaired(tensors[name]) for name in names}
    ending = "_exps.weight" if "ffn_down_exps.weight" in first else ".weight"
    gate, up = first[f"ffn_gate{ending}"], first[f"ffn_up{ending}"]
    found["gate and up"] = {gate: tensors[up], up: tensors[gate]}
    if ending.startswith("_exps"):
        found["experts"] = {first["ffn_down_exps.weight"]: experts_swapped(tensors[first["ffn_down_exps.weight"]])}
    for what, changes in found.items():
        changed = bytearray(data)
        for name, array in changes.items():
            info = header.tensors[name]
            changed[info.begin : info.end] = array.tobytes()
        (file.parent / f"{what}.gguf").write_bytes(changed)
    return [file.parent / f"{what}.gguf" for what in found]


def log_probabilities(files, ids):
    """By file, float64 [positions, tokens]."""
    job = {"root": str(environments.node("llamacpp")), "files": [str(file) for file in files], "ids": ids}
    words = ["node", str(DRIVERS / "llamacpp_logprobs.mjs"), json.dumps(job)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return {
        Path(file).stem: np.array([[row[str(token)] for token in range(len(row))] for row in rows])
        for file, rows in found.items()
    }


@pytest.mark.parametrize("case", CASES)
def test_llama_cpp_computes_the_model_of_the_source(case, tmp_path, monkeypatch):
    twin, own, ours = made(prepared(case, tmp_path, monkeypatch), tmp_path)
    wrong = mutants(ours)
    for ids in IDS:
        found = log_probabilities([twin, own, ours, *wrong], ids)
        apart = {name: float(np.abs(values - found["f32"]).max()) for name, values in found.items()}
        print(case, {name: round(value, 4) for name, value in apart.items()})
        assert apart["ours"] <= apart["q8_0"] + MORE, apart
        for file in wrong:
            assert apart[file.stem] > apart["q8_0"] + MORE, (file.stem, apart)
