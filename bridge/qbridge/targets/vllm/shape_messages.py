"""What vLLM prints where the shape of a linear, its groups or its scheme fit none of its kernels."""

from __future__ import annotations

from functools import partial
from math import gcd

from qbridge.targets.messages import Cure, Message, Values

_message = partial(Message, engine="vllm")
_QUANTIZATION = "vllm 0.33.0, model_executor/layers/quantization"
_MARLIN = f"{_QUANTIZATION}/utils/marlin_utils.py"
_OLD_MARLIN = "vllm 0.23.0, model_executor/layers/quantization/utils/marlin_utils.py"
_AWQ = f"{_QUANTIZATION}/auto_awq.py"
_FP8 = f"{_QUANTIZATION}/utils/fp8_utils.py"
_MOE = f"{_QUANTIZATION}/compressed_tensors/compressed_tensors_moe"
_WNA16 = f"{_QUANTIZATION}/compressed_tensors/schemes/compressed_tensors_wNa16.py"
_KERNELS = "vllm 0.33.0, model_executor/kernels/linear/__init__.py"
_GROUPS = (32, 64)  # smaller than the usual 128, and sizes that Marlin has


def _common(values: Values) -> Values:
    """The group size that divides both a rank's inputs and the groups that there are, where Marlin has it."""
    size = gcd(int(values["size"]), int(values["group"]))
    return {"common": str(size)} if size in _GROUPS else {}


_SPLIT_GROUP = (
    "A rank holds {size} inputs of this linear, which are no whole number of groups of {group}: a group straddles "
    "two tensor-parallel ranks. Smaller groups with the same scales, or a padded MLP, are exact."
)
_WAYS = (Cure("vllm", "--regroup {common}"), Cure("vllm", "--pad"))
_TILE = (
    "Before 0.24, vLLM's Marlin kernels took linears in whole tiles alone, and a rank holds {size} %s of this one, "
    "which is no multiple of {tile}. --quantization gptq, which the message suggests, does not mend groups that "
    "straddle two ranks; padding is exact, and vLLM 0.24 and newer pad tiles themselves."
)
_BLOCK = (
    "The scales of float8 weights belong to blocks, and a tensor-parallel rank would hold {size} %s: the last of its "
    "blocks is cut. Fewer ranks, or a padded MLP, keep the blocks whole."
)

