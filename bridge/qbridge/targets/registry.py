"""Every target by name: engines at their versions, and formats by their own names."""

from __future__ import annotations

from collections.abc import Iterator

from qbridge.architecture.config import Reader
from qbridge.findings.finding import error
from qbridge.findings.hints import did_you_mean
from qbridge.formats.common_rules import plain_activations
from qbridge.formats.registry import aliases, find, usable
from qbridge.formats.rules import Rule
from qbridge.targets import gptqmodel, transformers
from qbridge.targets.choice import Choice
from qbridge.targets.lmdeploy import parallel as lmdeploy_parallel
from qbridge.targets.lmdeploy import pytorch as lmdeploy
from qbridge.targets.lmdeploy import turbomind
from qbridge.targets.target import Target
from qbridge.targets.vllm import choices as vllm
from qbridge.targets.vllm import parallel as vllm_parallel

# Newest version of each engine first; `engine` alone means that one.
_ENGINES = (
    Target(
        "lmdeploy@0.18.0",
        "LMDeploy: 8 bits as smooth-quant or fp8; W4A16 as AWQ, which both its engines load, or for TurboMind alone",
        (*lmdeploy.choices("0.18.0"), *turbomind.ALONE),
        lmdeploy.READER,
        parallel=lmdeploy_parallel.LMDEPLOY,
    ),
    Target(
        "lmdeploy@0.6.2",
        "LMDeploy's PyTorch engine of November 2024; W8A8 as smooth-quant",
        lmdeploy.choices("0.6.2"),
        lmdeploy.OLD_READER,
        single_first=True,
    ),
    Target(
        "lmdeploy-turbomind@0.18.0",
        "LMDeploy's TurboMind engine; W4A16 as AWQ, compressed-tensors or GPTQ, and gpt-oss",
        turbomind.CHOICES,
        lmdeploy.READER,
        parallel=lmdeploy_parallel.TURBOMIND,
    ),
    Target(
        "vllm@0.33.0",
        "vLLM; compressed-tensors, or GPTQ, AWQ, fp8, ModelOpt and gpt-oss where it serves them as they are",
        (vllm.COMPRESSED_TENSORS, vllm.GPTQ, vllm.AWQ, vllm.FP8, vllm.MODELOPT, vllm.MXFP4),
        vllm.READER,
        keeps=True,
        parallel=vllm_parallel.VLLM,
    ),
    Target(
        "vllm@0.23.0",
        "vLLM before its Marlin kernels padded tiles",
        (vllm.COMPRESSED_TENSORS, vllm.GPTQ, vllm.AWQ, vllm.FP8),
        vllm.READER_023,
        keeps=True,
        parallel=vllm_parallel.VLLM_023,
    ),
    Target(
        "vllm@0.5.4",
        "vLLM of August 2024, which says: not divisible by min_thread_k",
        (vllm.OLD_COMPRESSED_TENSORS, vllm.OLD_GPTQ, vllm.AWQ),
        vllm.OLD_READER,
        keeps=True,
        parallel=vllm_parallel.VLLM_054,
    ),
    Target(
        "vllm-gptq@0.33.0",
        "vLLM; symmetric 4 and 8 bits as GPTQ, which its Marlin kernels serve",
        (vllm.GPTQ,),
        vllm.READER,
        parallel=vllm_parallel.VLLM,
    ),
    Target(
        "vllm-marlin@0.33.0",
        "the same as vllm-gptq: Marlin kernels repack GPTQ when they load it",
        (vllm.GPTQ,),
        vllm.READER,
        parallel=vllm_parallel.VLLM,
    ),
    Target(
        "gptqmodel@7.7.0",
        "GPTQModel, which has no tensor parallelism; GPTQ, or AWQ where the source is AWQ",
        gptqmodel.CHOICES,
        Reader((5,)),  # it requires 5.20.2 or newer
        keeps=True,
    ),
    Target(
        "transformers@5.17.0",
        "transformers with compressed-tensors installed",
        transformers.CHOICES,
        Reader((5,)),
        keeps=True,
        single_first=True,
    ),
)
# Formats under another name, with what their dialect must be.
_VARIANTS = (
    Target(
        "gptq-v1",
        "GPTQ with zero-points of version 1, as AutoGPTQ knows them",
        (Choice("gptq", dialect=(("zeros", "v1"),)),),
    ),
    Target(
        "gptq-v2",
        "GPTQ with zero-points of version 2, symmetric ones included",
        (Choice("gptq", dialect=(("zeros", "v2"),)),),
    ),
)


def targets() -> list[Target]:
    """Every engine at every version in the table, then every format by its own name."""
    return [*_ENGINES, *map(_by_format, usable()), *_VARIANTS]


def _by_format(name: str) -> Target:
    return Target(name, find(name).SUMMARY, (Choice(name),))


def _names() -> Iterator[str]:
    for target in _ENGINES:
        yield target.engine
        yield target.name
    yield from (target.name for target in _VARIANTS)
    yield from aliases()


def find_target(name: str) -> Target:
    """A target by name; `engine@X.Y` is its newest patch in the table. QBridgeError (QB030) otherwise."""
    engine, at, version = name.partition("@")
    for target in _ENGINES:
        if target.engine == engine and (not at or f"{target.version}.".startswith(f"{version}.")):
            return target
    if not at and name in aliases():
        return _by_format(aliases()[name])
    for target in _VARIANTS:
        if target.name == name:
            return target
    raise error("QB030", name, help=did_you_mean(name, sorted(set(_names()))))


def source_formats(name: str) -> tuple[str, ...]:
    """The formats that --from NAME means: one, or those of an engine."""
    for target in (*_ENGINES, *_VARIANTS):
        if name in (target.engine, target.name):
            return target.formats
    return (find(name).NAME,)


def rules_of(target: Target, choice: Choice, sizes: tuple[int, ...] = (1,)) -> tuple[Rule, ...]:
    """The format's own limits, then the engine's, then those of a rank at some tensor-parallel sizes.

    A format that does not say `KEEPS_INPUT_DETAILS` has no word for a limit of inputs, or for how scales are rounded.
    """
    format_ = find(choice.format)
    keeps = getattr(format_, "KEEPS_INPUT_DETAILS", False)
    plain = () if keeps else (plain_activations(format_.NAME, f"docs/formats, the page of {format_.NAME}"),)
    return (*plain, *format_.RULES, *target.limits(choice, sizes))
