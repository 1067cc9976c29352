"""verify: are two checkpoints the same model? Codes, zero-points and scale bits first, values where bits differ."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from qbridge.architecture.config import COMPUTE_DTYPE, meaning
from qbridge.architecture.expected import judge
from qbridge.architecture.growth import follow
from qbridge.architecture.mixers import with_layer_types
from qbridge.architecture.names import natural
from qbridge.codecs.code_moves import CodeMove
from qbridge.codecs.parts import decode
from qbridge.commands.advancing import Advancing
from qbridge.commands.checkpoint import Checkpoint, PathLike, open_checkpoint
from qbridge.commands.report import Verification
from qbridge.commands.reporting import with_report
from qbridge.commands.restructured import align, one_by_one, without_grafts
from qbridge.commands.unquantized import have_other_codes, unlike_tensors, unlike_weights
from qbridge.findings.arguments import checked
from qbridge.findings.finding import Findings, io_as_finding
from qbridge.formats.registry import report_unusable
from qbridge.ir.dtypes import Array, to_float64
from qbridge.ir.layer import Layer, Spec
from qbridge.ir.values import group_index, row_index
from qbridge.passes.pad import Pad, cropped
from qbridge.plan.manifest import padded
from qbridge.plan.options import MEMORY, Options, allowed
from qbridge.plan.survey import survey
from qbridge.plan.windows import read_layer, windows
from qbridge.write.budget import Effort
from qbridge.write.workspace import Workspace, same_bytes
from qbridge.write.writer import Progress

BLOCK = 1 << 20  # bytes that are compared at a time
_VALUES = 1 << 20  # scales or zero-points that are held as values at a time


@checked
@with_report("b")
def verify(
    a: PathLike,
    b: PathLike,
    *,
    allow: Iterable[str] = (),
    graft: PathLike = "",
    jobs: int = 0,
    memory: int = MEMORY,
    progress: Progress | None = None,
    report: PathLike | None = None,
) -> Verification:
    """Compare two checkpoints of any formats layer by layer; `same` is the answer. Raises QBridgeError.

    What qbridge.json says was grafted into one of them is compared with the original: `graft`, or the path that was
    given to `convert`. Names are compared as they are after the renaming that it records.
    `jobs` threads (0: one for each core) work in `memory` bytes. `progress` is called with an `Advance`: the bytes
    and shards of `a` that are compared. `report` is the file of a page.

    >>> verify("fixtures/awq/llama_gemm/model", "fixtures/awq/llama_gemm/model").same
    True
    """
    start = time.monotonic()
    allow, effort = allowed(allow), Effort.of(Options(jobs=jobs, memory=memory))
    findings = Findings(allow)
    with (
        io_as_finding(f"{a}, {b}"),
        open_checkpoint(a, allow=allow) as left,
        open_checkpoint(b, allow=allow) as right,
        ThreadPoolExecutor(effort.threads, "qbridge-verify") as working,
    ):
        for side in (left, right):
            survey(side.source, side.model, findings)
        report_unusable(findings)
        if any(finding.code != "QB017" for finding in findings.errors):
            findings.stop_on_errors()  # what cannot be decoded cannot be compared
        for side, which in ((left, "the first"), (right, "the second")):
            judge(side.model, side.source.tensors, findings, which)
            for finding in side.findings:
                if finding.code == "QB043":  # whoever reads the other file has another model
                    findings.add(finding.code, finding.where, (which, *finding.facts))
        left, right = align(left, right)
        pads = {**padded(left.source), **padded(right.source)}
        left, right = one_by_one(left, right, pads)
        left, right, grafted = without_grafts(left, right, os.fspath(graft), findings)
        _compare_configs(left, right, bool(pads), findings)
        common = _compare_names(left, right, findings)
        kinds = Counter[str]()
        comparison = _Comparison(left, right, pads, effort)
        advance = Advancing(left, common, progress)
        for name, (code, kind, facts) in zip(common, working.map(comparison.of, common), strict=True):
            kinds[kind] += 1
            if facts:
                findings.add(code, name, facts)
            advance.past(name)
    return Verification(
        a=left.source.url,
        b=right.source.url,
        formats=(left.format, right.format),
        identical=kinds["identical"],
        equal=kinds["equal"],
        tensors=sum(name in left.model.tensors for name in common) + grafted,
        seconds=round(time.monotonic() - start, 3),
        findings=tuple(findings),
        same=not findings.errors,
    )


def _compare_configs(left: Checkpoint, right: Checkpoint, pads: bool, findings: Findings) -> None:
    configs = with_layer_types(left.model)[0].config, with_layer_types(right.model)[0].config
    if pads:  # sizes of MLPs follow the layers, which are compared by themselves
        own = follow(configs[0], left.model.specs), follow(configs[1], right.model.specs)
        for config, followed in zip(configs, own, strict=True):
            for key in sorted(k for k in followed if followed[k] != config[k]):
                findings.add("QB504", key, (f"{config[key]!r}, the layers have {followed[key]!r}",))
        configs = own[0], follow(own[1], left.model.specs)
    first, second = map(meaning, configs)
    for key in sorted(first.keys() | second.keys()):
        if first.get(key) != second.get(key):
            code = "QB505" if key.rpartition(".")[2] == COMPUTE_DTYPE else "QB504"
            findings.add(code, key, (f"{first.get(key)!r} and {second.get(key)!r}",))


def _compare_names(left: Checkpoint, right: Checkpoint, findings: Findings) -> list[str]:
    """Layers and unquantized tensors of both, in reading order; the others are findings."""
    first = left.model.specs.keys() | left.model.tensors.keys()
    second = right.model.specs.keys() | right.model.tensors.keys()
    for here, names in (("the first", first - second), ("the second", second - first)):
        if names:
            findings.add("QB502", natural(names), (f"only {here} has it",))
    return natural(name for name in first & second if (name in left.model.specs) == (name in right.model.specs))


@dataclass(slots=True)
class _Comparison:
    """Two checkpoints whose layers and tensors are compared one by one, from any thread."""

    left: Checkpoint
    right: Checkpoint
    pads: Mapping[str, Pad]
    effort: Effort
    _own: threading.local = field(default_factory=threading.local)

    def of(self, name: str) -> tuple[str, str, tuple[str, ...]]:
        """(QB code, `identical`, `equal`, `different` or `tensor`, what differs) of a layer or tensor of both."""
        if name in self.left.model.tensors:
            return "QB503", "tensor", self._tensor(name)
        kind, facts = self._layer(name)
        return "QB501", kind, facts

    def _tensor(self, name: str) -> tuple[str, ...]:
        here, there = self.left.model.tensors[name], self.right.model.tensors[name]
        rearranged = any(name in {**side.model.rearranged, **side.model.made} for side in (self.left, self.right))
        if rearranged or (here.dtype, here.shape) != (there.dtype, there.shape):
            return unlike_tensors(self.left, self.right, name)
        return () if self._same_bytes(here.stored, there.stored) else ("its values",)

    def _layer(self, name: str) -> tuple[str, tuple[str, ...]]:
        specs = self.left.model.specs[name], self.right.model.specs[name]
        if any(spec.weight.is_dense or spec.weight.is_computed for spec in specs) or have_other_codes(*specs):
            facts = unlike_weights(self.left.layer(name), self.right.layer(name), self.pads.get(name))
            return ("different", facts) if facts else ("equal", ())
        unlike, pad = _unlike(*specs), self.pads.get(name)
        if unlike and pad and any(spec.dims != (pad.out_features, pad.in_features) for spec in specs):
            facts = self._padded(name, pad)
            return ("different", facts) if facts else ("equal", ())
        if unlike:
            return "different", unlike
        if not self._same_codes(name):
            return "different", ("codes",)
        layers = _small_parts(self.left, name), _small_parts(self.right, name)
        differing = _differing_parts(*layers)
        if differing:
            return "different", differing
        same = specs[0].scale_dtype is specs[1].scale_dtype and specs[0].weight == specs[1].weight
        return ("identical" if same and specs[0].g_idx == specs[1].g_idx else "equal"), ()

    def _padded(self, name: str, pad: Pad) -> tuple[str, ...]:
        """Two layers, one of them padded from the dims of `pad`: what was added must be zero, the rest equal."""
        dims = pad.out_features, pad.in_features
        is_left = self.left.model.specs[name].dims == dims
        small, large = (self.left, self.right) if is_left else (self.right, self.left)
        spec, grown = small.model.specs[name], Pad(*large.model.specs[name].dims)
        layers = _small_parts(small, name), _small_parts(large, name)
        moved = spec.dims == dims and not grown.needs_values(spec) and _zero_beyond(layers[1], spec.scale_shape)
        if not (moved and self._same_moved(name, small, large)):
            layers = small.layer(name), large.layer(name)
        return _compare_padded(*layers, dims)

    def _same_codes(self, name: str) -> bool:
        """Byte by byte where both store codes alike, else in blocks, as words where those hold the same codes."""
        slots = self.left.model.slots[name]["code"], self.right.model.slots[name]["code"]
        if slots[0].same_bytes(slots[1]):
            return self._same_bytes(slots[0].tensor, slots[1].tensor)
        for sides in ((self.left, self.right), (self.right, self.left)):
            if self._same_moved(name, *sides):
                return True
        sides = self.left, self.right
        count = self.effort.block // 4  # of codes: both sides have a byte for each, and words of up to a byte
        for window in windows([side.model.specs[name] for side in sides], slots, count):
            first, second = (
                read_layer(side.source, side.model.specs[name], {"code": slot}, window).arrays["code"]
                for side, slot in zip(sides, slots, strict=True)
            )
            if not np.array_equal(first, second):
                return False
        return True

    def _same_moved(self, name: str, small: Checkpoint, large: Checkpoint) -> bool:
        """Whether the codes of one, moved into the words of the other, are those of the other."""
        slots = small.model.slots[name]["code"], large.model.slots[name]["code"]
        move = CodeMove.between(*slots, small.model.specs[name].dims, large.model.specs[name].dims)
        if move is None:
            return False
        workspace = self._workspace()
        for block in move.blocks(self.effort.block):
            stored = workspace.words("stored", block.move.read, block.source)
            words = workspace.words("moved", block.move.write, block.written)
            small.source.read_rectangle(move.read.tensor, block.source, stored)
            large.source.read_rectangle(move.write.tensor, block.written, words)
            if block.differs(stored, words):
                return False
        return True

    def _same_bytes(self, here: str, there: str) -> bool:
        sizes = [side.end - side.begin for side in (self.left.source.tensors[here], self.right.source.tensors[there])]
        if sizes[0] != sizes[1]:
            return False
        workspace = self._workspace()
        for start in range(0, sizes[0], BLOCK):
            size = min(BLOCK, sizes[0] - start)
            first, second = workspace.bytes("stored", size), workspace.bytes("moved", size)
            self.left.source.read_into(here, start, first)
            self.right.source.read_into(there, start, second)
            if not same_bytes(first, second):
                return False
        return True

    def _workspace(self) -> Workspace:
        found: Workspace | None = getattr(self._own, "workspace", None)
        if found is None:
            found = self._own.workspace = Workspace()
        return found


def _zero_beyond(layer: Layer, shape: tuple[int, int]) -> bool:
    """Whether zero-points beyond a shape are 0, as the codes are that padding adds."""
    if "zero" not in layer.arrays:
        return True
    zeros = layer.arrays["zero"]
    return not (zeros[shape[0] :].any() or zeros[:, shape[1] :].any())


def _compare_padded(a: Layer, b: Layer, small: tuple[int, int]) -> tuple[str, ...]:
    """What differs between two layers, one of them padded from the dims `small`; both with codes or both without."""
    try:
        first, second = (cropped(layer, small) for layer in (a, b))
    except ValueError as fault:
        return (str(fault),)
    if not all(np.isfinite(to_float64(layer.arrays["scale"], layer.spec.scale_dtype)).all() for layer in (a, b)):
        return ("a scale is not finite",)
    differing = _unlike(first.spec, second.spec) or _differing_parts(first, second)
    if not differing and "code" in a.arrays and not np.array_equal(first.arrays["code"], second.arrays["code"]):
        differing = ("codes",)
    return differing


def _unlike(a: Spec, b: Spec) -> tuple[str, ...]:
    """What two specs disagree on beyond how scales are stored."""
    pairs = (
        ("dims", (a.out_features, a.in_features), (b.out_features, b.in_features)),
        ("code type", a.weight.type, b.weight.type),
        ("activations", str(a.activation), str(b.activation)),
        ("bias", str(a.bias), str(b.bias)),
    )
    return tuple(f"{what}: {first} and {second}" for what, first, second in pairs if first != second)


def _small_parts(opened: Checkpoint, name: str) -> Layer:
    slots = {part: slot for part, slot in opened.model.slots[name].items() if part != "code"}
    stored = {slot.tensor: opened.source.read(slot.tensor) for slot in slots.values()}
    return decode(opened.model.specs[name], slots, stored)


def _differing_parts(a: Layer, b: Layer) -> tuple[str, ...]:
    parts = () if a.spec.weight.is_dense else (("scales", "scale"), ("zero-points", "zero"), ("offsets", "offset"))
    found = [name for name, part in parts if not (_same_bits(a, b, part) or _same_values(a, b, part))]
    found += [part for part in ("global_scale", "input_global_scale") if _outer(a, part) != _outer(b, part)]
    for part in ("bias", "input_zero"):
        if part in a.arrays and a.arrays[part].tobytes() != b.arrays[part].tobytes():
            found.append(part)
    if "input_scale" in a.arrays:
        first, second = (to_float64(x.arrays["input_scale"], x.spec.parts()["input_scale"][0]) for x in (a, b))
        if not np.array_equal(first, second):
            found.append("input_scale")
    return tuple(found)


def _outer(layer: Layer, part: str) -> Fraction | None:
    """The number that a global scale multiplies by, exactly; None where there is none, or nothing to divide by."""
    if part not in layer.arrays:
        return None
    value = float(to_float64(layer.arrays[part], layer.spec.parts()[part][0])[0])
    scheme = layer.spec.weight if part == "global_scale" else layer.spec.activation
    if scheme is None or not np.isfinite(value) or not value:
        return None
    return Fraction(value) if scheme.global_scale == "multiply" else 1 / Fraction(value)


def _same_bits(a: Layer, b: Layer, part: str) -> bool:
    """Whether both store scales or zero-points alike and with the same bits; if not, their values may be the same."""
    alike = a.spec.weight == b.spec.weight and _order(a) == _order(b) and a.spec.scale_dtype is b.spec.scale_dtype
    if not alike or any(part not in layer.arrays for layer in (a, b)):
        return False
    first, second = a.arrays[part], b.arrays[part]
    return same_bytes(first.reshape(-1).view(np.uint8), second.reshape(-1).view(np.uint8))


def _same_values(a: Layer, b: Layer, part: str) -> bool:
    """Whether every weight has the same scale or zero-point, looked at some output features at a time."""
    expand = a.spec.scale_shape[1] != b.spec.scale_shape[1] or _order(a) != _order(b)  # their groups differ
    step = max(1, _VALUES // (a.spec.in_features if expand else a.spec.scale_shape[1]))
    for start in range(0, a.spec.out_features, step):
        rows = slice(start, min(start + step, a.spec.out_features))
        first, second = (_values_of(layer, part, rows, expand) for layer in (a, b))
        if not np.array_equal(first, second):
            return False
    return True


def _values_of(layer: Layer, part: str, rows: slice, expand: bool) -> Array:
    """Scales, zero-points or offsets [out, groups] of some output features; [out, in] if they are to be expanded."""
    values = _zeros(layer, rows) if part == "zero" else _floats(layer, part, rows)
    return values[:, group_index(layer.spec, layer.arrays.get("g_idx"))] if expand else values


def _order(layer: Layer) -> bytes:
    return layer.arrays["g_idx"].tobytes() if "g_idx" in layer.arrays else b""


def _floats(layer: Layer, part: str, rows: slice) -> Array:
    """Scales or offsets in float64 of some output features; no offset is zero."""
    if part not in layer.arrays:
        return np.zeros((rows.stop - rows.start, layer.spec.scale_shape[1]))
    return to_float64(layer.arrays[part][row_index(layer.spec)[rows]], layer.spec.scale_dtype)


def _zeros(layer: Layer, rows: slice) -> Array:
    """Zero-points of some output features; symmetric means zero."""
    if "zero" not in layer.arrays:
        return np.zeros((rows.stop - rows.start, layer.spec.scale_shape[1]), np.int16)
    return layer.arrays["zero"][row_index(layer.spec)[rows]]
