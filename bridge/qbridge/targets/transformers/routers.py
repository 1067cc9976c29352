"""Routers that transformers builds as a matrix of their own, which no quantization replaces.

Source: transformers 5.17.0 and 5.24.0, models/*/modeling_*.py: classes named ...TopKRouter or ...TopkRouter, whose
`weight` is an nn.Parameter; their model has no nn.Linear of the router's name.
"""

from __future__ import annotations

from qbridge.architecture.architecture import Architecture
from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.targets.unquantized import built_unquantized

CLASSES = frozenset(
    [
        "AXK1ForCausalLM",
        "Cohere2MoeForCausalLM",
        "DeepseekV2ForCausalLM",
        "DeepseekV3ForCausalLM",
        "DeepseekV32ForCausalLM",
        "Dots1ForCausalLM",
        "Ernie4_5_MoeForCausalLM",
        "ExaoneMoeForCausalLM",
        "FlexOlmoForCausalLM",
        "Glm4MoeForCausalLM",
        "Glm4MoeLiteForCausalLM",
        "Glm4vMoeForConditionalGeneration",
        "GlmMoeDsaForCausalLM",
        "GptOssForCausalLM",
        "HYV3ForCausalLM",
        "KimiLinearForCausalLM",
        "Lfm2MoeForCausalLM",
        "MiMoV2FlashForCausalLM",
        "MiniMaxForCausalLM",
        "MiniMaxM2ForCausalLM",
        "MixtralForCausalLM",
        "NemotronHForCausalLM",
        "OlmoeForCausalLM",
        "Qwen2MoeForCausalLM",
        "Qwen3MoeForCausalLM",
        "Qwen3NextForCausalLM",
        "Qwen3VLMoeForConditionalGeneration",
        "Qwen3_5MoeForCausalLM",
        "Qwen3_5MoeForConditionalGeneration",
    ]
)
_LEAVES = ("gate", "router")  # the gate of a shared expert is a Linear


def _built_unquantized(spec: Spec, model: Model) -> str:
    router = spec.name.rpartition(".")[2] in _LEAVES and Architecture.of_model(model).is_decoder(spec.name)
    if model.architecture not in CLASSES or not router:
        return ""
    return f"the routers of {model.architecture} are no Linear, so transformers builds them unquantized"


RULE = built_unquantized(_built_unquantized, "transformers 5.24.0, models/*/modeling_*.py (TopKRouter)", DType.F32)
