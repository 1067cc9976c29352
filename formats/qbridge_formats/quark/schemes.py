"""The schemes of Quark's config entries, both ways.

An entry (`QTensorConfig`) has the keys dtype, qscheme, group_size, block_size, ch_axis, is_dynamic, symmetric and
scale_format; NVFP4 has two in a list, of the codes and of the scales of their groups.

kind        weight                                            inputs
int4        int4 per_group, symmetric                         none
uint4       uint4 per_group, zero-points                      none
int8        int8 per_tensor or per_channel, symmetric         int8 per_tensor, static, or per_channel, dynamic
fp8         fp8_e4m3 per_tensor or per_channel                fp8_e4m3 per_tensor, or per_channel, dynamic
fp8 blocks  fp8_e4m3 per_block [128, 128]                     fp8_e4m3 per_group 128, dynamic
mxfp8       fp8_e4m3 per_group 32, scale_format e8m0          the same, dynamic, or none
mxfp4       fp4 per_group 32, scale_format e8m0               the same, dynamic, or none
nvfp4       [fp4 per_group 16, fp8_e4m3 per_tensor]           the same, the first dynamic

Sources: amd-quark 0.13, torch/quantization/config/config.py; vllm 0.33.0,
model_executor/layers/quantization/quark/quark.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.scheme import ActivationScheme, CodeType, Granularity, WeightScheme

_TENSOR, _CHANNEL, _GROUP = Granularity.TENSOR, Granularity.CHANNEL, Granularity.GROUP
_TYPES: Mapping[str, tuple[CodeType, int]] = {
    "int4": ("int", 4),
    "uint4": ("int", 4),
    "int8": ("int", 8),
    "fp8_e4m3": ("e4m3fn", 8),
    "fp4": ("e2m1", 4),
}
_WHOLE: Mapping[Any, Granularity] = {"per_tensor": _TENSOR, "per_channel": _CHANNEL}
E8M0 = "e8m0"
Entry = Mapping[str, Any]


class UnknownScheme(ValueError):
    """An entry that is none of the table."""


def weight_of(entry: Any) -> tuple[WeightScheme, DType | None]:
    """The scheme of weights and the dtype of their scales, None for any float; UnknownScheme for any other."""
    first, second = _pair(entry)
    type_, bits = _type(first)
    if first.get("is_dynamic"):
        raise UnknownScheme("weights with scales that are not stored")
    if second is not None:
        _must(_is(first, "fp4", "per_group", group_size=16) and _is(second, "fp8_e4m3", "per_tensor"), entry)
        return WeightScheme(4, _GROUP, type="e2m1", group_size=16, global_scale="multiply"), DType.F8_E4M3
    kind = first.get("qscheme")
    if kind == "per_block":
        _must(type_ == "e4m3fn", entry)
        return WeightScheme(bits, Granularity.BLOCK, type=type_, block=_block(first)), None
    if kind == "per_group":
        return _grouped(first, type_, bits)
    _must(kind in _WHOLE and type_ != "e2m1" and bits == 8, entry)
    _must(type_ != "int" or first.get("symmetric") is True, entry)
    _must(kind == "per_tensor" or first.get("ch_axis") in (0, None), entry)
    return WeightScheme(bits, _WHOLE[kind], type=type_), None


def _grouped(entry: Entry, type_: CodeType, bits: int) -> tuple[WeightScheme, DType | None]:
    """Scales per group: integers of 4 bits, and the microscaling floats."""
    size = entry.get("group_size")
    if type(size) is not int or size < 1:
        raise UnknownScheme(f"groups of {size!r}")
    _must(entry.get("ch_axis") in (1, -1), entry)
    if type_ == "int":
        symmetric = entry.get("symmetric")
        _must(bits == 4 and symmetric is (entry.get("dtype") == "int4"), entry)
        _must(entry.get("zero_point_type", "int32") in (None, "int32"), entry)
        return WeightScheme(4, _GROUP, symmetric=symmetric is True, group_size=size), None
    _must(entry.get("scale_format") == E8M0 and size == 32, entry)
    return WeightScheme(bits, _GROUP, type=type_, group_size=size), DType.F8_E8M0


def inputs_of(entry: Any) -> ActivationScheme | None:
    """The scheme of inputs, None where they are not quantized; UnknownScheme for one that is none of the table."""
    if entry is None:
        return None
    first, second = _pair(entry)
    type_, bits = _type(first)
    kind, dynamic = first.get("qscheme"), bool(first.get("is_dynamic"))
    if second is not None:
        fits = _is(first, "fp4", "per_group", group_size=16) and _is(second, "fp8_e4m3", "per_tensor")
        _must(fits and dynamic and not second.get("is_dynamic"), entry)
        return ActivationScheme(4, _GROUP, dynamic=True, type="e2m1", group_size=16, global_scale="multiply")
    if kind == "per_group":
        size = first.get("group_size")
        _must(dynamic and type_ != "int" and type(size) is int and size > 0, entry)
        _must((first.get("scale_format") == E8M0) == (size == 32), entry)
        return ActivationScheme(bits, _GROUP, dynamic=True, type=type_, group_size=size)
    _must(bits == 8 and kind in _WHOLE, entry)
    _must(first.get("symmetric") is not False, entry)
    if kind == "per_channel":  # of inputs [tokens, features]: one scale per token
        _must(dynamic, entry)
        return ActivationScheme(bits, Granularity.TOKEN, dynamic=True, type=type_)
    return ActivationScheme(bits, _TENSOR, dynamic=dynamic, type=type_)


def entries_of(spec: Spec) -> dict[str, Any]:
    """The entry of layers of a spec, as Quark writes it."""
    return {
        "bias": None,
        "input_tensors": _inputs_entry(spec.activation),
        "output_tensors": None,
        "target_device": None,
        "weight": _weight_entry(spec.weight),
    }


def _weight_entry(weight: WeightScheme) -> Any:
    if weight.global_scale:
        return _two(dynamic=False)
    named = {"e4m3fn": "fp8_e4m3", "e2m1": "fp4"}.get(weight.type)
    dtype = named or ("int8" if weight.bits == 8 else "int4" if weight.symmetric else "uint4")
    if weight.group_size:
        return _entry(
            dtype, "per_group", ch_axis=-1, group_size=weight.group_size, e8m0=bool(named), symmetric=weight.symmetric
        )
    if weight.block:
        return _entry(dtype, "per_block", block_size=list(weight.block))
    if weight.granularity is _TENSOR:
        return _entry(dtype, "per_tensor")
    return _entry(dtype, "per_channel", ch_axis=0)


def _inputs_entry(acts: ActivationScheme | None) -> Any:
    if acts is None:
        return None
    if acts.global_scale:
        return _two(dynamic=True)
    dtype = {"e4m3fn": "fp8_e4m3", "e2m1": "fp4"}.get(acts.type, "int8")
    if acts.group_size:
        e8m0 = acts.group_size == 32
        return _entry(dtype, "per_group", dynamic=True, ch_axis=-1, group_size=acts.group_size, e8m0=e8m0)
    if acts.granularity is Granularity.TOKEN:
        return _entry(dtype, "per_channel", dynamic=True, ch_axis=1)
    return _entry(dtype, "per_tensor", dynamic=acts.dynamic)


def _two(dynamic: bool) -> list[dict[str, Any]]:
    """NVFP4: codes in groups of 16, and the scales of groups."""
    scales = {**_entry("fp8_e4m3", "per_tensor"), "is_scale_quant": True}
    return [_entry("fp4", "per_group", dynamic=dynamic, ch_axis=-1, group_size=16), scales]


def _entry(
    dtype: str,
    qscheme: str,
    *,
    dynamic: bool = False,
    ch_axis: int | None = None,
    group_size: int | None = None,
    block_size: list[int] | None = None,
    e8m0: bool = False,
    symmetric: bool = True,
) -> dict[str, Any]:
    """An entry with the keys that Quark 0.13 writes and a reader asks for."""
    return {
        "block_size": block_size,
        "ch_axis": ch_axis,
        "dtype": dtype,
        "group_size": group_size,
        "is_dynamic": dynamic,
        "is_scale_quant": False,
        "qscheme": qscheme,
        "round_method": "half_even",
        "scale_calculation_mode": "even" if e8m0 else None,
        "scale_format": E8M0 if e8m0 else None,
        "scale_type": "float",
        "symmetric": symmetric,
        "zero_point_type": "int32",
    }


def _pair(entry: Any) -> tuple[Entry, Entry | None]:
    """One entry, or the two of NVFP4."""
    entries = entry if isinstance(entry, list) else [entry]
    if len(entries) not in (1, 2) or not all(isinstance(each, dict) for each in entries):
        raise UnknownScheme("an entry is no object, or a list of other than one or two")
    return entries[0], entries[1] if len(entries) == 2 else None


def _type(entry: Entry) -> tuple[CodeType, int]:
    found = _TYPES.get(str(entry.get("dtype")))
    if found is None:
        raise UnknownScheme(f"dtype {entry.get('dtype')!r}")
    return found


def _block(entry: Entry) -> tuple[int, int]:
    size = entry.get("block_size")
    if not isinstance(size, list) or len(size) != 2 or any(type(side) is not int or side < 1 for side in size):
        raise UnknownScheme(f"blocks of {size!r}")
    return size[0], size[1]


def _is(entry: Entry, dtype: str, qscheme: str, **more: int) -> bool:
    """Whether an entry has a dtype, a granularity and some other values."""
    wanted = {"dtype": dtype, "qscheme": qscheme, **more}
    return all(entry.get(key) == value for key, value in wanted.items())


def _must(fits: bool, entry: Any) -> None:
    """UnknownScheme unless an entry fits."""
    if not fits:
        keys = ("dtype", "qscheme", "group_size", "symmetric", "is_dynamic", "ch_axis", "scale_format")
        entries = entry if isinstance(entry, list) else [entry]
        words = (
            "; ".join(f"{key} {each.get(key)!r}" for key in keys if each.get(key) is not None) for each in entries
        )
        raise UnknownScheme(" and ".join(words))
