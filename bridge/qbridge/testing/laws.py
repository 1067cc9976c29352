"""Strategies and laws that every format obeys, shipped so that a new format tests itself.

    from qbridge.testing import check_format
    def test_laws(): check_format("my-format")

Needs hypothesis (`pip install qbridge[test]`).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from qbridge.codecs.parts import decode, encode
from qbridge.commands.checkpoint import open_checkpoint
from qbridge.findings.catalogue import CATALOGUE
from qbridge.findings.extras import imported
from qbridge.findings.finding import Findings
from qbridge.formats.protocol import Format
from qbridge.formats.registry import find, registry
from qbridge.formats.rules import LayerRule
from qbridge.ir.dtypes import Array, DType
from qbridge.ir.layer import Layer, identical
from qbridge.ir.model import Model, TensorInfo
from qbridge.ir.slots import NOTHING, Codec, Parts, Slot
from qbridge.ir.values import dequantize
from qbridge.passes import Pass
from qbridge.passes.bits import bits_of
from qbridge.passes.recorded import from_dict
from qbridge.plan.repair import repair
from qbridge.testing.strategies import every_common_spec, grouped_layers, layers, random_layer, specs

__all__ = [
    "check_checkpoint",
    "check_codec",
    "check_format",
    "check_layer",
    "check_pair",
    "check_pairs",
    "empty_model",
    "grouped_layers",
    "layers",
    "made_legal",
    "random_layer",
    "same_values",
    "specs",
    "through",
    "write_model",
]


def empty_model(format_name: str, layer: Layer) -> Model:
    """A model of one layer, for rules that look at it."""
    return Model(format_name, CONFIG, {layer.spec.name: layer.spec}, {}, {})


Law = Callable[[], None]  # with its argument given
LAYER = "model.layers.0.mlp.experts.0.down_proj"  # a name that every format has a place for, mxfp4 for no other kind
CONFIG: Mapping[str, Any] = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "float16"}


def made_legal(format_: Format, layer: Layer) -> tuple[Layer, tuple[Pass, ...]] | None:
    """The layer after the passes that the format's rules call for, or None if they refuse it.

    A refusal must have a catalogued code.
    """
    findings = Findings()
    rules = [rule for rule in format_.RULES if isinstance(rule, LayerRule)]

    def trial(passes: tuple[Pass, ...]) -> ValueError | None:
        try:
            _applied(layer, passes)
        except ValueError as fault:
            return fault
        return None

    after, passes = repair(layer.spec, empty_model(format_.NAME, layer), rules, findings, trial)
    if findings.errors:
        _require(all(f.code in CATALOGUE for f in findings), "a refusal without a catalogued code")
        return None
    result = _applied(layer, passes)
    _require(result.spec == after, "apply and plan disagree")
    return result, passes


def _applied(layer: Layer, passes: tuple[Pass, ...]) -> Layer:
    for step in passes:
        layer = step.apply(layer)
    return layer


def check_layer(format_: Format, layer: Layer) -> bool:
    """The laws of one layer in one format; AssertionError names the one that is broken.

    Sizes of what is encoded are those of the layout; decode undoes encode; undo undoes the passes; no value moves.
    Whether the format can hold the layer at all is returned.
    """
    legal = made_legal(format_, layer)
    if legal is None:
        return False
    after, passes = legal
    slots = format_.layout(after.spec)
    held = {part for part, slot in slots.items() if not slot.codec.fixed}
    _require(held == after.spec.parts().keys(), "the layout leaves a part out")
    stored = encode(after, slots)
    for slot in slots.values():
        array = stored[slot.tensor]
        _require(
            array.dtype == slot.dtype.numpy and array.shape == slot.shape, f"{slot.tensor} is not as the layout says"
        )
    back = decode(after.spec, slots, stored)
    _require(identical(back, after), "decode(encode(x)) is not x")
    _require(same_values(back, layer), "a value moved")
    if any(step.is_final for step in passes):
        return True  # nothing leads back
    _require(identical(_undone(passes, layer, back), layer), "undo does not give the layer back")
    return True


def _undone(passes: Sequence[Pass], layer: Layer, result: Layer) -> Layer:
    """What undo makes of the result of some passes on a layer, by what a manifest records of each."""
    walked = [layer]
    for step in passes:
        walked.append(step.apply(walked[-1]))
    for step, before in zip(reversed(passes), reversed(walked[:-1]), strict=True):
        recorded = {part: before.arrays[part] for part in step.recorded_parts & before.arrays.keys()}
        result = from_dict(step.as_dict(), bits_of(recorded)).undo(result, before.spec)
    return result


def check_codec(codec: Codec, slot: Slot, array: Array, dtype: DType, beside: Parts = NOTHING) -> None:
    """The laws of one codec on one canonical array; AssertionError names the one that is broken.

    `slot` is where the codec stores `array`, whose canonical dtype is `dtype`; `beside` has the parts that it needs.
    decode undoes encode; equal codecs are one key; what `rows` calls the region of a range of output features decodes
    to that range, for every range between multiples of `step`.
    """
    again = copy(codec)
    _require(codec == again and hash(codec) == hash(again), "a codec is not compared by value")
    _require(codec.needs <= beside.keys(), "a part that it needs is not given")
    if codec.alternates:
        array = np.repeat(array, len(codec.turns), axis=0)
        stored = codec.whole.encode(array, slot, beside)
        array = array[codec.turn :: len(codec.turns)]
    elif not codec.exclusive and not codec.common:
        rows, count = len(array), len(codec.turns)
        every = np.concatenate([np.roll(array, index, axis=0) for index in range(count)])
        stored = codec.whole.encode(every, slot, beside)
        array = every[codec.turn * rows : (codec.turn + 1) * rows]
    else:
        stored = codec.encode(array, slot, beside)
    size = stored.dtype == slot.dtype.numpy and stored.shape == slot.shape
    _require(size, "what it stores is not of the dtype and shape of its slot")
    back = codec.decode(stored, dtype, array.shape, beside)
    if codec.fixed:
        return
    _require(back.tobytes() == array.tobytes() and back.shape == array.shape, "decode(encode(x)) is not x")
    if array.dtype.kind == "i" and array.ndim == 2 and not codec.needs:
        shape = array.shape[0], array.shape[1]
        _require(codec.holds_zeros(stored, shape) == (not array.any()), "holds_zeros is wrong about the values")
    step = codec.step(stored.dtype.itemsize) if stored.ndim == array.ndim == 2 else 0
    edges = [*range(0, array.shape[0], step), array.shape[0]] if step else []
    for start, end in combinations(edges, 2):
        features = array.shape[0], array.shape[1]
        region = codec.rows((stored.shape[0], stored.shape[1]), features, (start, end), stored.dtype.itemsize)
        if region is None:
            continue
        top, left, rows, columns = region
        part = np.ascontiguousarray(stored[top : top + rows, left : left + columns])
        own = {other: values[start:end] for other, values in beside.items()}
        of_range = codec.decode(part, dtype, (end - start, array.shape[1]), own)
        _require(of_range.tobytes() == array[start:end].tobytes(), f"its rows {start} to {end} are others")


def check_pair(first: Format, second: Format, layer: Layer) -> bool:
    """A -> IR -> B -> IR -> A gives the identical layer wherever both can hold it; whether both can is returned."""
    held = made_legal(first, layer)
    start = held and through(first, held[0])
    legal = start and made_legal(second, start)
    if not start or not legal:
        return False
    there, passes = legal
    _require(same_values(there, start), "a value moved")
    if any(step.is_final for step in passes):
        return False  # nothing leads back
    back = through(second, there)
    back = _undone(passes, start, back)
    _require(identical(back, start), f"{first.NAME} -> {second.NAME} -> {first.NAME} is not the same layer")
    return True


def same_values(a: Layer, b: Layer) -> bool:
    """Whether every weight has the same value in both; a code that is no number is none in both."""
    return np.array_equal(dequantize(a), dequantize(b), equal_nan=True)


def through(format_: Format, layer: Layer) -> Layer:
    """A legal layer encoded and decoded."""
    slots = format_.layout(layer.spec)
    return decode(layer.spec, slots, encode(layer, slots))


def write_model(folder: Path, format_: Format, written: Sequence[Layer], others: Mapping[str, Array]) -> Model:
    """A checkpoint of legal layers and float16 tensors in `folder`, by the format's own layout and config."""
    save_file = imported("safetensors.numpy", "laws", "the laws write checkpoints with it").save_file

    tensors = {name: TensorInfo(DType.F16, array.shape, name) for name, array in others.items()}
    specs_ = {layer.spec.name: layer.spec for layer in written}
    model = format_.settle(Model(format_.NAME, CONFIG, specs_, {}, tensors))
    slots = {name: format_.layout(spec) for name, spec in model.specs.items()}
    folder.mkdir(parents=True, exist_ok=True)
    stored: dict[str, Array] = dict(others)
    for layer in written:
        stored.update(encode(Layer(model.specs[layer.spec.name], layer.arrays), slots[layer.spec.name]))
    written_as = {slot.tensor: slot.dtype for parts in slots.values() for slot in parts.values()}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    _relabel(folder / "model.safetensors", written_as)
    config = {**CONFIG, "quantization_config": format_.config(model)}
    (folder / "config.json").write_text(json.dumps(config))
    return model


