"""Weights of floating-point codes in compressed-tensors: which schemes it has, and how each one is stored.

tensor                   dtype       shape             meaning (N = out_features, K = in_features, G = groups)
float-quantized (weights and activations), naive-quantized (weights only):
<L>.weight               F8_E4M3     [N, K]            codes, unpadded whatever the blocks
<L>.weight_scale         any float   [1] | [N, 1] | [N, G] | [ceil(N / rows), ceil(K / columns)]
mxfp8-quantized (groups of 32):
<L>.weight               F8_E4M3     [N, K]
<L>.weight_scale         U8          [N, K / 32]       e, which means 2^(e - 127); 255 is NaN
mxfp4-pack-quantized (groups of 32):
<L>.weight_packed        U8          [N, K / 2]        e2m1 codes, the even column in the low four bits
<L>.weight_scale         U8          [N, K / 32]       e, which means 2^(e - 127)
nvfp4-pack-quantized (groups of 16):
<L>.weight_packed        U8          [N, K / 2]        as mxfp4
<L>.weight_scale         F8_E4M3     [N, K / 16]
<L>.weight_global_scale  F32         [1]               divides: W = code * weight_scale / weight_global_scale
<L>.input_global_scale   F32         [1]               only where activations are dynamic "local"; divides as well

Sources: compressed-tensors 0.20.0, compressors/naive_quantized, mxfp8, mxfp4 and nvfp4 (base.py, helpers.py),
compressors/mx_utils.py, compressors/format.py, quantization/quant_scheme.py (the presets).
"""

from __future__ import annotations

from qbridge.codecs.bits import NIBBLES
from qbridge.formats.rules import Problem
from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.ir.scheme import ActivationScheme, Granularity, WeightScheme
from qbridge.ir.slots import PLAIN, Codec
from qbridge.passes.invert import Invert
from qbridge.source.stored import StoredTensor
from qbridge_formats.compressed_tensors.config import Group

FLOAT, MXFP8, MXFP4, NVFP4 = "float-quantized", "mxfp8-quantized", "mxfp4-pack-quantized", "nvfp4-pack-quantized"
EXPONENTS, E4M3 = "torch.uint8", "torch.float8_e4m3fn"  # values of scale_dtype
_MX_GROUP, _NV_GROUP = 32, 16
_WRONG_EXPONENTS = "0.13."  # releases that stored 2 less than the exponent (mended in 0.14.0)


def format_of(weight: WeightScheme, scale: DType) -> str | None:
    """The format that holds float weights with scales of a dtype; None if there is none (and for integers)."""
    exponents = scale is DType.F8_E8M0 and weight.group_size == _MX_GROUP and not weight.global_scale
    if weight.type == "e4m3fn" and not weight.global_scale:
        return FLOAT if scale.is_float else MXFP8 if exponents else None
    if weight.type == "e2m1" and exponents:
        return MXFP4
    levels = (weight.group_size, scale, weight.global_scale)
    return NVFP4 if weight.type == "e2m1" and levels == (_NV_GROUP, DType.F8_E4M3, "divide") else None


def scale_dtype(group: Group, stored: DType | None) -> DType | None:
    """The dtype that the scales of a group's layer must mean; None where it is the one that they have.

    Exponents are stored as U8, with or without a scale_dtype that says so.
    """
    weight = group.weight
    if weight is None or weight.type == "int":
        return None
    if weight.type == "e2m1":
        return DType.F8_E4M3 if weight.global_scale else DType.F8_E8M0
    exponents = group.exponents or (weight.group_size == _MX_GROUP and stored is DType.U8)
    return DType.F8_E8M0 if exponents else None


