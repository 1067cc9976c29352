"""What vLLM prints when it refuses a quantized checkpoint, of all its releases.

Read in the sources of 28 releases from 0.5.4 to 0.33.0; `versions` are the first and the last of them that have it.
"""

from __future__ import annotations

from functools import partial

from qbridge.targets.messages import Cure, Message
from qbridge.targets.vllm import shape_messages

_message = partial(Message, engine="vllm")
_QUANTIZATION = "vllm 0.33.0, model_executor/layers/quantization"
_COMPRESSED = f"{_QUANTIZATION}/compressed_tensors/compressed_tensors.py"
_MOE = f"{_QUANTIZATION}/compressed_tensors/compressed_tensors_moe"
_MODELOPT = f"{_QUANTIZATION}/modelopt.py"
_INC = f"{_QUANTIZATION}/inc/inc.py"
_CONFIG = "vllm 0.33.0, config/model.py"
_NAMED = "vllm 0.33.0, model_executor/models/deepseek_v2.py (params_dict[name])"
_REWRITTEN = "qbridge writes a list that says what each linear is."

_NAMES = (
    _message(
        "There is no module or parameter named '{tensor:name}' in {model:name}",
        versions="0.6.3 to 0.33.0",
        source="vllm 0.33.0, model_executor/models/utils.py",
        cause="The checkpoint has {tensor}, and {model} was built without it: config.json calls a quantized linear "
        f"plain or a plain one quantized, or its names are those of another tool. {_REWRITTEN}",
        cure=(Cure("vllm"),),
        advice="Names of another tool: `--rename-prefix OLD=NEW` gives them the beginning that vLLM looks for.",
    ),
    _message(
        "KeyError: '{module:layer}.{tensor:qweight|qzeros|scales|g_idx}'",
        versions="0.5.4 to 0.33.0",
        source=_NAMED,
        cause="{module} is stored as GPTQ or AWQ, and vLLM has built it unquantized: a router, or a linear that "
        f"config.json calls plain (modules_in_block_to_quantize, modules_to_not_convert, dynamic). {_REWRITTEN}",
        cure=(Cure("vllm"),),
    ),
    _message(
        "KeyError: '{module:layer}.{tensor:weight_packed|weight_shape|weight_zero_point}'",
        versions="0.5.4 to 0.33.0",
        source=_NAMED,
        cause="{module} is stored as compressed-tensors, and vLLM has built it unquantized, because the ignore list "
        f"of config.json holds its name or its targets do not. {_REWRITTEN}",
        cure=(Cure("vllm"),),
    ),
    _message(
        "KeyError: '{module:layer}.{tensor:weight_scale|weight_scale_inv|weight_scale_2|input_scale}'",
        versions="0.5.4 to 0.33.0",
        source=_NAMED,
        cause="{module} is stored with scales, and vLLM has built it unquantized or of another format, which has no "
        f"{{tensor}}: config.json says something else than the tensors. {_REWRITTEN}",
        cure=(Cure("vllm"),),
    ),
    _message(
        "KeyError: '{module:layer}.{tensor:w13_weight|w2_weight|w13_bias|w2_bias}'",
        versions="0.6.3 to 0.33.0",
        source=_NAMED,
        cause="{module} are experts that are stored in float, and vLLM has built them quantized, as those of an MTP "
        f"head often are, because no ignore list names them. {_REWRITTEN}",
        cure=(Cure("vllm"),),
    ),
    _message(
        "Following weights were not initialized from checkpoint:",
        versions="0.6.6 to 0.33.0",
        source="vllm 0.33.0, model_executor/model_loader/default_loader.py",
        cause="Parameters that the model has are not in the checkpoint: a shard is missing, a quantizer left out a "
        "part such as an MTP head, or a linear is built otherwise than it is stored.",
        cure=(Cure("vllm"), Cure("vllm", "--graft ORIGINAL")),
        advice="ORIGINAL is the unquantized model; what the quantizer lost is taken from there.",
    ),
    _message(
        "Weight files referenced in index but missing:",
        versions="0.26.0 to 0.33.0",
        source="vllm 0.33.0, model_executor/model_loader/weight_utils.py",
        cause="model.safetensors.index.json names shards that are not in the folder: the download is incomplete, or "
        "the index is that of the unquantized original.",
        cure=(Cure("vllm"),),
        advice="Download the missing shards. Where the index belongs to other files, converting writes a new one.",
    ),
    _message(
        "Attempted to load weight ({given}) into parameter ({wanted:torch.Size}",
        versions="0.6.3 to 0.33.0",
        source="vllm 0.33.0, model_executor/model_loader/weight_utils.py",
        cause="A tensor has another shape than the parameter that vLLM has built for it: the linear is quantized in "
        "another format, width or group size than config.json says, or it is not quantized.",
        cure=(Cure("vllm"),),
    ),
    _message(
        "Tried to load weights of size {given}to a parameter of size {wanted:torch.Size}",
        versions="0.8.5 to 0.33.0",
        source="vllm 0.33.0, model_executor/layers/linear.py",
        cause="A tensor has another shape than the parameter that vLLM has built for it: the linear is quantized in "
        "another format, width or group size than config.json says, or it is not quantized.",
        cure=(Cure("vllm"),),
    ),
    _message(
        "NVFP4 weight_scale for layer {layer} was never loaded (still NaN).",
        versions="0.30.0 to 0.33.0",
        source=_MODELOPT,
        cause="The layer is stored in float, and config.json lets vLLM build it as NVFP4: it is in no list of "
        f"excluded modules. {_REWRITTEN}",
        cure=(Cure("vllm"),),
    ),
)
_FUSED = (
    _message(
        "Detected some but not all shards of {layer:name} are quantized.",
        versions="0.5.4 to 0.33.0",
        source=f"{_QUANTIZATION}/utils/quant_utils.py",
        cause="vLLM builds {layer} as one linear of several in the checkpoint, and config.json calls some of those "
        f"quantized and others plain. Where all are stored alike, the list is wrong: {_REWRITTEN}",
        cure=(Cure("vllm"),),
        advice="Where only some are quantized, quantize the others, or write plain weights (`--to dense`).",
    ),
    _message(
        "Found different quantization schemes for the shards of {layer:name}. vLLM requires all to use the same "
        "scheme.",
        versions="0.30.0 to 0.33.0",
        source=f"{_QUANTIZATION}/compressed_tensors/utils.py",
        cause="vLLM builds {layer} as one linear of several in the checkpoint, and config.json gives those different "
        f"schemes, or none to some. Where all are stored alike, the groups are wrong: {_REWRITTEN}",
        cure=(Cure("vllm"),),
        advice="Where the schemes differ, quantize them alike, or write plain weights (`--to dense`).",
    ),
    _message(
        "Found a different quantization schemes for {shards} in {layer:name}. vLLM requires all to use the same "
        "scheme.",
        versions="0.5.4 to 0.29.0",
        source="vllm 0.29.0, model_executor/layers/quantization/compressed_tensors/utils.py",
        cause="vLLM builds {layer} as one linear of several in the checkpoint, and config.json gives those different "
        f"schemes, or none to some. Where all are stored alike, the groups are wrong: {_REWRITTEN}",
        cure=(Cure("vllm"),),
        advice="Where the schemes differ, quantize them alike, or write plain weights (`--to dense`).",
    ),
    _message(
        "Fused module '{layer:name}' requires consistent quant config for",
        versions="0.10.2 to 0.33.0",
        source=f"{_QUANTIZATION}/inc/config_parser.py",
        cause="vLLM builds {layer} as one linear of several in the checkpoint, and AutoRound's extra_config gives "
        "those different widths or group sizes, or leaves some unquantized.",
        cure=(Cure("vllm"),),
    ),
    _message(
        "Mixed quant_algo within fused layer {layer:name}: {algorithms}. All shards must use the same quantization.",
        versions="0.17.0 to 0.33.0",
        source=_MODELOPT,
        cause="vLLM builds {layer} as one linear of several in the checkpoint, and ModelOpt has quantized those by "
        "different algorithms.",
        cure=(Cure("vllm"), Cure("dense")),
    ),
    _message(
        "All MoE projections need to have same quantization scheme but found multiple",
        versions="0.12.0 to 0.33.0",
        source=f"{_MOE}/compressed_tensors_moe.py",
        cause="gate, up and down of a layer's experts are one module in vLLM, and config.json gives them different "
        "schemes.",
        cure=(Cure("vllm"), Cure("dense")),
    ),
)
_SCHEMES = (
    _message(
        "No compressed-tensors compatible scheme was found",
        versions="0.5.4 to 0.33.0",
        source=_COMPRESSED,
        cause="vLLM has no scheme of compressed-tensors for these weights and activations together.",
        cure=(Cure("vllm"), Cure("dense")),
    ),
    _message(
        "Compressed-tensors group/dynamic activation ordering (actorder={order}) is no longer supported.",
        versions="0.30.0 to 0.33.0",
        source=_COMPRESSED,
        cause="Columns of the weights are sorted by their activations (weight_g_idx), and vLLM has had no kernels "
        "for that since 0.30. Where the order is trivial, qbridge leaves it out.",
        cure=(Cure("vllm"), Cure("gptqmodel"), Cure("dense")),
    ),
    _message(
        "GPTQ group activation ordering (desc_act=True) is no longer supported",
        versions="0.30.0 to 0.33.0",
        source=f"{_QUANTIZATION}/utils/gptq_utils.py",
        cause="Columns of the weights are sorted by their activations (g_idx), and vLLM has had no kernels for that "
        "since 0.30. Where the order is trivial, qbridge leaves it out.",
        cure=(Cure("vllm"), Cure("gptqmodel"), Cure("dense")),
    ),
    _message(
        "Sparsity support has been removed from compressed-tensors.",
        versions="0.22.0 to 0.33.0",
        source=_COMPRESSED,
        cause="config.json has a sparsity_config. One that calls the weights dense says nothing and is dropped; "
        "weights that are 2:4 sparse are in a layout that no release since 0.22 reads.",
        cure=(Cure("vllm"),),
    ),
    _message(
        "Currently supported kv cache quantization is num_bits=8, type=float, however received "
        "num_bits={bits:number}, type={kind:word}",
        versions="0.5.4 to 0.33.0",
        source=_COMPRESSED,
        cause="The checkpoint has scales for a kv cache of {bits} bits ({kind}), and vLLM has one of 8-bit floats.",
        cure=(Cure("vllm", "--allow drop-kv-scales"),),
    ),
    _message(
        "Invalid strategy for compressed-tensors KV cache.",
        versions="0.16.0 to 0.33.0",
        source=_COMPRESSED,
        cause="The scales of the kv cache are neither one per tensor nor one per head.",
        cure=(Cure("vllm", "--allow drop-kv-scales"),),
    ),
    _message(
        "Only support symmetric scaling factor for compressed-tensors KV cache.",
        versions="0.5.4 to 0.33.0",
        source=_COMPRESSED,
        cause="The kv cache was calibrated with zero-points, and vLLM has scales alone.",
        cure=(Cure("vllm", "--allow drop-kv-scales"),),
    ),
    _message(
        "For Fused MoE layers, only format: {format:word} and bits: {widths} is supported",
        versions="0.13.0 to 0.33.0",
        source=f"{_MOE}/compressed_tensors_moe.py",
        cause="vLLM has experts of packed integers in some widths alone, and these have another. Widening codes is "
        "exact.",
        cure=(Cure("vllm", "--bits 4"), Cure("vllm", "--bits 8")),
    ),
    _message(
        "Unsupported FusedMoe scheme:",
        versions="0.6.3 to 0.33.0",
        source=f"{_MOE}/compressed_tensors_moe.py",
        cause="vLLM has no kernels for experts whose weights and activations are quantized in this way.",
        cure=(Cure("vllm"), Cure("dense")),
    ),
    _message(
        "For INT8 Fused MoE layers, we require channelwise, dynamic per token quantization.",
        versions="0.9.2 to 0.33.0",
        source=f"{_MOE}/compressed_tensors_moe_w8a8_int8.py",
        cause="The experts have int8 weights with other scales than one per output channel, or static scales of "
        "inputs. One scale per tensor can be repeated exactly.",
        cure=(Cure("vllm"),),
    ),
    _message(
        "For FP8 Fused MoE layer, we require either per tensor or channelwise, dynamic per token quantization.",
        versions="0.8.5 to 0.33.0",
        source=f"{_MOE}/compressed_tensors_moe_w8a8_fp8.py",
        cause="The experts have float8 weights and inputs whose scales do not go together in vLLM.",
        cure=(Cure("vllm"), Cure("dense")),
    ),
    _message(
        "ModelOpt currently only supports: {supported} quantizations in vLLM.",
        versions="0.8.5 to 0.33.0",
        source=_MODELOPT,
        cause="ModelOpt has quantized by an algorithm that this vLLM does not read as ModelOpt's.",
        cure=(Cure("vllm"),),
    ),
    _message(
        "Unsupported ModelOpt FP8 quant_algo for vLLM: {algorithm:word}. Supported",
        versions="0.14.0 to 0.33.0",
        source=_MODELOPT,
        cause="vLLM does not read {algorithm} as ModelOpt's FP8; as compressed-tensors it may.",
        cure=(Cure("vllm"),),
    ),
    _message(
        "Unsupported ModelOpt NVFP4 quant_algo: {algorithm:word}. Supported",
        versions="0.21.0 to 0.33.0",
        source=_MODELOPT,
        cause="vLLM does not read {algorithm} as ModelOpt's NVFP4; as compressed-tensors it may.",
        cure=(Cure("vllm"),),
    ),
    _message(
        "Unsupported backend: {backend:word}, currently only support",
        versions="0.9.2 to 0.33.0",
        source=_INC,
        cause="AutoRound of 2024 wrote the kernel's name, {backend}, where vLLM reads how codes are packed. The same "
        "codes load as GPTQ, AWQ or compressed-tensors.",
        cure=(Cure("vllm"),),
    ),
    _message(
        "Unsupported weight_bits: {bits:number}, currently only support",
        versions="0.9.2 to 0.33.0",
        source=_INC,
        cause="vLLM does not read AutoRound of {bits} bits. The same codes, or wider ones, load as "
        "compressed-tensors.",
        cure=(Cure("vllm"), Cure("vllm", "--bits 8")),
    ),
    _message(
        "moe_wna16 only support gptq and awq.",
        versions="0.7.3 to 0.33.0",
        source=f"{_QUANTIZATION}/moe_wna16.py",
        cause="--quantization moe_wna16 is for experts in GPTQ or AWQ, and the checkpoint is in another format.",
        cure=(Cure("vllm"),),
        advice="Start vLLM without --quantization: config.json says what the checkpoint is.",
    ),
)
_CONFIGS = (
    _message(
        "Quantization method specified in the model config ({stored:word}) does not match the quantization method "
        "specified in the `quantization` argument ({asked:word}).",
        versions="0.5.4 to 0.33.0",
        source=_CONFIG,
        cause="The checkpoint is {stored}, and --quantization asks for {asked}. The option changes no checkpoint.",
        cure=(Cure("vllm"),),
        advice="Start vLLM without --quantization; converting helps only where vLLM does not serve {stored}.",
    ),
    _message(
        "Unknown quantization method: {method:word}. Must be one of",
        versions="0.5.4 to 0.33.0",
        source=_CONFIG,
        cause="This release of vLLM has no format {method}: it was removed (marlin after 0.10, bitsandbytes after "
        "0.27), is an extra package's, or another engine's.",
        cure=(Cure("vllm"),),
    ),
    _message(
        "Cannot find any of {keys} in the model's quantization config.",
        versions="0.5.4 to 0.33.0",
        source=f"{_QUANTIZATION}/base_config.py",
        cause="The block in config.json lacks keys that vLLM requires; the tensors say what they would.",
        cure=(Cure("vllm"),),
    ),
    _message(
        "Cannot find the config file for {method:word}",
        versions="0.5.4 to 0.33.0",
        source="vllm 0.33.0, model_executor/model_loader/weight_utils.py",
        cause="--quantization asks for {method}, and neither config.json nor a file beside it describes the "
        "quantization. qbridge recognises the format by its tensors and writes the block.",
        cure=(Cure("vllm"),),
    ),
    _message(
        "Missing 'quant_algo' in quantization config",
        versions="0.10.2 to 0.33.0",
        source=_MODELOPT,
        cause="The block in config.json is called ModelOpt's and does not say the algorithm.",
        cure=(Cure("vllm"),),
    ),
    _message(
        "The quantization method {shown:word} is deprecated and will be removed in future versions of vLLM. To "
        "bypass, set `--allow-deprecated-quantization`.",
        versions="0.14.0 to 0.33.0",
        source=_CONFIG,
        cause="vLLM has deprecated the format. The same float8 codes and scales load as compressed-tensors.",
        cure=(Cure("vllm"),),
        advice="Until it is removed, --allow-deprecated-quantization starts it as it is.",
    ),
    _message(
        "torch.{dtype:float32|float16|bfloat16} is not supported for quantization method {method:word}. "
        "Supported dtypes",
        versions="0.5.4 to 0.33.0",
        source="vllm 0.33.0, config/vllm.py",
        cause="vLLM has no kernels for {method} with activations in {dtype}, the dtype of config.json or of --dtype.",
        advice="Start vLLM with a dtype that the message lists, such as --dtype float16. Values outside its range "
        "are rounded; `qbridge convert` counts them (QB302).",
    ),
    _message(
        "The quantization method {method:word} is not supported for the current GPU. Minimum capability: "
        "{least:number}. Current capability: {now:number}.",
        versions="0.5.4 to 0.33.0",
        source="vllm 0.33.0, config/vllm.py",
        cause="{method} needs a GPU of compute capability {least}, and this one has {now}.",
        check="--gpu sm{now}",
        cure=(Cure("vllm"), Cure("dense")),
    ),
    _message(
        "Quantization scheme is not supported for the current GPU. Min capability: {least:number}. Current "
        "capability: {now:number}.",
        versions="0.29.0 to 0.33.0",
        source=_COMPRESSED,
        cause="The scheme needs a GPU of compute capability {least}, and this one has {now}.",
        check="--gpu sm{now}",
        cure=(Cure("dense"),),
        advice="Plain weights are rounded once from their exact values, and take two or four times the memory.",
    ),
)
MESSAGES = (*_NAMES, *_FUSED, *_SCHEMES, *shape_messages.MESSAGES, *_CONFIGS)
