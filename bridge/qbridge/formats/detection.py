"""Which format a checkpoint has, by its content."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from qbridge.architecture.quantization_block import NO_BLOCK, find_block
from qbridge.findings.finding import Findings, QBridgeError, error
from qbridge.formats.protocol import Format, Match
from qbridge.formats.registry import aliases, leave_out, load, registry, report_clashes, sniffed
from qbridge.source.reader import Source

_LOG = logging.getLogger(__name__)

CONTAINER_FORMAT = "gguf"  # the format of every model that lies in GGUF files, whatever the types of its tensors

# quant_method values of checkpoints that no format here reads yet, with what they are.
KNOWN_METHODS: Mapping[str, str] = {
    "aqlm": "AQLM vector codes",
    "bitnet": "BitNet ternary weights",
    "bitsandbytes": "bitsandbytes (LLM.int8, NF4, FP4)",
    "eetq": "EETQ int8",
    "exl2": "ExLlamaV2",
    "exl3": "ExLlamaV3",
    "higgs": "HIGGS",
    "hqq": "HQQ",
    "paroquant": "ParoQuant (rotated weights)",
    "qqq": "QQQ (W4A8 with scales of two levels)",
    "quanto": "optimum-quanto",
    "quark": "AMD Quark",
    "spqr": "SpQR",
    "torchao": "torchao",
    "vptq": "VPTQ",
}

_MARLIN_24 = ".B_24"  # vllm 0.5.4, model_executor/layers/quantization/gptq_marlin_24.py
_ORIGINAL = "Take the unquantized model, or one that is quantized in a format of `qbridge formats`."


def detect(source: Source, findings: Findings) -> tuple[Format, Match]:
    """The format of a checkpoint, by content; QBridgeError with every format's reason if none or two fit.

    A third party's format that fails is left out with a warning (QB035).
    """
    report_clashes(findings)
    matches: list[tuple[Format, Match]] = []
    reasons = []
    for name in registry():
        try:
            candidate = load(name)
            result = sniffed(candidate, source)
        except QBridgeError as fault:
            leave_out(name, fault, findings)
            continue
        if isinstance(result, Match):
            matches.append((candidate, result))
        reasons.append(f"{name}: {result.because if isinstance(result, Match) else result}")
        _LOG.debug("%s", reasons[-1])
    best = [found for found in matches if found[1].score == max(m.score for _, m in matches)]
    if len(best) == 1:
        return best[0]
    if best:
        raise error("QB012", source.url, reasons, ("name it with --from",))
    raise _unrecognised(source, reasons)


def quant_method(config: Mapping[str, Any]) -> str | None:
    """The quant_method of a config as it is spelled, wherever its block lies."""
    named = (find_block(config) or NO_BLOCK).raw.get("quant_method")
    return named if isinstance(named, str) else None


def _foreign(source: Source) -> str:
    """What a checkpoint is by tensors that no format here reads; else nothing."""
    if sparse := [name for name in source.tensors if name.endswith(_MARLIN_24)]:
        return f"Marlin-24, which qbridge does not read yet: {len(sparse)} modules of 2:4 sparsity"
    return ""


def _unrecognised(source: Source, reasons: list[str]) -> QBridgeError:
    if fact := _foreign(source):
        return error("QB011", source.url, (fact,), fix=_ORIGINAL)
    method = quant_method(source.config)
    if method is not None:
        known = KNOWN_METHODS.get(method.lower())
        named = f"{known}, which qbridge does not read yet" if known else "which qbridge does not know"
        if method.lower() in aliases():
            named = "whose tensors are not in the checkpoint"
        return error("QB011", source.url, (f"quant_method {method!r}: {named}", *reasons))
    codes = [t.name for t in source.tensors.values() if not t.dtype.is_float and len(t.shape) == 2]
    if codes:
        fact = f"no quant_method, but {len(codes)} integer matrices such as {codes[0]}"
        return error("QB011", source.url, (fact, *reasons))
    return error("QB010", source.url, reasons)
