"""What a plan is: passes and slots per layer, output tensors, config; no decision is taken here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from qbridge.codecs.code_moves import CodeMove
from qbridge.codecs.parts import encode_part, needed, parts_inside
from qbridge.formats.protocol import Format
from qbridge.ir.dtypes import Array, DType
from qbridge.ir.exactness import Exactness, weakest
from qbridge.ir.layer import Layer, Spec
from qbridge.ir.model import Model, TensorInfo
from qbridge.ir.plain import as_tensors
from qbridge.ir.slots import Slot
from qbridge.passes import Pass
from qbridge.plan.windows import EVERYTHING, Window, read_layer, windows
from qbridge.source.reader import Source
from qbridge.source.storage import File
from qbridge.targets.target import Target


def is_unquantized(passes: Sequence[Pass]) -> bool:
    """Whether passes end in a layer without codes that stands among the unquantized tensors of its model."""
    return bool(passes) and passes[-1].unquantizes


class Writer(Protocol):
    """What gives output tensors their content: a layer after its passes, or several that share them."""

    @property
    def before(self) -> Spec:
        """What it was."""

    @property
    def after(self) -> Spec:
        """What it becomes."""

    @property
    def write(self) -> Mapping[str, Slot]:
        """The slots of what is written, by part."""

    def copied(self, part: str) -> bool:
        """Whether the part's bytes do not change, so that the tensor is copied and not decoded."""

    def run(self, source: Source, parts: frozenset[str], window: Window = ...) -> Layer:
        """The layer after the passes, with at least `parts` of it; of a window, its output features alone."""

    def windows(self, limit: int, within: Window = ...) -> Iterator[Window]:
        """Windows of about `limit` codes each, of everything or of one of them."""

    def encoded(self, source: Source, part: str) -> Array:
        """The stored array of one part (or fixed tensor) after the passes; ValueError if a value does not fit."""

    def code_move(self) -> CodeMove | None:
        """How the codes get to their new words in blocks, or None if they must be decoded as a whole."""


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """What happens to one layer; `read` and `write` are its slots by part."""

    before: Spec
    after: Spec
    passes: tuple[Pass, ...]
    read: Mapping[str, Slot]
    write: Mapping[str, Slot]

    @property
    def exactness(self) -> Exactness:
        """The weakest promise of its passes; undo is identical where it is kept, whatever passes there are."""
        asked = any(step.gives_back for step in self.passes)
        if asked and not any(step.is_final for step in self.passes):
            return weakest(*(p.exactness for p in self.passes if p.exactness is not Exactness.EQUAL))
        return weakest(*(p.exactness for p in self.passes))

    @property
    def unquantized(self) -> bool:
        """Whether it becomes an unquantized tensor, in whatever format the others are written."""
        return is_unquantized(self.passes)

    @property
    def touched(self) -> frozenset[str]:
        """The parts that some pass reads or rewrites."""
        return frozenset().union(*(p.parts for p in self.passes))

    def copied(self, part: str) -> bool:
        """Whether the part's bytes do not change, so that the tensor is copied and not decoded."""
        together = {part, *parts_inside(self.write, part), *self.write[part].codec.needs}
        kept = together.isdisjoint(self.touched) and part in self.read
        return kept and self.read[part].same_bytes(self.write[part])

    @property
    def stages(self) -> tuple[Spec, ...]:
        """Specs before, between and after the passes: one more than there are passes."""
        found = [self.before]
        for step in self.passes:
            found.append(step.plan(found[-1]))
        return tuple(found)

    def run(self, source: Source, parts: frozenset[str], window: Window = EVERYTHING) -> Layer:
        """The layer after the passes, with at least `parts` of it; of a window, its output features alone."""
        wanted = frozenset(needed(self.write, parts)) | parts
        for step in reversed(self.passes):
            wanted = step.inputs(wanted)
        layer = read_layer(source, self.before, needed(self.read, self.before.parts().keys() & wanted), window)
        for step, spec in zip(self.passes, self.stages, strict=False):
            layer = window.step(step, spec).apply(layer)
        return layer

    def windows(self, limit: int, within: Window = EVERYTHING) -> Iterator[Window]:
        """Windows of about `limit` codes each, of everything or of one of them."""
        if any(step.whole for step in self.passes):
            return iter((within,))
        return windows(self.stages, (self.read["code"], self.write["code"]), limit, within)

    def encoded(self, source: Source, part: str) -> Array:
        """The stored array of one part (or fixed tensor) after the passes; ValueError if a value does not fit."""
        return encode_part(self.run(source, frozenset({part})), part, self.write[part])

    def code_move(self) -> CodeMove | None:
        """How the codes get to their new words in blocks, or None if they must be decoded as a whole."""
        for step, spec in zip(self.passes, self.stages, strict=False):
            if step.recodes(spec):
                return None
        return CodeMove.between(self.read["code"], self.write["code"], self.before.dims, self.after.dims)


