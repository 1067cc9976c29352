"""What SGLang prints when it fails, and what explains it."""

from __future__ import annotations

MESSAGES = (
    (r"No compressed-tensors compatible scheme was found", "QB293"),
    (r"CompressedTensorsW4A16Sparse24\) is not supported now", "QB293"),
    (r"W[48]A8Int8 Fused MoE scheme is implemented only for NPU", "QB296"),
    (r"index 1 is out of bounds for dimension 0 with size 1", "QB295"),
    (r"weight_scale not found in params_dict", "QB294"),
    (r"is not divisible by weight quantization block_[nk]", "QB273"),
    (r"is not divisible by\s+(?:by )?min_thread_[nk]", "QB253"),
    (r"is not divisible by group_size", "QB251"),
    (r"non-Marlin GPTQ CUDA kernel has been removed", "QB298"),
    (r"Unknown quantization method: (?:gptq|fbgemm_fp8)", "QB298"),
    (r"Unsupported packing_format: auto_round", "QB298"),
    (r"only 4-bit weight quantization is supported for AWQ", "QB298"),
    (r"requires all to use the same scheme", "QB221"),
    (r"some but not all shards of .* are quantized", "QB221"),
    (
        r"Unknown quantization method: smooth_quant",
        "The checkpoint is in LMDeploy's format; qbridge convert SRC DST --to sglang writes one that SGLang reads.",
    ),
)
