"""How the loaders of vLLM's classes take unquantized experts.

Source: vllm 0.33.0, model_executor/layers/fused_moe/routed_experts.py (load_weights, build_expert_params_mapping) for
all classes but those whose own load_weights knows single experts alone.
"""

from __future__ import annotations

from qbridge.architecture.architecture import Architecture
from qbridge.architecture.experts import LEAVES, SEPARATE, SINGLE, leaves_of, lies_of
from qbridge.ir.model import Model

# model_executor/models: deepseek_v2.py, kimi_k25.py, kimi_vl.py, glm4_moe_lite.py, longcat_flash.py, mimo_v2.py.
_SINGLE_ONLY = frozenset(
    {
        *("DeepseekForCausalLM", "DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM", "DeepseekV32ForCausalLM"),
        *("Glm4MoeLiteForCausalLM", "GlmMoeDsaForCausalLM", "KimiK25ForConditionalGeneration"),
        *("KimiVLForConditionalGeneration", "LongcatFlashForCausalLM", "MiMoV2FlashForCausalLM"),
    }
)


def knows_single_alone(model: Model) -> bool:
    """Whether the loader of a model's class takes no tensors that experts share, or those of other names (w13)."""
    return model.architecture in _SINGLE_ONLY or leaves_of(Architecture.of_model(model)) != LEAVES


def arrange(model: Model, lies: str) -> str:
    """SEPARATE for experts that lie as the loader does not take them; single ones it takes of every class."""
    if lies == SINGLE:
        return ""
    taken = lies == lies_of(Architecture.of_model(model).fused_experts)
    return "" if taken and not knows_single_alone(model) else SEPARATE
