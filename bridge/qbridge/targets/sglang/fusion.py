"""The linears that SGLang builds as one: `stacked_params_mapping` and `packed_modules_mapping` of its classes."""

from __future__ import annotations

from qbridge.architecture.names import FUSED
from qbridge.targets.fusion import Fusion


def words(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


# Experts of any class: sglang 0.5.23, srt/layers/moe/fused_moe_triton/layer.py (make_expert_params_mapping).
SGLANG = Fusion(
    {**FUSED, "w13": ("w1", "w3")},
    (
        # sglang 0.5.23, srt/models/deepseek_v2.py, glm4_moe_lite.py, longcat_flash.py, bailing_moe_linear.py,
        # bailing_moe_v3.py; and what holds a DeepSeek: deepseek_vl2.py, kimi_vl.py, kimi_k25.py, mistral_large_3.py
        (
            words("""
                DeepseekV2ForCausalLM DeepseekV3ForCausalLM DeepseekV32ForCausalLM DeepseekVLV2ForCausalLM
                GlmMoeDsaForCausalLM Glm4MoeLiteForCausalLM KimiVLForConditionalGeneration
                KimiK25ForConditionalGeneration MistralLarge3ForCausalLM LongcatFlashForCausalLM
                BailingMoeV2_5ForCausalLM BailingMoeV3ForCausalLM
            """),
            {"fused_qkv_a_proj_with_mqa": ("q_a_proj", "kv_a_proj_with_mqa")},
        ),
        # sglang 0.5.23, srt/models/qwen3_5.py, qwen3_5_text.py, interns2_mobius.py
        (
            words("""
                Qwen3_5ForCausalLM Qwen3_5MoeForCausalLM Qwen3_5ForConditionalGeneration
                Qwen3_5MoeForConditionalGeneration InternS2MobiusForConditionalGeneration
            """),
            {"in_proj_qkvz": ("in_proj_qkv", "in_proj_z"), "in_proj_ba": ("in_proj_b", "in_proj_a")},
        ),
    ),
)
