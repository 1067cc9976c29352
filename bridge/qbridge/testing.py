"""Strategies and laws that every format obeys, shipped so that a new format tests itself.

    from qbridge.testing import check_format
    def test_laws(): check_format("my-format")

Needs hypothesis (`pip install qbridge[test]`).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qbridge.catalogue import CATALOGUE
from qbridge.checkpoint import open_checkpoint
from qbridge.dtypes import Array, DType, from_float64
from qbridge.findings import Findings
from qbridge.formats import Format, decode, encode, find, registry
from qbridge.ir import ActivationScheme, Granularity, Layer, Model, Spec, TensorInfo, WeightScheme, identical
from qbridge.layout import is_fixed
from qbridge.passes import Pass
from qbridge.repairs import repair
from qbridge.rules import LayerRule
from qbridge.values import dequantize

W8A8 = ActivationScheme(8, Granularity.TOKEN, dynamic=True)
SCALES = (DType.F16, DType.BF16, DType.F32)


@st.composite
def weight_schemes(draw: st.DrawFn) -> WeightScheme:
    """Integer schemes of every width and granularity; what a format cannot hold, its rules refuse."""
    granularity = draw(st.sampled_from([Granularity.TENSOR, Granularity.CHANNEL, Granularity.GROUP]))
    return WeightScheme(
        draw(st.sampled_from([8, 8, 8, 4, 2, 3, 5, 6, 7, 1])),
        granularity,
        draw(st.booleans()),
        group_size=draw(st.sampled_from([8, 16, 32])) if granularity is Granularity.GROUP else None,
    )


@st.composite
def activation_schemes(draw: st.DrawFn) -> ActivationScheme | None:
    """None, dynamic per token, or static per tensor."""
    kind = draw(st.sampled_from(["token", "token", "tensor", "none"]))
    if kind == "none":
        return None
    granularity = Granularity.TOKEN if kind == "token" else Granularity.TENSOR
    return ActivationScheme(8, granularity, dynamic=kind == "token", symmetric=draw(st.booleans()))


@st.composite
def specs(draw: st.DrawFn, name: str = "model.layers.0.mlp.down_proj") -> Spec:
    """Specs over the whole IR, small dims, features that no group or word divides included.

    Half of them have a scheme that some engine serves, so that the laws of legal layers meet many.
    """
    if draw(st.booleans()):
        return draw(common_specs(name))
    activation = draw(activation_schemes())
    static = activation is not None and not activation.dynamic
    return Spec(
        name=name,
        out_features=draw(st.integers(2, 24)),
        in_features=draw(st.integers(2, 70)),
        weight=draw(weight_schemes()),
        scale_dtype=draw(st.sampled_from(SCALES)),
        activation=activation,
        input_scale_dtype=draw(st.sampled_from(SCALES)) if static else None,
        bias=draw(st.sampled_from([None, DType.F16, DType.BF16])),
        g_idx=draw(st.sampled_from([False, False, False, True])),
    )


# (out_features, in_features): what packs whole words, whole tiles, and neither
SHAPES = ((8, 32), (16, 64), (24, 96), (5, 70), (32, 64), (64, 96), (32, 160), (256, 128), (256, 256))


@st.composite
def common_specs(draw: st.DrawFn, name: str) -> Spec:
    """Specs of the schemes that engines serve: W8A8 with dynamic per-token activations, or weights alone."""
    weight, activation = draw(
        st.sampled_from(
            [
                (WeightScheme(8, Granularity.TENSOR), W8A8),
                (WeightScheme(8, Granularity.CHANNEL), W8A8),
                (WeightScheme(4, Granularity.GROUP, group_size=32), None),
                (WeightScheme(4, Granularity.GROUP, symmetric=False, group_size=32), None),
                (WeightScheme(4, Granularity.GROUP, group_size=128), None),
                (WeightScheme(3, Granularity.GROUP, group_size=128), None),
                (WeightScheme(4, Granularity.CHANNEL), None),
                (WeightScheme(8, Granularity.CHANNEL), None),
            ]
        )
    )
    shapes = SHAPES[-2:] if weight.group_size == 128 else SHAPES
    rows, columns = draw(st.sampled_from(shapes))
    return Spec(
        name=name,
        out_features=rows,
        in_features=columns,
        weight=weight,
        scale_dtype=draw(st.sampled_from(SCALES)),
        activation=activation,
        bias=draw(st.sampled_from([None, DType.F16, DType.BF16])),
    )


def random_layer(spec: Spec, seed: int) -> Layer:
    """A layer of random codes over the whole range, random finite scales, zeros and bias."""
    random = np.random.default_rng(seed)
    low, high = -(2 ** (spec.weight.bits - 1)), 2 ** (spec.weight.bits - 1) - 1
    arrays: dict[str, Array] = {}
    for part, (dtype, shape) in spec.parts().items():
        if part == "code":
            arrays[part] = random.integers(low, high, shape, endpoint=True).astype(dtype.numpy)
        elif part in ("zero", "input_zero"):
            least, most = (low, high) if part == "zero" else (-128, 127)
            arrays[part] = random.integers(least, most, shape, endpoint=True).astype(dtype.numpy)
        elif part == "g_idx":
            arrays[part] = random.integers(0, spec.scale_shape[1], shape).astype(dtype.numpy)
        else:
            arrays[part] = from_float64(random.uniform(0.25, 2.0, shape) * 2.0 ** random.integers(-8, 2), dtype)
    return Layer(spec, arrays)


def layers(name: str = "model.layers.0.mlp.down_proj") -> st.SearchStrategy[Layer]:
    """Random layers of random specs."""
    return st.builds(random_layer, specs(name), st.integers(0, 2**32 - 1))


@st.composite
def grouped_layers(draw: st.DrawFn, g_idx: bool = False) -> Layer:
    """Random layers of weights alone in groups or per channel, in act-order with `g_idx`, for passes over groups."""
    size = draw(st.sampled_from([None, 8, 16, 24, 32, 64]))
    spec = Spec(
        name="model.layers.0.mlp.down_proj",
        out_features=draw(st.integers(1, 9)),
        in_features=draw(st.one_of(st.sampled_from([32, 64, 128]), st.integers(1, 150))),
        weight=WeightScheme(
            draw(st.integers(1, 8)),
            Granularity.GROUP if size else Granularity.CHANNEL,
            draw(st.booleans()),
            group_size=size,
        ),
        scale_dtype=draw(st.sampled_from(SCALES)),
        bias=draw(st.sampled_from([None, DType.F16, DType.BF16])),
        g_idx=g_idx,
    )
    return random_layer(spec, draw(st.integers(0, 2**32 - 1)))


def empty_model(format_name: str, layer: Layer) -> Model:
    """A model of one layer, for rules that look at it."""
    return Model(format_name, CONFIG, {layer.spec.name: layer.spec}, {}, {})


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
    held = {part for part, slot in slots.items() if not is_fixed(slot.codec)}
    _require(held == after.spec.parts().keys(), "the layout leaves a part out")
    stored = encode(after, slots)
    for slot in slots.values():
        array = stored[slot.tensor]
        _require(
            array.dtype == slot.dtype.numpy and array.shape == slot.shape, f"{slot.tensor} is not as the layout says"
        )
    back = decode(after.spec, slots, stored)
    _require(identical(back, after), "decode(encode(x)) is not x")
    _require(np.array_equal(dequantize(back), dequantize(layer)), "a value moved")
    walked = [layer.spec]
    for step in passes:
        walked.append(step.plan(walked[-1]))
    for step, before in zip(reversed(passes), reversed(walked[:-1]), strict=True):
        back = step.undo(back, before)
    _require(identical(back, layer), "undo does not give the layer back")
    return True


def check_pair(first: Format, second: Format, layer: Layer) -> bool:
    """A -> IR -> B -> IR -> A gives the identical layer wherever both can hold it; whether both can is returned."""
    held = made_legal(first, layer)
    start = held and through(first, held[0])
    legal = start and made_legal(second, start)
    if not start or not legal:
        return False
    there, passes = legal
    back = through(second, there)
    walked = [start.spec]
    for step in passes:
        walked.append(step.plan(walked[-1]))
    for step, before in zip(reversed(passes), reversed(walked[:-1]), strict=True):
        back = step.undo(back, before)
    _require(identical(back, start), f"{first.NAME} -> {second.NAME} -> {first.NAME} is not the same layer")
    _require(np.array_equal(dequantize(there), dequantize(start)), "a value moved")
    return True


def through(format_: Format, layer: Layer) -> Layer:
    """A legal layer encoded and decoded."""
    slots = format_.layout(layer.spec)
    return decode(layer.spec, slots, encode(layer, slots))


def write_model(folder: Path, format_: Format, written: Sequence[Layer], others: Mapping[str, Array]) -> Model:
    """A checkpoint of legal layers and float16 tensors in `folder`, by the format's own layout and config."""
    from safetensors.numpy import save_file

    tensors = {name: TensorInfo(DType.F16, array.shape, name) for name, array in others.items()}
    specs_ = {layer.spec.name: layer.spec for layer in written}
    model = format_.settle(Model(format_.NAME, CONFIG, specs_, {}, tensors))
    slots = {name: format_.layout(spec) for name, spec in model.specs.items()}
    folder.mkdir(parents=True, exist_ok=True)
    stored: dict[str, Array] = dict(others)
    for layer in written:
        stored.update(encode(Layer(model.specs[layer.spec.name], layer.arrays), slots[layer.spec.name]))
    bf16 = {slot.tensor for parts in slots.values() for slot in parts.values() if slot.dtype is DType.BF16}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    _relabel(folder / "model.safetensors", bf16)
    config = {**CONFIG, "quantization_config": format_.config(model)}
    (folder / "config.json").write_text(json.dumps(config))
    return model


def _relabel(file: Path, names: set[str]) -> None:
    """numpy has no bfloat16: its bits were saved as U16 and are called BF16 here."""
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    for name in names:
        header[name]["dtype"] = "BF16"
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
    @given(layers())
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
    """The law of there and back for every two formats of the registry; the pairs that met legal layers."""
    names = list(registry())
    pairs = [(first, second) for first in names for second in names]
    return {pair for pair in pairs if _met(find(pair[0]), find(pair[1]), examples)}


def _met(first: Format, second: Format, examples: int) -> int:
    met = 0

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(layers())
    def law(layer: Layer) -> None:
        nonlocal met
        met += check_pair(first, second, layer)

    for _ in range(4):  # few random layers fit a layout of large tiles
        law()
        if met:
            break
    return met


def _require(holds: bool, law: str) -> None:
    if not holds:
        raise AssertionError(law)
