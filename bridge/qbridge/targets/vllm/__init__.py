"""vLLM: what it loads, by version, which kernels serve it, and how it is started."""

from __future__ import annotations

from pathlib import Path

from qbridge.targets.target import Target
from qbridge.targets.vllm import choices, codes, experts, matching, messages, parallel, serving

# The newest version first; `vllm` alone means that one.
PROVER = Path(__file__).with_name("prover.py")

TARGETS = (
    Target(
        "vllm@0.33.0",
        "vLLM; compressed-tensors, or GPTQ, AWQ, fp8, ModelOpt, Quark and gpt-oss where it serves them as they are",
        choices.NEWEST,
        choices.READER,
        keeps=True,
        as_is=(choices.AUTO_ROUND,),
        parallel=parallel.VLLM,
        kernels=serving.kernels,
        codes=codes.ENTRIES,
        messages=messages.MESSAGES,
        experts=experts.arrange,
        renames=experts.RENAMES,
        prover=PROVER,
        derivation=matching.DERIVATION,
    ),
    Target(
        "vllm@0.23.0",
        "vLLM before its Marlin kernels padded tiles",
        (choices.COMPRESSED_TENSORS_023, choices.GPTQ_023, choices.AWQ, choices.FP8),
        choices.READER_023,
        keeps=True,
        parallel=parallel.VLLM_023,
        kernels=serving.kernels,
        codes=codes.ENTRIES,
        experts=experts.arrange,
        renames=experts.RENAMES,
    ),
    Target(
        "vllm@0.5.4",
        "vLLM of August 2024, which says: not divisible by min_thread_k",
        (choices.OLD_COMPRESSED_TENSORS, choices.OLD_GPTQ, choices.OLD_AWQ),
        choices.OLD_READER,
        keeps=True,
        parallel=parallel.VLLM_054,
        kernels=serving.kernels,
        codes=codes.ENTRIES,
        experts=experts.arrange,
        renames=experts.RENAMES,
    ),
    Target(
        "vllm-gptq@0.33.0",
        "vLLM; symmetric 4 and 8 bits as GPTQ, which its Marlin kernels serve",
        (choices.NEWEST_GPTQ,),
        choices.READER,
        parallel=parallel.VLLM,
        kernels=serving.kernels,
        codes=codes.ENTRIES,
        experts=experts.arrange,
        renames=experts.RENAMES,
        prover=PROVER,
        derivation=matching.DERIVATION,
    ),
    Target(
        "vllm-marlin@0.33.0",
        "the same as vllm-gptq: Marlin kernels repack GPTQ when they load it",
        (choices.NEWEST_GPTQ,),
        choices.READER,
        parallel=parallel.VLLM,
        kernels=serving.kernels,
        codes=codes.ENTRIES,
        experts=experts.arrange,
        renames=experts.RENAMES,
        prover=PROVER,
        derivation=matching.DERIVATION,
    ),
)
