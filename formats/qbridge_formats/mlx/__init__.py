"""MLX, as mlx_lm.convert writes it and mlx_lm loads it: words of codes, with scales and biases beside them.

tensor        dtype                   shape          meaning (N = out_features, K = in_features, b bits, groups of g)
<L>.weight    uint32                  [N, K b / 32]  codes, a little-endian stream of bits along each row
<L>.scales    float16, bfloat16, f32  [N, K / g]     mode affine; uint8 of e8m0 or e4m3 in the others
<L>.biases    as the scales           [N, K / g]     mode affine alone
<L>.bias      float                   [N]

affine: W = code * scale + bias, codes of 1 to 8 bits (not 7) from 0 on, groups of 32, 64, 128. mxfp4: e2m1, groups of
32, e8m0. mxfp8: e4m3, groups of 32, e8m0. nvfp4: e2m1, groups of 16, e4m3; no global scale. A bias that is -z * scale
exactly is the zero-point z, any other an offset; symmetric codes have z = 2^(b-1), whose product any float holds.
Asymmetric codes minus their zero-points are written as symmetric ones of a bit more. Experts of a layer are stacked,
[E, N, ...]. Names are those of `qbridge.architecture.mlx_names`. config.json says group_size, bits and mode twice,
under `quantization` and `quantization_config`, and again under the name of each module that differs; false for one
that is not quantized.
Sources: mlx 0.32.4, mlx/nn/layers/quantized.py and mlx/core/__init__.pyi (quantize); mlx-lm 0.32.2, utils.py
(quantize_model, load_model, infer_quant_config) and models/switch_layers.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import gcd
from typing import Any

import numpy as np

from qbridge.architecture.mlx_names import MlxNames, known_model_types
from qbridge.architecture.names import dense_linears, is_embedding, module_of
from qbridge.architecture.quantization_block import find_block
from qbridge.codecs.affine import biases_of
from qbridge.findings.finding import Findings
from qbridge.formats.common_rules import (
    first_of,
    folded_zeros,
    no_blocks,
    no_kv_scales,
    scales_per_row,
    stacked_alike,
)
from qbridge.formats.protocol import Match
from qbridge.formats.rules import LayerRule, ModelRule, Problem, Rule, ValueRule, Values
from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model, Rearranged, TensorInfo
from qbridge.ir.plain import plain_spec
from qbridge.ir.scheme import DENSE, INTEGERS
from qbridge.ir.slots import Slot
from qbridge.passes import Pass
from qbridge.passes.exactly import DequantizeExactly
from qbridge.passes.recast import Recast
from qbridge.passes.regroup import Regroup
from qbridge.passes.unquantized_inputs import UnquantizedInputs
from qbridge.passes.widen import Widen
from qbridge.source.reader import Source
from qbridge_formats.mlx.modes import (
    FLOATS,
    GROUPS,
    READ_WIDTHS,
    SCALES,
    WIDTHS,
    dialect_of,
    entry_of,
    mode_of,
    plain_slot,
    slots_of,
)
from qbridge_formats.mlx.reader import quantized_modules, read_model

NAME = "mlx"
SUMMARY = "MLX of mlx-lm: affine codes of 2 to 8 bits with scales and biases, mxfp4, mxfp8, nvfp4"
ALIASES: tuple[str, ...] = ("mlx-lm",)
KEEPS_INPUT_DETAILS = True  # inputs are not quantized any more, in whatever detail they were
BLOCK_KEYS = ("quantization", "quantization_config")

_LAYERS = "mlx 0.32.4, mlx/nn/layers/quantized.py"
_LOADER = "mlx-lm 0.32.2, utils.py (load_model)"
_SANITIZE = "mlx-lm 0.32.2, models/*.py (Model.sanitize)"


def sniff(source: Source) -> Match | str:
    """Evidence: words of 32 bits with scales beside them."""
    modules = quantized_modules(source)
    if not modules:
        return "no module has a weight of uint32 with scales"
    return Match(2, f"{len(modules)} modules have a weight of uint32 with scales")


def assumed(config: Mapping[str, Any], names: Sequence[str]) -> None:
    """Nothing; ValueError for a block of mlx-lm, which does not say which linears have codes."""
    block = find_block(config)
    if block is None or block.method or not {"bits", "group_size"} <= block.raw.keys():
        return
    if "mode" in block.raw or BLOCK_KEYS[0] in config:
        raise ValueError(f"{block.key} is MLX's, which leaves it to the weights which linears have codes")


def read(source: Source, findings: Findings) -> Model:
    """The model under the names of transformers, experts one by one; zero-points are judged by content."""
    return read_model(NAME, source, findings)


def layout(spec: Spec) -> dict[str, Slot]:
    """The tensors of the table above, by the place in the dialect, or under the layer's own name."""
    said = dict(spec.dialect)
    return slots_of(spec, said.get("at", spec.name), int(said.get("expert", -1)))


