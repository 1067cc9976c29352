"""Unquantized tensors of two checkpoints, and linears that are quantized in one of them alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from qbridge.commands.checkpoint import Checkpoint
from qbridge.ir.dtypes import DType, survives, to_float64
from qbridge.ir.layer import Layer, Spec
from qbridge.ir.model import Model
from qbridge.ir.plain import as_layers
from qbridge.ir.values import dequantize
from qbridge.passes.pad import Pad, cropped


def with_layers_of(side: Checkpoint, other: Model) -> Checkpoint:
    """A checkpoint in which the linears that are quantized in another are layers, too."""
    names = [name for name in other.specs if name not in side.model.specs and f"{name}.weight" in side.model.tensors]
    return replace(side, model=as_layers(side.model, names)) if names else side


def have_other_codes(a: Spec, b: Spec) -> bool:
    """Whether two layers are alike but for the number format or the zero-points, so that only values can be equal."""
    kinds = [(w.type, w.symmetric, bool(w.global_scale)) for w in (a.weight, b.weight)]
    return kinds[0] != kinds[1] and (a.activation, a.dims, a.bias) == (b.activation, b.dims, b.bias)


def unlike_weights(a: Layer, b: Layer, pad: Pad | None = None) -> tuple[str, ...]:
    """What differs between two layers of which one has no codes: exact values are compared, and the bias.

    One of unlike dims may be padded from those of `pad`.
    """
    if pad and a.spec.dims != b.spec.dims:
        try:
            a, b = (cropped(layer, (pad.out_features, pad.in_features)) for layer in (a, b))
        except ValueError as fault:
            return (str(fault),)
    if a.spec.dims != b.spec.dims:
        return (f"dims: {a.spec.dims} and {b.spec.dims}",)
    wrong = int(np.count_nonzero(dequantize(a) != dequantize(b)))
    biases = [layer.arrays["bias"].tobytes() if "bias" in layer.arrays else b"" for layer in (a, b)]
    return (*((f"{wrong} weights",) if wrong else ()), *(("bias",) if biases[0] != biases[1] else ()))


def unlike_tensors(left: Checkpoint, right: Checkpoint, name: str) -> tuple[str, ...]:
    """How an unquantized tensor of two checkpoints differs: of two float dtypes the values count, not their bits."""
    here, there = left.model.tensors[name], right.model.tensors[name]
    dtypes = here.dtype, there.dtype
    comparable = here.dtype is there.dtype or all(survives(dtype, DType.F32) for dtype in dtypes)
    if here.shape != there.shape or not comparable:
        return (f"{here.dtype}{list(here.shape)} and {there.dtype}{list(there.shape)}",)
    first, second = left.tensor(name), right.tensor(name)
    if here.dtype is there.dtype:
        return () if first.tobytes() == second.tobytes() else ("its values",)
    same = np.array_equal(to_float64(first, here.dtype), to_float64(second, there.dtype))
    return () if same else (f"its values, as {here.dtype} and as {there.dtype}",)
