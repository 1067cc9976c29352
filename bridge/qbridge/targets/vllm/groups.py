"""Which group sizes of weights vLLM's kernels have, and how others are split."""

from __future__ import annotations

from dataclasses import replace
from math import gcd

from qbridge.formats.rules import Problem
from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.passes import Pass
from qbridge.passes.regroup import Regroup
from qbridge.targets.common import model_dtype
from qbridge.targets.vllm.integers import is_mixed

GROUPS = (128, 64, 32)  # Marlin's
HUMMING = 16  # the least: humming-kernels 0.1.19, kernel/humming.py (check_scale): 256 bits of activations


def short_group(spec: Spec, model: Model) -> Problem | None:
    """A last group that is short: vLLM makes room for in_features // group_size scales."""
    size = spec.weight.group_size
    if not is_mixed(spec) or size is None or spec.in_features % size == 0:
        return None
    return Problem((f"weights {spec.weight}: {spec.in_features} inputs are not whole groups",))


def marlin_group(spec: Spec, model: Model) -> Problem | None:
    """Whole groups of the sizes that Marlin has; one group is fine."""
    if short := short_group(spec, model):
        return short
    size = spec.weight.group_size
    if not is_mixed(spec) or size is None or size in GROUPS:
        return None
    return Problem((f"weights {spec.weight}: its kernels have groups of {', '.join(map(str, GROUPS))}",))


def common_group(spec: Spec, model: Model) -> Pass | None:
    """Groups that one of the kernels' divides are split; smaller ones have kernels of their own in some builds."""
    size = gcd(spec.weight.group_size or 0, spec.in_features)
    return next((Regroup(group) for group in GROUPS if size % group == 0), None)


def large_group(spec: Spec, model: Model) -> Problem | None:
    """As `marlin_group`, where it can be mended: compressed-tensors of smaller groups has other kernels."""
    return marlin_group(spec, model) if common_group(spec, model) else None


def small_group(spec: Spec, model: Model) -> Problem | None:
    """Humming, which has the groups that Marlin lacks, starts at 16; Exllama has symmetric ones for float16."""
    size, exllama = spec.weight.group_size, (spec.weight.bits, spec.weight.symmetric) in ((4, True), (8, True))
    if not is_mixed(spec) or size is None or size >= HUMMING:
        return None
    if exllama and spec.in_features % size == 0 and model_dtype(model, DType.F16) is DType.F16:
        return None
    return Problem((f"weights {spec.weight}: no kernel has groups of less than {HUMMING}",))


def awq_group(spec: Spec, model: Model) -> Problem | None:
    """As `large_group`; CUDA's own kernel has some of them, in float16 (csrc/quantization/awq)."""
    size, problem = spec.weight.group_size or 1, large_group(spec, model)
    whole = size % 32 == 0 and spec.in_features % size == 0 and spec.out_features % size == 0
    served = whole and model_dtype(model, DType.F16) is DType.F16
    return replace(problem, mild=True) if problem and served else problem
