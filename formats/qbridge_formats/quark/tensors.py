"""The tensors of a linear of Quark, under the names of either exporter.

part            loadable              by quantizers                  by several quantizers
scale           weight_scale          weight_quantizer.scale         weight_quantizer.0.scale
zero            weight_zero_point     weight_quantizer.zero_point    weight_quantizer.0.zero_point
global_scale    weight_scale_2                                       weight_quantizer.1.scale
input_scale     input_scale           input_quantizer.scale          input_quantizer.0.scale
input_global_scale  input_scale_2                                    input_quantizer.1.scale

The names by quantizers are those of the modules that made the tensors: a save of transformers 5 by a Quark that waits
for transformers 4 to rename them (amd-quark 0.11) leaves them so, and no engine loads them.
Sources: amd-quark 0.13, torch/export/constants.py (LOAD_MAP, LOAD_MAP_MULTI) and torch/utils/pack.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from qbridge.codecs.arrays import TRANSPOSED, Filled, Narrowed
from qbridge.codecs.bits import NIBBLES, BitPacked
from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.scheme import GLOBAL_SCALE, Granularity
from qbridge.ir.slots import PLAIN, Codec, Slot, by_kind
from qbridge.source.stored import StoredTensor
from qbridge_formats._shared.modules import ModuleTensors
from qbridge_formats._shared.stacked_experts import as_stored
from qbridge_formats.quark.config import IN_ORDER

NAMES, PACK, ZEROS, SHAPE, LEAF = "names", "pack", "zero_points", "scale_shape", "scale_name"  # keys of the dialect
QUANTIZERS, NUMBERED = "quantizers", "numbered"
NO_ZEROS, COLUMN, INVERSE = "none", "column", "weight_scale_inv"
_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_QUANTIZER = re.compile(r"(.+)\.(weight|input)_quantizer(?:\.([01]))?")
_SPELLED: Mapping[str, Mapping[str, str]] = {
    QUANTIZERS: {
        "weight_scale": "weight_quantizer.scale",
        "weight_zero_point": "weight_quantizer.zero_point",
        "input_scale": "input_quantizer.scale",
        "input_zero_point": "input_quantizer.zero_point",
    },
    NUMBERED: {
        "weight_scale": "weight_quantizer.0.scale",
        "weight_zero_point": "weight_quantizer.0.zero_point",
        "weight_scale_2": "weight_quantizer.1.scale",
        "input_scale": "input_quantizer.0.scale",
        "input_scale_2": "input_quantizer.1.scale",
    },
}


def by_linear(modules: Mapping[str, ModuleTensors]) -> tuple[dict[str, ModuleTensors], dict[str, str]]:
    """Modules with the tensors of their quantizers under loadable names, and how these are called where otherwise."""
    found: dict[str, dict[str, StoredTensor]] = {}
    names: dict[str, str] = {}
    for module, own in modules.items():
        match = _QUANTIZER.fullmatch(module)
        if match is None:
            found.setdefault(module, {}).update(own)
            continue
        linear, kind, number = match.groups()
        names[linear] = NUMBERED if number or names.get(linear) == NUMBERED else QUANTIZERS
        end = "_2" if number == "1" else ""
        found.setdefault(linear, {}).update({f"{kind}_{leaf}{end}": tensor for leaf, tensor in own.items()})
    return dict(found), names


def packing(spec: Spec) -> BitPacked:
    """How codes and zero-points of 4 bits are packed: along out_features, symmetric ones in two's complement."""
    order = () if dict(spec.dialect).get(PACK) == IN_ORDER else _ORDER
    return BitPacked(4, 0, 8, transposed=True, order=order, signed=spec.weight.symmetric)