def settle(model: Model) -> Model:
    """Every layer at its place; unquantized tensors under the names that they have there, experts in stacks."""
    names = _names(model)
    if names is None:
        return model  # refused
    specs = {name: replace(spec, dialect=dialect_of(name, names.place(name))) for name, spec in model.specs.items()}
    tensors, rearranged = dict[str, TensorInfo](), dict(model.rearranged)
    for name, info in model.tensors.items():
        module, leaf = module_of(name)
        place = names.place(module)
        there = f"{place.name}.{leaf}" if leaf else place.name
        if place.expert < 0 or info.dtype not in DENSE.values() or len(info.shape) > 2:
            tensors[there] = info
            continue
        dims = info.shape if len(info.shape) == 2 else (info.shape[0], 1)
        read = model.rearranged[name].read if name in model.rearranged else Slot(info.stored, info.dtype, info.shape)
        write = plain_slot(place.name, leaf, info.dtype, info.shape, place.expert)
        rearranged[name] = Rearranged(plain_spec(name, dims, info.dtype), read, write)
        tensors[there] = TensorInfo(info.dtype, info.shape, there)
    return replace(model, specs=specs, tensors=tensors, rearranged=rearranged)


def config(model: Model) -> dict[str, Any]:
    """The commonest mode for the model, an entry for each module that differs, false for what is not quantized."""
    names = _names(model)
    entries = {}
    for name, spec in model.specs.items():
        said = dict(spec.dialect)
        entries[said.get("at", name)] = entry_of(spec)
    base = Counter(entries.values()).most_common(1)[0][0]
    others = {name: entry.as_dict() for name, entry in entries.items() if entry != base}
    unquantized = [*(name for name in _embeddings(model)), *dense_linears(model.tensors)]
    places = [names.place(module).name if names else module for module in unquantized]
    return {**base.as_dict(), **others, **dict.fromkeys((name for name in places if name not in entries), False)}


def _embeddings(model: Model) -> Iterator[str]:
    """Embeddings of tokens that are not quantized."""
    for name, info in model.tensors.items():
        module, leaf = module_of(name)
        if leaf == "weight" and is_embedding(module) and len(info.shape) == 2:
            yield module


def _names(model: Model) -> MlxNames | None:
    """The names of a model; None for a model type that is not known."""
    try:
        return MlxNames(model.config)
    except KeyError:
        return None


def _has_biases(spec: Spec, model: Model) -> bool:
    """Whether the zero-points are stored as biases already, and so are exact."""
    stored = model.slots.get(spec.name, {}).get("zero")
    return stored is not None and stored.codec == layout(spec)["zero"].codec


def _weights_alone(spec: Spec, model: Model) -> Problem | None:
    if spec.g_idx:
        return Problem((f"{spec.scheme}: its groups are of neighbours",))
    if mode_of(spec) and (spec.weight.type != "affine" or spec.weight.bits in READ_WIDTHS):
        return None
    listed = ", ".join(f"{mode.type} per group {mode.group_size}" for mode in FLOATS.values())
    return Problem((f"weights {spec.weight}: it has integers, {listed}",))


def _global_scale(spec: Spec, model: Model) -> Problem | None:
    if not spec.weight.global_scale:
        return None
    return Problem((f"weights {spec.weight}: its nvfp4 has no global scale",))


def _whole_words(spec: Spec, model: Model) -> Problem | None:
    """Rows are whole groups, of 32 weights at least, or of 16."""
    least = GROUPS[-1] if spec.weight.type in INTEGERS else spec.weight.group_size
    if least and spec.in_features % least == 0:
        return None
    return Problem((f"{spec.in_features} inputs are not whole groups of {least}",))


def _inputs(spec: Spec, model: Model) -> Problem | None:
    if spec.activation is None:
        return None
    return Problem((f"activations {spec.activation}: its linears do not quantize inputs",))


def _taken_apart(spec: Spec, model: Model) -> Problem | None:
    names = _names(model)
    if names is None or spec.weight.is_dense or not names.is_taken_apart(spec.name):
        return None
    return Problem((f"weights {spec.weight}: mlx_lm takes this linear apart, and would round its codes anew",))