def not_read(group: Group, scale: StoredTensor | None, version: str) -> str | None:
    """Why a layer of floats that is sound in the library is not read here; None if it is."""
    weight, inputs = group.weight, group.activation
    if weight is None:
        return None
    meant = scale_dtype(group, scale.dtype if scale else None)
    kind = "int" if weight.type == "int" else format_of(weight, meant or DType.F32)
    if kind is None:
        scales = f", scales {meant}" if meant else ""
        return f"format {group.format or 'not named'}: weights {weight}{scales}"
    if kind == MXFP4 and version.startswith(_WRONG_EXPONENTS):
        return f"format {MXFP4} of compressed-tensors {version}, which stored exponents 2 too low"
    if inputs is not None and group.input_exponents != _has_exponents(inputs, kind in (MXFP4, MXFP8)):
        are = "are" if group.input_exponents else "are no"
        return f"activations {inputs} whose scales {are} exponents, weights {weight}"
    return None


def _has_exponents(inputs: ActivationScheme, weights: bool) -> bool:
    """Whether the scales of activations are exponents, beside weights whose scales are (or not)."""
    if inputs.group_size != _MX_GROUP or inputs.global_scale:
        return False
    return inputs.type == "e2m1" or (inputs.type == "e4m3fn" and weights)


def scale_dtypes(spec: Spec) -> tuple[str | None, str | None]:
    """What scale_dtype says of weights and activations, as llm-compressor's presets do."""
    kind = format_of(spec.weight, spec.scale_dtype)
    mx = kind in (MXFP4, MXFP8)
    inputs = spec.activation
    if inputs is None:
        own = None
    else:
        own = E4M3 if inputs.global_scale else EXPONENTS if _has_exponents(inputs, mx) else None
    return EXPONENTS if mx else E4M3 if kind == NVFP4 else None, own


def code_tensor(spec: Spec) -> tuple[str, DType, tuple[int, ...], Codec] | None:
    """(leaf, dtype, shape, codec) of float codes; None for integers, and for four bits in odd numbers."""
    if spec.weight.type == "e4m3fn":
        return "weight", DType.F8_E4M3, spec.dims, PLAIN
    if spec.weight.type == "e2m1":
        return "weight_packed", DType.U8, NIBBLES.stored_shape(spec.dims, 8), NIBBLES
    return None


def stored_scale(dtype: DType) -> DType:
    """The dtype of the tensor that holds scales: exponents are plain bytes."""
    return DType.U8 if dtype is DType.F8_E8M0 else dtype


def small_scales(spec: Spec, model: Model) -> Problem | None:
    """Scales of 8 bits in a scheme that has them in none of the formats: any wider float holds them exactly."""
    weight = spec.weight
    if weight.type not in ("int", "e4m3fn") or weight.global_scale or spec.scale_dtype.is_float:
        return None
    if format_of(weight, spec.scale_dtype):
        return None
    return Problem((f"weights {weight}: scales are {spec.scale_dtype}, compressed-tensors has wider floats",))


def unwritable(spec: Spec, model: Model) -> Problem | None:
    """Weights or activations of floats that no format here has a place for, whatever their global scales do."""
    inverted = Invert("divide").plan(spec)
    weight, inputs = inverted.weight, inverted.activation
    if weight.type != "int" and format_of(weight, spec.scale_dtype) is None:
        return Problem((f"{spec.scheme}: scales are {spec.scale_dtype}",))
    if weight.type == "int" and weight.global_scale:
        return Problem((spec.scheme,))
    if inputs is not None and not _is_expressible(inputs):
        return Problem((f"activations {inputs}",))
    return None


def _is_expressible(inputs: ActivationScheme) -> bool:
    """Whether the block has words for activations."""
    if inputs.type == "int":
        return inputs.global_scale is None
    if inputs.global_scale:
        return (inputs.global_scale, inputs.type, inputs.group_size) == ("divide", "e2m1", _NV_GROUP)
    bits = {"e4m3fn": 8, "e2m1": 4}.get(inputs.type)
    kinds = (Granularity.TOKEN, Granularity.TENSOR, Granularity.GROUP) if inputs.dynamic else (Granularity.TENSOR,)
    return inputs.bits == bits and inputs.symmetric and inputs.granularity in kinds
