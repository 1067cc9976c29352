"""QB042 to QB044, QB046, QB047, QB052: config, files beside it and index against the tensors, which decide."""

from __future__ import annotations

from qbridge.findings.catalogue.code import UNREADABLE, Code

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
        "two places say how the model is quantized, and differ",
        "A file beside config.json, or a second quantization block in it, says another thing than the first block of "
        "config.json, which is read.",
        "Engines follow one or the other (vLLM config.json, TensorRT-LLM and AutoGPTQ the file beside it): they may "
        "serve two different models.",
        "exclude_modules ['lm_head'], config.json: []",
        "None needed for a conversion, whose files agree; remove what is wrong if you serve the source itself.",
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
    Code(
        "QB046",
        "the tensors belie the config",
        "The shapes of codes and scales give another width or group size than config.json names, or the tensors are "
        "those of other formats than its quant_method.",
        "Engines that trust the config stop, or misread every weight.",
        "bits: 4, and words that hold four codes of 8 bits for each scale",
        "Correct the width and the group size in config.json (and in the file beside it, where there is one).",
        "qbridge.formats.contradictions",
        UNREADABLE,
    ),
    Code(
        "QB052",
        "config.json gives other sizes than the tensors have",
        "hidden_size, intermediate_size, vocab_size, numbers or sizes of heads lead to other dims of linears, "
        "embedding or head than the tensors have, or are no sizes: 0, negative, null, true, text.",
        "Engines build the model by its config.json: they stop at the first tensor that does not fit.",
        "hidden_size 512, and an embedding of 256 columns",
        "Correct the sizes in config.json: take the original's.",
        "vllm 0.33.0, model_executor/layers/vocab_parallel_embedding.py and linear.py (weight_loader); "
        "transformers 5.17.0, modeling_utils.py (size mismatch)",
        allow="other-sizes",
    ),
    Code(
        "QB047",
        "the config says that the head is the embedding, and another head is stored",
        "tie_word_embeddings is true, and the weight of the head is not the embedding's.",
        "vLLM and LMDeploy drop the stored head, transformers 5 uses it: two models with one name.",
        "a finetune that trained lm_head and kept tie_word_embeddings: true",
        "Set tie_word_embeddings to false in config.json if the stored head is the model's; else remove it.",
        "vllm 0.33.0, model_executor/models/llama.py (load_weights); lmdeploy 0.18.0, pytorch/models/llama.py "
        "(load_weights); transformers 5.17.0, modeling_utils.py (tie_weights)",
        severity="warning",
    ),
)
