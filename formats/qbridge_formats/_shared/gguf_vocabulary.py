"""The tokenizer of a checkpoint as metadata of GGUF: byte-level BPE of four pre-tokenizers, and SentencePiece.

Sources: llama.cpp b10359, conversion/base.py (get_vocab_base, _create_vocab_sentencepiece), gguf-py/gguf/vocab.py
(SpecialVocab) and src/llama-vocab.cpp (the pre-tokenizers by name); sentencepiece 0.2.0, sentencepiece_model.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from qbridge.source.reader import Source
from qbridge_formats._shared.gguf_pieces import is_of_pieces, ranked_pieces
from qbridge_formats._shared.gguf_tokens import (
    CONTROL,
    NORMAL,
    UNUSED,
    USER_DEFINED,
    Metadata,
    added_kind,
    filled,
    merged,
    pieces,
    put,
)

TOKENIZER_JSON, SENTENCEPIECE, TEMPLATE = "tokenizer.json", "tokenizer.model", "chat_template.jinja"
_UNIGRAM = 1  # sentencepiece_model.proto, TrainerSpec.model_type
_MOST = 1 << 26  # bytes of a tokenizer's file
_COMMON = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_ENDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_ENDS}[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_ENDS}"
_SIGNS = "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+|"
_PRE: Mapping[tuple[str, ...], str] = {  # the patterns that split a text, by which llama.cpp knows them under a name
    (_WORDS + r"\p{N}{1,3}" + _COMMON,): "llama-bpe",
    (_WORDS + r"\p{N}" + _COMMON,): "qwen2",
    (_CASED + r"\p{N}{1,3}" + _COMMON.replace(r"[\r\n]*", r"[\r\n/]*", 1),): "gpt-4o",
    (
        r"\p{N}{1,3}",
        "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
        _SIGNS + " ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
    ): "deepseek-v3",
}


def vocabulary(source: Source, size: int, config: Mapping[str, Any]) -> Metadata:
    """The keys `tokenizer.*` for a vocabulary of `size` tokens; ValueError for a tokenizer that is not known here."""
    if SENTENCEPIECE in source.side_files:
        found = _sentencepiece(source, size)
    elif TOKENIZER_JSON in source.side_files:
        tokenizer = source.side_object(TOKENIZER_JSON)
        found = (ranked_pieces if is_of_pieces(tokenizer) else _byte_pairs)(tokenizer, size)
    else:
        raise ValueError(f"there is no {TOKENIZER_JSON} and no {SENTENCEPIECE}")
    return {**found, **_special(source, found["tokenizer.ggml.tokens"], config)}


def no_vocabulary() -> Metadata:
    """What stands for a tokenizer that is not written: the model runs on the numbers of tokens alone."""
    return {"tokenizer.ggml.model": "no_vocab"}


def _byte_pairs(tokenizer: Mapping[str, Any], size: int) -> Metadata:
    """Byte-level BPE of tokenizer.json."""
    model = tokenizer.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE" or model.get("byte_fallback"):
        raise ValueError(f"{TOKENIZER_JSON} is no byte-level BPE")
    pre = _PRE.get(_patterns(tokenizer.get("pre_tokenizer")))
    if pre is None:
        raise ValueError(f"the pre-tokenizer of {TOKENIZER_JSON} is none that is known by name")
    tokens: list[str | None] = [None] * size
    kinds = [UNUSED] * size
    for text, place in model["vocab"].items():
        put(tokens, kinds, place, text, NORMAL)
    for added in tokenizer.get("added_tokens", ()):
        put(tokens, kinds, added["id"], added["content"], added_kind(added))
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": filled(tokens),
        "tokenizer.ggml.token_type": np.array(kinds, np.int32),
        "tokenizer.ggml.merges": tuple(map(merged, model["merges"])),
    }


def _patterns(pre_tokenizer: Any) -> tuple[str, ...]:
    """The patterns that a byte-level pre-tokenizer splits by before it takes bytes; empty for any other."""
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer]) if isinstance(pre_tokenizer, dict) else []
    splits, last = steps[:-1], steps[-1] if steps else {}
    isolated = all(step.get("type") == "Split" and step.get("behavior") == "Isolated" for step in splits)
    if not isolated or last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return ()
    return tuple(str(step.get("pattern", {}).get("Regex", "")) for step in splits)


def _sentencepiece(source: Source, size: int) -> Metadata:
    """tokenizer.model, and the tokens that tokenizer_config.json adds to it."""
    tokens: list[str | None] = [None] * size
    kinds, scores = [UNUSED] * size, np.full(size, -10000.0, np.float32)
    data = source.file(SENTENCEPIECE).read(_MOST)
    trained, normalized = _message(data, 2), _message(data, 3)  # TrainerSpec, NormalizerSpec
    if trained.get(3) == _UNIGRAM:
        raise ValueError(f"{SENTENCEPIECE} is a unigram model, and llama.cpp joins pieces by their scores")
    for place, piece in enumerate(_fields(data, 1)):
        if place >= size:
            break
        parts = dict(_pairs(piece))
        put(tokens, kinds, place, bytes(parts.get(1, b"")).decode(), int(parts.get(3, NORMAL)))
        scores[place] = struct.unpack("<f", parts[2])[0] if 2 in parts else 0.0
    for number, added in source.tokenizer().get("added_tokens_decoder", {}).items():
        if (place := int(number)) < size:
            if kinds[place] == UNUSED:
                scores[place] = -1000.0
            text = added["content"] if added.get("special") else added["content"].replace("\u2581", " ")
            if kinds[place] in (UNUSED, NORMAL, USER_DEFINED, CONTROL):
                put(tokens, kinds, place, text, CONTROL if added.get("special") else USER_DEFINED)
    return pieces(tokens, scores, kinds, bool(normalized.get(3, True)))


def _message(message: bytes, number: int) -> dict[int, Any]:
    """The fields of a message in a field of another one; empty if it is not there."""
    return next((dict(_pairs(value)) for value in _fields(message, number)), {})


def _pairs(message: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of the fields of a protobuf message; ValueError for one that is broken."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, place = _varint(message, place)
            yield number, value
            continue
        length, place = _varint(message, place) if kind == 2 else ({5: 4, 1: 8}.get(kind, -1), place)
        if length < 0 or place + length > len(message):
            raise ValueError(f"{SENTENCEPIECE} is broken")
        yield number, message[place : place + length]
        place += length


def _fields(message: bytes, number: int) -> Iterator[bytes]:
    return (value for own, value in _pairs(message) if own == number and isinstance(value, bytes))


def _varint(message: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(message):
            break
        byte = message[place]
        value, place = value | (byte & 127) << shift, place + 1
        if byte < 128:
            return value, place
    raise ValueError(f"{SENTENCEPIECE} is broken")


def _special(source: Source, tokens: tuple[str, ...], config: Mapping[str, Any]) -> Metadata:
    """Which tokens begin, end and fill a text, whether they are added, and the chat template."""
    written = source.tokenizer()
    places = {text: place for place, text in enumerate(tokens)}
    found: Metadata = {}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        said = written.get(f"{name}_token")
        text = said.get("content") if isinstance(said, dict) else said
        place = places.get(text) if isinstance(text, str) else config.get(f"{name}_token_id")
        if type(place) is int and 0 <= place < len(tokens):
            found[f"tokenizer.ggml.{key}_token_id"] = place
    first = _first_token(source.side_object(TOKENIZER_JSON).get("post_processor"))
    for name in ("bos", "eos"):
        said = written.get(f"add_{name}_token")
        if isinstance(said, bool):
            found[f"tokenizer.ggml.add_{name}_token"] = said
    if TOKENIZER_JSON in source.side_files and "tokenizer.ggml.add_bos_token" not in found:
        bos = found.get(
            "tokenizer.ggml.bos_token_id"
        )  # llama.cpp adds it to texts of Llama 3 unless it is told not to
        found["tokenizer.ggml.add_bos_token"] = bool(first) and places.get(first) == bos
    template = source.side_text(TEMPLATE, _MOST) if TEMPLATE in source.side_files else written.get("chat_template")
    return {**found, **({"tokenizer.chat_template": template} if isinstance(template, str) and template else {})}


def _first_token(post_processor: Any) -> str:
    """The token that a template of tokenizer.json puts before a text, if it does so."""
    if not isinstance(post_processor, dict):
        return ""
    for step in post_processor.get("processors", [post_processor]):
        single = step.get("single") or [{}]
        if step.get("type") == "TemplateProcessing" and "SpecialToken" in single[0]:
            return str(single[0]["SpecialToken"]["id"])
    return ""