def _slots(spec: Spec) -> dict[str, Slot]:
    """The tensors of the table above, under the names and in the shapes that the dialect keeps."""
    dialect, weight = dict(spec.dialect), spec.weight
    spelled = _SPELLED.get(dialect.get(NAMES, ""), {})

    def slot(leaf: str, dtype: DType | None, shape: tuple[int, ...], codec: Codec = PLAIN) -> Slot:
        return Slot(f".{spelled.get(leaf, leaf)}", dtype or GLOBAL_SCALE, shape, codec)

    slots = {
        **_coded(spec, slot),
        "global_scale": slot("weight_scale_2", GLOBAL_SCALE, ()),
        "input_scale": slot("input_scale", spec.input_scale_dtype, ()),
        "input_global_scale": slot("input_scale_2", spec.input_scale_dtype, ()),
        "bias": slot("bias", spec.bias, (spec.out_features,)),
    }
    fixed = {"zero", "input_zero"} if weight.type == "int" and dialect.get(ZEROS) != NO_ZEROS else set()
    static = spec.activation is not None and not spec.activation.dynamic
    wanted = spec.parts().keys() | (fixed if static else fixed - {"input_zero"})
    return {part: found for part, found in slots.items() if part in wanted}


def _coded(spec: Spec, slot) -> dict[str, Slot]:  # type: ignore[no-untyped-def]
    """The slots of codes, scales and zero-points."""
    dialect, weight = dict(spec.dialect), spec.weight
    rows, groups = spec.scale_shape
    if weight.type == "int" and weight.bits == 4:
        packed = packing(spec)
        zeros: Codec = Filled(packed, 0, (rows, groups)) if weight.symmetric else packed
        return {
            "code": slot("weight", DType.I32, packed.stored_shape(spec.dims), packed),
            "scale": slot("weight_scale", spec.scale_dtype, (groups, rows), TRANSPOSED),
            "zero": slot("weight_zero_point", DType.I32, packed.stored_shape((rows, groups)), zeros),
        }
    shape: tuple[int, ...] = (rows, groups)
    if weight.granularity in (Granularity.TENSOR, Granularity.CHANNEL):
        shape = () if weight.granularity is Granularity.TENSOR else (rows,)
        shape = (rows, 1) if dialect.get(SHAPE) == COLUMN else shape
    scale = DType.U8 if spec.scale_dtype is DType.F8_E8M0 else spec.scale_dtype
    zeros = Filled(Narrowed(), 0, (rows, groups))
    nibbles = weight.type == "e2m1"
    dtype = DType.U8 if nibbles else DType.I8 if weight.type == "int" else DType.F8_E4M3
    return {
        "code": slot(
            "weight",
            dtype,
            NIBBLES.stored_shape(spec.dims, 8) if nibbles else spec.dims,
            NIBBLES if nibbles else PLAIN,
        ),
        "scale": slot(dialect.get(LEAF, "weight_scale"), scale, shape),
        "zero": slot("weight_zero_point", DType.I8, shape, zeros),
        "input_zero": slot("input_zero_point", DType.I8, (), Filled(Narrowed(), 0, (1, 1))),
    }


layout = as_stored(by_kind(_slots))


def with_stored(spec: Spec, own: ModuleTensors, names: str, pack: str) -> Spec:
    """The spec with what its dialect must keep of the tensors: their names, packing and shapes."""
    kept = {NAMES: names} if names else {}
    if spec.weight.type == "int":
        kept |= {PACK: pack} if spec.weight.bits == 4 and pack == IN_ORDER else {}
        kept |= {ZEROS: NO_ZEROS} if spec.weight.symmetric and "weight_zero_point" not in own else {}
    scale = own.get("weight_scale")
    if scale is None and INVERSE in own:
        kept[LEAF] = INVERSE
    if spec.weight.granularity in (Granularity.TENSOR, Granularity.CHANNEL) and scale is not None:
        kept |= {SHAPE: COLUMN} if scale.shape == (spec.scale_shape[0], 1) and len(scale.shape) == 2 else {}
    return replace(spec, dialect=tuple(sorted((*spec.dialect, *kept.items()))))
