"""The tensors of an AWQ linear in each of its layouts.

Sources: autoawq 0.2.9, awq/modules/linear/gemm.py, gemv.py, gemv_fast.py and awq/utils/packing_utils.py; gptqmodel
7.7.0, nn_modules/qlinear/gemm_awq.py (widths other than 4) and quantization/awq/modules/linear.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from qbridge.codecs.arrays import TRANSPOSED, Filled, Padded, ScaledZeros
from qbridge.codecs.bits import BitPacked, Tiled
from qbridge.formats.mismatch import mismatch
from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.scheme import Granularity, WeightScheme
from qbridge.ir.slots import PLAIN, Codec, Slot, by_kind
from qbridge.source.reader import Source

GEMM, GEMV, FAST, LLM_AWQ = "gemm", "gemv", "gemv_fast", "llm-awq"
VERSIONS = (GEMM, GEMV, FAST, LLM_AWQ)
STREAM = "stream"  # our word for GPTQModel's GEMM of another width than 4, which has no order
ORDERED = "ordered"  # and for AutoRound's, which has AWQ's

_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_NIBBLES = BitPacked(4, 1, 8)


def _fast_order() -> tuple[int, ...]:
    """Places of a tile of 4 output and 64 input features, one output feature after the other.

    Within 32 inputs the codes are dealt out twice: in pairs over four, then even before odd ones of eight.
    """
    pairs = np.arange(64).reshape(2, 4, 4, 2).transpose(0, 2, 1, 3).reshape(2, 4, 4, 2)
    inputs = pairs.transpose(0, 1, 3, 2).reshape(64)
    return tuple(int(column) + 64 * row for row in range(4) for column in inputs)


FAST_CODES = Tiled((4, 64), _fast_order(), _NIBBLES, across=False)


def gemm_codec(bits: int, version: str = GEMM) -> BitPacked:
    """Words across out_features, every eight in AWQ's order unless they are GPTQModel's stream."""
    return BitPacked(bits, 0, 2 ** (bits - 1), transposed=True, order=() if version == STREAM else _ORDER)


def stored_version(version: str, bits: int) -> str:
    """The layout of codes of a width in a version: GEMM has 4 bits alone."""
    return STREAM if version == GEMM and bits != 4 else version


def is_awq_shaped(source: Source, module: str) -> bool:
    """Whether qweight has fewer columns than its scales: several output features share a word."""
    codes, scales = source.tensors.get(f"{module}.qweight"), source.tensors.get(f"{module}.scales")
    return bool(codes and scales and len(codes.shape) == 2 and codes.shape[1:] < scales.shape[1:])


def read_spec(source: Source, module: str, version: str, bits: int, size: int) -> Spec:
    """The spec of a module; ValueError where its tensors do not fit together. Symmetric ones are known by value."""
    codes, scales = source.tensors[f"{module}.qweight"], source.tensors.get(f"{module}.scales")
    if scales is None or len(scales.shape) != 2 or len(codes.shape) != 2 or not scales.dtype.is_float:
        raise ValueError("qweight and scales are not two matrices")
    rows, columns = {
        GEMM: (scales.shape[1], codes.shape[0]),
        ORDERED: (scales.shape[1], codes.shape[0]),
        GEMV: (codes.shape[0], codes.shape[1] * 8),
    }.get(version, (codes.shape[0] * 4, codes.shape[1]))
    if version in (FAST, LLM_AWQ) and scales.dtype is not DType.F16:
        raise ValueError(f"scales are {scales.dtype}, and products with them are stored in F16")
    bias, grouped = source.tensors.get(f"{module}.bias"), size > 0
    weight = WeightScheme(
        bits,
        Granularity.GROUP if grouped else Granularity.CHANNEL,
        symmetric=False,
        group_size=size if grouped else None,
    )
    version = stored_version(version, bits)
    dialect = () if version == GEMM else (("version", version),)
    spec = Spec(module, rows, columns, weight, scales.dtype, bias=bias.dtype if bias else None, dialect=dialect)
    slots = layout(spec)
    for part in ("scale", "zero"):
        slot = slots[part]
        tensor = source.tensors.get(slot.tensor)
        leaf, wanted = slot.tensor.rpartition(".")[2], (slot.dtype, slot.shape)
        if tensor is None:
            raise ValueError(f"{leaf} is absent, the scheme gives {slot.dtype}{list(slot.shape)}")
        if (tensor.dtype, tensor.shape) != wanted:
            raise ValueError(mismatch(leaf, (tensor.dtype, tensor.shape), wanted))
    if slot.codec.needs:
        return spec
    symmetric = slot.codec.holds_zeros(source.read_small(slot.tensor), spec.scale_shape)
    return replace(spec, weight=replace(weight, symmetric=symmetric))


def _slots(spec: Spec) -> dict[str, Slot]:
    """The tensors of a spec in the version that its dialect keeps, else GEMM."""
    version = dict(spec.dialect).get("version", GEMM)
    found = {FAST: _fast, LLM_AWQ: _fast, GEMV: _gemv}.get(version, _gemm)(spec)
    if spec.bias is not None:
        found["bias"] = Slot(".bias", spec.bias, (spec.out_features,))
    return found


layout = by_kind(_slots)


def _gemm(spec: Spec) -> dict[str, Slot]:
    rows, groups = spec.scale_shape
    packed = gemm_codec(spec.weight.bits, dict(spec.dialect).get("version", GEMM))
    zeros: Codec = Filled(packed, 0, spec.scale_shape) if spec.weight.symmetric else packed
    shape = (spec.out_features, spec.in_features)
    return {
        "code": Slot(".qweight", DType.I32, packed.stored_shape(shape), packed),
        "scale": Slot(".scales", spec.scale_dtype, (groups, rows), TRANSPOSED),
        "zero": Slot(".qzeros", DType.I32, packed.stored_shape(spec.scale_shape), zeros),
    }


def zeros_width(in_features: int, group_size: int) -> int:
    """Words of zero-points of a row, padded as AutoAWQ's kernels want them (calculate_zeros_width)."""
    multiple = {128: 1, 64: 2, 32: 4, 16: 8}.get(min(group_size, 128), 1)
    words = -(-(in_features // group_size) // 8)
    return -(-words // multiple) * multiple


def _gemv(spec: Spec) -> dict[str, Slot]:
    rows, groups = spec.scale_shape
    width = zeros_width(spec.in_features, spec.weight.group_size or spec.in_features)
    zeros: Codec = Filled(_NIBBLES, 0, spec.scale_shape) if spec.weight.symmetric else _NIBBLES
    inner = _NIBBLES.stored_shape(spec.scale_shape)
    shape = (spec.out_features, spec.in_features)
    return {
        "code": Slot(".qweight", DType.I32, _NIBBLES.stored_shape(shape), _NIBBLES),
        "scale": Slot(".scales", spec.scale_dtype, (rows, 8 * width), Padded(PLAIN, (rows, groups))),
        "zero": Slot(".qzeros", DType.I32, (rows, width), Padded(zeros, inner)),
    }


def _fast(spec: Spec) -> dict[str, Slot]:
    rows, groups = spec.scale_shape
    width = zeros_width(spec.in_features, spec.weight.group_size or spec.in_features)
    zeros = "scaled_zeros" if dict(spec.dialect).get("version") == LLM_AWQ else "qzeros"
    shape = FAST_CODES.stored_shape((spec.out_features, spec.in_features), 16)
    return {
        "code": Slot(".qweight", DType.I16, shape, FAST_CODES),
        "scale": Slot(".scales", spec.scale_dtype, (8 * width, rows), Padded(TRANSPOSED, (groups, rows))),
        "zero": Slot(f".{zeros}", DType.F16, (8 * width, rows), ScaledZeros(8)),
    }
