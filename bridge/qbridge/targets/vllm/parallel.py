"""What a rank of vLLM can hold, by version."""

from __future__ import annotations

from dataclasses import replace

from qbridge.targets.blocks import BlockLimits
from qbridge.targets.parallel import Parallel
from qbridge.targets.vllm import fusion

_CT_REFUSES = "vLLM refuses it: Weight input_size_per_partition is not divisible by group_size"
_AWQ_REFUSES = "vLLM refuses it: The input size is not aligned with the quantized weight shape"
_BLOCKS = BlockLimits(
    "vllm 0.33.0, model_executor/layers/quantization/utils/fp8_utils.py (validate_fp8_block_shape) and "
    "model_executor/layers/linear.py",
    last_cut=True,
    whole_cut=True,  # model_executor/models/deepseek_v2.py (fused_qkv_a_proj: disable_tp)
)
_SPLIT_BLOCKS = replace(
    _BLOCKS,
    splits={"fp8": 32},
    splits_source="vllm 0.33.0, model_executor/layers/fused_moe/oracle/fp8.py (refine_fp8_moe_block_shape)",
)
_VOCABULARY = 64  # 0.33.0, 0.23.0 and 0.5.4, model_executor/layers/vocab_parallel_embedding.py (pad_vocab_size)
_STREAMS = frozenset({"compressed-tensors", "gptq"})
# model_executor/models/{cohere2_moe,ernie45_moe,exaone_moe,lfm2_moe,mimo_v2,minimax_m2,qwen2_moe,qwen3_moe}.py and
# {qwen3_next,step3p5}.py: Tensor parallel size ... is greater than the number of experts. qwen3_5.py, qwen3_vl_moe.py
# and qwen3_omni_moe_thinker.py build the experts of the Qwen classes.
_AN_EXPERT_EACH = frozenset(
    {
        *("Cohere2MoeForCausalLM", "Ernie4_5_MoeForCausalLM", "ExaoneMoeForCausalLM", "Lfm2MoeForCausalLM"),
        *("MiMoV2FlashForCausalLM", "MiniMaxM2ForCausalLM", "Step3p5ForCausalLM"),
        *("Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM", "Qwen3NextForCausalLM", "Qwen3_5MoeForCausalLM"),
        *("Qwen3_5MoeForConditionalGeneration", "Qwen3VLMoeForConditionalGeneration"),
        *("Qwen3OmniMoeForConditionalGeneration", "Qwen3OmniMoeThinkerForConditionalGeneration"),
    }
)
VLLM = Parallel(
    (128, 64, 32),
    frozenset({"compressed-tensors", "gptq"}),
    whole_channels=frozenset({"awq"}),
    whole_groups=frozenset({"mxfp4"}),  # model_executor/models/gpt_oss.py (_load_weights_mxfp4)
    an_expert_each=_AN_EXPERT_EACH,
    halves={"gptq": "vllm 0.33.0, model_executor/layers/quantization/moe_wna16.py (create_weights)"},
    straddled={
        "gptq": "vLLM 0.33: Marlin refuses it; Machete, Exllama and Humming take it and compute with scales of "
        "other groups",
        "awq": _AWQ_REFUSES,
        "compressed-tensors": _CT_REFUSES,
    },
    blocks=_SPLIT_BLOCKS,
    fused=fusion.VLLM,
    vocabulary=_VOCABULARY,
    words=_STREAMS,
    source="vllm 0.33.0, model_executor/layers/quantization/auto_gptq.py (create_weights)",
)
VLLM_023 = Parallel(
    (128, 64, 32),
    frozenset({"compressed-tensors", "gptq"}),
    whole_channels=frozenset({"awq"}),
    inputs=128,
    outputs=64,
    straddled={
        "gptq": "vLLM 0.23: Marlin refuses it (min_thread_k = 128); Machete, Humming and Exllama take it and compute "
        "with scales of other groups",
        "awq": _AWQ_REFUSES,
        "compressed-tensors": _CT_REFUSES,
    },
    blocks=_BLOCKS,
    fused=fusion.VLLM,
    vocabulary=_VOCABULARY,
    words=_STREAMS,
    source="vllm 0.23.0, model_executor/layers/quantization/utils/marlin_utils.py",
)
VLLM_054 = replace(
    VLLM_023,
    fused=fusion.VLLM_054,
    straddled={"": "vLLM 0.5.4 refuses it: not divisible by min_thread_k = 128, or by group_size"},
    source="vllm 0.5.4, model_executor/layers/quantization/utils/marlin_utils.py",
)
