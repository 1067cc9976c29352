"""What transformers, and compressed-tensors under it, raise when they refuse a quantized checkpoint.

Read in transformers 4.44.2 to 5.24.0 and compressed-tensors 0.5.0 to 0.20.0.
"""

from __future__ import annotations

from functools import partial

from qbridge.targets.messages import Cure, Message

_message = partial(Message, engine="transformers", cure=(Cure("transformers"),))
_QUANTIZERS = "transformers 5.17.0, quantizers"
_PACKED = "compressed-tensors 0.20.0, compressors/pack_quantized/base.py"
_ARGUMENTS = "compressed-tensors 0.20.0, quantization/quant_args.py"
_PACKAGE = (
    "transformers loads {} through another package. As compressed-tensors, where it has a scheme for these layers, "
    "it loads the same codes itself."
)

MESSAGES = (
    _message(
        "Unknown quantization type, got {method:word} - supported types are",
        versions="4.44.2 to 5.24.0",
        source=f"{_QUANTIZERS}/auto.py",
        cause="transformers has no format {method}. The same codes load as compressed-tensors or fp8 where those "
        "have the scheme.",
        cure=(Cure("transformers"), Cure("dense")),
    ),
    _message(
        "Loading a GPTQ quantized model requires gptqmodel",
        versions="4.51.3 to 5.24.0",
        source=f"{_QUANTIZERS}/quantizer_gptq.py",
        cause=_PACKAGE.format("GPTQ"),
        advice="Or install it: pip install gptqmodel.",
    ),
    _message(
        "Loading a GPTQ quantized model requires optimum",
        versions="4.44.2 to 5.24.0",
        source=f"{_QUANTIZERS}/quantizer_gptq.py",
        cause=_PACKAGE.format("GPTQ"),
        advice="Or install it: pip install optimum gptqmodel.",
    ),
    _message(
        "Loading an AWQ quantized model requires gptqmodel.",
        versions="5.17.0 to 5.24.0",
        source=f"{_QUANTIZERS}/quantizer_awq.py",
        cause=_PACKAGE.format("AWQ"),
        advice="Or install it: pip install gptqmodel.",
    ),
    _message(
        "Loading an AutoRound quantized model requires auto-round library",
        versions="4.57.6 to 5.24.0",
        source=f"{_QUANTIZERS}/quantizer_auto_round.py",
        cause=_PACKAGE.format("AutoRound's format"),
        advice="Or install it: pip install 'auto-round>=0.5'.",
    ),
    _message(
        "Using `compressed_tensors` quantized models requires",
        versions="4.51.3 to 5.24.0",
        source=f"{_QUANTIZERS}/quantizer_compressed_tensors.py",
        cause="compressed-tensors is not installed beside transformers, or too old.",
        cure=(),
        advice="Install it: pip install compressed-tensors.",
    ),
    _message(
        "Only support quantization to [2,3,4,8] bits but found {bits:number}",
        versions="4.44.2 to 5.24.0",
        source="transformers 5.17.0, utils/quantization_config.py",
        cause="transformers reads GPTQ of 2, 3, 4 and 8 bits, and this one has {bits}. compressed-tensors has 1 to "
        "8.",
    ),
    _message(
        "'FalconLinear' object has no attribute 'weight'",
        versions="5.17.0 to 5.24.0",
        source="transformers 5.17.0, models/falcon/modeling_falcon.py (class FalconLinear)",
        cause="transformers initializes the weight of Falcon's linears while it loads, and packed codes are none.",
        cure=(Cure("dense"),),
        advice="vLLM serves it: `qbridge convert SRC DST --to vllm`.",
    ),
    _message(
        "actorder='{order:word}' has been removed. Consider using actorder='weight' or actorder=None instead.",
        versions="0.20.0",
        source=_ARGUMENTS,
        cause="Columns of the weights are sorted by their activations (actorder {order}), and compressed-tensors no "
        "longer reads that. Where the order is trivial, qbridge leaves it out.",
        cure=(Cure("transformers"), Cure("dense")),
    ),
    _message(
        "is no longer supported. If you are attempting to use a Sparse24 model",
        versions="0.15.0 to 0.20.0",
        source="compressed-tensors 0.20.0, compressors/model_compressors/model_compressor.py",
        cause="The weights are 2:4 sparse (marlin-24), a layout that compressed-tensors no longer reads.",
        cure=(Cure("transformers"),),
    ),
    _message(
        "Asymmetric quant requires zero-point values",
        versions="0.15.0 to 0.20.0",
        source=_PACKED,
        cause="config.json calls the weights asymmetric, and a layer has no zero-points: the block belongs to other "
        "tensors, or transformers was not given the zero-points of experts.",
        cure=(Cure("transformers"), Cure("dense")),
    ),
    _message(
        "Invalid group size {group:word}. Use group_size > 0 for strategy='group' and group_size = -1 for 'channel'",
        versions="0.8.1 to 0.20.0",
        source=_ARGUMENTS,
        cause="The block in config.json has a group size of {group}, which compressed-tensors does not take for "
        "groups. qbridge takes the size from the tensors.",
    ),
    _message(
        "group_size requires strategy to be set to 'group'",
        versions="0.8.1 to 0.20.0",
        source=_ARGUMENTS,
        cause="The block in config.json has a group size beside a strategy that has none.",
    ),
    _message(
        "Cannot perform static token quantization",
        versions="0.13.0 to 0.20.0",
        source=_ARGUMENTS,
        cause="The block in config.json says that inputs have one scale per token and that it is stored.",
    ),
    _message(
        "Weight shape ({outputs:number}, {inputs:number}) not divisible by scale grid ({rows:number}, "
        "{columns:number}).",
        versions="5.17.0 to 5.24.0",
        source="transformers 5.17.0, integrations/finegrained_fp8.py",
        cause="A float8 weight of {outputs} x {inputs} is cut into {rows} x {columns} blocks whose last ones are "
        "short, and transformers unpacks whole ones.",
        cure=(Cure("dense"),),
    ),
)
