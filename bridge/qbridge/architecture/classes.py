"""The model classes that qbridge knows, a row each. To add an architecture is to add a row.

`qbridge.testing.check_architecture` has the laws of a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qbridge.architecture.families import (
    DENSE,
    DSA,
    FALCON,
    GLM,
    GLM4_NORMS,
    GPT_OSS,
    MIXTRAL,
    MLA,
    NEMOTRON,
    NORMS_AFTER,
    ONE_NORM,
    PHI,
    PHI3,
    QK_NORMS,
    QWEN3_NORMS,
    SANDWICH_NORMS,
    STARCODER2,
    TWO_NORMS,
    Family,
)


@dataclass(frozen=True, slots=True)
class ModelClass:
    """What is known of a model class; modules are named by their last names.

    `split` says which linears there are and how ranks share them.
    """

    split: Family
    norms: tuple[str, ...] = TWO_NORMS  # of a layer, with weights; those of latent attention are added to them
    ends: tuple[str, ...] = ("embed_tokens", "norm")  # the embedding and the last norm
    tied: bool = False  # lm_head is the embedding unless config.json says otherwise
    biased: frozenset[str] = frozenset()  # what has a bias whatever config.json says
    biased_if: tuple[str, frozenset[str]] = ("", frozenset())  # what has one unless config.json denies it by this key
    parameters: frozenset[str] = frozenset()  # a layer's, that are no weight or bias of a module
    corrected: bool = False  # the router corrects its scores, unless topk_method says otherwise
    indexers: bool = False  # every layer chooses keys, though config.json has no indexer_types
    shared_expert: bool = False  # every sparse layer has one, without a gate, whatever config.json says
    fused_experts: bool = False  # stored in two tensors a layer, which have biases
    query_gates: bool = False  # q_proj holds a gate beside every query
    mlp_ratio: int = 0  # intermediate over hidden size where config.json has no key for it
    layers: str = "model.layers"  # the name before the numbers of layers
    attention: str = "self_attn"  # the name of a layer's attention


_NORMS_BIASED = frozenset({*TWO_NORMS, "norm"})
UNKNOWN = ModelClass(Family(frozenset(), frozenset(), gated=False))  # stands for a class that is in no row
# Rows of several classes.
_COHERE = ModelClass(DENSE, norms=ONE_NORM, tied=True)
_DEEPSEEK = ModelClass(MLA, corrected=True)
_TIED = ModelClass(DENSE, tied=True)
_OLMO2 = ModelClass(DENSE, norms=(*NORMS_AFTER, *QK_NORMS))
_GEMMA3 = ModelClass(DENSE, norms=(*SANDWICH_NORMS, *QK_NORMS), tied=True)
_GLM4 = ModelClass(GLM, norms=GLM4_NORMS)
_GLM_MOE = ModelClass(DENSE, corrected=True)
_LLAMA = ModelClass(DENSE)
_LLAMA4 = ModelClass(DENSE, shared_expert=True)
_QWEN3 = ModelClass(DENSE, norms=QWEN3_NORMS)
_QWEN3_GATED = ModelClass(DENSE, norms=QWEN3_NORMS, query_gates=True)

# transformers 5.24.0 has no tp plan for FalconForCausalLM, GptOssForCausalLM, Qwen3VLForConditionalGeneration and
# StableLmForCausalLM, none for the attention of DeepseekV3ForCausalLM and PhimoeForCausalLM, and none for q_a_proj
# and the indexers (wq_b, wk, weights_proj): those are from the module trees, split as vLLM 0.33.0 splits them
# (model_executor/models/deepseek_v2.py and others). Linear attention (linear_attn.*) is left out.
# Norms of Falcon and StableLM are as their config says, which is not modelled.
CLASSES: Mapping[str, ModelClass] = {
    "Cohere2ForCausalLM": _COHERE,
    "CohereForCausalLM": _COHERE,
    "DeepseekV2ForCausalLM": ModelClass(MLA),
    "DeepseekV32ForCausalLM": ModelClass(DSA, corrected=True, indexers=True),
    "DeepseekV3ForCausalLM": _DEEPSEEK,
    "Ernie4_5ForCausalLM": _TIED,
    "Ernie4_5_MoeForCausalLM": _TIED,
    "Exaone4ForCausalLM": _OLMO2,
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
    "Gemma2ForCausalLM": ModelClass(DENSE, norms=SANDWICH_NORMS, tied=True),
    "Gemma3ForCausalLM": _GEMMA3,
    "Gemma3ForConditionalGeneration": _GEMMA3,
    "GemmaForCausalLM": _TIED,
    "Glm4ForCausalLM": _GLM4,
    "Glm4MoeForCausalLM": _GLM_MOE,
    "Glm4MoeLiteForCausalLM": _DEEPSEEK,
    "Glm4vForConditionalGeneration": _GLM4,
    "Glm4vMoeForConditionalGeneration": _GLM_MOE,
    "GlmForCausalLM": ModelClass(GLM),
    "GlmMoeDsaForCausalLM": ModelClass(DSA, corrected=True),
    "GptOssForCausalLM": ModelClass(
        GPT_OSS,
        biased=frozenset({"router"}),
        biased_if=("attention_bias", frozenset({"q_proj", "k_proj", "v_proj", "o_proj"})),
        parameters=frozenset({"sinks"}),
        fused_experts=True,
    ),
    "GraniteForCausalLM": _LLAMA,
    "InternVLForConditionalGeneration": _TIED,
    "Llama4ForCausalLM": _LLAMA4,
    "Llama4ForConditionalGeneration": _LLAMA4,
    "LlamaForCausalLM": _LLAMA,
    "LlavaForConditionalGeneration": _LLAMA,
    "LlavaNextForConditionalGeneration": _LLAMA,
    "MiniMaxM2ForCausalLM": ModelClass(MIXTRAL, norms=QWEN3_NORMS),
    "Ministral3ForCausalLM": _LLAMA,
    "MinistralForCausalLM": _LLAMA,
    "Mistral3ForConditionalGeneration": _TIED,
    "MistralForCausalLM": _LLAMA,
    "MixtralForCausalLM": ModelClass(MIXTRAL),
    "NemotronForCausalLM": ModelClass(NEMOTRON, biased=_NORMS_BIASED),
    "Olmo2ForCausalLM": _OLMO2,
    "Olmo3ForCausalLM": _OLMO2,
    "OlmoForCausalLM": ModelClass(DENSE, norms=(), ends=("embed_tokens",)),
    "OlmoeForCausalLM": _QWEN3,
    "Phi3ForCausalLM": ModelClass(PHI3),
    "PhiForCausalLM": ModelClass(
        PHI,
        norms=ONE_NORM,
        ends=("embed_tokens", "final_layernorm"),
        biased=frozenset({"q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2", "input_layernorm"})
        | {"final_layernorm", "lm_head"},
    ),
    "PhimoeForCausalLM": ModelClass(MIXTRAL, biased=_NORMS_BIASED),
    "Qwen2ForCausalLM": _LLAMA,
    "Qwen2MoeForCausalLM": _LLAMA,
    "Qwen2VLForConditionalGeneration": _LLAMA,
    "Qwen2_5_VLForConditionalGeneration": _LLAMA,
    "Qwen3ForCausalLM": _QWEN3,
    "Qwen3MoeForCausalLM": _QWEN3,
    "Qwen3NextForCausalLM": _QWEN3_GATED,
    "Qwen3VLForConditionalGeneration": _QWEN3,
    "Qwen3VLMoeForConditionalGeneration": _QWEN3,
    "Qwen3_5ForCausalLM": _QWEN3_GATED,
    "Qwen3_5ForConditionalGeneration": _QWEN3_GATED,
    "Qwen3_5MoeForCausalLM": _QWEN3_GATED,
    "Qwen3_5MoeForConditionalGeneration": _QWEN3_GATED,
    "SeedOssForCausalLM": _LLAMA,
    "SmolLM3ForCausalLM": _TIED,
    "StableLmForCausalLM": ModelClass(DENSE, norms=ONE_NORM),
    "Starcoder2ForCausalLM": ModelClass(
        STARCODER2, tied=True, biased=_NORMS_BIASED, biased_if=("use_bias", STARCODER2.columns | STARCODER2.rows)
    ),
}
# Published with adapters that are not merged, which engines know (vllm 0.33.0, model_executor/models/phi4mm.py).
ADAPTED = frozenset({"Phi4MMForCausalLM", "Phi4MultimodalForCausalLM"})