def _relabel(file: Path, dtypes: Mapping[str, DType]) -> None:
    """numpy has no bfloat16 and no float8: their bits were saved as integers and are called what they are here."""
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    for name, dtype in dtypes.items():
        header[name]["dtype"] = str(dtype)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def check_checkpoint(format_: Format, drawn: Sequence[Layer]) -> None:
    """What a format writes, it reads back: detected by content, identical layer by layer."""
    legal = [result[0] for layer in drawn if (result := made_legal(format_, layer))]
    if not legal or len({layer.spec.weight for layer in legal}) > 1:
        return
    head = {"lm_head.weight": np.ones((4, 4), np.float16)}
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), format_, legal, head)
        with open_checkpoint(folder) as read:
            _require(read.format == format_.NAME, f"detected as {read.format}")
            _require(read.specs.keys() == {layer.spec.name for layer in legal}, "other layers were read")
            for layer in legal:
                found = read.layer(layer.spec.name)
                plain = Layer(replace(found.spec, dialect=()), found.arrays)
                _require(identical(plain, layer), f"{layer.spec.name} is read as another layer")


def check_format(name: str, examples: int = 200) -> None:
    """Every law on random layers; raises AssertionError with the smallest counterexample.

    Laws that met no layer that the format can hold say nothing, so that is one too.
    """
    format_ = find(name)
    quiet = settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    met = 0

    @quiet
    @_each_common
    @given(layers(LAYER))
    def one_layer(layer: Layer) -> None:
        nonlocal met
        met += check_layer(format_, layer)

    @settings(quiet, max_examples=examples // 4)
    @given(st.tuples(layers("model.layers.0.mlp.up_proj"), layers("model.layers.1.mlp.up_proj")))
    def whole_checkpoint(drawn: tuple[Layer, Layer]) -> None:
        check_checkpoint(format_, drawn)

    one_layer()
    whole_checkpoint()
    _require(met > 0, "no layer was drawn that the format can hold")


def check_pairs(examples: int = 100) -> set[tuple[str, str]]:
    """The law of there and back for every two formats that are read; the pairs that met legal layers."""
    names = [name for name in registry() if not getattr(find(name), "WRITE_ONLY", False)]
    pairs = [(first, second) for first in names for second in names]
    return {pair for pair in pairs if _met(find(pair[0]), find(pair[1]), examples)}


def _met(first: Format, second: Format, examples: int) -> int:
    met = 0

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @_each_common
    @given(layers(LAYER))
    def law(layer: Layer) -> None:
        nonlocal met
        met += check_pair(first, second, layer)

    law()
    return met


def _each_common(law: Law) -> Law:
    """The law put to every scheme that engines serve first, so that what it meets is no matter of luck."""
    for spec in every_common_spec(LAYER):
        law = example(random_layer(spec, 0))(law)
    return law


def _require(holds: bool, law: str) -> None:
    if not holds:
        raise AssertionError(law)
