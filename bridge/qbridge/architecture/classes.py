"""The model classes, a row each; add a row to add an architecture (laws: `qbridge.testing.check_architecture`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from qbridge.architecture.families import (
    BAICHUAN,
    BAILING,
    CHATGLM,
    CROSS_ATTENTION,
    DEEPSEEK_V4,
    DENSE,
    DSA,
    EXAONE,
    FALCON,
    GLM,
    GLM4_NORMS,
    GPT_OSS,
    GPTJ,
    GRANITE_MOE,
    HUNYUAN_NORMS,
    INTERNLM2,
    LFM2,
    LFM2_NORMS,
    MAMBA1,
    MAMBA2,
    MAMBA2_ALONE,
    MAMBA2_BESIDE,
    MIXTRAL,
    MLA,
    MPT,
    NEMOTRON,
    NORMS_AFTER,
    ONE_NORM,
    OPT,
    PHI,
    PHI3,
    QK_NORMS,
    QWEN,
    QWEN3_NORMS,
    SANDWICH_NORMS,
    SHORT_CONV,
    STARCODER2,
    TWO_NORMS,
)
from qbridge.architecture.model_class import FusedExperts, ModelClass

_NORMS_BIASED = frozenset({*TWO_NORMS, "norm"})
# Rows of several classes.
_LLAMA = ModelClass(DENSE)
_TIED = ModelClass(DENSE, tied=True)
_COHERE = ModelClass(DENSE, norms=ONE_NORM, tied=True)
_DEEPSEEK = ModelClass(MLA, corrected=True)
_OLMO2 = ModelClass(DENSE, norms=(*NORMS_AFTER, *QK_NORMS))
_GEMMA3 = ModelClass(DENSE, norms=(*SANDWICH_NORMS, *QK_NORMS), tied=True)
_GLM4 = ModelClass(GLM, norms=GLM4_NORMS)
_GLM_MOE = ModelClass(DENSE, corrected=True)
_COLUMNS, _APART = FusedExperts(transposed=True), FusedExperts(apart=True)
_LLAMA4 = ModelClass(DENSE, shared_expert=True, fused_experts=_COLUMNS)
_QWEN3 = ModelClass(DENSE, norms=QWEN3_NORMS)
_QWEN3_GATED = ModelClass(DENSE, norms=QWEN3_NORMS, query_gates=True)
_PHIMOE = ModelClass(MIXTRAL, biased=_NORMS_BIASED, mlp="block_sparse_moe", sparse=True)
# Per-layer inputs (Gemma 3n and E models of Gemma 4), and experts beside the MLP, stand where config.json says so.
_GEMMA4 = ModelClass(
    DENSE,
    norms=(*SANDWICH_NORMS, *QK_NORMS),
    tied=True,
    optional=frozenset({"per_layer_input_gate", "per_layer_projection", "proj"}),
    judged=False,
    fused_experts=FusedExperts(),
)
_GRANITE_MOE = ModelClass(
    GRANITE_MOE,
    tied=True,
    mlp="shared_mlp",
    expert_block=frozenset(
        {f"block_sparse_moe.{name}" for name in ("input_linear", "output_linear", "router.layer")}
    ),
    mixers=(MAMBA2,),
)
_LFM2 = ModelClass(
    LFM2,
    norms=LFM2_NORMS,
    ends=("embed_tokens", "embedding_norm"),
    tied=True,
    mlp="feed_forward",
    mixers=(SHORT_CONV,),
)
_BAILING = ModelClass(BAILING, ends=("word_embeddings", "norm"), attention="attention")
_CHATGLM = ModelClass(
    CHATGLM,
    ends=("final_layernorm",),  # the embedding stands outside, in transformer.embedding
    biased_if=("add_qkv_bias", frozenset({"query_key_value"})),
    layers="transformer.encoder.layers",
    attention="self_attention",
    head="output_layer",
)
_BAICHUAN = ModelClass(BAICHUAN)
_MIMO_V2 = ModelClass(DENSE, corrected=True, assumed=False)  # heads of its own in sliding attention
_OMNI = replace(_LLAMA, layers="thinker.model.layers")
_NEMOTRON_H = ModelClass(
    NEMOTRON,
    norms=("norm",),
    ends=("embeddings", "norm_f"),
    corrected=True,
    layers="backbone.layers",
    attention="mixer",
    mlp="mixer",
    mixers=(MAMBA2_ALONE,),
    one_block=True,
    optional=frozenset({"fc1_latent_proj", "fc2_latent_proj"}),
)
_STEP3 = replace(_QWEN3, optional=frozenset({"g_proj"}), judged=False, shards=False, fused_experts=_APART)

_MPT = ModelClass(
    MPT,
    norms=("norm_1", "norm_2"),
    ends=("wte", "norm_f"),
    tied=True,
    mlp_ratio=4,
    layers="transformer.blocks",
    attention="attn",
    mlp="ffn",
    shards=False,
)
_WHISPER_NORMS = ("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm")
_WHISPER = ModelClass(
    OPT,
    norms=_WHISPER_NORMS,
    ends=("embed_tokens", "embed_positions", "layer_norm"),
    tied=True,
    biased=frozenset({*_WHISPER_NORMS, "layer_norm", "q_proj", "v_proj", "out_proj", "fc1", "fc2"}),
    layers="model.decoder.layers",
    mlp="",
    assumed=False,
    encoder="model.encoder.layers",
    modules=frozenset({f"encoder_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj")}),
)
# Two blocks of attention and two MLPs in a layer, beside the experts.
_LONGCAT = frozenset(
    {f"self_attn.{n}.{name}" for n in (0, 1) for name in (*MLA.whole, "q_b_proj", "kv_b_proj", "o_proj")}
    | {f"self_attn.{n}.{name}" for n in (0, 1) for name in ("q_a_layernorm", "kv_a_layernorm")}
    | {f"mlps.{n}.{name}" for n in (0, 1) for name in ("gate_proj", "up_proj", "down_proj")}
    | {f"{norm}.{n}" for n in (0, 1) for norm in TWO_NORMS}
)

# transformers 5.24.0 has no tp plan for Bloom, Falcon, GPT-OSS, GraniteMoe's attention, HunYuan, LFM2, Qwen3-VL and
# StableLM, none for the attention of DeepSeek-V3 and Phi-MoE, and none for q_a_proj and the indexers (wq_b, wk,
# weights_proj): those are from the module trees, split as vLLM 0.33.0 splits them (model_executor/models). Classes
# that it has not are from vLLM's model files, and Baichuan and QWen from lmdeploy 0.6.2, pytorch/models.
# Norms of Falcon and StableLM are as their config says, which is not modelled.
CLASSES: Mapping[str, ModelClass] = {
    "AfmoeForCausalLM": ModelClass(
        DENSE,
        norms=(*TWO_NORMS, "pre_mlp_layernorm", "post_mlp_layernorm", *QK_NORMS),
        modules=frozenset({"self_attn.gate_proj"}),
    ),
    "ApertusForCausalLM": ModelClass(
        NEMOTRON,
        norms=("attention_layernorm", "feedforward_layernorm", *QK_NORMS),
        modules=frozenset({"mlp.act_fn.alpha_p", "mlp.act_fn.alpha_n"}),
    ),
    "ArceeForCausalLM": ModelClass(NEMOTRON),
    "BaiChuanForCausalLM": _BAICHUAN,
    "BaichuanForCausalLM": _BAICHUAN,
    "BailingMoeForCausalLM": _BAILING,
    "BailingMoeV2ForCausalLM": replace(_BAILING, norms=HUNYUAN_NORMS),
    "BloomForCausalLM": ModelClass(
        FALCON,
        ends=("word_embeddings", "word_embeddings_layernorm", "ln_f"),
        tied=True,
        biased=FALCON.columns | FALCON.rows | {*TWO_NORMS, "word_embeddings_layernorm", "ln_f"},
        mlp_ratio=4,
        layers="transformer.h",
        attention="self_attention",
    ),
    "ChatGLMForConditionalGeneration": _CHATGLM,
    "ChatGLMModel": _CHATGLM,
    "Cohere2ForCausalLM": _COHERE,
    "Cohere2MoeForCausalLM": _COHERE,
    "Cohere2VisionForConditionalGeneration": _COHERE,
    "CohereForCausalLM": _COHERE,
    "CwmForCausalLM": _LLAMA,
    "DeciLMForCausalLM": replace(_LLAMA, judged=False),  # every layer has heads and sizes of its own, or no attention
    "DeepseekForCausalLM": _LLAMA,
    "DeepseekV2ForCausalLM": ModelClass(MLA),
    "DeepseekV32ForCausalLM": ModelClass(DSA, corrected=True, indexers=True),
    "DeepseekV3ForCausalLM": _DEEPSEEK,
    "DeepseekV4ForCausalLM": ModelClass(DEEPSEEK_V4, float4_experts=True, judged=False, shards=False, head="head"),
    "Dots1ForCausalLM": replace(_QWEN3, corrected=True),
    "Ernie4_5ForCausalLM": _TIED,
    "Ernie4_5_MoeForCausalLM": _TIED,
    "Exaone4ForCausalLM": _OLMO2,
    "Exaone4_5_ForConditionalGeneration": _OLMO2,
    "ExaoneForCausalLM": ModelClass(
        EXAONE, norms=("ln_1", "ln_2"), ends=("wte", "ln_f"), layers="transformer.h", attention="attn.attention"
    ),
    "ExaoneMoeForCausalLM": replace(_QWEN3, corrected=True),
    "FalconForCausalLM": ModelClass(
        FALCON,
        norms=(),
        ends=("word_embeddings", "ln_f"),
        tied=True,
        biased=frozenset({"input_layernorm", "ln_attn", "ln_mlp", "ln_f"}),
        mlp_ratio=4,  # transformers 5.24.0, configuration_falcon.py
        layers="transformer.h",
        attention="self_attention",
    ),
    "FalconH1ForCausalLM": ModelClass(
        DENSE,
        norms=("input_layernorm", "pre_ff_layernorm"),
        ends=("embed_tokens", "final_layernorm"),
        mlp="feed_forward",
        mixers=(MAMBA2_BESIDE,),
    ),
    "FlexOlmoForCausalLM": replace(_OLMO2, sparse=True),
    "GPTJForCausalLM": ModelClass(
        GPTJ,
        norms=("ln_1",),
        ends=("wte", "ln_f"),
        biased=frozenset({"fc_in", "fc_out", "ln_1", "ln_f", "lm_head"}),
        mlp_ratio=4,
        layers="transformer.h",
        attention="attn",
    ),
    "GPTNeoXForCausalLM": ModelClass(
        FALCON,
        ends=("embed_in", "final_layer_norm"),
        biased=frozenset({*TWO_NORMS, "final_layer_norm", "dense_h_to_4h", "dense_4h_to_h"}),
        biased_if=("attention_bias", frozenset({"query_key_value", "dense"})),
        layers="gpt_neox.layers",
        attention="attention",
        head="embed_out",
    ),
    "Gemma2ForCausalLM": ModelClass(DENSE, norms=SANDWICH_NORMS, tied=True),
    "Gemma3ForCausalLM": _GEMMA3,
    "Gemma3ForConditionalGeneration": _GEMMA3,
    "Gemma3nForCausalLM": _GEMMA4,
    "Gemma3nForConditionalGeneration": _GEMMA4,
    "Gemma4ForCausalLM": _GEMMA4,
    "Gemma4ForConditionalGeneration": _GEMMA4,
    "GemmaForCausalLM": _TIED,
    "Glm46VForConditionalGeneration": _GLM4,
    "Glm4ForCausalLM": _GLM4,
    "Glm4MoeForCausalLM": _GLM_MOE,
    "Glm4MoeLiteForCausalLM": _DEEPSEEK,
    "Glm4vForConditionalGeneration": _GLM4,
    "Glm4vMoeForConditionalGeneration": _GLM_MOE,
    "GlmForCausalLM": ModelClass(GLM),
    "GlmMoeDsaForCausalLM": ModelClass(DSA, corrected=True),
    "GlmOcrForConditionalGeneration": _GLM4,
    "GptOssForCausalLM": ModelClass(
        GPT_OSS,
        biased=frozenset({"router"}),
        biased_if=("attention_bias", frozenset({"q_proj", "k_proj", "v_proj", "o_proj"})),
        parameters=frozenset({"sinks"}),
        fused_experts=FusedExperts(transposed=True, interleaved=True, biased=True),
    ),
    "GraniteForCausalLM": _LLAMA,
    "GraniteMoeForCausalLM": _GRANITE_MOE,
    "GraniteMoeHybridForCausalLM": _GRANITE_MOE,
    "GraniteMoeSharedForCausalLM": _GRANITE_MOE,
    "HeliumForCausalLM": _LLAMA,
    "HunYuanDenseV1ForCausalLM": ModelClass(DENSE, norms=HUNYUAN_NORMS, shards=False),
    "HunYuanMoEV1ForCausalLM": ModelClass(
        DENSE,
        norms=HUNYUAN_NORMS,
        sparse=True,
        modules=frozenset({f"mlp.shared_mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")}),
        shards=False,
        assumed=False,
    ),
    "HyperCLOVAXForCausalLM": _LLAMA,
    "Idefics3ForConditionalGeneration": _LLAMA,
    "InternLM2ForCausalLM": ModelClass(
        INTERNLM2,
        norms=("attention_norm", "ffn_norm"),
        ends=("tok_embeddings", "norm"),
        attention="attention",
        mlp="feed_forward",
        head="output",
    ),
    "InternLM3ForCausalLM": _LLAMA,
    "InternVLForConditionalGeneration": _TIED,
    "JambaForCausalLM": ModelClass(
        DENSE,
        norms=("input_layernorm", "pre_ff_layernorm"),
        ends=("embed_tokens", "final_layernorm"),
        mlp="feed_forward",
        mixers=(MAMBA1,),
    ),
    "KimiK25ForConditionalGeneration": _DEEPSEEK,
    "KimiVLForConditionalGeneration": _DEEPSEEK,
    "Kimi_K25ForConditionalGeneration": _DEEPSEEK,
    "Lfm2ForCausalLM": _LFM2,
    "Lfm2MoeForCausalLM": _LFM2,
    "Lfm2VlForConditionalGeneration": _LFM2,
    "LightOnOcrForConditionalGeneration": _QWEN3,
    "Llama4ForCausalLM": _LLAMA4,
    "Llama4ForConditionalGeneration": _LLAMA4,
    "LlamaForCausalLM": _LLAMA,
    "LlavaForConditionalGeneration": _LLAMA,
    "LlavaNextForConditionalGeneration": _LLAMA,
    "LlavaNextVideoForConditionalGeneration": _LLAMA,
    "LlavaOnevisionForConditionalGeneration": _LLAMA,
    "LongcatFlashForCausalLM": ModelClass(MLA, norms=(), sparse=True, modules=_LONGCAT, assumed=False),
    "MPTForCausalLM": _MPT,
    "MiMoForCausalLM": _LLAMA,
    "MiMoV2FlashForCausalLM": _MIMO_V2,
    "MiniCPM3ForCausalLM": replace(_DEEPSEEK, corrected=False, tied=True),
    "MiniCPMForCausalLM": _TIED,
    "MiniCPMO": _LLAMA,
    "MiniCPMV": _LLAMA,
    "MiniMaxM2ForCausalLM": ModelClass(MIXTRAL, norms=QWEN3_NORMS, mlp="block_sparse_moe", sparse=True),
    "Ministral3ForCausalLM": _LLAMA,
    "MinistralForCausalLM": _LLAMA,
    "Mistral3ForConditionalGeneration": _TIED,
    "MistralForCausalLM": _LLAMA,
    "MixtralForCausalLM": ModelClass(MIXTRAL, mlp="block_sparse_moe", sparse=True),
    "MllamaForConditionalGeneration": replace(_LLAMA, mixers=(CROSS_ATTENTION,), more_tokens=8),
    "MptForCausalLM": _MPT,
    "NemotronForCausalLM": ModelClass(NEMOTRON, biased=_NORMS_BIASED),
    "NemotronHForCausalLM": _NEMOTRON_H,
    "OPTForCausalLM": ModelClass(
        OPT,
        norms=("self_attn_layer_norm", "final_layer_norm"),
        ends=("embed_tokens", "embed_positions"),
        tied=True,
        biased=OPT.columns | OPT.rows | {"self_attn_layer_norm", "final_layer_norm"},
        layers="model.decoder.layers",
        mlp="",
    ),
    "Olmo2ForCausalLM": _OLMO2,
    "Olmo3ForCausalLM": _OLMO2,
    "OlmoForCausalLM": ModelClass(DENSE, norms=(), ends=("embed_tokens",)),
    "OlmoeForCausalLM": _QWEN3,
    "PaliGemmaForConditionalGeneration": _TIED,
    "Phi3ForCausalLM": ModelClass(PHI3),
    "PhiForCausalLM": ModelClass(
        PHI,
        norms=ONE_NORM,
        ends=("embed_tokens", "final_layernorm"),
        biased=frozenset({"q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2", "input_layernorm"})
        | {"final_layernorm", "lm_head"},
    ),
    "PhiMoEForCausalLM": _PHIMOE,
    "PhimoeForCausalLM": _PHIMOE,
    "QWenLMHeadModel": ModelClass(
        QWEN,
        norms=("ln_1", "ln_2"),
        ends=("wte", "ln_f"),
        biased=frozenset({"c_attn"}),
        mlp_share=2,
        layers="transformer.h",
        attention="attn",
    ),
    "Qwen2AudioForConditionalGeneration": _LLAMA,
    "Qwen2ForCausalLM": _LLAMA,
    "Qwen2MoeForCausalLM": _LLAMA,
    "Qwen2VLForConditionalGeneration": _LLAMA,
    "Qwen2_5OmniForConditionalGeneration": _OMNI,
    "Qwen2_5OmniModel": _OMNI,
    "Qwen2_5OmniThinkerForConditionalGeneration": _LLAMA,
    "Qwen2_5_VLForConditionalGeneration": _LLAMA,
    "Qwen3ForCausalLM": _QWEN3,
    "Qwen3ForSequenceClassification": replace(_QWEN3, head="score"),
    "Qwen3MoeForCausalLM": _QWEN3,
    "Qwen3NextForCausalLM": _QWEN3_GATED,
    "Qwen3OmniMoeForConditionalGeneration": replace(_QWEN3, layers="thinker.model.layers"),
    "Qwen3OmniMoeThinkerForConditionalGeneration": _QWEN3,
    "Qwen3VLForConditionalGeneration": _QWEN3,
    "Qwen3VLMoeForConditionalGeneration": replace(_QWEN3, fused_experts=_COLUMNS),
    "Qwen3_5ForCausalLM": _QWEN3_GATED,
    "Qwen3_5ForConditionalGeneration": _QWEN3_GATED,
    "Qwen3_5MoeForCausalLM": _QWEN3_GATED,
    "Qwen3_5MoeForConditionalGeneration": _QWEN3_GATED,
    "SeedOssForCausalLM": _LLAMA,
    "SmolLM3ForCausalLM": _TIED,
    "SmolVLMForConditionalGeneration": _LLAMA,
    "SolarForCausalLM": _LLAMA,
    "SolarOpenForCausalLM": _GLM_MOE,
    "StableLmForCausalLM": ModelClass(DENSE, norms=ONE_NORM),
    "Starcoder2ForCausalLM": ModelClass(
        STARCODER2, tied=True, biased=_NORMS_BIASED, biased_if=("use_bias", STARCODER2.columns | STARCODER2.rows)
    ),
    "Step3p5ForCausalLM": _STEP3,
    "Step3p7ForConditionalGeneration": _STEP3,
    "VaultGemmaForCausalLM": ModelClass(DENSE, norms=("input_layernorm", "pre_feedforward_layernorm"), tied=True),
    "VoxtralForConditionalGeneration": _LLAMA,
    "WhisperForConditionalGeneration": _WHISPER,
}
