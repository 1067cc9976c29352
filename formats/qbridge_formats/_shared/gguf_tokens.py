"""Tokens as metadata of GGUF: their texts and kinds by number.

Source: gguf 0.19.0, constants.py (TokenType); llama.cpp b10359, conversion/base.py (get_vocab_base).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
Metadata = dict[str, Any]


def put(tokens: list[str | None], kinds: list[int], place: int, text: str, kind: int) -> None:
    """Set a token; ValueError for a number beyond the vocabulary."""
    if type(place) is not int or not 0 <= place < len(tokens):
        raise ValueError(f"token {place!r} is beyond the vocabulary of {len(tokens)}")
    tokens[place], kinds[place] = text, kind


def filled(tokens: list[str | None]) -> tuple[str, ...]:
    """The tokens, fillers for those that are not there."""
    return tuple(f"[PAD{place}]" if text is None else text for place, text in enumerate(tokens))


def pieces(tokens: list[str | None], scores: npt.NDArray[np.float32], kinds: list[int], spaced: bool) -> Metadata:
    """A vocabulary of pieces with their scores; `spaced`: a text begins with a space."""
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": filled(tokens),
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": np.array(kinds, np.int32),
        "tokenizer.ggml.add_space_prefix": spaced,
    }


def added_kind(added: Mapping[str, Any]) -> int:
    """The kind of an added token of tokenizer.json: llama.cpp takes those that look special for such."""
    looks = added["content"].startswith("<|") and added["content"].endswith("|>")
    return CONTROL if added["special"] or looks else USER_DEFINED


def merged(merge: str | list[str]) -> str:
    """Two halves of a merge; a space in one of them is spelled as the byte-level alphabet spells it."""
    return merge if isinstance(merge, str) else " ".join(half.replace(" ", chr(ord(" ") + 256)) for half in merge)