@dataclass(frozen=True, slots=True)
class Woven:
    """Layers that share tensors (`Interleaved`, `HeadRows` and others), as one layer that has all rows."""

    layers: tuple[LayerPlan, ...]

    @property
    def before(self) -> Spec:
        """What it was."""
        return self._wide([layer.before for layer in self.layers])

    @property
    def after(self) -> Spec:
        """What it becomes."""
        return self._wide([layer.after for layer in self.layers])

    def _wide(self, specs: Sequence[Spec]) -> Spec:
        return replace(specs[0], out_features=sum(spec.out_features for spec in specs))

    @property
    def write(self) -> Mapping[str, Slot]:
        """The slots by part, of all rows together."""
        shared = self.layers[0].write.items()
        return {part: replace(slot, codec=slot.codec.whole) for part, slot in shared if not slot.codec.exclusive}

    def copied(self, part: str) -> bool:
        """Whether all of them are read out of one tensor, in which their rows lie as they will."""
        if any(part in layer.touched or part not in layer.read for layer in self.layers):
            return False
        pairs = [(layer.read[part], layer.write[part]) for layer in self.layers]
        one = len({read.tensor for read, _ in pairs}) == 1
        return one and all(replace(write, tensor=read.tensor, slice=read.slice) == read for read, write in pairs)

    def run(self, source: Source, parts: frozenset[str], window: Window = EVERYTHING) -> Layer:
        """As `LayerPlan.run`, of `parts` alone; ValueError where a part that is one for all layers differs."""
        spec, count = window.of(self.after), len(self.layers)
        if not self._alternate and window != EVERYTHING:
            number, share = self._own(window)
            layer = self.layers[number].run(source, parts, share)
            return Layer(spec, {part: array for part, array in layer.arrays.items() if part in parts})
        share = window.share(count) if self._alternate else EVERYTHING
        layers = [layer.run(source, parts, share) for layer in self.layers]
        shapes = spec.parts()
        arrays = {
            part: self._together(part, [layer.arrays[part] for layer in layers]).reshape(shapes[part][1])
            for part in layers[0].arrays
            if part in parts
        }
        return Layer(spec, arrays)

    @property
    def _alternate(self) -> bool:
        """Whether their rows take turns."""
        return any(slot.codec.alternates for slot in self.layers[0].write.values())

    def _own(self, window: Window) -> tuple[int, Window]:
        """Which of the layers a window lies in, and where, if their rows lie one layer after another."""
        rows = self.layers[0].after.out_features
        number = window.start // rows
        end = None if window.end is None or window.end == (number + 1) * rows else window.end - number * rows
        return number, Window(window.start - number * rows, end)

    def _together(self, part: str, arrays: Sequence[Array]) -> Array:
        """The rows of all layers in one array."""
        codec = self.layers[0].write[part].codec
        if not codec.common:
            return codec.join(arrays)
        if any(array.tobytes() != arrays[0].tobytes() for array in arrays):
            raise ValueError(f"{self.layers[0].write[part].tensor}: {len(arrays)} layers share it, and differ")
        return arrays[0]

    def windows(self, limit: int, within: Window = EVERYTHING) -> Iterator[Window]:
        """As `LayerPlan.windows`."""
        count = len(self.layers)
        if self._alternate:
            for window in self.layers[0].windows(limit // count, within.share(count)):
                yield window.times(count)
        elif self.before.out_features != self.after.out_features:
            yield within  # what is cropped or filled lies at the end of each layer
        else:
            rows = self.layers[0].after.out_features
            shares = (
                [(number, EVERYTHING) for number in range(count)] if within == EVERYTHING else [self._own(within)]
            )
            for number, share in shares:
                for window in self.layers[number].windows(limit, share):
                    end = rows if window.end is None else window.end
                    yield Window(number * rows + window.start, number * rows + end)

    def encoded(self, source: Source, part: str) -> Array:
        """As `LayerPlan.encoded`."""
        return encode_part(self.run(source, frozenset({part})), part, self.write[part])

    def code_move(self) -> None:
        """Rows of several layers are not moved in blocks."""


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """One tensor to write: a copy of the source tensor `origin`, the encoded `part` of `layer`, or `slices`.

    With `beside`, these layers have a share of it as `layer` has. `slices` are output tensors of their own, which
    lie one after another. `shard` is the source file beside whose other tensors it is written; one that is `grafted`
    comes from a file of another checkpoint, and all those come last. `block` is the type of its blocks, where it has
    rows of blocks (`Codec.block`).
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    shard: File
    origin: str = ""
    layer: str = ""
    part: str = ""
    beside: tuple[str, ...] = ()
    slices: tuple[OutputTensor, ...] = ()
    grafted: bool = False
    block: str = ""


class Writers(Protocol):
    """What knows who gives each output tensor its content."""

    def layer_of(self, tensor: OutputTensor) -> Writer | None:
        """What gives a tensor its content; None for one that belongs to no layer."""


def writer_of(tensor: OutputTensor, *tables: Mapping[str, LayerPlan]) -> Writer | None:
    """What gives a tensor its content, from the first table that has its layer; None where it belongs to no layer."""
    if not tensor.layer:
        return None
    layers = next(table for table in tables if tensor.layer in table)
    if tensor.beside:
        return Woven(tuple(layers[name] for name in (tensor.layer, *tensor.beside)))
    return layers[tensor.layer]


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Everything decided before a weight is read; `rewritten` has the text of side files that change, by name.

    `layers` are the quantized ones, `others` unquantized linears that are written elsewhere than they lie. `metadata`
    are those of the files, for a format whose files have any. `residue` has what is stored of layers beside the
    manifest, by tensor.
    """

    model: Model
    target: Target
    format: Format
    layers: Mapping[str, LayerPlan]
    outputs: Sequence[OutputTensor]
    config: Mapping[str, Any]
    because: str = ""
    rewritten: Mapping[str, str] = field(default_factory=dict)
    others: Mapping[str, LayerPlan] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    residue: Mapping[str, LayerPlan] = field(default_factory=dict)

    def needs_index(self, files: int) -> bool:
        """Whether an index is written beside so many files: of several, or for who looks for towers in it."""
        return not self.metadata and (files > 1 or self.model.architecture in self.target.towers_by_index)

    @property
    def result(self) -> Model:
        """The model that is written."""
        specs = {name: layer.after for name, layer in self.layers.items()}
        model = replace(self.model, specs=specs, format=self.format.NAME)
        return as_tensors(model, [name for name, layer in self.layers.items() if layer.unquantized])

    @property
    def written(self) -> Model:
        """The model as who reads the output sees it: every tensor by the name that is written."""
        unquantized = {name for name, layer in self.layers.items() if layer.unquantized}
        single = (output for output in self.outputs if not output.slices and output.layer in ("", *unquantized))
        plain = (*single, *filter(self._is_of_others, self.outputs))
        tensors = {output.name: TensorInfo(output.dtype, output.shape, output.name) for output in plain}
        slots = {name: layer.write for name, layer in self.layers.items() if name not in unquantized}
        return replace(self.result, slots=slots, tensors=tensors)

    def _is_of_others(self, output: OutputTensor) -> bool:
        return (output.slices[0] if output.slices else output).layer in self.others

    def layer_of(self, tensor: OutputTensor) -> Writer | None:
        """What gives a tensor its content; None for one that belongs to no layer."""
        return writer_of(tensor, self.residue, self.others, self.layers)

    @property
    def pass_counts(self) -> dict[str, int]:
        """Layers by pass."""
        return dict(Counter(step.name for layer in self.layers.values() for step in layer.passes))

    @property
    def exactness(self) -> dict[str, int]:
        """Layers by class."""
        counts: dict[str, int] = {}
        for layer in self.layers.values():
            counts[str(layer.exactness)] = counts.get(str(layer.exactness), 0) + 1
        return counts
