"""What transformers takes of compressed-tensors checkpoints of integer codes.

Source: transformers 5.17.0 with compressed-tensors 0.20.0, quantizers/quantizer_compressed_tensors.py and
conversion_mapping.py; tried there.
"""

from __future__ import annotations

from collections.abc import Iterator

from qbridge.dtypes import DType
from qbridge.ir import Model
from qbridge.rules import ModelRule, Problem
from qbridge.targets.choice import Choice
from qbridge.targets.common import unquantized_tensors, weight_scales

_LOADING = "transformers 5.17.0, core_model_loading.py"


def _int8_experts(model: Model) -> Iterator[Problem]:
    """Experts are one fused tensor in memory, and the converter of names knows packed and float8 codes only."""
    found = tuple(n for n, spec in model.specs.items() if ".experts." in n and spec.activation is not None)
    if found:
        yield Problem((f"{len(found)} expert linears",), where=found)


CHOICE = Choice(
    "compressed-tensors",
    (
        ModelRule("QB231", _int8_experts, "transformers 5.17.0, conversion_mapping.py"),
        weight_scales(DType.F32, _LOADING),
        unquantized_tensors(DType.F32, _LOADING),
    ),
)
