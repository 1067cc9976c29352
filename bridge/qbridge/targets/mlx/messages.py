"""What mlx_lm raises when it refuses a quantized checkpoint. Read in 0.32.2."""

from __future__ import annotations

from functools import partial

from qbridge.targets.messages import Cure, Message

_message = partial(Message, engine="mlx", versions="0.32.2", cure=(Cure("mlx"),))
_of_mlx = partial(_message, versions="0.32.4")
_UTILS = "mlx-lm 0.32.2, utils.py"
_BASE = "mlx 0.32.4, nn/layers/base.py"

MESSAGES = (
    _of_mlx(
        "Received {count:number} parameters not in model:",
        source=_BASE,
        cause="The checkpoint has {count} tensors that mlx_lm's class of the model has no parameter for: codes of a "
        "format that mlx_lm does not read, or experts that are not stacked.",
    ),
    _of_mlx(
        "Missing {count:number} parameters:",
        source=_BASE,
        cause="mlx_lm's class of the model has {count} parameters that the checkpoint does not fill: tensors are "
        "missing, under other names, or in a format that mlx_lm does not read.",
    ),
    _of_mlx(
        "Expected shape {wanted} but received shape {given} for parameter {parameter:name}",
        source=_BASE,
        cause="{parameter} has another shape than mlx_lm builds: config.json says other bits or another group size "
        "than the codes have, or other sizes of the model.",
    ),
    _message(
        "Found {tensor:name} in weights. Models with non-contiguous group indices (g_idx) are not currently "
        "supported.",
        source=_UTILS,
        cause="mlx_lm refuses GPTQ with a g_idx, even one that says nothing. Without act-order the same weights load "
        "as MLX.",
    ),
    _message(
        "Only bits={bits:number} is supported for AutoAWQ/GPTQ models.",
        source=_UTILS,
        cause="mlx_lm reads AWQ and GPTQ of 4 bits alone, and GPTQ in the nibble order of AWQ, which is wrong. The "
        "same weights of {bits} bits load as MLX.",
    ),
    _message(
        "unsupported compressed-tensors format '{format:word}'; dequantize to bf16 before converting",
        source=_UTILS,
        cause="mlx_lm has no reader of this format of compressed-tensors. Integer weights load as MLX, exactly.",
        cure=(Cure("mlx"), Cure("dense")),
    ),
    _message(
        "Unsupported modelopt quant_algo: {algorithm:word}",
        source=_UTILS,
        cause="mlx_lm reads NVFP4 of ModelOpt alone, in some classes. MLX has no float8 with scales of float32.",
        cure=(Cure("dense"),),
    ),
    _message(
        "Model type {kind:word} not supported.",
        source=_UTILS,
        cause="mlx_lm has no class of model type {kind}, whatever the format.",
        cure=(),
        advice="Serve it with an engine that has the class, or with a newer mlx-lm.",
    ),
    _message(
        "Cannot infer the quantization mode of {module:name}: {bits:number} bits with group size {group:number}.",
        source=_UTILS,
        cause="config.json does not say how {module} is quantized, and its tensors are of no mode that mlx_lm knows.",
    ),
    _of_mlx(
        "[quantize] The requested group size {group:number} is not supported. The supported group sizes are 32, 64, "
        "and 128.",
        source="mlx 0.32.4, lib/libmlx.so (The requested group size)",
        cause="MLX has no groups of {group}. Larger groups can be split exactly, smaller ones not joined.",
    ),
)
