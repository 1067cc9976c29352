"""The model classes of LMDeploy's engines, and how it picks one.

Sources: lmdeploy 0.18.0 and 0.6.2, pytorch/models/module_map.py and patch.py; 0.18.0, turbomind/supported_models.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def classes(names: str) -> frozenset[str]:
    """Model classes, as config.json names them under architectures."""
    return frozenset(names.split())


# Classes that a checkpoint of quantized linears can be for (pytorch/models/module_map.py).
_BOTH = classes("""
    ChatGLMForConditionalGeneration CogVLMForCausalLM DeepseekForCausalLM DeepseekV2ForCausalLM Gemma2ForCausalLM
    GemmaForCausalLM InternLM2ForCausalLM InternVLChatModel LlamaForCausalLM LlavaForConditionalGeneration
    LlavaNextForConditionalGeneration MiniCPM3ForCausalLM MistralForCausalLM MixtralForCausalLM Phi3ForCausalLM
    Phi3VForCausalLM PhiMoEForCausalLM Qwen2ForCausalLM Qwen2MoeForCausalLM Qwen2VLForConditionalGeneration
""")
# Of 0.18.0, pytorch/models/module_map.py (REMOVED_MODEL_MAP): an error of its own.
REMOVED = classes("""
    BaiChuanForCausalLM BaichuanForCausalLM InternLM2VEForCausalLM InternLMForCausalLM MllamaForConditionalGeneration
    QWenLMHeadModel Starcoder2ForCausalLM
""")
ARCHITECTURES = {
    "0.6.2": _BOTH
    | classes("""
        BaichuanForCausalLM DbrxForCausalLM FalconForCausalLM InternLMForCausalLM LlavaLlamaForCausalLM
        LlavaMistralForCausalLM MllamaForConditionalGeneration QWenLMHeadModel Starcoder2ForCausalLM
    """),
    "0.18.0": _BOTH
    | classes("""
        DeepseekV32ForCausalLM DeepseekV3ForCausalLM DeepseekV4ForCausalLM DeepseekVLV2ForCausalLM
        Gemma3ForCausalLM Gemma3ForConditionalGeneration Glm4ForCausalLM Glm4MoeForCausalLM
        Glm4MoeLiteForCausalLM Glm4vForConditionalGeneration GlmMoeDsaForCausalLM GptOssForCausalLM
        HYV3ForCausalLM InternLM2ForRewardModel InternLM3ForCausalLM InternS1ForConditionalGeneration
        InternS1ProForConditionalGeneration InternS1_1_ForConditionalGeneration InternS2MobiusForCausalLM
        InternS2MobiusForConditionalGeneration InternS2PreviewForCausalLM InternS2PreviewForConditionalGeneration
        InternVLForConditionalGeneration KimiK25ForConditionalGeneration Kimi_K25ForConditionalGeneration
        Llama4ForConditionalGeneration MetaMoeForConditionalGeneration MiniCPMV Qwen2ForRewardModel
        Qwen2_5_VLForConditionalGeneration Qwen3ForCausalLM Qwen3MoeForCausalLM Qwen3NextForCausalLM
        Qwen3OmniMoeForConditionalGeneration Qwen3VLForConditionalGeneration Qwen3VLMoeForConditionalGeneration
        Qwen3_5ForConditionalGeneration Qwen3_5MoeForConditionalGeneration SDARForCausalLM SDARMoeForCausalLM
    """),
}

# Of 0.18.0, turbomind/supported_models.py (SUPPORTED_ARCHS).
TURBOMIND_ARCHITECTURES = classes("""
    Glm4MoeLiteForCausalLM GptOssForCausalLM InternLM2ForCausalLM InternLM3ForCausalLM
    InternS1ForConditionalGeneration InternS2MobiusForConditionalGeneration
    InternS2PreviewForConditionalGeneration InternVLChatModel InternVLForConditionalGeneration LlamaForCausalLM
    MixtralForCausalLM Qwen2ForCausalLM Qwen2MoeForCausalLM Qwen2VLForConditionalGeneration
    Qwen2_5_VLForConditionalGeneration Qwen3ForCausalLM Qwen3MoeForCausalLM Qwen3_5ForConditionalGeneration
    Qwen3_5MoeForConditionalGeneration
""")
# Classes of 0.18.0 that hand their modules a name, so that modules_to_not_convert is consulted (grep for add_prefix).
PREFIXED = classes(
    "Qwen3ForCausalLM Qwen3MoeForCausalLM Qwen3VLForConditionalGeneration Qwen3VLMoeForConditionalGeneration"
)
# Classes of 0.18.0 whose text model is built from text_config, which pytorch/configurations gives no block for them.
WITHOUT_BLOCK = classes(
    "Gemma3ForConditionalGeneration LlavaForConditionalGeneration LlavaNextForConditionalGeneration"
)


# Classes of 0.18.0 with a text_config of a type that transformers 4.57.6 does not know.
NEWER = classes("Qwen3_5ForConditionalGeneration Qwen3_5MoeForConditionalGeneration")


def class_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The model classes that it looks for: that of remote code, if config.json names one, or any of architectures.

    Source: lmdeploy 0.18.0, pytorch/models/patch.py (_get_model_class).
    """
    remote, names = config.get("auto_map"), config.get("architectures")
    if isinstance(remote, dict) and isinstance(named := remote.get("AutoModelForCausalLM"), str):
        return (named.rpartition(".")[2],)
    return tuple(str(name) for name in names) if isinstance(names, list) else ()
