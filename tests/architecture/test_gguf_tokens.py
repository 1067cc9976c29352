"""Tokenizers in GGUF: SentencePiece's model, its pieces out of tokenizer.json, and what begins a text."""

from __future__ import annotations

import json
import struct

import pytest

import qbridge
from qbridge.findings.finding import Findings
from qbridge.source.folder import Folder
from qbridge.source.gguf_files import open_gguf
from support import ROOT, codes, copy_fixture, edit_json

CASE = "compressed_tensors/llama_w4a16"
BYTES = ROOT / "fixtures/compressed_tensors/qwen2_w4a16_tied/model/tokenizer.json"


def field(number, value):
    """A field of a protobuf message: bytes, a small int, or a float."""
    if isinstance(value, bytes):
        return bytes([number << 3 | 2, len(value)]) + value
    if isinstance(value, float):
        return bytes([number << 3 | 5]) + struct.pack("<f", value)
    return bytes([number << 3, value])


def sentencepiece(trained=b"", normalized=b""):
    """A tokenizer.model of three pieces."""
    pieces = [field(1, b"<unk>") + field(2, 0.0) + field(3, 2), field(1, b"a") + field(2, -1.0), field(1, b"b")]
    return b"".join(field(1, piece) for piece in pieces) + field(2, trained) + field(3, normalized)


def written(src, tmp_path):
    """The metadata of a file that a checkpoint becomes."""
    qbridge.convert(src, tmp_path / "a.gguf", "llama.cpp", overwrite=True)
    return open_gguf(Folder(tmp_path), "a.gguf", Findings()).metadata


@pytest.mark.parametrize(("normalized", "prefix"), [(b"", True), (field(3, 1), True), (field(3, 0), False)])
def test_a_space_before_a_text_is_that_of_the_model(normalized, prefix, tmp_path):
    src = copy_fixture(tmp_path, CASE)
    (src / "tokenizer.model").write_bytes(sentencepiece(field(3, 2), normalized))
    found = written(src, tmp_path)
    assert found["tokenizer.ggml.add_space_prefix"] is prefix and found["tokenizer.ggml.model"] == "llama"
    assert found["tokenizer.ggml.tokens"][1] == "a" and found["tokenizer.ggml.scores"][1] == -1


def test_a_unigram_model_is_refused(tmp_path):
    src = copy_fixture(tmp_path, CASE)
    (src / "tokenizer.model").write_bytes(sentencepiece(field(3, 1)))
    with pytest.raises(qbridge.QBridgeError) as excinfo:
        written(src, tmp_path)
    assert codes(excinfo) == {"QB118"} and "unigram" in str(excinfo.value)


def pieces(merges):
    """A tokenizer.json of SentencePiece's pieces."""
    texts = ["<unk>", "<s>", "<0x41>", "\u2581", "a", "b", "ab", "\u2581a", "\u2581ab"]
    return {
        "added_tokens": [
            {"id": 0, "content": "<unk>", "special": True},
            {"id": 1, "content": "<s>", "special": True},
        ],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"}]},
        "pre_tokenizer": None,
        "model": {
            **{"type": "BPE", "byte_fallback": True, "unk_token": "<unk>", "merges": merges},
            "vocab": {text: place for place, text in enumerate(texts)},
        },
    }


IN_ORDER = ["a b", ["\u2581", "a"], "\u2581a b", "\u2581 ab"]


def test_merges_in_the_order_of_pieces_are_scores(tmp_path):
    src = copy_fixture(tmp_path, CASE)
    (src / "tokenizer.json").write_text(json.dumps(pieces(IN_ORDER)))
    found = written(src, tmp_path)
    assert found["tokenizer.ggml.scores"][6:9].tolist() == [-1, -2, -3]
    assert found["tokenizer.ggml.token_type"][:4].tolist() == [2, 3, 6, 1]
    assert found["tokenizer.ggml.add_space_prefix"] is True


@pytest.mark.parametrize(
    "change",
    [
        lambda tokenizer: tokenizer["model"].update(merges=[IN_ORDER[2], *IN_ORDER]),
        lambda tokenizer: tokenizer.update(normalizer={"type": "NFKC"}),
        lambda tokenizer: tokenizer.update(pre_tokenizer={"type": "Whitespace"}),
    ],
)
def test_pieces_that_have_no_scores_are_refused(change, tmp_path):
    src, tokenizer = copy_fixture(tmp_path, CASE), pieces(IN_ORDER)
    change(tokenizer)
    (src / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(qbridge.QBridgeError) as excinfo:
        written(src, tmp_path)
    assert codes(excinfo) == {"QB118"}


@pytest.mark.parametrize(("said", "wanted"), [(None, False), (True, True), (False, False)])
def test_llama_cpp_is_told_whether_a_token_begins_a_text(said, wanted, tmp_path):
    src = copy_fixture(tmp_path, CASE)
    (src / "tokenizer.json").write_bytes(BYTES.read_bytes())
    (src / "tokenizer_config.json").write_text("{}")
    if said is not None:
        edit_json(src / "tokenizer_config.json", lambda config: config.update(add_bos_token=said))
    assert written(src, tmp_path)["tokenizer.ggml.add_bos_token"] is wanted


def test_splits_of_gpt_4o_and_deepseek_are_known_by_name(tmp_path):
    src, tokenizer = copy_fixture(tmp_path, CASE), json.loads(BYTES.read_text())
    upper, lower = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
    ends, first = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|", r"[^\r\n\p{L}\p{N}]?"
    digits = r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    signs = "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+|"
    patterns = {
        "gpt-4o": [f"{first}{upper}*{lower}+{ends}{first}{upper}+{lower}*{ends}{digits}"],
        "deepseek-v3": [
            r"\p{N}{1,3}",
            "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
            signs + " ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
        ],
    }
    for name, expressions in patterns.items():
        splits = [{"type": "Split", "pattern": {"Regex": one}, "behavior": "Isolated"} for one in expressions]
        tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [*splits, {"type": "ByteLevel"}]}
        (src / "tokenizer.json").write_text(json.dumps(tokenizer))
        assert written(src, tmp_path)["tokenizer.ggml.pre"] == name
