"""What LMDeploy's two engines print when they refuse a quantized checkpoint.

Read in 0.18.0 and in the tags of its repository from 0.6.0 on; `versions` are the first and the last
of them that have the message.
"""

from __future__ import annotations

from functools import partial

from qbridge.targets.messages import Cure, Message

_pytorch = partial(Message, engine="lmdeploy", cure=(Cure("lmdeploy"),))
_turbomind = partial(Message, engine="lmdeploy-turbomind", cure=(Cure("lmdeploy-turbomind"),))
_LLAMA = "lmdeploy 0.18.0, pytorch/models/llama.py (params_dict[name])"
_CONFIG = "lmdeploy 0.18.0, pytorch/config.py"
_CONVERTER = "lmdeploy 0.18.0, turbomind/converter.py"
_EVERY = "0.6.0 to 0.18.0"
# A name that its loader looks up: whole as it is on disk, or with q, k, v and gate, up put together.
_MODULE = "KeyError: '{top:model|language_model|llm|transformer}.{rest:layer}."

MESSAGES = (
    _pytorch(
        _MODULE + "{tensor:weight_scale}'",
        versions=_EVERY,
        source=_LLAMA,
        cause="{top}.{rest} is stored as compressed-tensors (llm-compressor) with a weight_scale, and LMDeploy's "
        "PyTorch engine has built it unquantized, or with a parameter called scale: it has read no "
        "quantization_config that it knows. Its own W8A8 layout (smooth-quant) has the same codes and scales.",
    ),
    _pytorch(
        _MODULE + "{tensor:weight_packed|weight_shape|weight_zero_point|weight_g_idx}'",
        versions=_EVERY,
        source=_LLAMA,
        cause="{top}.{rest} holds packed integers of compressed-tensors (llm-compressor), and LMDeploy's PyTorch "
        "engine has built it unquantized. As AWQ it reads the same codes.",
    ),
    _pytorch(
        _MODULE + "{tensor:weight_scale_inv}'",
        versions=_EVERY,
        source=_LLAMA,
        cause="{top}.{rest} has float8 weights in blocks, and LMDeploy's PyTorch engine has built it unquantized: "
        "config.json has no block that says fp8.",
    ),
    _pytorch(
        _MODULE + "{tensor:k_scale|v_scale|k_zero_point|v_zero_point|kv_scale|q_scale|prob_output_scale}'",
        versions=_EVERY,
        source=_LLAMA,
        cause="{top}.{rest} has stored scales of a kv cache, and LMDeploy's model has no parameters for them.",
        cure=(Cure("lmdeploy", "--allow drop-kv-scales"),),
    ),
    _pytorch(
        _MODULE + "{tensor:input_scale|input_zero_point|weight_scale_2|weight_global_scale|input_global_scale}'",
        versions=_EVERY,
        source=_LLAMA,
        cause="{top}.{rest} has {tensor}, a part of its quantization for which LMDeploy's PyTorch engine has no "
        "parameter. What it can hold is converted, the rest is refused with the reason.",
    ),
    _pytorch(
        _MODULE + "{tensor:qweight|qzeros|scales|g_idx}'",
        versions=_EVERY,
        source=_LLAMA,
        cause="{top}.{rest} is stored as AWQ or GPTQ, and LMDeploy's PyTorch engine has built it unquantized: "
        "config.json has no block that it reads, or calls the linear plain.",
    ),
    _pytorch(
        "KeyError: 'lm_head.{tensor:qweight|qzeros|scales|weight_packed|weight_scale|weight_scale_inv|weight_shape}'",
        versions=_EVERY,
        source=_LLAMA,
        cause="lm_head is quantized, and LMDeploy builds it without a quantization config. vLLM has quantized heads.",
        cure=(Cure("vllm"), Cure("dense")),
    ),
    _pytorch(
        "Only compressed-tensors `pack-quantized` format is supported.",
        versions="0.18.0",
        source=_CONFIG,
        cause="The checkpoint is compressed-tensors with 8-bit weights, which LMDeploy reads as smooth-quant or fp8: "
        "the same codes and scales in another layout.",
    ),
    _pytorch(
        "Compressed-tensors activation quantization is not supported.",
        versions="0.18.0",
        source=_CONFIG,
        cause="The checkpoint quantizes activations too. W8A8 with dynamic activations loads as smooth-quant.",
    ),
    _pytorch(
        "Unsupported compressed-tensors `{key:word}`: expected {expected}, got",
        versions="0.18.0",
        source=_CONFIG,
        cause="LMDeploy's PyTorch engine reads compressed-tensors of 4 bits in groups of 32 alone, and {key} is not "
        "{expected} here. As AWQ it reads the same codes in other groups.",
    ),
    _pytorch(
        "Compressed-tensors config must contain exactly `config_groups.group_0`.",
        versions="0.18.0",
        source=_CONFIG,
        cause="The checkpoint has several schemes, and LMDeploy's PyTorch engine reads one of compressed-tensors.",
    ),
    _pytorch(
        "compressed-tensors dispatch requires a non-empty canonical module prefix",
        versions="0.18.0",
        source=_CONFIG,
        cause="LMDeploy's PyTorch engine reads compressed-tensors in the experts of some classes alone, and this "
        "model has another. As AWQ it loads.",
    ),
    _pytorch(
        "Only compressed-tensors INT4 group-size 32 is supported, got bits={bits:number}, group_size={group:word}",
        versions="0.18.0",
        source="lmdeploy 0.18.0, pytorch/nn/moe/compressed_tensors.py",
        cause="LMDeploy's PyTorch engine has experts of 4 bits in groups of 32, and these have {bits} bits in groups "
        "of {group}.",
    ),
    _pytorch(
        "Unsupported quant method: {method:word}",
        versions=_EVERY,
        source="lmdeploy 0.18.0, pytorch/nn/linear/__init__.py",
        cause="LMDeploy's PyTorch engine does not read {method}. It has smooth-quant and fp8 for 8 bits, and AWQ for "
        "4; experts in AWQ, and GPTQ, are for TurboMind.",
        cure=(Cure("lmdeploy"), Cure("lmdeploy-turbomind")),
    ),
    _pytorch(
        'Invalid quant dtype "{dtype:word}" resolved from model config',
        versions="0.12.3 to 0.18.0",
        source=_CONFIG,
        cause="quant_dtype of config.json is {dtype}, and LMDeploy wants the name of a torch dtype, such as int8 or "
        "float8_e4m3fn.",
    ),
    _pytorch(
        "Attempted to load weight ({given}) into parameter ({wanted:torch.Size}",
        versions=_EVERY,
        source="lmdeploy 0.18.0, pytorch/weight_loader/model_weight_loader.py",
        cause="A rank was given another share of a tensor than its parameter holds: with --tp, AWQ wants a whole "
        "number of groups of every linear's inputs and outputs on each rank. Or the tensor is packed in another "
        "layout.",
        cure=(Cure("lmdeploy"), Cure("lmdeploy", "--pad")),
        split=True,
    ),
    _turbomind(
        "unsupported quant config:",
        versions=_EVERY,
        source=_CONVERTER,
        cause="TurboMind reads AWQ of version gemm, and GPTQ that is symmetric and without act-order. Other AWQ "
        "layouts and asymmetric codes are repacked exactly.",
    ),
    _turbomind(
        "unsupported quant_config:",
        versions=_EVERY,
        source=_CONVERTER,
        cause="TurboMind does not read the quant_method of config.json. It has AWQ, GPTQ and compressed-tensors of 4 "
        "bits, fp8 in blocks, and gpt-oss; 8 bits with quantized activations are for the PyTorch engine.",
        cure=(Cure("lmdeploy-turbomind"), Cure("lmdeploy")),
        advice="The report's last line names the engine with --backend.",
    ),
    _turbomind(
        'Unsupported group_size={group:word} for model_format="{format:word}". Supported group_size values',
        versions="0.12.3 to 0.18.0",
        source=_CONVERTER,
        cause="TurboMind reads {format} in groups of 128 (compressed-tensors also of 32), and these have {group}. "
        "Smaller groups with the same scales are exact.",
    ),
    _turbomind(
        'model format is "{format:awq|gptq}" but group_size is {group:word}. Currently, only 128 is supported',
        versions="0.6.0 to 0.12.2",
        source="lmdeploy 0.6.2, turbomind/deploy/converter.py",
        cause="TurboMind read {format} in groups of 128 alone, and these have {group}. LMDeploy's PyTorch engine "
        "reads AWQ in other groups, and newer releases compressed-tensors in groups of 32.",
        cure=(Cure("lmdeploy@0.6.2"), Cure("lmdeploy-turbomind")),
    ),
    _turbomind(
        "compressed-tensors only supports pack-quantized format, but got {format:word}",
        versions="0.14.0 to 0.18.0",
        source=_CONVERTER,
        cause="TurboMind reads compressed-tensors of 4 bits, and this is {format}, of 8. LMDeploy's PyTorch engine "
        "reads the same codes as smooth-quant or fp8.",
        engine="lmdeploy",
        cure=(Cure("lmdeploy"),),
        advice="The report's last line names the engine with --backend.",
    ),
    _turbomind(
        "pack-quantized requires 4-bit int, but got {bits:number}-bit {kind:word}",
        versions="0.12.0 to 0.18.0",
        source=_CONVERTER,
        cause="TurboMind reads packed integers of 4 bits, and these have {bits}. Narrower codes can be widened "
        "exactly.",
        cure=(Cure("lmdeploy-turbomind", "--bits 4"), Cure("lmdeploy")),
    ),
    _turbomind(
        'mismatched quant method: user input "{asked:word}" vs model quant_config "{stored:word}"',
        versions=_EVERY,
        source=_CONVERTER,
        cause="--model-format asks for {asked}, and config.json says {stored}. The option changes no checkpoint.",
        advice="Leave --model-format away; converting helps only where TurboMind does not read {stored}.",
    ),
    _turbomind(
        "no weight format accepts tensors at '{module:name}': got",
        versions="0.14.0 to 0.18.0",
        source="lmdeploy 0.18.0, turbomind/weight_format.py",
        cause="The tensors of {module} are not those of the format that config.json names: zero-points are missing, "
        "the layout is another tool's, or the linear is quantized in another way than the rest.",
    ),
    _turbomind(
        "no checkpoint tensors found at prefix '{module:name}'",
        versions="0.14.0 to 0.18.0",
        source="lmdeploy 0.18.0, turbomind/weight_format.py",
        cause="No tensor of {module} is in the checkpoint: a shard is missing, or its names are those of another "
        "tool.",
        advice="Names of another tool: `--rename-prefix OLD=NEW` gives them the beginning that LMDeploy looks for.",
    ),
    _turbomind(
        "requires K >= {least:number}, K % {multiple:number} == 0, N >= {least_out:number}, and N % "
        "{multiple_out:number} == 0; got K={size:number} N={outputs:number}",
        versions="0.18.0",
        source="lmdeploy 0.18.0, turbomind/builders/_base.py",
        cause="TurboMind has no kernel for {size} inputs and {outputs} outputs: it wants multiples of {multiple} and "
        "{multiple_out}, the tensor-parallel size counted in. Padding an MLP is exact.",
        cure=(Cure("lmdeploy-turbomind", "--pad"), Cure("lmdeploy")),
        split=True,
    ),
    _turbomind(
        "TP split: {tensor:name} dim {axis:number} has size {size:number}, not divisible by tp={tp:number}.",
        versions="0.14.0 to 0.18.0",
        source="lmdeploy 0.18.0, turbomind/builders/_base.py",
        cause="{tensor} has {size} rows or columns of codes, scales or zero-points along the axis that ranks share, "
        "which {tp} ranks cannot share evenly.",
        cure=(Cure("lmdeploy-turbomind"), Cure("lmdeploy-turbomind", "--pad")),
        split=True,
    ),
)
