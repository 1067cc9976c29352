"""The entries of the codes that mlx's rules alone have."""

from __future__ import annotations

from qbridge.findings.catalogue.code import Code

CODES = (
    Code(
        "QB256",
        "config.json lacks keys that mlx_lm asks for",
        "Its class of the model has no default for them, and nothing else in config.json says them.",
        "It stops when it builds the model: TypeError: ModelArgs.__init__() missing 1 required positional argument.",
        "a GLM-4.5 without rope_scaling, a MiniMax-M2 without rotary_dim",
        "Put the keys into config.json, with the values of the original model's.",
        "mlx-lm 0.32.2, models/*.py (ModelArgs)",
    ),
    Code(
        "QB257",
        "mlx_lm has no place for these tensors",
        "It has language models alone, and leaves out layers for multi-token prediction of DeepSeek-V3's class by "
        "their number, 61, which this model's have not.",
        "It stops when it loads: ValueError: Received 12 parameters not in model.",
        "a reranker with score.weight; a DeepSeek-V3 of 30 layers with one more for multi-token prediction",
        "Take a checkpoint without them, of layers with num_nextn_predict_layers 0 in its config.json.",
        "mlx-lm 0.32.2, models/deepseek_v3.py (Model.sanitize)",
    ),
    Code(
        "QB258",
        "scales have another dtype than the model, so that mlx computes in float32",
        "mlx promotes a product of float16 scales and bfloat16 inputs, or of float32 ones, to float32.",
        "Every value is exact, and activations and the key-value cache take twice the memory.",
        "AWQ with float16 scales in a model of bfloat16",
        "None needed. A config.json with torch_dtype float16 does not change the scales.",
        "mlx 0.32.4, mlx/core/__init__.pyi (quantized_matmul)",
        severity="warning",
    ),
)
