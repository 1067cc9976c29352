"""Strategies that draw schemes, specs and layers over the whole IR; `testing` has the laws that they are put to."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from hypothesis import strategies as st

from qbridge.ir.dtypes import Array, DType, from_float64, to_float64
from qbridge.ir.layer import Layer, Spec
from qbridge.ir.scheme import CODE_BITS, ActivationScheme, CodeType, Granularity, WeightScheme

W8A8 = ActivationScheme(8, Granularity.TOKEN, dynamic=True)
SCALES = (DType.F16, DType.BF16, DType.F32)
SMALL_SCALES = (DType.F8_E4M3, DType.F8_E5M2, DType.F8_E8M0)
FP8 = ActivationScheme(8, Granularity.TOKEN, dynamic=True, type="e4m3fn")
FP8_GROUPS = ActivationScheme(8, Granularity.GROUP, dynamic=True, type="e4m3fn", group_size=128)
FP8_STATIC = ActivationScheme(8, Granularity.TENSOR, dynamic=False, type="e4m3fn")
NVFP4 = WeightScheme(4, Granularity.GROUP, type="e2m1", group_size=16, global_scale="divide")
NVFP4_INPUTS = ActivationScheme(4, Granularity.GROUP, dynamic=True, type="e2m1", group_size=16, global_scale="divide")
MXFP4 = WeightScheme(4, Granularity.GROUP, type="e2m1", group_size=32)
MXFP4_INPUTS = ActivationScheme(4, Granularity.GROUP, dynamic=True, type="e2m1", group_size=32)
MXFP8 = WeightScheme(8, Granularity.GROUP, type="e4m3fn", group_size=32)
MXFP8_INPUTS = ActivationScheme(8, Granularity.GROUP, dynamic=True, type="e4m3fn", group_size=32)


@st.composite
def weight_schemes(draw: st.DrawFn) -> WeightScheme:
    """Schemes of every type, width and granularity; what a format cannot hold, its rules refuse."""
    kind: CodeType = draw(st.sampled_from(["int", "int", "int", "e4m3fn", "e4m3fn", "e5m2", "e2m1"]))
    granularity = draw(
        st.sampled_from([Granularity.TENSOR, Granularity.CHANNEL, Granularity.GROUP, Granularity.BLOCK])
    )
    grouped = granularity is Granularity.GROUP
    return WeightScheme(
        draw(st.sampled_from([8, 8, 8, 4, 2, 3, 5, 6, 7, 1])) if kind == "int" else CODE_BITS[kind],
        granularity,
        draw(st.booleans()) or kind != "int",
        kind,
        group_size=draw(st.sampled_from([8, 16, 32])) if grouped else None,
        block=draw(st.sampled_from([(4, 16), (16, 8), (128, 128)])) if granularity is Granularity.BLOCK else None,
        global_scale=draw(st.sampled_from([None, None, "multiply", "divide"])) if grouped and kind != "int" else None,
    )


@st.composite
def activation_schemes(draw: st.DrawFn) -> ActivationScheme | None:
    """None, dynamic per token, static per tensor, or dynamic per group; integers and floats."""
    kind = draw(st.sampled_from(["token", "token", "tensor", "group", "none"]))
    if kind == "none":
        return None
    type_: CodeType = draw(st.sampled_from(["int", "int", "e4m3fn", "e4m3fn", "e5m2", "e2m1"]))
    granularities = {"token": Granularity.TOKEN, "tensor": Granularity.TENSOR, "group": Granularity.GROUP}
    return ActivationScheme(
        CODE_BITS.get(type_, 8),
        granularities[kind],
        dynamic=kind != "tensor",
        symmetric=draw(st.booleans()),
        type=type_,
        group_size=draw(st.sampled_from([16, 32, 128])) if kind == "group" else None,
        global_scale=draw(st.sampled_from([None, "divide", "multiply"])) if kind == "group" else None,
    )


@st.composite
def specs(draw: st.DrawFn, name: str = "model.layers.0.mlp.down_proj") -> Spec:
    """Specs over the whole IR, small dims, features that no group or word divides included.

    Half of them have a scheme that some engine serves, so that the laws of legal layers meet many.
    """
    if draw(st.booleans()):
        return draw(common_specs(name))
    activation = draw(activation_schemes())
    stored = activation is not None and activation.is_stored
    weight = draw(weight_schemes())
    return Spec(
        name=name,
        out_features=draw(st.integers(2, 24)),
        in_features=draw(st.integers(2, 70)),
        weight=weight,
        scale_dtype=draw(st.sampled_from((*SCALES, *SCALES, *SMALL_SCALES))),
        activation=activation,
        input_scale_dtype=draw(st.sampled_from(SCALES)) if stored else None,
        bias=draw(st.sampled_from([None, DType.F16, DType.BF16])),
        g_idx=draw(st.sampled_from([False, False, False, True])) and not weight.block,
    )


# (out_features, in_features): what packs whole words, whole tiles, and neither
SHAPES = ((8, 32), (16, 64), (24, 96), (5, 70), (32, 64), (64, 96), (32, 160), (256, 128), (256, 256))


INTEGERS: tuple[tuple[WeightScheme, ActivationScheme | None, tuple[DType, ...]], ...] = (
    (WeightScheme(8, Granularity.TENSOR), W8A8, SCALES),
    (WeightScheme(8, Granularity.CHANNEL), W8A8, SCALES),
    (WeightScheme(4, Granularity.GROUP, group_size=32), None, SCALES),
    (WeightScheme(4, Granularity.GROUP, symmetric=False, group_size=32), None, SCALES),
    (WeightScheme(4, Granularity.GROUP, group_size=128), None, SCALES),
    (WeightScheme(3, Granularity.GROUP, group_size=128), None, SCALES),
    (WeightScheme(4, Granularity.CHANNEL), None, SCALES),
    (WeightScheme(8, Granularity.CHANNEL), None, SCALES),
)
FLOATS: tuple[tuple[WeightScheme, ActivationScheme | None, tuple[DType, ...]], ...] = (
    (WeightScheme(8, Granularity.CHANNEL, type="e4m3fn"), FP8, SCALES),
    (WeightScheme(8, Granularity.TENSOR, type="e4m3fn"), FP8_STATIC, SCALES),
    (WeightScheme(8, Granularity.BLOCK, type="e4m3fn", block=(128, 128)), FP8_GROUPS, (*SCALES, DType.F8_E8M0)),
    (NVFP4, NVFP4_INPUTS, (DType.F8_E4M3,)),
    (NVFP4, None, (DType.F8_E4M3,)),
    (MXFP4, MXFP4_INPUTS, (DType.F8_E8M0,)),
    (MXFP4, FP8_GROUPS, (DType.F8_E8M0,)),
    (MXFP4, None, (DType.F8_E8M0,)),
    (MXFP8, MXFP8_INPUTS, (DType.F8_E8M0,)),
    (WeightScheme(4, Granularity.GROUP, group_size=128), FP8, SCALES),
)


@st.composite
def common_specs(draw: st.DrawFn, name: str) -> Spec:
    """Specs of the schemes that engines serve: W8A8, FP8, or weights alone; half of them of integers."""
    weight, activation, scales = draw(st.sampled_from(draw(st.sampled_from([INTEGERS, FLOATS]))))
    shape = draw(st.sampled_from(SHAPES[-2:] if weight.group_size == 128 else SHAPES))
    bias = draw(st.sampled_from([None, DType.F16, DType.BF16]))
    return _common(name, shape, weight, draw(st.sampled_from(scales)), activation, bias)


def every_common_spec(name: str) -> Iterator[Spec]:
    """One spec of each scheme and scale dtype that engines serve, of a shape that every layout's tiles divide."""
    for weight, activation, scales in (*INTEGERS, *FLOATS):
        for scale in scales:
            yield _common(name, (256, 256), weight, scale, activation, None)