def _zero_points(spec: Spec, model: Model) -> Problem | None:
    """Zero-points need biases that are exact, which those of a checkpoint of MLX are."""
    if spec.weight.symmetric or ("zeros", "biases") in spec.dialect or _has_biases(spec, model):
        return None
    return Problem((f"weights {spec.weight}: a zero-point times its scale is mostly no {spec.scale_dtype}",))


def _folded(spec: Spec, model: Model) -> Pass:
    """Into codes of a bit more, of the widths that there are."""
    return folded_zeros(model, next((width for width in WIDTHS if width > spec.weight.bits), WIDTHS[-1]))


def _width(spec: Spec, model: Model) -> Problem | None:
    if spec.weight.type != "int" or spec.weight.bits in WIDTHS:
        return None
    return Problem((f"weights {spec.weight}: it has {', '.join(map(str, WIDTHS))} bits",))


def _widened(spec: Spec, model: Model) -> Pass:
    return Widen(next(width for width in WIDTHS if width >= spec.weight.bits))


def _group(spec: Spec, model: Model) -> Problem | None:
    size = spec.weight.group_size
    if spec.weight.type not in INTEGERS or (size in GROUPS and spec.in_features % size == 0):
        return None
    return Problem((f"weights {spec.weight}, {spec.in_features} inputs: its groups are whole, of 32, 64 or 128",))


def _regrouped(spec: Spec, model: Model) -> Pass | None:
    """Into the largest groups that there are."""
    common = gcd(spec.weight.group_size or 0, spec.in_features)
    return next((Regroup(size) for size in GROUPS if common % size == 0), None)


def _scales(spec: Spec, model: Model) -> Problem | None:
    if spec.weight.type in INTEGERS:
        wrong = "" if spec.scale_dtype in SCALES else "float16, bfloat16 or float32"
    else:
        dtype = FLOATS[mode_of(spec)].scale_dtype if mode_of(spec) else spec.scale_dtype
        wrong = "" if spec.scale_dtype is dtype else str(dtype)
    return Problem((f"scales are {spec.scale_dtype}, its mode has {wrong}",)) if wrong else None


def _recast(spec: Spec, model: Model) -> Pass:
    return Recast(DType.F32 if spec.weight.type in INTEGERS else FLOATS[mode_of(spec)].scale_dtype)


def _biases(model: Model, values: Values) -> Iterator[Problem]:
    """The bias of symmetric codes is a power of two times the scale, which may lie beyond a dtype's range."""
    lost = dict[str, int]()
    for name, spec in model.specs.items():
        if spec.weight.type == "int" and spec.weight.symmetric:
            scale = values.part(name, "scale")
            middle = np.full(scale.shape, 2 ** (spec.weight.bits - 1), np.int64)
            lost[name] = biases_of(middle, scale, spec.scale_dtype)[1]
    if where := tuple(name for name, count in lost.items() if count):
        dtypes = ", ".join(sorted({str(model.specs[name].scale_dtype) for name in where}))
        yield Problem((f"{sum(lost.values())} biases are beyond the range of {dtypes}",), where=where)


def _known(model: Model) -> Iterator[Problem]:
    if _names(model) is None:
        kind = str(model.config.get("model_type") or "no model type")
        yield Problem((f"{kind}: known are {', '.join(sorted(known_model_types()))}",), where=("config.json",))


def _stacks(model: Model) -> Iterator[Problem]:
    """The experts of a stack are all there, and alike."""
    names = _names(model)
    if names is None:
        return

    def place(module: str) -> tuple[str, int] | None:
        there = names.place(module)
        return (there.name, there.expert) if there and there.expert >= 0 else None

    yield from stacked_alike(model, lambda spec: f"{spec.weight}, scales {spec.scale_dtype}", place)


RULES: tuple[Rule, ...] = (
    LayerRule("QB110", _taken_apart, _SANITIZE, lambda spec, model: DequantizeExactly(DType.F32)),
    LayerRule("QB110", first_of(_weights_alone, _global_scale, _whole_words, no_blocks("MLX")), _LAYERS),
    LayerRule("QB110", _inputs, _LAYERS, lambda spec, model: UnquantizedInputs()),
    scales_per_row("MLX", _LAYERS),
    LayerRule("QB110", _zero_points, _LAYERS, _folded),
    LayerRule("QB110", _width, _LAYERS, _widened),
    LayerRule("QB110", _group, _LAYERS, _regrouped),
    LayerRule("QB301", _scales, _LAYERS, _recast),
    ValueRule("QB127", _biases, _LAYERS),
    ModelRule("QB126", _known, _LOADER),
    ModelRule("QB126", _stacks, _SANITIZE),
    no_kv_scales(_LOADER),
)
