"""What transformers takes of compressed-tensors checkpoints, and of gpt-oss.

Source: transformers 5.17.0 with compressed-tensors 0.20.0, quantizers/quantizer_compressed_tensors.py and
conversion_mapping.py; tried there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from qbridge.architecture.config import Reader
from qbridge.findings.catalogue.code import Code
from qbridge.formats.registry import named
from qbridge.formats.rules import ModelRule, Problem
from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.ir.scheme import Granularity
from qbridge.targets.choice import Choice
from qbridge.targets.common import unquantized_tensors, weight_scales
from qbridge.targets.target import Target

_LOADING = "transformers 5.17.0, core_model_loading.py"


def _experts(model: Model) -> Iterator[Problem]:
    """Experts are one fused tensor in memory, and the converter of names knows packed and float8 codes only.

    It forgets global scales and takes exponents for scales (integrations/compressed_tensors.py, DecompressExperts).
    """
    found = tuple(name for name, spec in model.specs.items() if ".experts." in name and not _is_converted(spec))
    if found:
        yield Problem((f"{len(found)} expert linears",), where=found)


def _is_converted(spec: Spec) -> bool:
    if spec.weight.type == "int":
        return spec.activation is None
    one = spec.weight.granularity in (Granularity.TENSOR, Granularity.CHANNEL)
    return spec.weight.type == "e4m3fn" and one and spec.scale_dtype.is_float


CHOICES = (
    Choice(
        named("compressed-tensors"),
        (
            ModelRule("QB231", _experts, "transformers 5.17.0, conversion_mapping.py"),
            weight_scales(DType.F32, _LOADING),
            unquantized_tensors(DType.F32, _LOADING),
        ),
    ),
    Choice(named("mxfp4"), (unquantized_tensors(DType.F32, _LOADING),)),
)
CODES = (
    Code(
        "QB231",
        "transformers cannot load experts of this scheme",
        "The checkpoint is a mixture of experts with int8 linears in them, or floats of 4 bits, of groups or blocks.",
        "transformers 5 fuses experts while it loads, and its converter knows packed integers and float8 with scales "
        "per tensor or channel: it fails, runs with uninitialised experts, or forgets the global scales of NVFP4.",
        "model.layers.0.mlp.experts.0.gate_proj",
        "Serve it with vLLM or LMDeploy.",
        "transformers 5.17.0, conversion_mapping.py and quantizers/quantizer_compressed_tensors.py",
    ),
)
TARGETS = (
    Target(
        "transformers@5.17.0",
        "transformers with compressed-tensors installed",
        CHOICES,
        Reader((5,)),
        keeps=True,
        single_first=True,
        codes=CODES,
        prover=Path(__file__).with_name("prover.py"),
    ),
)
