"""QB2xx: what a target's engine refuses, or would silently compute wrongly."""

from __future__ import annotations

from qbridge.catalogue.code import Code

_LMDEPLOY = "lmdeploy 0.18.0, pytorch/config.py and pytorch/nn/linear/w8a8.py"

ENTRIES = (
    Code(
        "QB201",
        "LMDeploy leaves unquantized decoder layers uninitialised",
        "A decoder linear is not quantized, and LMDeploy does not consult ignore lists for this model class.",
        "It builds an int8 layer, finds no scale and no int8 weight, says nothing, and talks garbage.",
        "model.layers.0.mlp.down_proj left in float16 of a Llama",
        "Quantize every linear of the decoder.",
        "lmdeploy 0.18.0, pytorch/models/llama.py and qwen2.py (linears built without a prefix)",
    ),
    Code(
        "QB202",
        "LMDeploy cannot load a quantized lm_head or embedding",
        "lm_head or the embedding is quantized; LMDeploy builds both without a quantization config.",
        "It would load integer codes as if they were weights.",
        "lm_head.weight I8",
        "Leave lm_head and embeddings unquantized (ignore: [lm_head]).",
        "lmdeploy 0.18.0, pytorch/models/llama.py (lm_head is built without quant_config)",
    ),
    Code(
        "QB203",
        "LMDeploy quantizes activations dynamically, per token and symmetrically",
        "The checkpoint's activation scheme is another one.",
        "LMDeploy would drop the stored activation scales and compute something else.",
        "int8 static symmetric per tensor",
        "Quantize with dynamic per-token activations (llm-compressor's W8A8 preset).",
        _LMDEPLOY,
    ),
    Code(
        "QB204",
        "LMDeploy does not know this model class",
        "The architecture is not in the table of classes that this version of LMDeploy serves.",
        "Whether it loads, and how it names its layers, is not known to qbridge.",
        "MambaForCausalLM",
        "Check LMDeploy's list of models; the tensors are converted as asked.",
        "lmdeploy 0.18.0, pytorch/models/module_map.py",
        severity="warning",
    ),
    Code(
        "QB205",
        "the target's transformers cannot load this tokenizer_config.json",
        "The tokenizer class is spelled as transformers 5 spells it, and the engine runs transformers 4.",
        "The weights load, but the server stops at the tokenizer: Tokenizer class TokenizersBackend does not exist.",
        '"tokenizer_class": "TokenizersBackend"',
        "Name PreTrainedTokenizerFast instead, which both read, or copy the tokenizer files of the original model.",
        "transformers 4.57.6, models/auto/tokenization_auto.py (the version that lmdeploy 0.18.0 runs on)",
        severity="warning",
    ),
    Code(
        "QB206",
        "this version of LMDeploy would rotate positions by other angles",
        "LMDeploy 0.6.2 builds the rotary embedding without a key that this config.json sets.",
        "It loads without a word, attends with wrong positions, and talks garbage.",
        "head_dim 64 with hidden_size / num_attention_heads = 32",
        "Serve it with a current LMDeploy (--to lmdeploy).",
        "lmdeploy 0.6.2, pytorch/models/llama.py, qwen2.py and backends/default/rotary_embedding.py",
    ),
    Code(
        "QB207",
        "the rope of this config has no spelling for the target's transformers",
        "rope_parameters differ by kind of layer, which only transformers 5 can say.",
        "transformers 4 would read its default rope and say nothing.",
        "full_attention and sliding_attention with their own theta",
        "Choose a target on transformers 5.",
        "transformers 4.57.6 and 5.23.0, modeling_rope_utils.py",
    ),
)
