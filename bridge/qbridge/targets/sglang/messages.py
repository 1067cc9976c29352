"""What SGLang prints when it refuses a quantized checkpoint. Read in 0.5.23; much of it is as in vLLM."""

from __future__ import annotations

from functools import partial

from qbridge.targets.messages import Cure, Message

_message = partial(Message, engine="sglang", versions="0.5.23", cure=(Cure("sglang"),))
_QUANTIZATION = "sglang 0.5.23, srt/layers/quantization"
_COMPRESSED = f"{_QUANTIZATION}/compressed_tensors/compressed_tensors.py"
_MARLIN = f"{_QUANTIZATION}/marlin_utils.py"
_PADDED = (Cure("sglang"), Cure("sglang", "--pad"))
_SPLIT = "A tensor-parallel rank would hold {size} %s of this linear, which are no multiple of {unit}."

MESSAGES = (
    _message(
        "No compressed-tensors compatible scheme was found.",
        source=_COMPRESSED,
        cause="SGLang has no scheme of compressed-tensors for these weights and activations together (QB293).",
    ),
    _message(
        "Other method (CompressedTensorsW4A16Sparse24) is not supported now",
        source=_COMPRESSED,
        cause="The weights are 2:4 sparse, in a layout that SGLang does not read (QB293).",
    ),
    _message(
        "The {scheme:W8A8Int8|W4A8Int8} Fused MoE scheme is implemented only for NPU for now.",
        source=_COMPRESSED,
        cause="SGLang has no kernels for int8 experts of compressed-tensors on a GPU (QB296).",
    ),
    _message(
        "{tensor:name} not found in params_dict",
        source="sglang 0.5.23, srt/models/llama.py (not found in params_dict)",
        cause="SGLang has no parameter for {tensor} and leaves it out with this warning: the weights of it are "
        "garbage (QB294).",
    ),
    _message(
        "Weight input_size_per_partition = {size:number} is not divisible by weight quantization "
        "block_k = {unit:number}.",
        source=f"{_QUANTIZATION}/fp8_utils.py (is not divisible by weight quantization block_k =)",
        cause=_SPLIT % "inputs",
        cure=_PADDED,
        split=True,
    ),
    _message(
        "Weight input_size_per_partition = {size:number} is not divisible by min_thread_k = {unit:number}.",
        source=_MARLIN,
        cause=_SPLIT % "inputs",
        cure=_PADDED,
        split=True,
    ),
    _message(
        "Weight output_size_per_partition = {size:number} is not divisible by min_thread_n = {unit:number}.",
        source=_MARLIN,
        cause=_SPLIT % "outputs",
        cure=_PADDED,
        split=True,
    ),
    _message(
        "Weight input_size_per_partition = {size:number} is not divisible by group_size = {unit:number}.",
        source=_MARLIN,
        cause=_SPLIT % "inputs" + " Groups that straddle two ranks can be split exactly.",
        cure=_PADDED,
        split=True,
    ),
    _message(
        "Unsupported packing_format: {packing:word}, currently only support",
        source=f"{_QUANTIZATION}/auto_round.py",
        cause="SGLang does not read AutoRound packed as {packing} (QB298). The same codes load in another format.",
    ),
    _message(
        "Detected some but not all shards of {layer:name} are quantized.",
        source=f"{_QUANTIZATION}/w8a8_int8.py",
        cause="SGLang builds {layer} as one linear of several in the checkpoint, and config.json calls some of those "
        "quantized and others plain (QB221).",
    ),
)
