"""What is carried over beside the weights: attributes of git, model card, buffers of masks, what links lead to."""

from __future__ import annotations

import numpy as np
import pytest

import qbridge
from support import SINGLE, copy_fixture, rewrite_tensors

CARD = """---
tags:
- compressed-tensors
license: mit
---
# A model in compressed-tensors

```python
LLM("model", quantization="compressed_tensors")
print("nothing")
# made with llmcompressor
```
"""


@pytest.fixture
def src(tmp_path):
    return copy_fixture(tmp_path)


def test_attributes_of_git_are_carried_over_and_other_hidden_files_not(src, tmp_path):
    for name in (".gitattributes", ".gitignore", ".DS_Store"):
        (src / name).write_text("*.safetensors filter=lfs\n")
    qbridge.convert(src, tmp_path / "dst", "lmdeploy")
    assert (tmp_path / "dst/.gitattributes").read_bytes() == (src / ".gitattributes").read_bytes()
    assert not (tmp_path / "dst/.gitignore").exists() and not (tmp_path / "dst/.DS_Store").exists()
    assert qbridge.convert(src, tmp_path / "dst", "lmdeploy").already_done
    qbridge.restore(tmp_path / "dst", tmp_path / "back")
    assert (tmp_path / "back/.gitattributes").exists()


def card(src, target):
    report = qbridge.convert(src, src.parent / "dst", target, dry_run=True, card=False)
    return [finding for finding in report.findings if finding.code == "QB048"]


def test_model_card_that_no_longer_holds(src):
    (src / "README.md").write_text(CARD)
    said = card(src, "lmdeploy")
    assert len(said) == 1 and said[0].severity is qbridge.Severity.NOTE
    assert [fact.split(":")[0] for fact in said[0].facts] == ["line 3", "line 9", "line 11"]


def test_model_card_that_holds(src):
    (src / "README.md").write_text(CARD)
    assert not card(src, "vllm")  # the source's own format
    (src / "README.md").write_text(CARD.replace("compressed", "un").replace("llmcompressor", "a tool"))
    assert not card(src, "lmdeploy")
    (src / "README.md").write_bytes(b"\xff\xfe" + bytes(100))
    assert not card(src, "lmdeploy")


def test_buffers_of_masks_are_read_and_said_once(tmp_path):
    src = copy_fixture(tmp_path, "gptq/llama_g128")

    def plant(tensors):
        for layer in range(1):
            module = f"model.layers.{layer}.attention"
            tensors[f"{module}.bias"] = np.tril(np.ones((1, 1, 8, 8), bool))
            tensors[f"{module}.masked_bias"] = np.array(-1e9, np.float32)
            tensors[f"{module}.rotary_emb.inv_freq"] = np.ones(8, np.float32)

    rewrite_tensors(src, plant)
    report = qbridge.convert(src, tmp_path / "dst", "vllm")
    codes = [finding.code for finding in report.findings]
    assert codes.count("QB039") == 1 and "QB302" not in codes
    assert qbridge.verify(src, tmp_path / "dst").same


@pytest.mark.parametrize("link", ["relative", "absolute"])
def test_links_that_older_download_tools_left_are_followed(src, tmp_path, link):
    blobs = tmp_path / "hub" / "models--meta--llama" / "blobs"
    blobs.mkdir(parents=True)
    for number, name in enumerate((SINGLE, "tokenizer.json", "config.json")):
        blob = blobs / f"{number:064x}"
        (src / name).rename(blob)
        (src / name).symlink_to(blob if link == "absolute" else f"../hub/models--meta--llama/blobs/{blob.name}")
    qbridge.convert(src, tmp_path / "dst", "lmdeploy")
    assert not (tmp_path / "dst" / SINGLE).is_symlink() and not (tmp_path / "dst/tokenizer.json").is_symlink()
