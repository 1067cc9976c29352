"""What vLLM takes of AMD Quark's checkpoints.

Source: vllm 0.33.0, model_executor/layers/quantization/quark/quark.py, quark_moe.py and schemes.
"""

from __future__ import annotations

from qbridge.architecture.names import is_routed
from qbridge.formats.rules import LayerRule, ModelRule, Problem, Rule, ValueRule
from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.ir.scheme import ActivationScheme, Granularity, WeightScheme
from qbridge.targets.common import unlike_parts
from qbridge.targets.vllm import float8, fusion, groups

_QUARK = "vllm 0.33.0, model_executor/layers/quantization/quark"
_WHOLE = (Granularity.TENSOR, Granularity.CHANNEL)
_MX = 32  # weights of a group of the microscaling formats


def loadable_names(spec: Spec, model: Model) -> Problem | None:
    """Tensors called by the modules that made them, which no class has parameters for."""
    if "names" not in dict(spec.dialect):
        return None
    fact = "its scales are called weight_quantizer.scale, and the parameter is weight_scale: KeyError"
    return Problem((fact,), ("a conversion renames them; no value changes",))


def _scheme(spec: Spec, model: Model) -> Problem | None:
    """The schemes of `_get_scheme_cls_from_config`, and of experts those of `get_moe_method_target`."""
    served = _served(spec.weight, spec.activation, is_routed(spec.name))
    return None if served else Problem((spec.scheme,))


def _served(weight: WeightScheme, acts: ActivationScheme | None, routed: bool) -> bool:
    if weight.type == "int":
        if weight.bits == 4:
            return acts is None
        return not routed and acts is not None and acts.type == "int" and _whole(acts)
    if acts is not None and acts.type == "int":
        return False
    if weight.global_scale:
        return acts is not None and acts.global_scale is not None
    if weight.group_size == _MX:  # MXFP4 and MXFP8; inputs of one static float8 scale are for MXFP4 alone
        return acts is None or acts.group_size == _MX
    if weight.block:  # of experts it reads other names
        return not routed and weight.block == (128, 128) and acts is not None and acts.group_size == weight.block[1]
    return weight.granularity in _WHOLE and acts is not None and _whole(acts)


def _whole(acts: ActivationScheme) -> bool:
    """One static scale for the tensor, or dynamic ones per token; float8 has a dynamic one for the tensor as well."""
    if acts.granularity is Granularity.TOKEN:
        return True
    return acts.granularity is Granularity.TENSOR and (acts.type != "int" or not acts.dynamic)


def _gpt_oss(spec: Spec, model: Model) -> Problem | None:
    """gpt_oss.py has a loader of its own for Quark, which no checkpoint was tried in."""
    if model.architecture != "GptOssForCausalLM" or not is_routed(spec.name):
        return None
    return Problem(("experts of gpt-oss as quark were not tried in its loader",))


def _whole_blocks(spec: Spec, model: Model) -> Problem | None:
    block = spec.weight.block
    if block is None or spec.in_features % block[1] == 0:
        return None
    return Problem((f"in_features {spec.in_features} are no whole blocks of {block[1]}",))


def _packed_outputs(spec: Spec, model: Model) -> Problem | None:
    """Experts of 4 bits are packed along their outputs, which AWQ's kernels alone are given so."""
    if spec.weight.type != "int" or spec.weight.bits != 4 or spec.scale_dtype in (DType.F16, DType.BF16):
        return None
    return Problem((f"scales of {spec.scale_dtype}: they are kept in the model dtype",))


RULES: tuple[Rule, ...] = (
    LayerRule("QB277", loadable_names, f"{_QUARK}/schemes (create_weights)"),
    LayerRule("QB277", _scheme, f"{_QUARK}/quark.py (_get_scheme_cls_from_config)"),
    LayerRule("QB277", _gpt_oss, "vllm 0.33.0, model_executor/models/gpt_oss.py"),
    LayerRule("QB277", _whole_blocks, f"{_QUARK}/schemes/quark_w8a8_fp8.py"),
    LayerRule("QB277", _packed_outputs, f"{_QUARK}/schemes/quark_w4a16_int4.py"),
    LayerRule("QB277", groups.marlin_group, f"{_QUARK}/schemes/quark_w4a16_int4.py", groups.common_group),
    ModelRule("QB272", float8.fused_tensors(fusion.VLLM), f"{_QUARK}/schemes/quark_w8a8_fp8.py"),
)
AVOIDED = float8.AVOIDED
INPUTS = ValueRule(
    "QB222",
    unlike_parts(fusion.VLLM, "input_scale", "global_scale", "input_global_scale"),
    f"{_QUARK}/schemes (process_weights_after_loading)",
)
