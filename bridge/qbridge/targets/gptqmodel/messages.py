"""What GPTQModel raises when it refuses a quantized checkpoint.

Read in 7.7.0 and in the tags from 1.0.0 on; `versions` are the first and the last that have the message.
"""

from __future__ import annotations

from functools import partial

from qbridge.targets.messages import Cure, Message

_message = partial(Message, engine="gptqmodel", cure=(Cure("gptqmodel"),))
_KERNELS = "gptqmodel 7.7.0, nn_modules/qlinear/__init__.py"
_CONFIG = "gptqmodel 7.7.0, quantization/config.py"

MESSAGES = (
    _message(
        "only supports `{supported}` bits: actual bits = `{bits:number}`",
        versions="1.0.0 to 7.7.0",
        source=_KERNELS,
        cause="GPTQModel's kernel has no weights of {bits} bits. The codes can be widened exactly.",
        cure=(Cure("gptqmodel", "--bits 8"), Cure("gptqmodel")),
    ),
    _message(
        "only supports `{supported}` group_size: actual group_size = `{group:word}`",
        versions="1.0.0 to 7.7.0",
        source=_KERNELS,
        cause="GPTQModel's kernel has no groups of {group}. Smaller groups with the same scales are exact.",
    ),
    _message(
        "only supports symmetric `{supported}` quantization: actual sym = `{symmetric:word}`",
        versions="5.7.0 to 7.7.0",
        source=_KERNELS,
        cause="The kernel of GPTQModel that was asked for has symmetric weights alone.",
        advice="Load it with backend=BACKEND.AUTO, which chooses a kernel that has zero-points.",
    ),
    _message(
        "`in_features`: {size:number} must be divisible by",
        versions="2.2.0 to 7.7.0",
        source=_KERNELS,
        cause="GPTQModel's kernel does not take {size} inputs: they are no whole number of groups or words.",
    ),
    _message(
        "`out_features`: {size:number} must be divisible by",
        versions="2.2.0 to 7.7.0",
        source=_KERNELS,
        cause="GPTQModel's kernel does not take {size} outputs: they are no whole number of words.",
        cure=(Cure("gptqmodel"), Cure("dense")),
    ),
    _message(
        "Format: Loading of a sym=False model with format={format:word} is only supported if produced by gptqmodel "
        "version >=",
        versions="2.0.0 to 7.7.0",
        source="gptqmodel 7.7.0, models/loader.py",
        cause="GPTQModel does not trust zero-points of version 1 that another tool has stored. Version 2 has the "
        "same zero-points without the offset of 1.",
    ),
    _message(
        "`is_marlin_format` is no longer supported.",
        versions="6.0.0 to 7.7.0",
        source=_CONFIG,
        cause="The checkpoint is in the Marlin layout of AutoGPTQ of 2024. The same codes load as GPTQ.",
    ),
    _message(
        "GPT-QModel currently does not support loading of activation quantized models.",
        versions="7.0.0 to 7.7.0",
        source="gptqmodel 7.7.0, models/auto.py",
        cause="The checkpoint quantizes activations too, and GPTQModel has weights alone.",
        cure=(Cure("vllm"), Cure("dense")),
    ),
    _message(
        "QuantizeConfig: Unknown quantization format: `{format:word}`.",
        versions="2.0.0 to 7.7.0",
        source=_CONFIG,
        cause="GPTQModel has no checkpoint format {format}. The same codes load as GPTQ, or as AWQ.",
    ),
    _message(
        "QuantizeConfig: Unknown quantization method: `{method:word}`.",
        versions="2.0.0 to 7.7.0",
        source=_CONFIG,
        cause="GPTQModel has no method {method}. The same codes load as GPTQ, or as AWQ.",
    ),
    _message(
        "Missing required quantized weights in checkpoint {checkpoint}:",
        versions="7.7.0",
        source="gptqmodel 7.7.0, utils/model.py",
        cause="Layers that config.json calls quantized have no codes in the checkpoint: a shard is missing, or the "
        "layers are stored in float and no list says so.",
    ),
    _message(
        "Loading of .bin files are not allowed due to safety.",
        versions="1.1.0 to 7.7.0",
        source="gptqmodel 7.7.0, models/loader.py",
        cause="The weights are pickled, and a pickle can run code. qbridge reads them with torch's weights_only "
        "loader and writes safetensors.",
        cure=(Cure("gptqmodel", "--allow pickle"),),
    ),
)
