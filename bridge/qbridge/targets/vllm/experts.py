"""How the loaders of vLLM's classes take experts: unquantized ones, and quantized ones that share tensors.

Source: vllm 0.33.0, model_executor/layers/fused_moe/routed_experts.py (load_weights, build_expert_params_mapping) for
all classes but those whose own load_weights knows single experts alone; models/llama4.py (load_moe_expert_weights),
mllama4.py (_rename_weight_for_modelopt_checkpoint, load_weights) and step3p5.py.
"""

from __future__ import annotations

from qbridge.architecture.architecture import Architecture
from qbridge.architecture.experts import LEAVES, SEPARATE, SINGLE, leaves_of, lies_of
from qbridge.formats.rules import Problem
from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.targets.common import stacked

# model_executor/models: deepseek_v2.py, kimi_k25.py, kimi_vl.py, glm4_moe_lite.py, longcat_flash.py, mimo_v2.py.
_SINGLE_ONLY = frozenset(
    {
        *("DeepseekForCausalLM", "DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM", "DeepseekV32ForCausalLM"),
        *("Glm4MoeLiteForCausalLM", "GlmMoeDsaForCausalLM", "KimiK25ForConditionalGeneration"),
        *("KimiVLForConditionalGeneration", "LongcatFlashForCausalLM", "MiMoV2FlashForCausalLM"),
    }
)


RENAMES = frozenset({"MixtralForCausalLM"})  # models/mixtral.py (hf_to_vllm_mapper)


def knows_single_alone(model: Model) -> bool:
    """Whether the loader of a model's class takes no tensors that experts share, or those of other names (w13)."""
    return model.architecture in _SINGLE_ONLY or leaves_of(Architecture.of_model(model)) != LEAVES


def arrange(model: Model, lies: str) -> str:
    """SEPARATE for experts that lie as the loader does not take them; single ones it takes of every class."""
    if lies == SINGLE:
        return ""
    taken = lies == lies_of(Architecture.of_model(model).fused_experts)
    return "" if taken and not knows_single_alone(model) else SEPARATE


# What the loaders of classes take of quantized experts that share tensors.
_STACKED = {
    **dict.fromkeys(("Llama4ForCausalLM", "Llama4ForConditionalGeneration"), "columns"),
    **dict.fromkeys(("Step3p5ForCausalLM", "Step3p7ForConditionalGeneration"), "apart"),
}
# Classes that give the parts of ModelOpt's stacks their parameters' names; others put `w13_weight` before the rest.
_MODELOPT = frozenset({"Llama4ForConditionalGeneration"})


def stacks(spec: Spec, model: Model) -> Problem | None:
    """Quantized experts that share tensors as the loader of the class does not take them, or under other names."""
    lies, taken = stacked(spec), _STACKED.get(model.architecture or "")
    if not lies or taken == lies == "apart":
        return None
    if lies != taken:
        fact = f"experts share a tensor by {lies}, which the loader of {model.architecture} does not take"
        return Problem((fact,))
    if wrong := [name for name in _parts(spec) if not _is_parameter(*name, spec, model)]:
        part, ending, _ = wrong[0]
        fact = f"the loader of {model.architecture} has no parameter for {part} that is stored as <experts>.*{ending}"
        return Problem((fact,))
    return None


def _parts(spec: Spec) -> list[tuple[str, str, bool]]:
    """(part, what its tensor's name ends in, whether it is one number) of a stack, as the dialect keeps them."""
    found = []
    for key, value in spec.dialect:
        ending, colon, shape = value.partition(":")
        if key.startswith("experts.") and colon:
            found.append((key.partition(".")[2], ending, set(shape.split("x")) <= {"", "1"}))
    return found


def _is_parameter(part: str, ending: str, one: bool, spec: Spec, model: Model) -> bool:
    """Whether a part of a stack by columns gets to a parameter, in its shape."""
    if ending == part.removeprefix("weight") and part != "input_scale":
        return True
    if model.architecture not in _MODELOPT or part not in ("weight_scale", "weight_scale_2", "input_scale"):
        return False
    return ending == f"_{part}" and (one or (part == "weight_scale" and spec.scale_dtype is DType.F8_E4M3))
