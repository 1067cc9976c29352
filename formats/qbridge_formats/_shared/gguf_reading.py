"""A model of GGUF files under the names of transformers: blocks as layers, experts one by one, rows in order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from qbridge.architecture.config import compute_dtype
from qbridge.architecture.gguf_names import ROPE_FACTORS, GgufNames
from qbridge.architecture.names import module_of
from qbridge.codecs.arrays import AsFloat32, PlusOne
from qbridge.codecs.ggml_blocks import STRUCTS, BlockCodes, BlockScales, paired
from qbridge.codecs.ggml_values import VALUE_STRUCTS, BlockValues
from qbridge.findings.finding import Findings
from qbridge.formats.assembly import assemble
from qbridge.ir.dtypes import DType, from_float64, to_float64
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model, Rearranged
from qbridge.ir.plain import plain_spec
from qbridge.ir.scheme import DENSE, Granularity, WeightScheme
from qbridge.ir.slots import PLAIN, Slot
from qbridge.source.ggml_types import TYPES
from qbridge.source.reader import Source
from qbridge_formats._shared.gguf_heads import share_name, shares_of, with_joined_heads

_BITS: Mapping[str, int] = {"Q4_0": 4, "Q5_0": 5, "Q8_0": 8, "Q1_0": 2, "Q2_0": 2, "TQ1_0": 2, "TQ2_0": 2}


def read_model(name: str, source: Source, findings: Findings) -> Model:
    """The model; findings: QB117 for names that are not known, QB121 for blocks that are not decoded."""
    try:
        names = GgufNames(source.config)
    except (KeyError, ValueError) as fault:
        findings.add("QB117", "config.json", (f"its class is not known here: {fault}",))
        return assemble(name, source, source.config, {}, findings)
    said = source.metadata.get("general.architecture")
    if said != names.architecture:
        findings.add("QB117", "config.json", (f"the files are of {said}, the config is of {names.architecture}",))
    if ROPE_FACTORS in source.tensors and names.rope_factors is None:
        findings.add("QB117", ROPE_FACTORS, ("the files have factors of a rope, of which the config does not say",))
    _take_names(source, names, findings)
    wanted = compute_dtype(source.config, DType.F32)
    unread: dict[str, list[str]] = {}
    layers, shares = {}, shares_of(source, names, findings)
    for tensor, stored in source.tensors.items():
        module, leaf = module_of(tensor)
        if leaf == "weight" and stored.kind in (*STRUCTS, *VALUE_STRUCTS) and tensor not in shares:
            layers[module] = _layer(source, module, stored.kind, _head(names, module), wanted)
        elif TYPES[stored.kind].dtype is None:
            unread.setdefault(stored.kind, []).append(tensor)
    for kind, tensors in unread.items():
        findings.add("QB121", tensors, (f"{kind}: {len(tensors)} tensors",))
    refused = {module_of(tensor)[0] for tensors in unread.values() for tensor in tensors}
    model = assemble(name, source, source.config, layers, findings, refused=refused)
    return with_joined_heads(_as_transformers(model, source, names, wanted), shares, names)


def _take_names(source: Source, names: GgufNames, findings: Findings) -> None:
    """Have every tensor under its name in transformers, stacks of experts as slices; QB117 for those without one."""
    renamed, stacks, unknown = dict[str, str](), dict[str, tuple[int, ...]](), list[str]()
    source.leave_out({ROPE_FACTORS})
    for name, tensor in source.tensors.items():
        module, leaf = module_of(name)
        if own := names.tensor_of(name):
            renamed[name] = own
            continue
        if share := names.share_of(module):
            renamed[name] = share_name(*share)
            continue
        known = names.module_of(module)
        if known is None or leaf not in ("weight", "bias", "scale"):
            unknown.append(name)
            continue
        renamed[name] = f"{known[0]}.{leaf}"
        if known[1]:
            stacks[renamed[name]] = tensor.shape[1:] or (1,)
    if unknown:
        findings.add("QB117", unknown, ("a name of llama.cpp that is in no table here",))
    source.rename(renamed)
    counts = {name: source.tensors[name].shape[0] for name in stacks}
    source.split(stacks)
    single = dict[str, str]()
    for name, count in counts.items():
        stem, leaf, ending = name.rsplit(".", 2)
        single |= {f"{name}[{expert}]": f"{stem}.{expert}.{leaf}.{ending}" for expert in range(count)}
    source.rename(single)


def _head(names: GgufNames, module: str) -> int:
    """Of how many rows two halves take turns in a module; 0 for none."""
    place = names.place(module)
    return place.head if place else 0


def _layer(source: Source, module: str, kind: str, head: int, wanted: DType) -> tuple[Spec, dict[str, Slot]]:
    """A linear in blocks, its bias in the dtype that is wanted where that has all its values."""
    stored = source.tensors[f"{module}.weight"]
    out_features, in_features = TYPES[kind].shape(stored.shape)
    bias, outer = source.tensors.get(f"{module}.bias"), source.tensors.get(f"{module}.scale")
    dtype = _narrowed(source, f"{module}.bias", wanted) if bias else None
    scheme, scale_dtype = _scheme(kind, outer is not None)
    spec = Spec(module, out_features, in_features, scheme, scale_dtype, bias=dtype)
    codes = BlockValues(kind) if scheme.is_computed else BlockCodes(kind)
    slots = {"code": Slot(f"{module}.weight", DType.U8, stored.shape, paired(codes, head))}
    if not scheme.is_computed:
        slots["scale"] = replace(slots["code"], codec=paired(BlockScales(kind), head))
    if outer and scheme.global_scale:
        slots["global_scale"] = Slot(f"{module}.scale", DType.F32, (1,))
    if bias and dtype:
        codec = AsFloat32(dtype) if dtype is not bias.dtype else PLAIN
        slots["bias"] = Slot(f"{module}.bias", bias.dtype, bias.shape, paired(codec, head))
    return spec, slots


def _scheme(kind: str, has_outer: bool) -> tuple[WeightScheme, DType]:
    """(scheme, dtype of scales) of a type of blocks; `has_outer` where a tensor beside it scales the whole."""
    if kind in VALUE_STRUCTS:
        return WeightScheme(64, Granularity.TENSOR, type="float64", blocks=kind), DType.F64
    struct = STRUCTS[kind]
    scheme = WeightScheme(
        _BITS.get(kind, 4),
        Granularity.GROUP,
        type="int" if kind in _BITS else "e2m1",
        group_size=struct.group or struct.elements,
        global_scale="multiply" if has_outer and kind not in _BITS else None,
    )
    return scheme, struct.scale_dtype


def _narrowed(source: Source, tensor: str, wanted: DType, less: int = 0) -> DType:
    """The dtype of a tensor that llama.cpp always has as float32: the model's, if that has all values.

    `less` is what they have more than they should.
    """
    stored = source.tensors[tensor]
    if stored.dtype is not DType.F32 or wanted is DType.F32:
        return stored.dtype
    values = to_float64(source.read_small(tensor), DType.F32) - less
    return wanted if np.array_equal(to_float64(from_float64(values, wanted), wanted), values) else DType.F32


def _as_transformers(model: Model, source: Source, names: GgufNames, wanted: DType) -> Model:
    """The model with unquantized rows of q and k in their own order, and what has one dim in the model's dtype."""
    moved, tensors = dict[str, Rearranged](), dict(model.tensors)
    for name, info in model.tensors.items():
        module, leaf = module_of(name)
        one = leaf == "weight" and names.adds_one(module)
        place = names.place(module)
        always = len(info.shape) == 1 or (place is not None and names.is_router(place))
        dtype = _narrowed(source, info.stored, wanted, less=int(one)) if always else info.dtype
        head = place.head if place else 0
        if info.dtype not in DENSE.values() or not (head or one or dtype is not info.dtype):
            continue
        dims = info.shape if len(info.shape) == 2 else (info.shape[0], 1)
        widened = PlusOne(dtype) if one else AsFloat32(dtype)
        codec = paired(widened if one or dtype is not info.dtype else PLAIN, head)
        read, write = Slot(info.stored, info.dtype, info.shape, codec), Slot(name, dtype, info.shape)
        moved[name] = Rearranged(plain_spec(name, dims, dtype), read, write)
        tensors[name] = replace(info, dtype=dtype)
    return replace(model, rearranged=moved, tensors=tensors) if moved else model
