"""QB3xx exactness, QB4xx the operating system, QB5xx verify, QB9xx qbridge itself."""

from __future__ import annotations

from qbridge.catalogue.code import BUG, IO, Code

ENTRIES = (
    Code(
        "QB301",
        "a scale does not survive the cast that the target needs",
        "A scale has no exact value in the dtype that the destination stores.",
        "Every weight under it would move.",
        "BF16 1.0e-9 into F16",
        "Choose a target that keeps the dtype.",
        "IEEE 754; the page of the format under docs/formats",
    ),
    Code(
        "QB302",
        "values do not survive the cast that the engine does when it loads",
        "The engine casts these tensors to the model's dtype, and some values have no exact one there.",
        "They are rounded, overflow or vanish without a word, so it serves another model than the checkpoint.",
        "a float32 norm in a model that config.json calls bfloat16",
        "Set the dtype in config.json that holds them, or accept the engine's rounding.",
        "IEEE 754; the page of the target under docs/targets",
        allow="rounded",
    ),
    Code(
        "QB401",
        "the operating system refused",
        "A read or write failed, the disk is full, or a permission is missing.",
        "Nothing stands at DST; the temporary folder beside it has been removed where that was possible.",
        "[Errno 28] No space left on device",
        "Make room or mend the permission, then run the same command again.",
        "errno(3)",
        IO,
    ),
    Code(
        "QB501",
        "a layer differs",
        "A layer has other codes, scales, zero-points or another scheme in the two checkpoints.",
        "They are not the same model.",
        "model.layers.0.mlp.down_proj: scale differs in 3 rows",
        "Convert again from the source.",
        "qbridge.verification",
    ),
    Code(
        "QB502",
        "a layer or tensor is in one checkpoint only",
        "One of the two checkpoints lacks a layer or an unquantized tensor.",
        "They are not the same model.",
        "lm_head.weight",
        "Convert again from the source.",
        "qbridge.verification",
    ),
    Code(
        "QB503",
        "an unquantized tensor differs",
        "An embedding, norm, bias or other unquantized tensor has other bytes, dtype or shape.",
        "They are not the same model.",
        "model.norm.weight",
        "Convert again from the source.",
        "qbridge.verification",
    ),
    Code(
        "QB504",
        "the configs describe different models",
        "A key of config.json that the mathematics depends on differs (rope, eps, heads, dtype ...).",
        "The same weights compute something else under another config.",
        "rope theta 1000000.0 and 10000.0",
        "Convert again from the source.",
        "qbridge.hf_config",
    ),
    Code(
        "QB900",
        "qbridge has a bug",
        "An internal check failed.",
        "The output was not finished.",
        "an unexpected exception",
        "Please report it with the lines above.",
        "qbridge",
        BUG,
    ),
)
