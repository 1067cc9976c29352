"""One entry of the catalogue, the exit codes, and the words of --allow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

REFUSED, USAGE, UNREADABLE, IO, BUG, INTERRUPTED = 1, 2, 3, 4, 70, 130

ALLOW: Mapping[str, str] = {
    "assumed-activations": "assume dynamic activations where nothing says how they are quantized",
    "assumed-version": "judge a version of an engine by the nearer release where those around it differ (check)",
    "dequantized": "write layers that the target has no codes for as plain weights, each rounded once",
    "drop-activation-details": "quantize inputs without the limit or the rounding of scales that the source asks for",
    "drop-kv-scales": "leave out stored kv-cache scales, which the target cannot load",
    "dynamic-activations": "quantize inputs as they come, symmetric per token, where the engine has no other way",
    "incomplete": "take a model whose shards or tensors are not all there; engines may talk garbage with it",
    "no-tokenizer": "write GGUF files without a tokenizer, for engines that are given numbers of tokens",
    "other-sizes": "write a model whose config.json gives other sizes than its tensors have; engines stop at it",
    "outside-links": "follow links to files outside of the folder",
    "pickle": "read pickled weights with torch's weights_only loader",
    "rounded": "accept values that the engine rounds when it loads them",
    "unproved-graft": "graft from an original that is not proved to be the one that was quantized",
    "unknown-tensors": "carry over float tensors beside the codes of a layer that they are no part of",
}


# Words of `allow` that choose between readings of a source; the command line has options for them.
CHOICES: Mapping[str, str] = {
    "v1-zeros-add": "read all-ones zero-points of GPTQ version 1 by adding 1 (--v1-zeros add)",
    "v1-zeros-wrap": "read all-ones zero-points of GPTQ version 1 as 0 (--v1-zeros wrap)",
}


@dataclass(frozen=True, slots=True)
class Code:
    """One entry of the catalogue; `exit` is the exit code of an error, `allow` the word that lets it pass."""

    code: str
    title: str
    what: str
    why: str
    example: str
    fix: str
    source: str
    exit: int = REFUSED
    severity: Literal["error", "warning", "note"] = "error"
    allow: str | None = None
