"""LMDeploy: what its PyTorch and TurboMind engines load, by version, and how they are started."""

from __future__ import annotations

from pathlib import Path

from qbridge.targets.lmdeploy import codes, matching, messages, parallel, pytorch, turbomind
from qbridge.targets.target import Target

# The newest version first; `lmdeploy` alone means that one.
PROVER = Path(__file__).with_name("prover.py")

_TURBOMIND = Target(
    "lmdeploy-turbomind@0.18.0",
    "LMDeploy's TurboMind engine; W4A16 as AWQ, compressed-tensors or GPTQ, and gpt-oss",
    turbomind.CHOICES,
    pytorch.READER,
    parallel=parallel.TURBOMIND,
    codes=codes.ENTRIES,
    prover=PROVER,
    prover_options=("--backend", "turbomind"),
    derivation=matching.TURBOMIND,
)
# No target of its own: nothing is written for it that lmdeploy would not be given.
_PYTORCH = Target(
    "LMDeploy's PyTorch engine",
    "LMDeploy where the server says --backend pytorch",
    pytorch.choices("0.18.0", alone=True),
    pytorch.READER,
    parallel=parallel.LMDEPLOY,
    codes=codes.ENTRIES,
    derivation=matching.PYTORCH_ALONE,
)
TARGETS = (
    Target(
        "lmdeploy@0.18.0",
        "LMDeploy: 8 bits as smooth-quant or fp8; W4A16 as AWQ, which both its engines load, or for TurboMind alone",
        (*pytorch.choices("0.18.0"), *turbomind.ALONE),
        pytorch.READER,
        parallel=parallel.LMDEPLOY,
        as_is=turbomind.AS_IS,
        codes=codes.ENTRIES,
        messages=messages.MESSAGES,
        prover=PROVER,
        derivation=matching.PYTORCH,
        backends={"turbomind": _TURBOMIND, "pytorch": _PYTORCH},
    ),
    Target(
        "lmdeploy@0.6.2",
        "LMDeploy of November 2024; W8A8 as smooth-quant, W4A16 as AWQ",
        pytorch.choices("0.6.2"),
        pytorch.OLD_READER,
        single_first=True,
        codes=codes.ENTRIES,
        derivation=matching.OLD,
    ),
    _TURBOMIND,
)