MESSAGES = (
    _message(
        "Weight input_size_per_partition = {size:number} is not divisible by min_thread_k = {tile:number}.",
        versions="0.5.4 to 0.23.0",
        source=_OLD_MARLIN,
        engine="vllm@0.23.0",
        cause=_TILE % "inputs",
        cure=(Cure("vllm@0.23.0", "--pad"), Cure("vllm")),
        split=True,
    ),
    _message(
        "Weight output_size_per_partition = {size:number} is not divisible by min_thread_n = {tile:number}.",
        versions="0.5.4 to 0.23.0",
        source=_OLD_MARLIN,
        engine="vllm@0.23.0",
        cause=_TILE % "outputs",
        cure=(Cure("vllm@0.23.0", "--pad"), Cure("vllm")),
        split=True,
    ),
    _message(
        "Weight input_size_per_partition = {size:number} is not divisible by group_size = {group:number}.",
        versions="0.5.4 to 0.24.0",
        source=_OLD_MARLIN,
        engine="vllm@0.23.0",
        cause=_SPLIT_GROUP,
        cure=(Cure("vllm@0.23.0", "--pad"), *_WAYS),
        split=True,
        derive=_common,
    ),
    _message(
        "in_features per partition {size:number} is not divisible by group_size = {group:number}.",
        versions="0.24.0 to 0.33.0",
        source="vllm 0.33.0, model_executor/kernels/linear/mixed_precision/marlin.py",
        cause=_SPLIT_GROUP,
        cure=_WAYS,
        split=True,
        derive=_common,
    ),
    _message(
        "Weight input_size_per_partition={size:number} is not divisible by group_size={group:number}. "
        "This happens when tensor_parallel_size splits the layer input",
        versions="0.25.0 to 0.33.0",
        source="vllm 0.33.0, distributed/utils.py (input_size_per_partition=)",
        cause=_SPLIT_GROUP,
        cure=_WAYS,
        split=True,
        derive=_common,
    ),
    _message(
        "Weight input_size_per_partition={size:number} for layer '{layer:name}' is not divisible by "
        "group_size={group:number}. This happens when tensor_parallel_size splits the layer input",
        versions="0.25.0 to 0.33.0",
        source="vllm 0.33.0, distributed/utils.py (input_size_per_partition=)",
        cause=_SPLIT_GROUP,
        cure=_WAYS,
        split=True,
        derive=_common,
    ),
    _message(
        "The input size is not aligned with the quantized weight shape. "
        "This can be caused by too large tensor parallel size.",
        versions="0.5.4 to 0.33.0",
        source=_AWQ,
        cause="The inputs that a rank holds of a linear are no whole number of groups: a group straddles two "
        "tensor-parallel ranks. qbridge splits such groups, with the same scales, or pads the MLP; both are exact.",
        cure=(Cure("vllm"), Cure("vllm", "--pad")),
        split=True,
    ),
    _message(
        "The output size is not aligned with the quantized weight shape. "
        "This can be caused by too large tensor parallel size.",
        versions="0.5.4 to 0.33.0",
        source=_AWQ,
        cause="The codes of several outputs share one word, and the outputs that a rank holds are no whole words. "
        "compressed-tensors packs along the inputs and has no such limit.",
        cure=(Cure("vllm"), Cure("vllm", "--pad")),
        split=True,
    ),
    _message(
        "Marlin does not support group_size = {group:word}. Only group_sizes",
        versions="0.5.4 to 0.33.0",
        source=_MARLIN,
        cause="Marlin has groups of 32, 64 and 128, or one per output channel, and the checkpoint has groups of "
        "{group}. Larger groups can be split exactly.",
        cure=(Cure("vllm"),),
    ),
    _message(
        "Marlin does not support weight_bits = {bits:word}. Only types",
        versions="0.5.4 to 0.33.0",
        source=_MARLIN,
        cause="Marlin has no kernel for {bits} weights with or without zero-points. The same codes in "
        "compressed-tensors, or widened exactly to 4 or 8 bits, have kernels.",
        cure=(Cure("vllm"),),
    ),
    _message(
        "Failed to find a kernel that can implement the WNA16 linear layer. Reasons",
        versions="0.6.3 to 0.33.0",
        source=_KERNELS,
        cause="None of vLLM's kernels for integer weights takes this linear; the lines after it say why, one for "
        "each kernel. Most often a rank holds no whole number of groups.",
        cure=(Cure("vllm"), Cure("vllm", "--pad")),
        split=True,
    ),
    _message(
        "Failed to find a kernel that can implement the ScaledMM linear layer. Reasons",
        versions="0.7.3 to 0.33.0",
        source=_KERNELS,
        cause="None of vLLM's kernels for 8-bit weights and activations takes this linear on this GPU; the lines "
        "after it say why, one for each kernel.",
        cure=(Cure("vllm"),),
        advice="Float8 activations need compute capability 8.9; say which GPU it is: --gpu sm89.",
    ),
    _message(
        "Failed to find a kernel that can implement the {kind:NVFP4|MXFP4|MXFP6|MXFP8} linear layer. Reasons",
        versions="0.20.0 to 0.33.0",
        source=_KERNELS,
        cause="None of vLLM's kernels for {kind} takes this linear on this GPU; the lines after it say why, one for "
        "each kernel.",
        cure=(Cure("dense"),),
        advice="Where no kernel has {kind} on this GPU, plain weights are the way out: `--to dense` rounds each "
        "once.",
    ),
    _message(
        "No WNA16 MoE backend supports the deployment configuration.",
        versions="0.20.0 to 0.33.0",
        source="vllm 0.33.0, model_executor/layers/fused_moe/oracle/int_wna16.py",
        cause="No kernel takes these 4-bit or 8-bit experts as they are split over ranks, or on this device: groups "
        "that straddle two ranks, zero-points, or a CPU.",
        cure=(Cure("vllm"), Cure("vllm", "--pad")),
        split=True,
    ),
    _message(
        "Weight input_size_per_partition = {size:number} is not divisible by weight quantization "
        "block_k = {block:number}.",
        versions="0.6.6 to 0.33.0",
        source=_FP8,
        cause=_BLOCK % "inputs, which are no multiple of {block}",
        cure=(Cure("vllm", "--pad"),),
        split=True,
    ),
    _message(
        "Weight output_partition_size = {size:number} is not divisible by weight quantization "
        "block_n = {block:number}.",
        versions="0.6.6 to 0.33.0",
        source=_FP8,
        cause=_BLOCK % "outputs, which are no multiple of {block}",
        cure=(Cure("vllm", "--pad"),),
        split=True,
    ),
    _message(
        "The output_size of gate's and up's weight = {size:number} is not divisible by weight quantization "
        "block_n = {block:number}.",
        versions="0.6.6 to 0.33.0",
        source=_FP8,
        cause=_BLOCK % "outputs of an expert's gate and up, which are no multiple of {block}",
        cure=(Cure("vllm"), Cure("vllm", "--pad")),
        advice="vLLM 0.33 repeats the scales of fp8 experts for smaller blocks of 32 or more itself.",
        split=True,
    ),
    _message(
        "The input_size of down's weight = {size:number} is not divisible by weight quantization "
        "block_k = {block:number}.",
        versions="0.6.6 to 0.33.0",
        source=_FP8,
        cause=_BLOCK % "inputs of an expert's down, which are no multiple of {block}",
        cure=(Cure("vllm"), Cure("vllm", "--pad")),
        advice="vLLM 0.33 repeats the scales of fp8 experts for smaller blocks of 32 or more itself.",
        split=True,
    ),
    _message(
        "CompressedTensors WNA16 MoE with static group scales requires the MoE intermediate size per tensor-parallel "
        "partition ({size:number}) to be divisible by group_size ({group:number}).",
        versions="0.24.0 to 0.33.0",
        source=f"{_MOE}/compressed_tensors_moe_wna16.py",
        cause=_SPLIT_GROUP,
        cure=_WAYS,
        split=True,
        derive=_common,
    ),
    _message(
        "CompressedTensors WNA16 MoE requires hidden_size ({size:number}) to be divisible by "
        "group_size ({group:number}).",
        versions="0.24.0 to 0.33.0",
        source=f"{_MOE}/compressed_tensors_moe_wna16.py",
        cause="The hidden size {size} is no whole number of groups of {group}, so the last group of each expert is "
        "short. Smaller groups with the same scales are exact.",
        cure=(Cure("vllm", "--regroup {common}"),),
        derive=_common,
    ),
    _message(
        "Asymmetric quantization not supported for num_bits = {bits:number}.",
        versions="0.25.0 to 0.33.0",
        source=_WNA16,
        cause="vLLM has no kernel for {bits} bits with zero-points.",
        cure=(Cure("vllm", "--bits 8"), Cure("vllm")),
    ),
    _message(
        "Pack-quantized format requires group quantization or channelwise quantization, but found no group size",
        versions="0.25.0 to 0.33.0",
        source=_WNA16,
        cause="The weights have one scale per tensor, and vLLM reads packed integers with scales per group or "
        "channel. Repeating the scale for each channel is exact.",
        cure=(Cure("vllm"),),
    ),
    _message(
        "Unsupported quantization config: bits={bits:number}, sym={symmetric:word}",
        versions="0.5.4 to 0.33.0",
        source=f"{_QUANTIZATION}/auto_gptq.py",
        cause="vLLM reads symmetric GPTQ of 4 and 8 bits; this one has {bits} bits and sym={symmetric}. The same "
        "codes load as compressed-tensors or AWQ.",
        cure=(Cure("vllm"),),
    ),
    _message(
        "Unsupported num_bits = {bits:number}. Supported: {supported}. For 8-bit AWQ, use Marlin backend",
        versions="0.24.0 to 0.33.0",
        source=_AWQ,
        cause="vLLM reads AWQ of 4 bits, and this one has {bits}. The same codes load as compressed-tensors.",
        cure=(Cure("vllm"),),
    ),
    _message(
        "Currently, only 4-bit weight quantization is supported for AWQ, but got {bits:number} bits.",
        versions="0.5.4 to 0.23.0",
        source="vllm 0.23.0, model_executor/layers/quantization/awq.py",
        cause="vLLM reads AWQ of 4 bits, and this one has {bits}. The same codes load as compressed-tensors.",
        cure=(Cure("vllm"),),
    ),
    _message(
        "Currently, only 2/3/4/8-bit weight quantization is supported for GPTQ, but got {bits:number} bits.",
        versions="0.5.4 to 0.21.0",
        source="vllm 0.21.0, model_executor/layers/quantization/gptq.py",
        cause="vLLM had GPTQ of 2, 3, 4 and 8 bits, and this one has {bits}. The same codes load as "
        "compressed-tensors.",
        cure=(Cure("vllm"),),
    ),
    _message(
        "The block-wise quantization only supports dynamic activation scheme for now, but got",
        versions="0.6.6 to 0.33.0",
        source=f"{_QUANTIZATION}/fp8.py",
        cause="config.json says that float8 blocks go with static scales of inputs, and vLLM quantizes inputs as "
        "they come where weights have blocks.",
        cure=(Cure("vllm"),),
    ),
)
