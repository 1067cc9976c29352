"""SentencePiece's BPE out of tokenizer.json: merges in the order of scores stand for the scores themselves.

A tokenizer.json made of a tokenizer.model has a merge for every two pieces that are one together, in the order of the
scores of what they become, so that those are known but for their size. Source: transformers 5.24.0,
convert_slow_tokenizer.py (generate_merges); llama.cpp b10359, src/llama-vocab.cpp (llm_tokenizer_spm).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from qbridge_formats._shared.gguf_tokens import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Metadata,
    pieces,
    put,
)

_SPACE = "\u2581"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def is_of_pieces(tokenizer: Mapping[str, Any]) -> bool:
    """Whether a tokenizer.json is BPE over characters that falls back to bytes."""
    model = tokenizer.get("model")
    return isinstance(model, dict) and model.get("type") == "BPE" and model.get("byte_fallback") is True


def ranked_pieces(tokenizer: Mapping[str, Any], size: int) -> Metadata:
    """The keys of a vocabulary of `size` tokens; ValueError for what SentencePiece would split otherwise."""
    model = tokenizer["model"]
    tokens: list[str | None] = [None] * size
    kinds, scores = [UNUSED] * size, np.full(size, -10000.0, np.float32)
    ranks = _ranks(model["merges"])
    for text, place in model["vocab"].items():
        kind = BYTE if _BYTE.fullmatch(text) else UNKNOWN if text == model.get("unk_token") else NORMAL
        put(tokens, kinds, place, text, kind)
        scores[place] = -float(ranks.get(text, 0))
    for added in tokenizer.get("added_tokens", ()):
        text = added["content"] if added["special"] else added["content"].replace(_SPACE, " ")
        if added["content"] != model.get("unk_token"):
            put(tokens, kinds, added["id"], text, CONTROL if added["special"] else USER_DEFINED)
    return pieces(tokens, scores, kinds, _prepends(tokenizer))


def _ranks(merges: list[str | list[str]]) -> dict[str, int]:
    """The rank of every piece that merges make, 1 for the first; ValueError where those of one piece are apart."""
    found = dict[str, int]()
    last = ""
    for merge in merges:
        text = merge.replace(" ", "", 1) if isinstance(merge, str) else "".join(merge)
        if text != last and text in found:
            raise ValueError("its merges are not in the order of pieces, which SentencePiece has scores for")
        last = text
        found.setdefault(text, len(found) + 1)
    return found


def _prepends(tokenizer: Mapping[str, Any]) -> bool:
    """Whether a space is put before a text; ValueError for steps that SentencePiece has not."""
    normalizer, before = tokenizer.get("normalizer") or {}, tokenizer.get("pre_tokenizer") or {}
    steps = normalizer.get("normalizers", [normalizer] if normalizer else [])
    kinds = [step.get("type") for step in steps]
    if set(kinds) - {"Prepend", "Replace"} or before.get("type", "Metaspace") not in ("Metaspace", "Split"):
        raise ValueError(f"it normalizes by {kinds} and splits by {before.get('type')}, which SentencePiece does not")
    return "Prepend" in kinds or before.get("prepend_scheme") in ("always", "first")
