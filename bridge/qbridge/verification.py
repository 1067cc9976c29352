"""verify: are two checkpoints the same model? Codes, zero-points and scale bits first, values where bits differ."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import numpy as np

from qbridge.checkpoint import Checkpoint, PathLike, open_checkpoint
from qbridge.dtypes import Array, to_float64
from qbridge.findings import Findings, io_as_finding
from qbridge.formats import decode
from qbridge.hf_config import COMPUTE_DTYPE, meaning
from qbridge.ir import Layer, Spec
from qbridge.manifest import padded
from qbridge.padding import follow
from qbridge.passes.pad import Pad
from qbridge.repairs import SourceValues
from qbridge.report import Verification
from qbridge.topology import natural
from qbridge.values import group_index, row_index

BLOCK = 8 << 20


def verify(a: PathLike, b: PathLike, *, allow: Iterable[str] = ()) -> Verification:
    """Compare two checkpoints of any formats layer by layer; `same` is the answer. Raises QBridgeError.

    Peak memory is two blocks and the small parts of one layer.
    """
    start = time.monotonic()
    allow = tuple(allow)
    findings = Findings(frozenset(allow))
    with (
        io_as_finding(f"{a}, {b}"),
        open_checkpoint(a, allow=allow) as left,
        open_checkpoint(b, allow=allow) as right,
    ):
        pads = {**padded(left.source), **padded(right.source)}
        _compare_configs(left, right, bool(pads), findings)
        common = _compare_names(left, right, findings)
        kinds = [
            _compare_layer(left, right, name, pads.get(name), findings) for name in common if name in left.model.specs
        ]
        for name in common:
            if name in left.model.tensors:
                _compare_tensor(left, right, name, findings)
    return Verification(
        a=str(Path(a)),
        b=str(Path(b)),
        formats=(left.format, right.format),
        identical=kinds.count("identical"),
        equal=kinds.count("equal"),
        tensors=sum(name in left.model.tensors for name in common),
        seconds=round(time.monotonic() - start, 3),
        findings=tuple(findings),
        same=not findings.errors,
    )


def _compare_configs(left: Checkpoint, right: Checkpoint, pads: bool, findings: Findings) -> None:
    configs = left.model.config, right.model.config
    if pads:  # sizes of MLPs follow the layers, which are compared by themselves
        own = follow(configs[0], left.model.specs), follow(configs[1], right.model.specs)
        for config, followed in zip(configs, own, strict=True):
            for key in sorted(k for k in followed if followed[k] != config[k]):
                findings.add("QB504", key, (f"{config[key]!r}, the layers have {followed[key]!r}",))
        configs = own[0], follow(own[1], left.model.specs)
    first, second = map(meaning, configs)
    for key in sorted(first.keys() | second.keys()):
        if first.get(key) != second.get(key):
            code = "QB505" if key == COMPUTE_DTYPE else "QB504"
            findings.add(code, key, (f"{first.get(key)!r} and {second.get(key)!r}",))


def _compare_names(left: Checkpoint, right: Checkpoint, findings: Findings) -> list[str]:
    """Layers and unquantized tensors of both, in reading order; the others are findings."""
    first = left.model.specs.keys() | left.model.tensors.keys()
    second = right.model.specs.keys() | right.model.tensors.keys()
    for here, names in (("the first", first - second), ("the second", second - first)):
        if names:
            findings.add("QB502", natural(names), (f"only {here} has it",))
    return natural(name for name in first & second if (name in left.model.specs) == (name in right.model.specs))


def _compare_tensor(left: Checkpoint, right: Checkpoint, name: str, findings: Findings) -> None:
    if left.model.tensors[name] != right.model.tensors[name]:
        is_, other = left.model.tensors[name], right.model.tensors[name]
        findings.add("QB503", name, (f"{is_.dtype}{list(is_.shape)} and {other.dtype}{list(other.shape)}",))
    elif not _same_bytes(left, right, name, name):
        findings.add("QB503", name, ("its values",))


def _same_bytes(left: Checkpoint, right: Checkpoint, name: str, other: str) -> bool:
    blocks = zip_longest(left.source.blocks(name, BLOCK), right.source.blocks(other, BLOCK))
    return all(x is not None and y is not None and np.array_equal(x, y) for x, y in blocks)


def _compare_layer(left: Checkpoint, right: Checkpoint, name: str, pad: Pad | None, findings: Findings) -> str:
    """`identical`, `equal` or `different`, with a finding for the last; `pad` has the dims before a padding."""
    specs = left.model.specs[name], right.model.specs[name]
    unlike = _unlike(*specs)
    if unlike and pad and any(_dims(spec) != (pad.out_features, pad.in_features) for spec in specs):
        return _compare_padded(left.layer(name), right.layer(name), pad, findings)
    if unlike:
        findings.add("QB501", name, unlike)
        return "different"
    if not _same_codes(left, right, name):
        findings.add("QB501", name, ("codes",))
        return "different"
    layers = _small_parts(left, name), _small_parts(right, name)
    differing = _differing_parts(*layers)
    if differing:
        findings.add("QB501", name, differing)
        return "different"
    same = specs[0].scale_dtype is specs[1].scale_dtype and specs[0].weight == specs[1].weight
    same = same and specs[0].g_idx == specs[1].g_idx
    return "identical" if same else "equal"


def _dims(spec: Spec) -> tuple[int, int]:
    return spec.out_features, spec.in_features


def _compare_padded(a: Layer, b: Layer, pad: Pad, findings: Findings) -> str:
    """Two layers, one of them padded from the dims of `pad`: what was added must be zero, the rest equal."""
    small = (pad.out_features, pad.in_features)
    try:
        first, second = (
            x if _dims(x.spec) == small else Pad(*_dims(x.spec)).undo(x, _sized(x, small)) for x in (a, b)
        )
    except ValueError as fault:
        findings.add("QB501", a.spec.name, (str(fault),))
        return "different"
    if not all(np.isfinite(to_float64(x.arrays["scale"], x.spec.scale_dtype)).all() for x in (a, b)):
        findings.add("QB501", a.spec.name, ("a scale is not finite",))
        return "different"
    differing = _unlike(first.spec, second.spec) or _differing_parts(first, second)
    if not differing and not np.array_equal(first.arrays["code"], second.arrays["code"]):
        differing = ("codes",)
    if differing:
        findings.add("QB501", a.spec.name, differing)
    return "different" if differing else "equal"


def _sized(layer: Layer, dims: tuple[int, int]) -> Spec:
    return replace(layer.spec, out_features=dims[0], in_features=dims[1])


def _same_codes(left: Checkpoint, right: Checkpoint, name: str) -> bool:
    """Byte by byte where both store codes alike, else decoded, one layer at a time."""
    slots = left.model.slots[name]["code"], right.model.slots[name]["code"]
    if slots[0].same_bytes(slots[1]):
        return _same_bytes(left, right, slots[0].tensor, slots[1].tensor)
    first, second = (SourceValues(side.source, side.model).part(name, "code") for side in (left, right))
    return np.array_equal(first, second)


def _unlike(a: Spec, b: Spec) -> tuple[str, ...]:
    """What two specs disagree on beyond how scales are stored."""
    pairs = (
        ("dims", (a.out_features, a.in_features), (b.out_features, b.in_features)),
        ("code type", a.weight.type, b.weight.type),
        ("activations", str(a.activation), str(b.activation)),
        ("bias", str(a.bias), str(b.bias)),
    )
    return tuple(f"{what}: {x} and {y}" for what, x, y in pairs if x != y)


def _small_parts(opened: Checkpoint, name: str) -> Layer:
    slots = {part: slot for part, slot in opened.model.slots[name].items() if part != "code"}
    stored = {slot.tensor: opened.source.read(slot.tensor) for slot in slots.values()}
    return decode(opened.model.specs[name], slots, stored)


def _differing_parts(a: Layer, b: Layer) -> tuple[str, ...]:
    found = []
    if not np.array_equal(*_alike(_scales(a), _scales(b), a, b)):
        found.append("scales")
    if not np.array_equal(*_alike(_zeros(a), _zeros(b), a, b)):
        found.append("zero-points")
    for part in ("bias", "input_zero"):
        if part in a.arrays and a.arrays[part].tobytes() != b.arrays[part].tobytes():
            found.append(part)
    if "input_scale" in a.arrays:
        first, second = (to_float64(x.arrays["input_scale"], x.spec.parts()["input_scale"][0]) for x in (a, b))
        if not np.array_equal(first, second):
            found.append("input_scale")
    return tuple(found)


def _alike(x: Array, y: Array, a: Layer, b: Layer) -> tuple[Array, Array]:
    """Both with one column per input feature where their groups differ."""
    orders = [layer.arrays["g_idx"].tobytes() if "g_idx" in layer.arrays else b"" for layer in (a, b)]
    if x.shape == y.shape and orders[0] == orders[1]:
        return x, y
    return x[:, group_index(a.spec, a.arrays.get("g_idx"))], y[:, group_index(b.spec, b.arrays.get("g_idx"))]


def _scales(layer: Layer) -> Array:
    """Scale values in float64, one row per output feature."""
    values = to_float64(layer.arrays["scale"], layer.spec.scale_dtype)
    return values[row_index(layer.spec)]


def _zeros(layer: Layer) -> Array:
    """Zero-points, one row per output feature; symmetric means zero."""
    if "zero" not in layer.arrays:
        return np.zeros(layer.spec.scale_shape, np.int16)[row_index(layer.spec)]
    return layer.arrays["zero"][row_index(layer.spec)]
