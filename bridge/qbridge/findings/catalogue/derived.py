"""QB280 to QB285: what an engine builds from the quantization block of a config.json."""

from __future__ import annotations

from qbridge.findings.catalogue.code import Code

_VLLM = "vllm 0.33.0, model_executor/layers/quantization (fp8.py, auto_gptq.py, auto_awq.py, modelopt.py, inc/)"
_TRANSFORMERS = "transformers 5.24.0, quantizers/quantizers_utils.py (should_convert_module)"
_LMDEPLOY = "lmdeploy 0.18.0, pytorch/config.py (QuantizationConfig)"

ENTRIES = (
    Code(
        "QB280",
        "the engine builds linears quantized that are not quantized on disk",
        "The list of what is left out does not match the names that the engine has for these modules.",
        "The engine stops at a parameter that it does not have, or leaves the scales as they happen to be in memory.",
        "modules_to_not_convert [model.vision_tower] of fp8, which vLLM matches by whole names",
        "Convert it: the list is written so that the engine matches it; --to dense, where convert itself says this.",
        f"{_VLLM}; {_TRANSFORMERS}; {_LMDEPLOY}",
    ),
    Code(
        "QB281",
        "the engine builds linears unquantized that are quantized on disk",
        "A list of what is quantized leaves them out, an entry for another module matches their names too, or the "
        "class builds them so whatever the lists say, as most do with routers.",
        "The engine stops at a tensor for which it has no parameter, or takes codes for weights.",
        "modules_to_not_convert [mlp.gate] of AWQ, which vLLM finds within mlp.gate_up_proj",
        "Convert it: the list is written so that the engine matches it, and routers become weights where the "
        "engine's dtype holds each exactly; --to dense, which rounds, where it does not.",
        f"{_VLLM}; {_TRANSFORMERS}; {_LMDEPLOY}",
        allow="dequantized",
    ),
    Code(
        "QB282",
        "the engine stops at its lists: parts of one linear are listed differently",
        "Linears that the engine builds as one must be quantized all or none, by its lists.",
        "ValueError while the model is built.",
        "q_proj in modules_to_not_convert of fp8, k_proj and v_proj not",
        "Convert it where the tensors are alike; quantize all of them, or none, where they are not.",
        f"{_VLLM}; compressed_tensors/utils.py (should_ignore_layer)",
    ),
    Code(
        "QB283",
        "the quantization block lies where the engine does not look",
        "config.json has it under a key that this engine never reads.",
        "The engine takes the model for an unquantized one: it stops at the names of codes and scales, or loads "
        "codes as weights.",
        "llm_config.quantization_config for vLLM; compression_config for LMDeploy and transformers",
        "Convert it: the block is written where the engine looks.",
        "vllm 0.33.0, transformers_utils/model_arch_config_convertor.py; lmdeploy 0.18.0, pytorch/config.py; "
        "transformers 5.24.0, quantizers/auto.py",
    ),
    Code(
        "QB284",
        "the engine does not know a value of the quantization block",
        "A key of the block lacks, or has a value that the engine refuses or misunderstands.",
        "The engine stops while it reads config.json, or takes the model for an unquantized one.",
        'fmt "float8_e4m3fn" for LMDeploy: Unsupported fp8 fmt',
        "Convert it: the block is written in the engine's words.",
        "lmdeploy 0.18.0, pytorch/config.py; vllm 0.33.0, config/model.py and layers/quantization/inc/inc.py",
    ),
    Code(
        "QB285",
        "what the engine builds of these modules is not known to qbridge",
        "Whether this model class hands its quantization config to them was not read in the engine's code.",
        "If it does, and its lists do not match their names, it does not load.",
        "a vision tower of a class that is not in qbridge's table",
        "Load it once in the engine, or convert it, which leaves such modules as they are.",
        "vllm 0.33.0, model_executor/models",
        severity="warning",
    ),
)
