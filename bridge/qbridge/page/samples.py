"""Histograms of codes and scales per kind of module, of a sample that takes bounded memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qbridge.commands.checkpoint import Checkpoint
from qbridge.findings.finding import QBridgeError
from qbridge.ir.dtypes import to_float64
from qbridge.ir.floats import VALUES
from qbridge.ir.layer import Layer, Spec
from qbridge.ir.values import code_values
from qbridge.page.layer_map import kind_of
from qbridge.plan.plan import LayerPlan

CODES = 1 << 18  # codes of a layer that are looked at
LAYERS = 3  # of a kind: the first, one in the middle, the last
KINDS = 24  # that have histograms
LARGEST = 64 << 20  # codes of a layer that can only be decoded as a whole
_BARS = 33  # of a histogram, at most


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts between `edges` (one more than counts), what is zero, and what is no number; maybe of `whole` ones."""

    edges: Sequence[float]
    counts: Sequence[int]
    zeros: int = 0
    broken: int = 0
    whole: bool = False

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the largest value; of whole numbers the edges lie half a step beyond."""
        beyond = 0.5 if self.whole else 0.0
        return self.edges[0] + beyond, self.edges[-1] - beyond

    @property
    def total(self) -> int:
        """How many values it is of."""
        return sum(self.counts) + self.zeros + self.broken


@dataclass(frozen=True, slots=True)
class Sample:
    """Histograms of one kind of module: of codes, and of scales by their binary logarithm."""

    kind: str
    layers: int
    sampled: Sequence[str]
    codes: Histogram
    scales: Histogram | None


def samples(opened: Checkpoint) -> list[Sample]:
    """A sample of each kind of module, largest kinds first; none of a checkpoint on a server."""
    if opened.source.storage.is_far:
        return []
    kinds: dict[str, list[Spec]] = {}
    for spec in opened.model.specs.values():
        kinds.setdefault(kind_of(spec), []).append(spec)
    largest = sorted(kinds, key=lambda kind: -sum(spec.out_features * spec.in_features for spec in kinds[kind]))
    found = (_of_kind(opened, kind, kinds[kind]) for kind in largest[:KINDS])
    return [sample for sample in found if sample is not None]


def _of_kind(opened: Checkpoint, kind: str, specs: Sequence[Spec]) -> Sample | None:
    chosen = {0: specs[0], len(specs) // 2: specs[len(specs) // 2], len(specs) - 1: specs[-1]}
    codes, scales, names = [], [], []
    for spec in list(chosen.values())[:LAYERS]:
        layer = _some_rows(opened, spec)
        if layer is None or spec.weight.type != specs[0].weight.type:
            continue
        names.append(spec.name)
        codes.append(code_values(layer.arrays["code"].reshape(-1)[:CODES], spec.weight.type))
        if "scale" in layer.arrays:
            scales.append(to_float64(layer.arrays["scale"].reshape(-1)[:CODES], spec.scale_dtype))
    if not codes:
        return None
    return Sample(
        kind,
        len(specs),
        names,
        histogram(np.concatenate(codes), specs[0].weight.type == "int"),
        logarithms(np.concatenate(scales)) if scales else None,
    )


def _some_rows(opened: Checkpoint, spec: Spec) -> Layer | None:
    """The first output features of a layer, or None where it is too large to be decoded or cannot be."""
    slots: Mapping[str, object] = opened.model.slots.get(spec.name, {})
    if spec.weight.type not in ("int", *VALUES) or "code" not in slots:  # plain weights, blocks that are computed
        return None
    plan = LayerPlan(spec, spec, (), opened.model.slots[spec.name], opened.model.slots[spec.name])
    window = next(iter(plan.windows(CODES)))
    if window.rows(spec) * spec.in_features > LARGEST:
        return None
    try:
        return plan.run(opened.source, frozenset({"code", "scale"} & spec.parts().keys()), window)
    except (ValueError, OSError, QBridgeError):
        return None  # the command itself has said what is wrong with it


def histogram(values: npt.NDArray[np.float64], whole: bool) -> Histogram:
    """Of values as they are; bars of `whole` numbers stand over the same number of them each."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return Histogram((0.0, 1.0), (0,), broken=int(values.size))
    low, high = float(finite.min()), float(finite.max())
    if whole:
        step = max(1, int(np.ceil((high - low + 1) / _BARS)))
        edges = np.arange(low - 0.5, high + step, step)
    else:
        edges = np.linspace(low, high if high > low else low + 1, _BARS + 1)
    counts, _ = np.histogram(finite, edges)
    return Histogram(edges.tolist(), counts.tolist(), broken=int(values.size - finite.size), whole=whole)


def logarithms(values: npt.NDArray[np.float64]) -> Histogram:
    """Of the binary logarithms of what is positive or negative; zeros and broken values are counted apart."""
    finite = values[np.isfinite(values)]
    sizes = np.abs(finite[finite != 0])
    zeros, broken = int(finite.size - sizes.size), int(values.size - finite.size)
    if not sizes.size:
        return Histogram((0.0, 1.0), (0,), zeros, broken)
    drawn = histogram(np.log2(sizes), False)
    return Histogram(drawn.edges, drawn.counts, zeros, broken)
