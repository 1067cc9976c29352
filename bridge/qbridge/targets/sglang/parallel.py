"""What a rank of SGLang can hold, by format.

Its Marlin kernels pad nothing: their shares are multiples of 128 inputs and 64 outputs. compressed-tensors asks for
that when it has loaded, and does not look at the answer; the kernel stops at the first token.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from qbridge.ir.model import Model
from qbridge.targets.blocks import BlockLimits
from qbridge.targets.parallel import Parallel
from qbridge.targets.sglang import fusion


@dataclass(frozen=True, slots=True)
class Marlin(Parallel):
    """Marlin's tiles: integers are asked for 128 x 64, floats fit 64 x 128 as well, and NVFP4 is padded.

    Of floats nothing asks beforehand: the kernel has tiles of both shapes (gptq_marlin.cuh, *_thread_configs).
    """

    def _misfits(self, model: Model, sizes: tuple[int, ...]) -> Iterator[tuple[str, str]]:
        turned = replace(self, inputs=self.outputs, outputs=self.inputs)
        for size in sizes:
            unfit = {name for name, _ in Parallel._misfits(turned, model, (size,))}
            for name, fact in Parallel._misfits(self, model, (size,)):
                kind = model.specs[name].weight.type
                if kind == "int" or (kind != "e2m1" and name in unfit):
                    yield name, fact


@dataclass(frozen=True, slots=True)
class OtherKernel(Parallel):
    """Limits of Marlin's tiles for what another kernel serves where a linear as a whole does not fit them.

    SGLang asks before a linear knows its share of a rank, so that one that fits as a whole goes to Marlin.
    """

    def _misfits(self, model: Model, sizes: tuple[int, ...]) -> Iterator[tuple[str, str]]:
        others = {name for name, _ in Parallel._misfits(self, model, (1,))}
        for name, fact in Parallel._misfits(self, model, sizes):
            if name not in others:
                yield name, fact


_BLOCKS = BlockLimits(
    "sglang 0.5.23, srt/layers/quantization/fp8_utils.py (validate_fp8_block_shape)",
    last_cut=True,
    whole_cut=True,
)
SGLANG = Marlin(
    (128, 64, 32),
    frozenset({"compressed-tensors", "gptq"}),
    inputs=128,
    outputs=64,
    straddled={"": "SGLang 0.5.23 refuses it while it builds or loads the layer"},
    blocks=_BLOCKS,
    fused=fusion.SGLANG,
    source="sglang 0.5.23, srt/layers/quantization/marlin_utils.py (verify_marlin_supports_shape), "
    "marlin_utils_fp4.py (prepare_fp4_layer_for_marlin)",
)
AWQ = OtherKernel(
    SGLANG.sizes,
    inputs=SGLANG.inputs,
    outputs=SGLANG.outputs,
    whole_channels=frozenset({"awq"}),
    straddled=SGLANG.straddled,
    fused=fusion.SGLANG,
    source="sglang 0.5.23, srt/layers/quantization/awq/awq.py (get_quant_method: check_marlin_supports_layer)",
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
