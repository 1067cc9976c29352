"""A model of MLX under the names of transformers: stacks of experts one by one, biases as zero-points."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from qbridge.architecture.mlx_names import MlxNames, MlxPlace
from qbridge.architecture.quantization_block import NO_BLOCK, find_block, text_holders, without_quantization
from qbridge.codecs.affine import zeros_of
from qbridge.findings.finding import Findings
from qbridge.formats.assembly import assemble
from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.ir.scheme import Granularity, WeightScheme
from qbridge.ir.slots import Slot
from qbridge.source.reader import Source
from qbridge.source.stored import StoredTensor
from qbridge_formats.mlx.modes import AFFINE, FLOATS, GROUPS, READ_WIDTHS, SCALES, Mode, dialect_of, slots_of

_PARTS = ("weight", "scales", "biases", "bias")
_SIZES = ("group_size", "bits")
_BASE = (*_SIZES, "mode")


def quantized_modules(source: Source) -> list[str]:
    """The modules with words of codes, and scales beside them."""
    words = [t.name.removesuffix(".weight") for t in source.tensors.values() if t.dtype is DType.U32]
    return [module for module in words if f"{module}.scales" in source.tensors]


def read_model(name: str, source: Source, findings: Findings) -> Model:
    """The model; a finding, QB128, for a model type that is not known."""
    found = find_block(source.config) or NO_BLOCK
    block = found.raw
    for key in _SIZES:
        if block.get(key) is not None and type(block[key]) is not int:
            findings.add("QB013", f"{found.key}.{key}", (f"it is {block[key]!r}",))
    modules = _take_names(source, quantized_modules(source), findings)
    layers: dict[str, tuple[Spec, dict[str, Slot]]] = {}
    refused: set[str] = set()
    for module, place in modules.items():
        try:
            spec = _layer(source, module, _mode(block, place.name))
        except (ValueError, KeyError) as fault:
            fact = str(fault) if isinstance(fault, ValueError) else f"there is no {fault.args[0]}"
            findings.add("QB016", module, (fact,))
            refused.add(module)
            continue
        dialect = tuple(sorted((*spec.dialect, *dialect_of(module, place))))
        layers[module] = replace(spec, dialect=dialect), slots_of(spec, module)
    return assemble(name, source, without_quantization(source.config), layers, findings, refused=refused)


def _mode(block: Mapping[str, Any], module: str) -> Any:
    """What config.json says of a module: its own entry, or the model's."""
    own = block.get(module)
    return {**{key: block.get(key) for key in _BASE}, **own} if isinstance(own, dict) else block


def _names(config: Mapping[str, Any]) -> MlxNames:
    """The names of a model; where config.json says no model type at the top, those of the text model's.

    KeyError for one that is not known.
    """
    said = (held for _, held in text_holders(config) if held.get("model_type") is not None)
    return MlxNames(next(said, config))


def _take_names(source: Source, modules: Iterable[str], findings: Findings) -> dict[str, MlxPlace]:
    """Have every tensor under its name in transformers, stacks of experts as slices; where modules lay, by name."""
    try:
        names = _names(source.config)
    except KeyError:
        fact = f"model_type {source.config.get('model_type')!r}: its names are taken as they are"
        findings.add("QB128", "config.json", (fact,))
        return {module: MlxPlace(module) for module in modules}
    renamed, stacks, found = dict[str, str](), dict[str, tuple[int, ...]](), dict[str, MlxPlace]()
    for name, tensor in source.tensors.items():
        module, _, leaf = name.rpartition(".")
        own, stacked = names.module_of(module)
        renamed[name] = f"{own}.{leaf}" if module else name
        if stacked and len(tensor.shape) > 1 and leaf in _PARTS:
            stacks[renamed[name]] = tensor.shape[1:]
    source.rename(renamed)
    counts = {name: source.tensors[name].shape[0] for name in stacks}
    source.split(stacks)
    single = {
        f"{name}[{expert}]": _of_expert(name, expert) for name, count in counts.items() for expert in range(count)
    }
    source.rename(single)
    for module in modules:
        own, stacked = names.module_of(module)
        count = counts.get(f"{own}.weight", 0) if stacked else 0
        experts = {_of_expert(own, expert): MlxPlace(module, expert) for expert in range(count)}
        found |= experts or {own: MlxPlace(module)}
    return found


