"""QB1xx: schemes that a format cannot be read from or written to."""

from __future__ import annotations

from qbridge.findings.catalogue.code import Code

_CT = "compressed-tensors 0.20.0, quantization/quant_config.py and quant_args.py"

ENTRIES = (
    Code(
        "QB101",
        "this scheme is recognised and not yet read",
        "The checkpoint is sound and its scheme is known by name, but this version of qbridge cannot read it.",
        "Refused rather than guessed.",
        "compressed-tensors mxfp6-pack-quantized",
        "Watch the changelog; nothing is wrong with the checkpoint.",
        "compressed-tensors 0.20.0, config/base.py (the names of format)",
    ),
    Code(
        "QB102",
        "a config key changes the mathematics",
        "A key asks the engine for work beyond weights and activations: transforms, sparsity, output quantization.",
        "Dropping it would change every result.",
        "transform_config with a Hadamard rotation",
        "There is no exact way out yet.",
        _CT,
    ),
    Code(
        "QB103",
        "unknown keys in the quantization config",
        "The quantization block has a key at its top level that no known version writes.",
        "Readers ignore it, so it is probably harmless, but it is not carried over.",
        '"my_tool_version": "3"',
        "None needed if you know the key.",
        _CT,
        severity="warning",
    ),
    Code(
        "QB104",
        "the config no longer points to copied code",
        "lmdeploy.lite 0.6.2 copies transformers' modeling file beside the weights and points auto_map to it.",
        "A stale copy would run instead of the engine's own model class, and needs trust_remote_code.",
        '"auto_map": {"AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM"}',
        "None needed; the file itself is carried over.",
        "lmdeploy 0.6.2, lite/apis/smooth_quant.py",
        severity="warning",
    ),
    Code(
        "QB110",
        "the format cannot hold this scheme",
        "The destination's layout has no place for something that the source says about a layer.",
        "Writing it anyway would lose or change values.",
        "zero-points into smooth-quant",
        "Choose another target; the facts name what stands in the way.",
        "the page of the format under docs/formats",
    ),
    Code(
        "QB111",
        "a zero-point is no code that the format can store",
        "GPTQ of version 1 stores zero-points minus 1, so that 0 has no place; 2**bits has none anywhere else.",
        "Stored modulo 2**bits it would shift every weight of its group by the whole range.",
        "a zero-point of 16 of 4 bits into AWQ",
        "For a zero-point of 0 write version 2 (--to gptq-v2) or another format; for 2**bits one with wider codes.",
        "gptqmodel 7.7.0, utils/model.py (convert_gptq_v1_to_v2_format)",
    ),
    Code(
        "QB113",
        "the format cannot say what the kv cache is",
        "The kv cache is quantized; the destination has no key for that, or wants scales that are not stored.",
        "Nobody who reads the output could claim the scales, or know the cache's.",
        "model.layers.0.self_attn.k_scale into AWQ",
        "Leave them out with --allow drop-kv-scales; weights and activations are not touched.",
        "the page of the format under docs/formats",
        allow="drop-kv-scales",
    ),
    Code(
        "QB112",
        "Marlin has no zero-points",
        "The layers' weights are asymmetric, with zero-points that are not all the middle code.",
        "The serialized Marlin layout stores none: its kernel takes the middle code.",
        "int4 asymmetric per group 128",
        "Write GPTQ version 2, AWQ or compressed-tensors, which store zero-points.",
        "auto-gptq 0.7.1, nn_modules/qlinear/qlinear_marlin.py",
    ),
    Code(
        "QB116",
        "the format cannot say how these activations are quantized in detail",
        "The source clips inputs before it quantizes them, or rounds their scales to powers of two.",
        "Without that the weights are the same, and inputs are quantized a little differently.",
        "activation_scale_ub 1200.0 of FBGEMM, scale_fmt ue8m0 of DeepSeek-V3.1",
        "Keep the format (--to fp8), or accept it.",
        "transformers 5.17.0, integrations/fbgemm_fp8.py and finegrained_fp8.py; vllm 0.33.0, "
        "model_executor/layers/quantization/fbgemm_fp8.py",
        allow="drop-activation-details",
    ),
)
