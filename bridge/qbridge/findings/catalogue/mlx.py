"""QB126 to QB128: checkpoints of MLX, their names and biases."""

from __future__ import annotations

from qbridge.findings.catalogue.code import Code

ENTRIES = (
    Code(
        "QB126",
        "this model has no names in MLX here",
        "Its model type is in no table of mlx_lm's names here, or experts that share a tensor there are not alike.",
        "mlx_lm renames and stacks what it loads by its class, and mostly knows no scales there: tensors under other "
        "names stop it.",
        "qwen3_next, whose norms mlx_lm changes when it loads; experts of a layer of which some are not quantized",
        "Take a model type that is listed; `--to dense` writes what mlx_lm.convert reads, at the cost of new codes.",
        "mlx-lm 0.32.2, utils.py (load_model) and models/*.py (Model.sanitize)",
    ),
    Code(
        "QB127",
        "a bias is beyond the range of its dtype",
        "Symmetric codes of b bits have the bias -2^(b-1) times their scale, in the dtype of the scale.",
        "An infinite bias makes every weight of its group infinite.",
        "float16 scales of 1000 under 8 bits: 128000 is beyond 65504",
        "Such scales are no sound ones; take the checkpoint with scales of bfloat16 or float32.",
        "mlx 0.32.4, mlx/nn/layers/quantized.py",
    ),
    Code(
        "QB128",
        "names of MLX are taken for those of transformers",
        "Its model type is in no table of mlx_lm's names here, so that no name is turned back.",
        "What is written has the names of MLX, which only MLX is sure to know; experts in a stack stay one tensor.",
        "model_type qwen3_next",
        "None needed where the names are those of transformers, as in most models without experts.",
        "mlx-lm 0.32.2, models/*.py (Model.sanitize)",
        severity="warning",
    ),
)