def _of_expert(name: str, expert: int) -> str:
    """The name of one expert's part in a name of a stack: experts.<expert>.<leaf>."""
    block, _, rest = name.rpartition(".experts.")
    return f"{block}.experts.{expert}.{rest}"


def _layer(source: Source, module: str, said: Any) -> Spec:
    """The spec of a module; ValueError or KeyError for what does not fit."""
    tensors = {part: source.tensors.get(f"{module}.{part}") for part in _PARTS}
    words, scales = source.tensors[f"{module}.weight"], source.tensors[f"{module}.scales"]
    mode = _checked(said, words, scales)
    groups = scales.shape[1]
    bias = tensors["bias"]
    weight = (
        WeightScheme(mode.bits, Granularity.GROUP, group_size=mode.group_size)
        if mode.mode == AFFINE
        else FLOATS[mode.mode].weight
    )
    spec = Spec(
        module,
        words.shape[0],
        groups * mode.group_size,
        weight,
        scales.dtype if mode.mode == AFFINE else FLOATS[mode.mode].scale_dtype,
        bias=bias.dtype if bias else None,
    )
    if mode.mode != AFFINE:
        return spec
    biases = tensors["biases"]
    if biases is None:
        raise KeyError("biases")
    if (biases.dtype, biases.shape) != (scales.dtype, scales.shape):
        raise ValueError(f"biases are {biases.dtype}{list(biases.shape)}, scales {scales.dtype}{list(scales.shape)}")
    return _judged(source, spec)


def _checked(said: Any, words: StoredTensor, scales: StoredTensor) -> Mode:
    """The mode of a module; ValueError where config.json says none, or its tensors are of another."""
    if not isinstance(said, dict) or type(said.get("bits")) is not int or type(said.get("group_size")) is not int:
        raise ValueError("config.json says no bits and group_size of it")
    mode = Mode(said["group_size"], said["bits"], str(said.get("mode") or AFFINE))
    if mode.mode == AFFINE:
        known = mode.bits in READ_WIDTHS and mode.group_size in GROUPS and scales.dtype in SCALES
    else:
        own = FLOATS.get(mode.mode)
        known = own is not None and (own.bits, own.group_size, DType.U8) == (mode.bits, mode.group_size, scales.dtype)
    if not known:
        raise ValueError(f"{mode.bits} bits in groups of {mode.group_size}, mode {mode.mode}, scales {scales.dtype}")
    if len(words.shape) != 2 or len(scales.shape) != 2 or words.shape[0] != scales.shape[0] or 0 in scales.shape:
        raise ValueError(f"weight is {list(words.shape)}, scales {list(scales.shape)}")
    if words.shape[1] * 32 != scales.shape[1] * mode.group_size * mode.bits:
        fact = f"weight is {list(words.shape)}, scales {list(scales.shape)}"
        raise ValueError(f"{fact}: not {mode.bits} bits in groups of {mode.group_size}")
    return mode


def _judged(source: Source, spec: Spec) -> Spec:
    """The spec, by its biases: of symmetric codes, of codes with zero-points, or with offsets that are none."""
    half = 2 ** (spec.weight.bits - 1)
    scale, biases = (source.read_small(f"{spec.name}.{part}") for part in ("scales", "biases"))
    zeros, others = zeros_of(biases, scale, spec.scale_dtype, half)
    if others or ((zeros < 0) | (zeros > 2 * half)).any():
        return replace(spec, weight=replace(spec.weight, type="affine"))
    if (zeros == half).all():
        return spec
    return replace(spec, weight=replace(spec.weight, symmetric=False), dialect=(("zeros", "biases"),))
