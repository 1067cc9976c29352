"""Which format a checkpoint has, by its content."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from qbridge.architecture.quantization_block import NO_BLOCK, find_block
from qbridge.findings.finding import Findings, QBridgeError, error
from qbridge.formats.protocol import Format, Match
from qbridge.formats.registry import aliases, leave_out, load, registry, report_clashes, sniffed
from qbridge.ir.dtypes import DType
from qbridge.source.reader import Source
from qbridge.source.stored import StoredTensor

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
        raise error("QB012", source.url, (*_looks(source), *reasons), ("name it with --from",))
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
        return error("QB011", source.url, (f"quant_method {method!r}: {named}", *_looks(source), *reasons))
    looks = tuple(_looks(source))
    codes = [t.name for t in source.tensors.values() if not t.dtype.is_float and len(t.shape) == 2]
    if codes:
        fact = f"no quant_method, but {len(codes)} integer matrices such as {codes[0]}"
        return error("QB011", source.url, (fact, *looks, *reasons))
    if looks:
        return error("QB011", source.url, ("no quant_method", *looks, *reasons))
    return error("QB010", source.url, reasons)


# The formats that store codes with such tensors beside them, in the order in which they are looked for.
_PACKED_ROWS, _WORDS_DOWN, _WORDS_ACROSS = ("compressed-tensors",), ("gptq", "auto-round"), ("awq", "auto-round")
_BY_PARTS: tuple[tuple[frozenset[str], tuple[str, ...]], ...] = (
    (frozenset({"weight_packed"}), _PACKED_ROWS),
    (frozenset({"B", "s"}), ("marlin",)),
    (frozenset({"qweight", "scaled_zeros"}), ("awq",)),
    (frozenset({"weight", "biases", "scales"}), ("mlx",)),
    (frozenset({"weight", "weight_scale_2"}), ("modelopt", "quark")),
    (frozenset({"weight", "weight_scale_inv"}), ("auto-round", "fp8", "quark", "w8a8")),
    (
        frozenset({"weight", "weight_scale"}),
        ("auto-round", "compressed-tensors", "fp8", "modelopt", "quark", "w8a8"),
    ),
    (frozenset({"weight", "scale"}), ("smooth-quant",)),
    (frozenset({"weight", "scales"}), ("mlx",)),
)
_STACKED_BLOCKS = "_blocks"


def judge_method(source: Source, reader: Format, findings: Findings) -> None:
    """QB046 where most quantized modules are those of other formats than the config names.

    Only asked where its reader has found that they do not fit.
    """
    formats, fact = likeness(source)
    method = quant_method(source.config)
    named = _named_layout(source.config) or aliases().get((method or "").lower(), reader.NAME)
    if formats and named not in formats and _misfits(source, findings):
        says = f"the config says quant_method {method!r}" if method else "the config names no quant_method"
        findings.add("QB046", "config.json", (fact, says), fix=_OTHER_METHOD)


_OTHER_METHOD = "Take the config.json that was saved with these tensors: its quantization block belongs to others."
_DAMAGE = frozenset({"QB015", "QB016", "QB018", "QB110"})  # what a single damaged module has, too


# What a block of GPTQ or AWQ calls the layout of its words, where that is another format's than its quant_method's.
_LAYOUTS: Mapping[str, str] = {"marlin": "marlin", "gemm": "awq", "gemv": "awq", "gemv_fast": "awq"}


def _named_layout(config: Mapping[str, Any]) -> str:
    """The format whose layout a block names besides its quant_method (gptqmodel 7.7, AutoAWQ 0.2.9); else nothing."""
    raw = (find_block(config) or NO_BLOCK).raw
    named = (raw.get("checkpoint_format"), raw.get("version"), "marlin" if raw.get("is_marlin_format") else "")
    return next((_LAYOUTS[name] for name in named if isinstance(name, str) and name in _LAYOUTS), "")


def _misfits(source: Source, findings: Findings) -> bool:
    """Whether more is wrong than single damaged modules: with the block, or with most modules."""
    if any(finding.code not in _DAMAGE for finding in findings.errors):
        return True
    likely = _likely(source)
    places = {place for finding in findings.errors for place in finding.where}
    wrong = {place if place in likely else place.rpartition(".")[0] for place in places}
    return 2 * len(wrong & likely.keys()) >= len(likely)


def likeness(source: Source) -> tuple[tuple[str, ...], str]:
    """The formats that store most quantized modules as they lie here, and that in words; nothing where none does."""
    likely = _likely(source)
    if not likely:
        return (), ""
    formats, count = Counter(formats for formats, _ in likely.values()).most_common(1)[0]
    module, leaves = next((name, leaves) for name, (known, leaves) in likely.items() if known == formats)
    named = ", ".join(leaves)
    return formats, f"the tensors look like {' or '.join(formats)}: {count} modules such as {module} ({named})"


def _likely(source: Source) -> dict[str, tuple[tuple[str, ...], list[str]]]:
    """By quantized module, the formats that store it as it lies here, and the last words of its tensors' names."""
    modules: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in source.tensors.items():
        module, _, leaf = name.rpartition(".")
        modules.setdefault(module, {})[leaf] = tensor
    liked = {module: (_like(parts), sorted(parts)) for module, parts in modules.items()}
    return {module: (formats, leaves) for module, (formats, leaves) in liked.items() if formats}


def _looks(source: Source) -> Iterable[str]:
    return filter(None, (likeness(source)[1],))


def _like(parts: Mapping[str, StoredTensor]) -> tuple[str, ...]:
    """The formats that store a module in such tensors."""
    if any(leaf.endswith(_STACKED_BLOCKS) for leaf in parts):
        return ("mxfp4",)
    if {"qweight", "scales"} <= parts.keys() and "scaled_zeros" not in parts:
        return _like_words(parts["qweight"], parts["scales"], parts.get("qzeros"))
    weight = parts.get("weight")
    if weight is not None and weight.dtype.is_float:  # a plain matrix, whatever is beside it
        return ()
    return next((formats for needed, formats in _BY_PARTS if needed <= parts.keys()), ())


def _like_words(codes: StoredTensor, scales: StoredTensor, zeros: StoredTensor | None) -> tuple[str, ...]:
    """Words of codes: down the columns as many as scales, across them as many as words of zero-points."""
    if any(len(tensor.shape) != 2 for tensor in (codes, scales)):
        return ()
    if codes.shape[1] == scales.shape[1] and codes.dtype is not DType.I16:
        return _WORDS_DOWN
    if zeros is None:
        return ("marlin",)
    across = zeros.shape[-1:] == codes.shape[1:] or codes.dtype is DType.I16 or codes.shape[0] == scales.shape[0]
    return _WORDS_ACROSS if across else ()
