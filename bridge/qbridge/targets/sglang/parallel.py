"""What a rank of SGLang can hold, by format.

Its Marlin kernels pad nothing: their shares are multiples of 128 inputs and 64 outputs. compressed-tensors asks for
that when it has loaded, and does not look at the answer; the kernel stops at the first token.
"""

from __future__ import annotations

from dataclasses import replace

from qbridge.targets.blocks import BlockLimits
from qbridge.targets.parallel import Parallel
from qbridge.targets.sglang import fusion

_BLOCKS = BlockLimits(
    "sglang 0.5.23, srt/layers/quantization/fp8_utils.py (validate_fp8_block_shape)",
    last_cut=True,
)
SGLANG = Parallel(
    (128, 64, 32),
    frozenset({"compressed-tensors", "gptq"}),
    inputs=128,
    outputs=64,
    whole_groups=frozenset({"mxfp4"}),
    straddled={"": "SGLang 0.5.23 refuses it while it builds or loads the layer"},
    blocks=_BLOCKS,
    fused=fusion.SGLANG,
    source="sglang 0.5.23, srt/layers/quantization/marlin_utils.py (verify_marlin_supports_shape)",
)
# What Marlin does not take has another kernel there.
AWQ = replace(
    SGLANG,
    inputs=1,
    outputs=1,
    whole_channels=frozenset({"awq"}),
    source="sglang 0.5.23, srt/layers/quantization/awq/schemes/awq_linear.py (create_weights)",
)
# Its own methods of blocks want whole ones, the last of a fused linear included.
OWN_BLOCKS = replace(
    SGLANG,
    blocks=replace(
        _BLOCKS,
        source="sglang 0.5.23, srt/layers/quantization/fp8.py (validate_block_quant_shapes) and blockwise_int8.py "
        "(create_weights)",
        last_cut=False,
    ),
)
