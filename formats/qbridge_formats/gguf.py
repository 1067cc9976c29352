"""GGUF, the files of llama.cpp: scales and codes of a linear together in rows of blocks, numbers of the model beside.

tensor          type                    shape    meaning (N = out_features, K = in_features)
<B>.weight      a type of blocks        [N, K]   `qbridge.codecs.ggml_blocks` has the structs
<B>.scale       F32                     [1]      NVFP4 alone: one more scale of the whole tensor, which multiplies
<B>.bias        F32                     [N]

int4 -> Q4_0, int5 -> Q5_0, int6 to int8 -> Q8_0, in groups of 32; asymmetric codes minus their zero-points take a bit
more. int2 in groups of 64 -> Q2_0. e2m1 -> MXFP4 (groups of 32, e8m0), NVFP4 (groups of 16, e4m3). Scales are float16
in all but those. Experts of a layer are stacked, [E, N, K]. Tensors of one dim are float32, others keep their dtype.
Names, and the order of the rows of q and k, are those of `qbridge.architecture.gguf_names`.

Sources: llama.cpp b10359, ggml/src/ggml-common.h, conversion/base.py and src/llama-model.cpp; gguf 0.19.0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import gcd
from typing import Any

import numpy as np

from qbridge.architecture.gguf_names import ROPE_FACTORS, GgufNames, GgufPlace, known_classes
from qbridge.architecture.names import is_kv_scale, module_of
from qbridge.codecs.arrays import AsFloat32, PlusOne
from qbridge.codecs.ggml_blocks import STRUCTS, BlockCodes, BlockScales, paired
from qbridge.findings.finding import Findings
from qbridge.formats.assembly import assemble
from qbridge.formats.common_rules import (
    first_of,
    folded_zeros,
    global_scales,
    no_blocks,
    no_kv_scales,
    scales_per_row,
    stacked_alike,
)
from qbridge.formats.protocol import Match
from qbridge.formats.rules import LayerRule, ModelRule, Problem, Rule, ValueRule, Values
from qbridge.ir.dtypes import Array, DType, to_float64
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model, Rearranged, TensorInfo
from qbridge.ir.plain import plain_spec
from qbridge.ir.scheme import DENSE, GLOBAL_SCALE
from qbridge.ir.slots import PLAIN, Codec, Slice, Slot
from qbridge.passes import Pass
from qbridge.passes.recast import Recast
from qbridge.passes.regroup import Regroup
from qbridge.passes.unquantized_inputs import UnquantizedInputs
from qbridge.passes.widen import Widen
from qbridge.source.ggml_types import TYPES
from qbridge.source.reader import Source
from qbridge_formats._shared.gguf_heads import split_by_heads
from qbridge_formats._shared.gguf_reading import read_model
from qbridge_formats._shared.gguf_vocabulary import no_vocabulary, vocabulary

NAME = "gguf"
KEEPS_INPUT_DETAILS = True  # inputs are quantized by llama.cpp in its own way, in whatever detail they were
SUMMARY = "GGUF of llama.cpp: blocks of scales and codes, with names, numbers and tokenizer"
ALIASES: tuple[str, ...] = ()

_BLOCKS = "llama.cpp b10359, ggml/src/ggml-common.h"
_CONVERTER = "llama.cpp b10359, conversion/base.py"
_FILE_TYPES: Mapping[str, int] = {  # llama.h, enum llama_ftype
    **{"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "Q5_0": 8, "BF16": 32},
    **{"MXFP4": 38, "NVFP4": 39, "Q1_0": 40, "Q2_0": 41},
}
_GROUP, _WIDE_GROUP = 32, 64


def sniff(source: Source) -> Match | str:
    """Evidence: the container."""
    if not source.metadata:
        return "it lies in no GGUF file"
    kinds = Counter(tensor.kind for tensor in source.tensors.values() if TYPES[tensor.kind].dtype is None)
    return Match(
        2, f"it lies in GGUF files, with {sum(kinds.values())} tensors of {', '.join(sorted(kinds)) or 'no'} blocks"
    )


def read(source: Source, findings: Findings) -> Model:
    """The model under the names of transformers, experts one by one; float32 tensors of one dim stay such."""
    if not source.metadata:
        return assemble(NAME, source, source.config, {}, findings)
    return read_model(NAME, source, findings)


def block_of(spec: Spec) -> str:
    """The type of blocks for a spec that the rules let through; an empty string for any other."""
    weight = spec.weight
    if weight.type == "e2m1":
        return {32: "MXFP4", 16: "NVFP4"}.get(weight.group_size or 0, "")
    if weight.type != "int" or not weight.symmetric:
        return ""
    kinds = {2: "Q2_0"} if weight.group_size == _WIDE_GROUP else {4: "Q4_0", 5: "Q5_0", 8: "Q8_0"}
    return kinds.get(weight.bits, "")


def layout(spec: Spec) -> dict[str, Slot]:
    """The tensors of the table above; ValueError for what is no whole blocks."""
    kind, where = block_of(spec), _place(spec)
    struct = STRUCTS[kind]
    shape = (spec.out_features, struct.row_bytes(spec.in_features))
    codes = _slot(where, ".weight", DType.U8, shape, paired(BlockCodes(kind), where.head))
    slots = {"code": codes, "scale": replace(codes, codec=paired(BlockScales(kind), where.head))}
    if spec.weight.global_scale:
        slots["global_scale"] = _slot(where, ".scale", GLOBAL_SCALE, (1,))
    if spec.bias is not None:
        slots["bias"] = _slot(
            where, ".bias", DType.F32, (spec.out_features,), paired(AsFloat32(spec.bias), where.head)
        )
    return slots


def _place(spec: Spec) -> GgufPlace:
    """Where a layer lies, by its dialect; under its own name where that does not say."""
    said = dict(spec.dialect)
    return GgufPlace(said.get("at", spec.name), int(said.get("expert", -1)), int(said.get("head", 0)))


def _slot(where: GgufPlace, ending: str, dtype: DType, shape: tuple[int, ...], codec: Codec = PLAIN) -> Slot:
    if where.expert < 0:
        return Slot(where.name + ending, dtype, shape, codec)
    own = Slice(where.name + ending, where.expert, () if shape == (1,) else shape)
    return Slot(own.name, dtype, shape, codec, own)


def settle(model: Model) -> Model:
    """Every layer at its place; unquantized tensors under the names, dtypes and orders that they have there."""
    names = _names(model)
    if isinstance(names, str):
        return model  # refused
    specs = {name: replace(spec, dialect=_dialect(names.place(name), name)) for name, spec in model.specs.items()}
    tensors, rearranged = dict[str, TensorInfo](), dict[str, Rearranged]()
    for name, info in model.tensors.items():
        lies = model.rearranged[name].read if name in model.rearranged else Slot(info.stored, info.dtype, info.shape)
        moved = split_by_heads(name, info, lies, names) or _moved(name, info, lies, names)
        for linear in moved:
            rearranged[linear.spec.name] = linear
            tensors[linear.write.whole] = TensorInfo(linear.write.dtype, linear.write.shape, linear.write.whole)
        if not moved:
            place, leaf = names.tensor(name) or (GgufPlace(module_of(name)[0]), module_of(name)[1])
            tensors[f"{place.name}.{leaf}"] = info
    return replace(model, specs=specs, tensors=tensors, rearranged=rearranged)


def _dialect(place: GgufPlace | None, name: str) -> tuple[tuple[str, str], ...]:
    where = place or GgufPlace(name)
    said = {"at": where.name}
    said |= {"expert": str(where.expert)} if where.expert >= 0 else {}
    said |= {"head": str(where.head)} if where.head else {}
    return tuple(sorted(said.items()))


def _moved(name: str, info: TensorInfo, lies: Slot, names: GgufNames) -> list[Rearranged]:
    """A tensor that does not stay as it lies; empty for one that is copied."""
    where, leaf = names.tensor(name) or (GgufPlace(module_of(name)[0]), module_of(name)[1])
    one = leaf == "weight" and names.adds_one(module_of(name)[0])
    head = where.head if leaf in ("weight", "bias") else 0
    widened = info.dtype is not DType.F32 and (len(info.shape) == 1 or names.is_router(where))
    plain = lies.codec == PLAIN and not (head or widened or one) and where.expert < 0
    if plain or len(info.shape) > 2 or info.dtype not in DENSE.values():
        return []
    dims = info.shape if len(info.shape) == 2 else (info.shape[0], 1)
    dtype = DType.F32 if widened else info.dtype
    as_float32 = PlusOne(info.dtype) if one else AsFloat32(info.dtype)
    codec = paired(as_float32 if widened or one else PLAIN, head)
    return [Rearranged(plain_spec(name, dims, info.dtype), lies, _slot(where, f".{leaf}", dtype, info.shape, codec))]


def config(model: Model) -> dict[str, Any]:
    """No block: the types of the tensors say it all."""
    return {}


def computed(model: Model) -> dict[str, Array]:
    """The factors of a rope of Llama 3, which llama.cpp reads from a tensor."""
    names = _names(model)
    factors = None if isinstance(names, str) else names.rope_factors
    return {} if factors is None else {ROPE_FACTORS: factors}


def metadata(model: Model, source: Source, findings: Findings) -> dict[str, Any]:
    """Name and numbers of the model, and its tokenizer; one that is not known here is a finding (QB118)."""
    names = _names(model)
    if isinstance(names, str):
        return {}
    kinds = Counter(block_of(spec) for spec in model.specs.values())
    found: dict[str, Any] = {
        "general.architecture": names.architecture,
        "general.type": "model",
        "general.file_type": _FILE_TYPES[kinds.most_common(1)[0][0]] if kinds else 1,
        "general.quantization_version": 2,
        **names.numbers(),
    }
    try:
        return {**found, **vocabulary(source, model.config["vocab_size"], model.config)}
    except (ValueError, KeyError, TypeError, AttributeError) as fault:
        fact = str(fault) if isinstance(fault, ValueError) else f"its tokenizer files are broken ({fault!r})"
        findings.add("QB118", source.url, (fact,))
    return {**found, **no_vocabulary()}


def _names(model: Model) -> GgufNames | str:
    """The names of a model, or why there are none."""
    try:
        names = GgufNames(model.config)
        names.numbers()
    except KeyError as fault:
        if fault.args[0] not in ("", model.architecture):
            return f"there is no {fault.args[0]}"
        return f"{model.architecture or 'no class'}: known are {', '.join(sorted(known_classes()))}"
    except (ValueError, TypeError) as fault:
        return str(fault)
    return names


def _whole_rows(spec: Spec, model: Model) -> Problem | None:
    least = _WIDE_GROUP if spec.weight.group_size == 16 and spec.weight.type == "e2m1" else _GROUP
    if spec.in_features % least == 0:
        return None
    return Problem((f"{spec.in_features} inputs: blocks are of {least} weights, which none of two rows shares",))


def _weights_alone(spec: Spec, model: Model) -> Problem | None:
    if spec.g_idx:
        return Problem((f"{spec.scheme}: its blocks are of neighbours",))
    if spec.weight.type == "e2m1" and spec.weight.group_size not in (16, 32):
        return Problem((f"weights {spec.weight}: its groups of e2m1 are of 16 and 32",))
    return None if spec.weight.type in ("int", "e2m1") else Problem((f"weights {spec.weight}: it has no such codes",))


def _inputs(spec: Spec, model: Model) -> Problem | None:
    if spec.activation is None:
        return None
    return Problem((f"activations {spec.activation}: llama.cpp quantizes inputs in its own way",))


def _zero_points(spec: Spec, model: Model) -> Problem | None:
    return None if spec.weight.symmetric else Problem((f"weights {spec.weight}: its codes have no zero-points",))


def _folded(spec: Spec, model: Model) -> Pass | None:
    """Into codes of a bit more, of the widths that there are."""
    bits = next((width for width in (4, 5, 8) if width > spec.weight.bits), None)
    return folded_zeros(model, bits) if bits else None


def _fits_two_bits(spec: Spec) -> bool:
    """Whether groups of two bits are made of whole blocks of 64."""
    return spec.weight.bits == 2 and gcd(spec.weight.group_size or 0, spec.in_features) % _WIDE_GROUP == 0


def _width(spec: Spec, model: Model) -> Problem | None:
    if spec.weight.type != "int" or spec.weight.bits in (4, 5, 8) or _fits_two_bits(spec):
        return None
    return Problem((f"weights {spec.weight}: it has 4, 5 and 8 bits, and 2 in groups of 64",))


def _widened(spec: Spec, model: Model) -> Pass:
    return Widen(next(width for width in (4, 5, 8) if width >= spec.weight.bits))


def _wanted_group(spec: Spec) -> int:
    return _WIDE_GROUP if _fits_two_bits(spec) else _GROUP


def _group(spec: Spec, model: Model) -> Problem | None:
    if spec.weight.type != "int" or spec.weight.group_size == _wanted_group(spec):
        return None
    return Problem((f"weights {spec.weight}: its blocks have one scale for {_wanted_group(spec)} weights",))


def _scales(spec: Spec, model: Model) -> Problem | None:
    wanted = STRUCTS[block_of(spec) or "Q4_0"].scale_dtype
    return (
        None if spec.scale_dtype is wanted else Problem((f"scales are {spec.scale_dtype}, its blocks have {wanted}",))
    )


def _recast(spec: Spec, model: Model) -> Pass:
    return Recast(STRUCTS[block_of(spec) or "Q4_0"].scale_dtype)


def _named(model: Model) -> Iterator[Problem]:
    """The class is known, its numbers can be said, and every module has a place."""
    names = _names(model)
    if isinstance(names, str):
        yield Problem((names,), where=("config.json",))
        return
    lost = {name for name in model.specs if names.place(name) is None and names.split(name) is None}
    lost |= {name for name in model.tensors if not is_kv_scale(name) and not _has_place(name, names)}
    if lost:
        yield Problem((f"{names.architecture} of llama.cpp has no place for them",), where=tuple(sorted(lost)))
    if coded := tuple(name for name in model.specs if names.split(name)):
        fact = "llama.cpp has keys and values of heads in two tensors, the keys turned, which takes plain weights"
        yield Problem((fact,), where=coded)


def _has_place(tensor: str, names: GgufNames) -> bool:
    module, leaf = module_of(tensor)
    return names.tensor(tensor) is not None or (leaf == "weight" and names.split(module) is not None)


def _sums(model: Model, values: Values) -> Iterator[Problem]:
    """The weights of norms plus 1, where llama.cpp has those, are float32; a warning: each is the nearest one."""
    names = _names(model)
    if isinstance(names, str):
        return
    rounded: dict[str, int] = {}
    for name, info in model.tensors.items():
        module, leaf = module_of(name)
        if leaf != "weight" or not names.adds_one(module) or info.dtype not in DENSE.values():
            continue
        for block in values.blocks(name):
            sums = to_float64(block, info.dtype) + 1
            rounded[name] = rounded.get(name, 0) + int(np.count_nonzero(sums.astype(np.float32) != sums))
    lost = {name: count for name, count in rounded.items() if count}
    if lost:
        fact = f"{sum(lost.values())} weights plus 1, as llama.cpp has those of norms, are rounded to float32"
        yield Problem((fact, "by 2^-24 of their sum at most"), where=tuple(lost), mild=True)


def _stacks(model: Model) -> Iterator[Problem]:
    """The experts of a layer are all there, and of one type."""
    names = _names(model)
    if isinstance(names, str):
        return

    def place(module: str) -> tuple[str, int] | None:
        there = names.place(module)
        return (there.name, there.expert) if there and there.expert >= 0 else None

    yield from stacked_alike(model, block_of, place)


RULES: tuple[Rule, ...] = (
    LayerRule("QB110", first_of(_weights_alone, _whole_rows, no_blocks("GGUF")), _BLOCKS),
    LayerRule("QB110", _inputs, _BLOCKS, lambda spec, model: UnquantizedInputs()),
    scales_per_row("GGUF", _BLOCKS),
    LayerRule("QB110", _zero_points, _BLOCKS, _folded),
    LayerRule("QB110", _width, _BLOCKS, _widened),
    LayerRule("QB110", _group, _BLOCKS, lambda spec, model: Regroup(_wanted_group(spec))),
    LayerRule("QB301", _scales, _BLOCKS, _recast),
    global_scales("GGUF", "multiply", _CONVERTER),
    ModelRule("QB117", _named, _CONVERTER),
    ModelRule("QB117", _stacks, _CONVERTER),
    ValueRule("QB302", _sums, "llama.cpp b10359, conversion/gemma.py (norm_shift)"),
    no_kv_scales(_CONVERTER),
)
