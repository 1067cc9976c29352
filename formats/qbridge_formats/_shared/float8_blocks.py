"""Linears of float8 with a scale per block, which stay as they were in a checkpoint of which the rest is integers.

tensor                  dtype           shape               meaning (N = out_features, K = in_features)
<L>.weight              float8_e4m3fn   [N, K]              codes
<L>.weight_scale_inv    any float       [N / bn, K / bk]    one per block, rounded up; despite its name multiplied
<L>.bias                model dtype     [N]                 not quantized

Source: transformers 5.17.0, integrations/finegrained_fp8.py, whose default block is 128 x 128.
"""

from __future__ import annotations

from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.scheme import ActivationScheme, Granularity, WeightScheme
from qbridge.ir.slots import Slot
from qbridge.source.reader import Source
from qbridge_formats._shared.modules import ModuleTensors, tensors_of_modules

SCALE = "weight_scale_inv"
_BLOCK = (128, 128)
DYNAMIC = ActivationScheme(8, Granularity.GROUP, dynamic=True, type="e4m3fn", group_size=_BLOCK[1])


def float8_modules(source: Source) -> dict[str, ModuleTensors]:
    """The modules of a float8 matrix with a scale per block beside it."""
    return {
        module: own
        for module, own in tensors_of_modules(source).items()
        if SCALE in own and "weight" in own and own["weight"].dtype is DType.F8_E4M3 and len(own["weight"].shape) == 2
    }


def read_spec(module: str, own: ModuleTensors, activation: ActivationScheme | None) -> Spec:
    """The spec of such a module; ValueError where its scales are no floats."""
    scale, bias = own[SCALE], own.get("bias")
    if not scale.dtype.is_float:
        raise ValueError(f"{SCALE} is {scale.dtype}")
    rows, columns = own["weight"].shape
    return Spec(
        name=module,
        out_features=rows,
        in_features=columns,
        weight=WeightScheme(8, Granularity.BLOCK, type="e4m3fn", block=_BLOCK),
        scale_dtype=scale.dtype,
        activation=activation,
        bias=bias.dtype if bias else None,
    )


def layout(spec: Spec) -> dict[str, Slot]:
    """The tensors of the table above."""
    found = {
        "code": Slot(f"{spec.name}.weight", DType.F8_E4M3, spec.dims),
        "scale": Slot(f"{spec.name}.{SCALE}", spec.scale_dtype, spec.scale_shape),
    }
    if spec.bias is not None:
        found["bias"] = Slot(f"{spec.name}.bias", spec.bias, (spec.out_features,))
    return found
