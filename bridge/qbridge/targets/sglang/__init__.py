"""SGLang: what it loads, what it drops without a word, and how it is started."""

from __future__ import annotations

from pathlib import Path

from qbridge.targets.sglang import choices, classes, codes, config, matching, messages, parallel
from qbridge.targets.target import Target

PROVER = Path(__file__).with_name("prover.py")

TARGETS = (
    Target(
        "sglang@0.5.23",
        "SGLang; compressed-tensors, or GPTQ, AWQ, fp8, ModelOpt, gpt-oss and its own W8A8 where it serves them",
        choices.CHOICES,
        config.READER,
        keeps=True,
        as_is=(choices.AUTO_ROUND,),
        parallel=parallel.SGLANG,
        codes=codes.ENTRIES,
        messages=messages.MESSAGES,
        prover=PROVER,
        derivation=matching.DERIVATION,
        towers_by_index=classes.TOWERS_BY_INDEX,
    ),
)
