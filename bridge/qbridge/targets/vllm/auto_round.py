"""What vLLM takes of AutoRound's own format: INC hands it to Marlin, AWQ's kernels, Humming, or those of float8.

Source: vllm 0.33.0, model_executor/layers/quantization/inc/schemes: inc_wna16_scheme.py and inc_wna16_linear.py;
humming-kernels 0.1.19, schema/gptq.py and awq.py.
"""

from __future__ import annotations

from qbridge.formats.rules import LayerRule, Problem
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.targets.vllm import groups

_FILE = "vllm 0.33.0, model_executor/layers/quantization/inc/schemes/inc_wna16_scheme.py and inc_wna16_linear.py"
_MARLIN = (4, 8)  # the others go to Humming (CUDA_HUMMING_SUPPORTED_BITS)


def _kernel(spec: Spec, model: Model) -> Problem | None:
    if spec.weight.type != "int":  # one data type is the whole model's (inc/config_parser.py, resolve)
        beside = any(other.weight.type == "int" for other in model.specs.values())
        return Problem((f"weights {spec.weight} beside integers: it has one data type for all",)) if beside else None
    why = _awq(spec) if "awq" in dict(spec.dialect).get("packing_format", "") else _gptq(spec)
    return Problem((f"weights {spec.weight}: {why}",)) if why else None


def _awq(spec: Spec) -> str:
    """Marlin has asymmetric ones of its groups, Triton the rest; Humming counts eight codes in every word."""
    if spec.weight.bits != 4:
        return "AWQ's tensors of 4 bits alone fit the linears that it builds as one"
    whole = spec.in_features % (spec.weight.group_size or spec.in_features) == 0
    return "" if whole else f"{spec.in_features} inputs are not whole groups"


def _gptq(spec: Spec) -> str:
    """Humming takes zero-points as they are stored, and these are stored less one."""
    size = spec.weight.group_size
    if not spec.weight.symmetric:
        return "as GPTQ it takes symmetric ones; Humming would read zero-points that are one too low"
    if size and spec.in_features % size:
        return f"{spec.in_features} inputs are not whole groups"
    if spec.weight.bits not in _MARLIN:
        return "" if size and size >= groups.HUMMING else f"Humming has groups here, of {groups.HUMMING} or more"
    listed = ", ".join(map(str, groups.GROUPS))
    return "" if size is None or size in groups.GROUPS else f"its Marlin kernels have groups of {listed}"


RULES = (LayerRule("QB224", _kernel, _FILE),)
