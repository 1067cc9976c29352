"""The linears that vLLM builds as one: `packed_modules_mapping` and `stacked_params_mapping` of its model classes."""

from __future__ import annotations

from qbridge.architecture.names import FUSED
from qbridge.targets.fusion import Fusion


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Experts of any class: vllm 0.33.0, model_executor/layers/fused_moe (ckpt_gate_proj_name, ckpt_up_proj_name); dense
# ones: model_executor/models/lfm2.py, lfm2_moe.py, internlm2.py. Releases of 2024 had both.
_ANY = {**FUSED, "w13": ("w1", "w3")}
_EXAONE = (_words("ExaoneForCausalLM"), {"gate_up_proj": ("c_fc_0", "c_fc_1")})  # model_executor/models/exaone.py

VLLM_054 = Fusion(_ANY, (_EXAONE,))
VLLM = Fusion(
    _ANY,
    (
        _EXAONE,
        # vllm 0.33.0, model_executor/models/deepseek_v2.py, AXK1.py, glm4_moe_lite.py, openpangu.py,
        # bailing_moe_linear.py, bailing_moe_v3.py, longcat_flash.py; models/deepseek_v32, dots3_note, hy_v4, kimi_k3;
        # and what holds a DeepSeek: deepseek_vl2.py, kimi_vl.py, kimi_k25.py, mistral_large_3.py. Not of glm5next,
        # where it is always bfloat16, nor of sarvam.py.
        (
            _words("""
                DeepseekV2ForCausalLM DeepseekV3ForCausalLM DeepseekV32ForCausalLM DeepseekVLV2ForCausalLM
                AXK1ForCausalLM GlmMoeDsaForCausalLM Glm4MoeLiteForCausalLM KimiVLForConditionalGeneration
                KimiK25ForConditionalGeneration KimiK3ForConditionalGeneration MistralLarge3ForCausalLM
                PanguEmbeddedForCausalLM PanguProMoEV2ForCausalLM PanguUltraMoEForCausalLM BailingMoeV2_5ForCausalLM
                BailingMoeV3ForCausalLM BailingMoeV3VLForConditionalGeneration LongcatFlashForCausalLM
                LongcatFlashNgramForCausalLM Dots3NoteForCausalLM HYV4ForCausalLM
            """),
            {"fused_qkv_a_proj": ("q_a_proj", "kv_a_proj_with_mqa")},
        ),
        # vllm 0.33.0, model_executor/models/qwen3_5.py, minicpmv4_6.py, interns2_preview.py, interns2_mobius.py;
        # models/qwen4_exp. The checkpoints of Qwen3-Next have them as one already.
        (
            _words("""
                Qwen3_5ForCausalLM Qwen3_5MoeForCausalLM Qwen3_5ForConditionalGeneration
                Qwen3_5MoeForConditionalGeneration MiniCPMV4_6ForConditionalGeneration
                InternS2PreviewForConditionalGeneration InternS2MobiusForConditionalGeneration Qwen4ExpForCausalLM
                Qwen4ExpForConditionalGeneration
            """),
            {"in_proj_qkvz": ("in_proj_qkv", "in_proj_z"), "in_proj_ba": ("in_proj_b", "in_proj_a")},
        ),
        # vllm 0.33.0, model_executor/models/olmo_hybrid.py, k2_horizon.py, bailing_moe_v3.py, alice_ai.py;
        # models/kimi_k3
        (_words("OlmoHybridForCausalLM"), {"in_proj_qkvg": ("q_proj", "k_proj", "v_proj", "g_proj")}),
        (_words("K2HorizonForCausalLM"), {"qk_proj": ("q_proj", "k_proj")}),
        (
            _words("BailingMoeV3ForCausalLM BailingMoeV3VLForConditionalGeneration"),
            {"qkvb_proj": ("q_proj", "k_proj", "v_proj", "b_proj")},
        ),
        (
            _words("AliceAIForCausalLM KimiK3ForConditionalGeneration"),
            {"in_proj_qkvgfab": ("q_proj", "k_proj", "v_proj", "b_proj", "f_a_proj")},
        ),
    ),
)
