"""QB2xx that several engines have, or that a format says of its one engine; an engine's own come with the engine."""

from __future__ import annotations

from qbridge.findings.catalogue.code import Code

_LMDEPLOY = "lmdeploy 0.18.0, pytorch/config.py and pytorch/nn/linear/w8a8.py"

ENTRIES = (
    Code(
        "QB203",
        "LMDeploy has no static activation scales",
        "The layers store input scales from calibration; LMDeploy quantizes activations as they come, per token.",
        "It raises KeyError on input_scale, and without the scales it would compute something else.",
        "int8 static symmetric per tensor",
        "Serve it with vLLM (--to vllm), or quantize with dynamic per-token activations (llm-compressor's W8A8).",
        _LMDEPLOY,
    ),
    Code(
        "QB205",
        "the target's transformers cannot load this tokenizer_config.json",
        "The tokenizer's class, or its list of extra tokens, is one of transformers 5; the engine runs 4.",
        "The weights load, but the server stops at the tokenizer: Tokenizer class TokenizersBackend does not exist.",
        '"tokenizer_class": "TokenizersBackend"',
        "Convert it: the file is written in words that both know; `qbridge restore` brings the original back.",
        "transformers 4.57.6, models/auto/tokenization_auto.py (the version that lmdeploy 0.18.0 runs on)",
        severity="warning",
    ),
    Code(
        "QB209",
        "LMDeploy has no asymmetric activations",
        "The layers' activations are quantized with a zero-point.",
        "LMDeploy would quantize them symmetrically, which is another model.",
        "int8 dynamic asymmetric per token",
        "Serve it with vLLM (--to vllm), or quantize with symmetric activations (llm-compressor's W8A8).",
        _LMDEPLOY,
    ),
    Code(
        "QB210",
        "LMDeploy has no 8-bit weights without 8-bit activations",
        "The layers quantize weights only (W8A16).",
        "Its W8A8 linears would quantize the activations too, which is another model.",
        "int8 symmetric per channel, activations not quantized",
        "Serve it with vLLM (--to vllm), or quantize to W8A8 or W4A16.",
        _LMDEPLOY,
    ),
    Code(
        "QB211",
        "LMDeploy has no zero-points for int8 weights",
        "The layers' weights are asymmetric, with zero-points that are not all zero.",
        "LMDeploy raises KeyError on them, and without them every weight would be shifted.",
        "int8 asymmetric per channel",
        "Quantize the weights symmetrically.",
        _LMDEPLOY,
    ),
    Code(
        "QB212",
        "LMDeploy has one scale per output channel for int8 weights",
        "The layers' weights have a scale per group along in_features.",
        "No single scale per channel gives the same weights.",
        "int8 symmetric per group 128",
        "Quantize per channel.",
        _LMDEPLOY,
    ),
    Code(
        "QB221",
        "parts of one fused linear are quantized differently",
        "q, k, v or gate, up (or others that it builds as one) have different schemes, or only some are quantized.",
        "An engine builds them as one linear: it raises ValueError, or takes the first one's scheme.",
        "q_proj int8 and k_proj not quantized",
        "Quantize the parts of a fused linear alike.",
        "vllm 0.33.0, model_executor/layers/quantization/compressed_tensors/utils.py; sglang 0.5.23, "
        "srt/layers/quantization/compressed_tensors/utils.py and utils.py",
    ),
    Code(
        "QB222",
        "parts of one fused linear have different input scales",
        "q, k, v or gate, up (or others that it builds as one) store different static input scales, zero-points or "
        "global scales.",
        "The fused linear has one for them: the part that is loaded last wins without a word, or the largest.",
        "q_proj.input_scale 0.02 and k_proj.input_scale 0.03",
        "Calibrate them together (llm-compressor does), or quantize activations dynamically.",
        "vllm 0.33.0, model_executor/parameter.py (BasevLLMParameter); sglang 0.5.23, srt/layers/parameter.py",
    ),
    Code(
        "QB250",
        "the model cannot be split over so many ranks",
        "Attention heads, key-value heads or an intermediate size are not divisible by the tensor-parallel size, or "
        "a class wants at least one routed expert a rank.",
        "The engine stops while it builds the model.",
        "28 attention heads at tp 8",
        "Choose another tensor-parallel size.",
        "vllm 0.33.0, model_executor/layers/linear.py; the architecture's model file",
    ),
    Code(
        "QB251",
        "a quantization group straddles two tensor-parallel ranks",
        "The share of a row-parallel linear is no whole number of groups.",
        "The scales of a group belong to all its columns: an engine refuses to load it, or some ranks take scales of "
        "other groups and compute wrong values without a word.",
        "in_features 29568, per rank 14784 = 115.5 groups of 128",
        "Split the groups, pad the MLP, or choose another tensor-parallel size; the first two are exact. In vLLM, "
        "--quantization gptq never helped here and does nothing since 0.22; --enforce-eager is not about shapes.",
        "vllm 0.33.0, model_executor/layers/quantization/auto_gptq.py (create_weights); lmdeploy 0.18.0, "
        "pytorch/nn/linear/awq.py",
    ),
    Code(
        "QB252",
        "it is not known how ranks share this architecture, so dims are judged without tensor parallelism",
        "qbridge's table says nothing about which linears of this architecture are split, and along which axis.",
        "A layout that is legal as a whole may be illegal on a rank.",
        "a model class of a plugin",
        "Check the shapes per rank yourself.",
        "qbridge.architecture.classes",
        severity="warning",
    ),
    Code(
        "QB253",
        "a linear does not fit the tiles of the engine's kernels",
        "Marlin kernels want in_features per rank in multiples of 128 and out_features in 64; vLLM pads them since "
        "0.24, SGLang does not.",
        "It stops: Weight input_size_per_partition is not divisible by min_thread_k, or output_size by min_thread_n; "
        "or its kernel has no configuration for the shape.",
        "Qwen2-72B-Instruct-GPTQ-Int4 on two GPUs",
        "Pad the MLP, choose another tensor-parallel size, or take vLLM from 0.24 on. --quantization gptq does not "
        "help where groups straddle, and enforce-eager has nothing to do with shapes.",
        "vllm 0.5.4 and 0.23.0, model_executor/layers/quantization/utils/marlin_utils.py; sglang 0.5.23, "
        "srt/layers/quantization/marlin_utils.py",
    ),
    Code(
        "QB254",
        "an MLP cannot be padded exactly",
        "Padding was asked for, and appending zero features would not leave the output of this block as it is.",
        "Only act(gate) * up with act(0) = 0, quantized throughout, with zero-points that are codes, can grow; a "
        "layer for multi-token prediction also where it is not quantized, if it is as wide as the decoder's.",
        "an architecture that qbridge does not know",
        "Split the groups instead (--regroup), or choose another tensor-parallel size.",
        "qbridge.architecture.growth",
    ),
    Code(
        "QB255",
        "TurboMind pads this MLP by itself",
        "The intermediate size is no whole number of groups on every rank; TurboMind adds zeros when it loads.",
        "Nothing is wrong, and the checkpoint need not be padded.",
        "29568 -> 29696 at tp 2",
        "None needed.",
        "lmdeploy 0.18.0, turbomind/linear.py (_pad_ffn_for_tp)",
        severity="note",
    ),
    Code(
        "QB272",
        "the engine requantizes float8 weights that have one scale per tensor when it fuses them",
        "q, k and v, gate and up, or others that it builds as one, have a scale each, of which it keeps the largest.",
        "Every weight of the others is rounded to float8 once more at each load, without a word.",
        "weight_scale [] of q_proj, k_proj and v_proj",
        "Convert it for the engine: compressed-tensors has a scale per channel, which the engine keeps as they are.",
        "vllm 0.33.0, model_executor/layers/quantization/utils/w8a8_utils.py (requantize_with_max_scale); "
        "sglang 0.5.23, srt/layers/quantization/utils.py (requantize_with_max_scale)",
        severity="warning",
    ),
    Code(
        "QB273",
        "a block of float8 weights straddles two ranks, or two linears that the engine builds as one",
        "The share of a rank, or a linear that is joined with its siblings, is no whole number of blocks.",
        "The scale of a block belongs to all its rows and columns: an engine refuses to load it, or takes scales of "
        "other blocks.",
        "in_features 18432 at tp 16: 1152 = 9 blocks, out_features 2112 at tp 2: 8.25 blocks",
        "Pad the MLPs to whole blocks (--pad), which is exact, or choose another tensor-parallel size.",
        "vllm 0.33.0, model_executor/layers/quantization/utils/fp8_utils.py (validate_fp8_block_shape); lmdeploy "
        "0.18.0, pytorch/nn/linear/blocked_fp8.py",
    ),
)
