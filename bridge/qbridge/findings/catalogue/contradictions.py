"""QB042 to QB044: the config, the files beside it and the index against the tensors, which decide."""

from __future__ import annotations

from qbridge.findings.catalogue.code import Code

ENTRIES = (
    Code(
        "QB042",
        "modules that the config takes for quantized are not",
        "A weight is a float matrix without any scale, and a target of the config that is a class of modules, or a "
        "pattern, takes it in: embeddings of positions, towers under other names, layers for multi-token prediction.",
        "The tensors decide: it is carried over as it is. An engine that builds it quantized finds no scale for it.",
        'mtp.layers.0.self_attn.q_proj BF16, with the target "Linear" and no entry of ignore',
        "None needed for a conversion, which lists what is not quantized.",
        "compressed-tensors 0.20.0, utils/match.py; llmcompressor 0.12.0 lists linears alone",
        severity="note",
    ),
    Code(
        "QB043",
        "two files say how the model is quantized, and differ",
        "hf_quant_config.json says another thing than the quantization block of config.json, which is read.",
        "vLLM reads config.json, TensorRT-LLM the other file: they may serve two different models.",
        "exclude_modules ['lm_head'], config.json: []",
        "None needed for a conversion, whose files agree; check the facts if you serve the source with TensorRT-LLM.",
        "vllm 0.33.0, model_executor/model_loader/weight_utils.py (get_quant_config); TensorRT-LLM 2edf354, "
        "tensorrt_llm/quantization/modelopt_config.py",
        severity="warning",
    ),
    Code(
        "QB044",
        "a part of the model lies outside of the index",
        "A safetensors file that the index does not name holds the layers for multi-token prediction, and no other "
        "file has them: it is read as a part of the checkpoint.",
        "Engines that follow the index make no drafts with the source; what is written has the tensors in its index.",
        "mtp.safetensors beside model-00001-of-00002.safetensors",
        "None needed.",
        "vllm 0.33.0, model_executor/model_loader/weight_utils.py (filter_duplicate_safetensors_files)",
        severity="note",
    ),
)
