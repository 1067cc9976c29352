"""QB268, QB269 and QB292 to QB299: what SGLang refuses, drops without a word, or serves otherwise than it should."""

from __future__ import annotations

from qbridge.findings.catalogue.code import Code

_CT = "sglang 0.5.23, srt/layers/quantization/compressed_tensors/compressed_tensors.py"

ENTRIES = (
    Code(
        "QB268",
        "SGLang has no code for this model class",
        "Its registry lacks the class that config.json names, and transformers' own, on which it falls back, cannot "
        "run in it.",
        "It stops: has no SGlang implementation and the Transformers implementation is not compatible with SGLang.",
        "FalconForCausalLM, JambaForCausalLM",
        "Serve it with vLLM (--to vllm).",
        "sglang 0.5.23, srt/models/registry.py and srt/models/transformers.py",
    ),
    Code(
        "QB269",
        "SGLang's class does not take the names or the config.json of this checkpoint",
        "Its loader looks for tensors under other names, or its class asks for keys that transformers does not save, "
        "or counts layers of a kind by an interval that does not give those of layer_types.",
        "It stops (KeyError, AttributeError), leaves parameters unfilled, or builds other layers.",
        "Qwen2.5-VL whose text model lies under model.language_model; Gemma 2 without hidden_act",
        "Rename the tensors (--rename-prefix), or write the keys that the model's first config.json had.",
        "sglang 0.5.23, srt/models (load_weights) and srt/configs",
    ),
    Code(
        "QB292",
        "SGLang serves NVFP4 as weights alone on GPUs before Blackwell",
        "The checkpoint quantizes activations to float4, and only compute capability 10.0 has kernels for that.",
        "On an older GPU its Marlin kernel computes with unquantized activations; it warns once and serves.",
        "nvfp4-pack-quantized with input_global_scale on an H100",
        "None needed: no weight changes.",
        f"{_CT} (_get_scheme_from_parts)",
        severity="note",
    ),
    Code(
        "QB293",
        "SGLang has no scheme for these layers",
        "The combination of weights and activations, or the way in which experts lie, is none that SGLang serves.",
        "It raises NotImplementedError: No compressed-tensors compatible scheme was found; or ImportError: Other "
        "method (CompressedTensorsW4A16Sparse24) is not supported now; or its kernel stops at the first token.",
        "MXFP4 and MXFP8 linears, W4A8, int8 with a scale per group, asymmetric weights of 8 bits",
        "Choose one it serves: W8A8 with dynamic activations, FP8, NVFP4, symmetric 4 and 8 bits, asymmetric 4 bits.",
        _CT,
    ),
    Code(
        "QB294",
        "SGLang drops the scales of these blocks and says so in its log alone",
        "The loader of Llama, and of what inherits it (Mistral, Phi-3, InternLM3), renames weight_scale_inv to "
        "weight_scale, a parameter that layers of fp8 blocks do not have.",
        "Each scale is dropped, the parameter keeps its filling of -3.4e38, and the model talks garbage.",
        "DeepSeek-style FP8 blocks of LlamaForCausalLM",
        "Convert it (--to sglang): compressed-tensors calls the same scales weight_scale, and they are loaded.",
        "sglang 0.5.23, srt/models/llama.py (_legacy_load_weights)",
    ),
    Code(
        "QB295",
        "SGLang quantizes int8 activations as they come, symmetric per token",
        "The checkpoint stores scales of activations, or quantizes them with a zero-point; SGLang's int8 kernels "
        "have neither.",
        "It stops where q, k, v or gate, up are loaded (IndexError: index 1 is out of bounds for dimension 0 with "
        "size 1), or leaves the zero-point out without a word.",
        "int8 static symmetric per tensor",
        "--allow dynamic-activations leaves the scales out: activations are changed, weights are not.",
        "sglang 0.5.23, srt/layers/quantization/compressed_tensors/schemes/compressed_tensors_w8a8_int8.py "
        "(create_weights, apply_weights)",
        allow="dynamic-activations",
    ),
    Code(
        "QB296",
        "SGLang has no int8 experts in compressed-tensors",
        "Its compressed-tensors builds int8 experts on Ascend NPUs alone; its own method w8a8_int8 builds the same "
        "tensors on a GPU.",
        "NotImplementedError: The W8A8Int8 Fused MoE scheme is implemented only for NPU for now.",
        "experts of Qwen3-MoE in W8A8",
        "Convert it (--to sglang chooses w8a8): the tensors stay, config.json changes.",
        f"{_CT} (get_moe_scheme); srt/layers/quantization/w8a8_int8.py",
    ),
    Code(
        "QB297",
        "SGLang serves act-order",
        "The groups of the layers lie in the order of their activations; SGLang's Marlin kernels sort by g_idx.",
        "Nothing is wrong. vLLM refuses it since 0.30.",
        "GPTQ with desc_act",
        "None needed.",
        "sglang 0.5.23, srt/layers/quantization/marlin_utils.py (marlin_sort_g_idx)",
        severity="note",
    ),
    Code(
        "QB298",
        "SGLang does not load these layers in this format",
        "They are quantized in a way that its reader of the format does not have; another format may hold them.",
        "It stops at an unknown method, at a number of bits, or at the shape of a tensor; or a parameter that the "
        "kernel reads is never filled.",
        "asymmetric GPTQ (the kernel has been removed), AWQ of 8 bits, FBGEMM, ModelOpt's MXFP8 before Blackwell",
        "Convert it (--to sglang chooses a format that holds it).",
        "sglang 0.5.23, srt/layers/quantization (gptq, awq, fp8.py, modelopt_quant.py, auto_round.py)",
    ),
    Code(
        "QB299",
        "SGLang leaves a parameter of this model without a value",
        "Its class has a parameter that neither the checkpoint nor the loader gives a value.",
        "It holds what the memory held, or a random start: the answers are chance.",
        "Qwen3ForSequenceClassification, whose score has a bias in SGLang alone",
        "Serve it with vLLM (--to vllm).",
        "sglang 0.5.23, srt/models/qwen3_classification.py, whisper.py, transformers.py",
    ),
)
