"""The laws of a pass, shipped so that a pass of another package tests itself.

    from qbridge.testing import check_pass, random_layer
    def test_laws(): assert check_pass(MyPass(), random_layer(spec, seed=0))

Needs hypothesis (`pip install qbridge-llm[test]`)."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np

from qbridge.ir.exactness import Exactness
from qbridge.ir.layer import Layer, Spec, identical
from qbridge.ir.values import dequantize
from qbridge.passes import Pass
from qbridge.passes.bits import bits_of
from qbridge.passes.residue import Held

_KEEP = (Exactness.REVERSIBLE, Exactness.EQUAL)


def check_pass(step: Pass, layer: Layer) -> bool:
    """The laws of a pass on one whole layer that it is meant for; whether the layer's values allow it is returned.

    AssertionError names the law that is broken. `plan` predicts the spec, and `apply` changes nothing but `parts`;
    it refuses by ValueError alone, and only where `needs_values` says so. Each part can be had of its `inputs` alone,
    and output features of these alone (`within`). A pass that keeps values keeps those of all weights that there
    were, others are zero, and `undo` gives back each bit, unless it `is_final`. What it records is
    JSON that names it.
    """
    spec, name = layer.spec, step.name
    after = step.plan(spec)
    _require(after.name == spec.name, f"{name}: plan renames the layer")
    recorded = json.loads(json.dumps(step.as_dict()))
    _require(recorded == step.as_dict(), f"{name}: as_dict is not JSON")
    _require(name.endswith(recorded.get("pass", "?")), f"{name}: as_dict does not name the pass")
    try:
        result = step.apply(layer)
    except ValueError as fault:
        _require(step.needs_values(spec), f"{name}: refuses ({fault}), and needs_values says that it cannot")
        return False
    _require(result.spec == after, f"{name}: the spec is not the one that plan predicts")
    _check_parts(step, layer, result)
    step = step.with_residue(Held(layer))
    if step.exactness in _KEEP:
        _check_values(step, layer, result)
        if not (step.recorded_parts or step.is_final):
            _require(identical(step.undo(result, spec), layer), f"{name}: undo does not give back the layer")
    if step.recorded_parts:
        parts = {part: layer.arrays[part] for part in step.recorded_parts & layer.arrays.keys()}
        restored = step.from_dict(recorded, bits_of(parts))
        _require(identical(restored.undo(result, spec), layer), f"{name}: undo by what is recorded is not the layer")
    return True


def _check_parts(step: Pass, layer: Layer, result: Layer) -> None:
    _require(result.complete, f"{step.name}: parts are missing")
    for part, array in result.arrays.items():
        if part not in step.parts:
            same = part in layer.arrays and array.tobytes() == layer.arrays[part].tobytes()
            _require(same, f"{step.name}: {part} changes, which is none of its parts")
        few = {name: layer.arrays[name] for name in step.inputs(frozenset({part})) & layer.arrays.keys()}
        alone = step.apply(Layer(layer.spec, few)).arrays.get(part)
        same = alone is not None and alone.tobytes() == array.tobytes()
        _require(same, f"{step.name}: {part} is another where only its inputs are given")


def _check_values(step: Pass, layer: Layer, result: Layer) -> None:
    before, after = dequantize(layer), dequantize(result)
    rows, columns = (min(pair) for pair in zip(layer.spec.dims, result.spec.dims, strict=True))
    same = np.array_equal(before[:rows, :columns], after[:rows, :columns], equal_nan=True)
    _require(same, f"{step.name}: a weight has another value")
    beyond = np.count_nonzero(after[rows:]) + np.count_nonzero(after[:rows, columns:])
    _require(beyond == 0, f"{step.name}: {beyond} weights of new features are not zero")
    if layer.spec.weight.block is None and result.spec.weight.block is None:
        _check_features(step, layer, result)


def _check_features(step: Pass, layer: Layer, result: Layer) -> None:
    """The first output features alone, where scales of others do not matter."""
    count = min(layer.spec.out_features, result.spec.out_features) // 2
    if not count:
        return

    def first(spec: Spec) -> Spec:
        return replace(spec, out_features=count)

    some = step.within(layer.spec, first).apply(_of_features(layer, first(layer.spec)))
    wanted = _of_features(result, first(result.spec))
    _require(identical(some, wanted), f"{step.name}: the first {count} output features alone become others")


def _of_features(layer: Layer, spec: Spec) -> Layer:
    """The first output features of a layer."""
    shapes = {part: shape for part, (_, shape) in spec.parts().items()}
    arrays = {part: array[tuple(map(slice, shapes[part]))] for part, array in layer.arrays.items()}
    return Layer(spec, {part: np.ascontiguousarray(array) for part, array in arrays.items()})


def _require(holds: bool, law: str) -> None:
    if not holds:
        raise AssertionError(law)