def _common(
    name: str,
    shape: tuple[int, int],
    weight: WeightScheme,
    scale: DType,
    activation: ActivationScheme | None,
    bias: DType | None,
) -> Spec:
    stored = activation is not None and activation.is_stored
    return Spec(
        name, *shape, weight, scale, activation=activation, input_scale_dtype=DType.F32 if stored else None, bias=bias
    )


def random_layer(spec: Spec, seed: int) -> Layer:
    """A layer of random codes over the whole range, random scales (finite, not zero), zeros and bias."""
    random = np.random.default_rng(seed)
    half = 2 ** (spec.weight.bits - 1)
    low, high = (-half, half - 1) if spec.weight.type == "int" else (0, 2 * half - 1)
    arrays: dict[str, Array] = {}
    for part, (dtype, shape) in spec.parts().items():
        if part == "code":
            arrays[part] = random.integers(low, high, shape, endpoint=True).astype(dtype.numpy)
        elif part in ("zero", "input_zero"):
            least, most = (low, high) if part == "zero" else (-128, 127)
            arrays[part] = random.integers(least, most, shape, endpoint=True).astype(dtype.numpy)
        elif part == "g_idx":
            arrays[part] = random.integers(0, spec.scale_shape[1], shape).astype(dtype.numpy)
        elif dtype in SMALL_SCALES:
            every = to_float64(np.arange(256, dtype=np.uint8), dtype)
            arrays[part] = random.choice(np.flatnonzero(np.isfinite(every) & (every != 0)), shape).astype(dtype.numpy)
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
